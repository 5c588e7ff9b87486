"""The pipeline in a checkpoint folder: any kind of photo in, places with names out."""

import json
import pickle
import shutil
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from geocell_models import save_cell_model
from local_server import FolderHandler, serve
from PIL import Image
from transformers import ViTImageProcessor, pipeline
from transformers.pipelines.pt_utils import KeyDataset

from geomae.data.photos import decode_photo
from geomae.geography import great_circle_km
from geomae.populated_places import write_places
from modeling import GeoMAEConfig, GeoMAEForGeolocation
from modeling.image_processing_geomae import GeoMAEImageProcessor
from modeling.image_to_coordinates import open_photo

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
    "head_hidden_sizes": [16, 8],
}
KEYS = ["latitude", "longitude", "radius_50_km", "radius_90_km", "top_places", "nearest_place"]


@pytest.fixture(scope="module", autouse=True)
def own_modules_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Code of checkpoints is copied into a folder of this test's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of cells, with the names of places."""
    folder = save_cell_model(tmp_path_factory.mktemp("classifier"), TINY)
    write_places(folder)
    return folder


@pytest.fixture(scope="module")
def locate(folder: Path) -> Any:
    return pipeline("image-to-coordinates", model=str(folder), trust_remote_code=True, device="cpu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three photos of different sizes and contents, without losses."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("photos")
    paths = [folder / f"{number} a&b.png" for number in range(3)]
    for path, size in zip(paths, ((40, 60), (37, 37), (90, 50)), strict=True):
        coarse = Image.fromarray(rng.integers(0, 256, (3, 3, 3), np.uint8))
        coarse.resize(size).save(path)
    return paths


def same(answer: dict[str, Any], other: dict[str, Any]) -> bool:
    """Equal as far as float32 sums over batches of another size are."""
    return list(answer) == list(other) and all(answer[key] == pytest.approx(other[key], rel=1e-4) for key in KEYS[:4])


def test_the_answer_is_the_models_own(folder: Path, locate: Any, photos: list[Path]) -> None:
    model = GeoMAEForGeolocation.from_pretrained(folder).eval()
    with Image.open(photos[0]) as image, torch.no_grad():
        output = model(locate.image_processor(image)["pixel_values"])
    answer = locate(str(photos[0]), top_k=3)
    assert list(answer) == KEYS
    assert [answer["latitude"], answer["longitude"]] == output.coordinates_deg[0].tolist()
    spread = model.head.spread_around(output.logits, output.coordinates_deg)
    assert answer["radius_50_km"] == pytest.approx(float(spread.radius_50_km))
    assert answer["radius_90_km"] == pytest.approx(float(spread.radius_90_km))
    log_mass, places = model.head.place_log_probabilities(output.logits)
    order = log_mass[0].argsort(descending=True)[:3]
    assert [top["probability"] for top in answer["top_places"]] == pytest.approx(log_mass[0, order].exp().tolist())
    assert [top["latitude"] for top in answer["top_places"]] == pytest.approx(places[0, order, 0].tolist())


def test_every_kind_of_input_gets_the_same_answer(locate: Any, photos: list[Path]) -> None:
    expected = [locate(str(path)) for path in photos]
    assert expected[0] != expected[1]
    images = [Image.open(path) for path in photos]
    with serve(FolderHandler, root=photos[0].parent) as (server, _):
        address = f"{server}/{photos[0].name.replace(' ', '%20')}"
        assert same(locate(address), expected[0])
    assert same(locate(photos[1]), expected[1])
    assert same(locate(images[0]), expected[0])
    arrays = [np.asarray(image) for image in images]
    assert isinstance(locate(images), list)
    for several in (photos, images, tuple(images)):
        answers = locate(several, batch_size=2)
        assert all(same(*pair) for pair in zip(answers, expected, strict=True))
    answers = locate([arrays[1], torch.from_numpy(arrays[1].transpose(2, 0, 1).copy())])
    assert all(same(answer, expected[1]) for answer in answers)
    assert locate([]) == []


def test_streams_are_answered_one_by_one(locate: Any, photos: list[Path]) -> None:
    expected = [locate(str(path)) for path in photos]
    rows = datasets.Dataset.from_dict({"image": [str(path) for path in photos], "name": list("abc")})
    pictures = rows.cast_column("image", datasets.Image())
    for stream in (
        (str(path) for path in photos),
        KeyDataset(rows, "image"),
        rows,
        pictures,
        pictures.to_iterable_dataset(),
    ):
        answers = locate(stream, batch_size=2)
        assert not isinstance(answers, list)
        assert all(same(*pair) for pair in zip(answers, expected, strict=True))
    with pytest.raises(ValueError, match="has the columns name; wrap the photos' in KeyDataset"):
        locate(rows.remove_columns("image"))


def test_photos_that_datasets_leaves_encoded_are_opened(locate: Any, photos: list[Path]) -> None:
    expected = [locate(str(path)) for path in photos]
    paths = datasets.Dataset.from_dict({"image": [str(path) for path in photos]})
    encoded = paths.cast_column("image", datasets.Image(decode=False))
    embedded = [{"bytes": path.read_bytes(), "path": path.name} for path in photos]
    features = datasets.Features(image=datasets.Image(decode=False))
    rows = datasets.Dataset.from_dict({"image": embedded}, features=features)
    for stream in (encoded, encoded.to_iterable_dataset(), rows, embedded, [path.read_bytes() for path in photos]):
        assert all(same(*pair) for pair in zip(locate(stream), expected, strict=True))
    with pytest.raises(ValueError, match=r"'a\.jpg' cannot be located: it is no photo"):
        locate({"bytes": b"Dear model,", "path": "a.jpg"})
    with pytest.raises(ValueError, match="the row of bytes, path cannot be located: it has neither bytes nor a path"):
        locate({"bytes": None, "path": None})
    with pytest.raises(ValueError, match=r"the photo of 3 bytes cannot be located: it is no photo"):
        locate(b"abc")


def test_the_nearest_place_is_named(folder: Path, locate: Any, photos: list[Path]) -> None:
    answer = locate(str(photos[0]))
    lines = (folder / "populated_places.csv").read_text(encoding="utf-8").splitlines()
    places = np.array([line.rsplit(",", 2)[1:] for line in lines[1:]], dtype=np.float64)
    for point in (answer, *answer["top_places"]):
        distances_km = great_circle_km(np.array([[point["latitude"], point["longitude"]]]), places)
        near = point["nearest_place"]
        assert near["distance_km"] == pytest.approx(distances_km.min(), rel=1e-4)
        name = lines[1 + int(distances_km.argmin())]
        assert near["name"] in name
        assert near["country"] in name


def test_a_place_at_the_point_itself_is_0_km_away(locate: Any) -> None:
    paris, _ = locate.nearest_places(np.array([[48.85341, 2.3488], [0.0, 180.0]]))
    assert paris["name"] == "Paris"
    assert paris["country"] == "France"
    assert paris["distance_km"] < 0.1


def test_without_the_file_of_places_none_is_named(tmp_path: Path, photos: list[Path]) -> None:
    save_cell_model(tmp_path, TINY)
    answer = pipeline("image-to-coordinates", model=str(tmp_path), trust_remote_code=True)(str(photos[0]))
    assert answer["nearest_place"] is None
    assert {top["nearest_place"] for top in answer["top_places"]} == {None}


def fill_hub_cache(cache: Path, name: str, revisions: dict[str, Path]) -> None:
    """What `huggingface_hub` leaves where some revisions of a repository were downloaded."""
    repository = cache / f"models--{name.replace('/', '--')}"
    for number, (revision, folder) in enumerate(revisions.items()):
        shutil.copytree(folder, repository / "snapshots" / (commit := f"{number:040x}"))
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / revision).write_text(commit)


def test_places_are_those_of_the_revision_that_the_model_was_loaded_from(tmp_path: Path, photos: list[Path]) -> None:
    for name in ("main", "v1"):
        save_cell_model(tmp_path / name, TINY)
        (tmp_path / name / "populated_places.csv").write_text(f"name,country,latitude,longitude\nOf {name},X,1,2\n")
    fill_hub_cache(tmp_path / "cache", "me/cells", {name: tmp_path / name for name in ("main", "v1")})
    secret = "hf_" + "s" * 34
    options: dict[str, Any] = {"cache_dir": tmp_path / "cache", "token": secret}
    for revision in ("v1", "main"):
        model = GeoMAEForGeolocation.from_pretrained("me/cells", revision=revision, **options)
        answer = pipeline("image-to-coordinates", model=model)(str(photos[0]))
        assert answer["nearest_place"]["name"] == f"Of {revision}"
    assert secret not in repr(model.hub_access)
    assert secret.encode() not in pickle.dumps(model)


def test_places_are_asked_for_with_the_token_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = GeoMAEForGeolocation.from_pretrained(save_cell_model(tmp_path, TINY), token="hf_mine", revision="v1")
    model.config.name_or_path = "me/private"
    asked = []
    monkeypatch.setattr("modeling.image_to_coordinates.cached_file", lambda *words, **how: asked.append((words, how)))
    assert pipeline("image-to-coordinates", model=model).places is None
    ((words, how),) = asked
    assert words == ("me/private", "populated_places.csv")
    assert (how["token"], how["revision"]) == ("hf_mine", "v1")


def test_a_file_of_places_that_is_none_is_named(tmp_path: Path, photos: list[Path]) -> None:
    save_cell_model(tmp_path, TINY)
    (tmp_path / "populated_places.csv").write_text("name,latitude\nParis,48.9\n")
    locate = pipeline("image-to-coordinates", model=str(tmp_path), trust_remote_code=True)
    with pytest.raises(ValueError, match="expected the columns name, country, latitude and longitude"):
        locate(str(photos[0]))


def test_another_decoding_can_be_asked_for(folder: Path, locate: Any, photos: list[Path]) -> None:
    model = GeoMAEForGeolocation.from_pretrained(folder).eval()
    with Image.open(photos[0]) as image, torch.no_grad():
        logits = model(locate.image_processor(image)["pixel_values"]).logits
    for decoding in ("argmax", "kernel", "expected_km", "mean_in_top_k"):
        answer = locate(str(photos[0]), decoding=decoding)
        expected = model.head.decode(logits, [decoding])[decoding][0].tolist()
        assert [answer["latitude"], answer["longitude"]] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    "head",
    [
        {"head_type": "sphere"},
        {"head_type": "tanh"},
        {"head_type": "hybrid", "num_geocells": [3, 9]},
        {"head_type": "vmf_mixture", "num_geocells": [9]},
        {"head_type": "vmf_mixture", "num_mixture_components": 5},
    ],
    ids=["sphere", "tanh", "hybrid", "vmf of cells", "free vmf"],
)
def test_every_head_answers_in_the_same_form(head: dict[str, Any], photos: list[Path]) -> None:
    model = GeoMAEForGeolocation(GeoMAEConfig(**TINY, **head))  # registered by importing modeling; never saved
    answers = pipeline("image-to-coordinates", model=model)(photos, batch_size=3, top_k=4)
    for answer in answers:
        assert list(answer) == KEYS
        assert json.loads(json.dumps(answer)) == answer
        assert abs(answer["latitude"]) <= 90
        assert abs(answer["longitude"]) <= 180
        if model.head.has_posterior:
            assert answer["radius_50_km"] < answer["radius_90_km"]
            masses = [top["probability"] for top in answer["top_places"]]
            assert len(masses) == 4
            assert masses == sorted(masses, reverse=True)
        else:
            assert (answer["radius_50_km"], answer["radius_90_km"], answer["top_places"]) == (None, None, [])


def test_half_precision_keeps_the_head_in_float32(folder: Path, locate: Any, photos: list[Path]) -> None:
    half = pipeline("image-to-coordinates", model=str(folder), trust_remote_code=True, dtype=torch.bfloat16)
    assert {p.dtype for p in half.model.head.parameters()} == {torch.float32}
    assert {p.dtype for p in half.model.backbone.parameters()} == {torch.bfloat16}
    masses = [each(str(photos[0]))["top_places"][0]["probability"] for each in (half, locate)]
    assert masses[0] == pytest.approx(masses[1], abs=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        assert locate(str(photos[0]))["top_places"][0]["probability"] == pytest.approx(masses[1], abs=0.1)


def test_a_bad_photo_is_named(locate: Any, photos: list[Path], tmp_path: Path) -> None:
    (tmp_path / "letter.jpg").write_text("Dear model,")
    with pytest.raises(ValueError, match=r"letter\.jpg' cannot be located: it is no photo"):
        locate([str(photos[0]), str(tmp_path / "letter.jpg")])
    with pytest.raises(ValueError, match=r"missing\.jpg' cannot be located: there is no such file"):
        locate("missing.jpg")
    with pytest.raises(ValueError, match=r"ndarray of shape \(5, 5, 7\) cannot be located"):
        locate(np.zeros((5, 5, 7), np.uint8))
    with (
        serve(FolderHandler, root=tmp_path) as (server, _),
        pytest.raises(ValueError, match=r"nothing\.jpg' cannot be located: .*404"),
    ):
        locate(f"{server}/nothing.jpg")


def test_options_that_cannot_work_are_refused(locate: Any, photos: list[Path]) -> None:
    with pytest.raises(ValueError, match="top_k=0: expected a whole number of places, at least 1"):
        locate(photos, top_k=0)
    with pytest.raises(ValueError, match="topk: unknown; the options are top_k"):
        locate(photos, topk=3)
    with pytest.raises(ValueError, match=r"decoding='best'.*argmax, kernel, expected_km"):
        locate(photos, decoding="best")
    point = pipeline("image-to-coordinates", model=GeoMAEForGeolocation(GeoMAEConfig(**TINY)))
    with pytest.raises(ValueError, match="answers a point, which is not decoded"):
        point(photos, decoding="kernel")


def test_an_image_processor_of_another_size_is_refused(tmp_path: Path) -> None:
    model = GeoMAEForGeolocation(GeoMAEConfig(**TINY))
    for other in (GeoMAEImageProcessor.for_image_size(64), ViTImageProcessor(size={"height": 64, "width": 64})):
        with pytest.raises(ValueError, match=r"makes photos of 64 x 64 pixels, and the model was made for 32 x 32"):
            pipeline("image-to-coordinates", model=model, image_processor=other)
    save_cell_model(tmp_path, TINY)
    GeoMAEImageProcessor.for_image_size(64).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"makes photos of 64 x 64 pixels"):
        pipeline("image-to-coordinates", model=str(tmp_path), trust_remote_code=True)


def test_a_pipeline_saves_what_it_was_loaded_from(locate: Any, photos: list[Path], tmp_path: Path) -> None:
    locate.save_pretrained(tmp_path)
    assert "image-to-coordinates" in json.loads((tmp_path / "config.json").read_text())["custom_pipelines"]
    again = pipeline("image-to-coordinates", model=str(tmp_path), trust_remote_code=True)
    assert again(str(photos[0])) == locate(str(photos[0]))
    assert again(str(photos[0]))["nearest_place"] is not None


def test_an_array_of_several_photos_is_as_many_answers(locate: Any) -> None:
    photos = np.random.default_rng(0).integers(0, 256, (2, 40, 50, 3), dtype=np.uint8)
    expected = locate(list(photos))
    assert locate(photos) == expected
    assert locate(torch.from_numpy(photos).permute(0, 3, 1, 2)) == expected
    with pytest.raises(ValueError, match="it holds 2 photos: give them as one list"):
        locate([list(photos)])


@pytest.mark.parametrize("wrong", [{"top_k": "3"}, {"top_k": 2.5}, {"timeout": "a"}, {"timeout": 0}])
def test_options_of_another_type_are_refused(locate: Any, photos: list[Path], wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected a"):
        locate(str(photos[0]), **wrong)


class SlowHandler(FolderHandler):
    """Sends a byte now and then, and never stops."""

    def _answer(self) -> None:
        self.send_response(200)
        self.end_headers()
        for _ in range(100):
            self.wfile.write(b"x")
            self.wfile.flush()
            time.sleep(0.05)


def test_an_address_may_take_so_long_in_all(locate: Any, tmp_path: Path) -> None:
    begun = time.monotonic()
    late = pytest.raises(ValueError, match=r"did not arrive within 0\.3 s")
    with serve(SlowHandler, root=tmp_path) as (address, _), late:
        locate(f"{address}/a.jpg", timeout=0.3)
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("short", [511, 1021, 1022, 2041])
def test_jpeg_is_reduced_as_an_evaluation_does_it_whatever_its_sides(tmp_path: Path, short: int) -> None:
    Image.effect_noise((short + 100, short), 60).convert("RGB").save(tmp_path / "a.jpg", quality=95)
    with open_photo(tmp_path / "a.jpg", 256, 1.0) as image:
        image.load()
        opened = image.size
    decoded = decode_photo((tmp_path / "a.jpg").read_bytes(), min_short_side=256)
    assert opened == (decoded.shape[1], decoded.shape[0])


def test_answer_that_is_no_number_is_refused(locate: Any) -> None:
    with pytest.raises(ValueError, match="answer is no number"):
        locate.postprocess({"coordinates_deg": torch.tensor([[float("nan"), 0.0]])})
