"""`python -m geomae.retrieval index | search`, from photos to numbers, with tiny models."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from packed_photos import TINY, pack

from geomae.data import PhotoCollator, load_photos
from geomae.errors import ConfigError, SourceError, TooManyDamagedPhotosError
from geomae.geography import great_circle_km
from geomae.retrieval import read_index
from geomae.retrieval.__main__ import main
from modeling import GeoMAEConfig, GeoMAEForGeolocation, GeoMAEForPreTraining

ROOT = Path(__file__).resolve().parent.parent
ONE_OF_EACH = "--k 5 --sigma_km 500 --similarity_exponent 2 --uniform_share 0.05"
CENTROIDS_DEG = np.array([[-20.0, -60.0], [20.0, -60.0], [-20.0, 60.0], [20.0, 60.0]])


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return pack(tmp_path_factory.mktemp("packed") / "photos", train=60, validation=24, test=20)


def save_checkpoint(folder, model_class=GeoMAEForGeolocation, seed=0, **architecture):
    torch.manual_seed(seed)
    model = model_class(GeoMAEConfig(**{**TINY, **architecture}))
    if architecture.get("num_geocells"):
        model.head.set_geocells([CENTROIDS_DEG], [], np.full(4, 1e8), np.full(4, 3000.0))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("models") / "cells", head_type="geocells", num_geocells=[4])


@pytest.fixture(scope="module")
def index(tmp_path_factory, packed, checkpoint):
    folder = tmp_path_factory.mktemp("indices") / "index"
    main(["index", "--checkpoint", str(checkpoint), "--photos", str(packed), "--output_dir", str(folder)])
    return folder


def run_search(output_dir, index, checkpoint, packed, *words):
    given = {"index": index, "checkpoint": checkpoint, "test_set": packed, "output_dir": output_dir}
    named = [word for key, path in given.items() if f"--{key}" not in words for word in (f"--{key}", str(path))]
    main(["search", *named, *words])
    return json.loads((output_dir / "metrics.json").read_text())


def vectors_of(checkpoint, packed, split):
    """Embedded one by one, in float64 from there on."""
    model = GeoMAEForGeolocation.from_pretrained(checkpoint).eval()
    collator = PhotoCollator(16, augment=False, labelled=False)
    with torch.no_grad():
        features = [model.embed(collator([row])["pixel_values"]) for row in load_photos(packed, split)]
    vectors = torch.cat(features).double().numpy()
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def places_of(packed, split):
    photos = load_photos(packed, split)
    return np.stack([photos["latitude"], photos["longitude"]], axis=1)


def test_an_index_holds_every_photo_with_its_place_and_says_what_made_it(index, packed, checkpoint):
    read, photos = read_index(index), load_photos(packed, "train")
    assert read.places.ids == list(photos["id"])
    assert read.places.coordinates_deg.tolist() == places_of(packed, "train").tolist()
    vectors = read.vectors.reconstruct_n(0, 60)
    assert vectors == pytest.approx(vectors_of(checkpoint, packed, "train"), abs=1e-5)
    expected = {"checkpoint": "cells", "photos": "photos", "split": "train", "num_photos": 60, "kind": "flat"}
    assert expected.items() <= read.record.items()
    assert (read.record["num_damaged"], read.record["num_absent"], read.record["dimensions"]) == (0, 0, 16)
    assert {"commit", "command"} <= read.record.keys()
    assert "faiss-cpu" in read.record["versions"]
    assert str(index.parent) not in (index / "index.json").read_text()


def test_the_nearest_answer_is_that_of_brute_force(tmp_path, index, packed, checkpoint, capsys):
    metrics = run_search(tmp_path, index, checkpoint, packed, *ONE_OF_EACH.split())
    cosines = vectors_of(checkpoint, packed, "test") @ vectors_of(checkpoint, packed, "train").T
    expected = places_of(packed, "train")[cosines.argmax(axis=1)]
    table = pq.read_table(tmp_path / "predictions_nearest.parquet").to_pandas()
    assert table[["latitude", "longitude"]].to_numpy().tolist() == expected.tolist()
    errors = great_circle_km(expected, places_of(packed, "test"))
    assert metrics["decodings"]["nearest"]["mean_km"] == pytest.approx(errors.mean())
    assert metrics["decoding"] == "kernel_density"
    assert metrics["test_set"]["split"] == "test"
    assert metrics["retrieval"]["index"]["num_photos"] == 60
    assert metrics["retrieval"]["chosen"]["kernel_density"] == {"k": 5, "sigma_km": 500, "similarity_exponent": 2}
    assert "uniform_on_sphere" in metrics["baselines"]
    printed = capsys.readouterr().out
    assert "retrieval with cells" in printed
    assert "nearest" in printed
    assert "NLL" in printed


def test_the_headline_has_a_posterior_whose_nll_is_that_of_its_column(tmp_path, index, packed, checkpoint):
    metrics = run_search(tmp_path, index, checkpoint, packed, *ONE_OF_EACH.split())
    table = pq.read_table(tmp_path / "predictions.parquet").to_pandas()
    assert {"nll", "radius_50_km", "radius_90_km", "expected_km", "mass_within_error"} <= set(table.columns)
    assert metrics["posterior"]["nll"] == pytest.approx(table["nll"].mean())
    assert metrics["posterior"]["uniform_share"] == 0.05
    assert (table["radius_50_km"] < table["radius_90_km"]).all()
    answers = set(map(tuple, table[["latitude", "longitude"]].to_numpy().tolist()))
    assert answers <= set(map(tuple, places_of(packed, "train").tolist()))


def test_parameters_are_chosen_on_validation_photos_and_kept(tmp_path, index, packed, checkpoint):
    words = ["--validation", str(packed), "--k", "1", "4", "--sigma_km", "100", "900", "--similarity_exponent", "1"]
    metrics = run_search(tmp_path, index, checkpoint, packed, *words, "--choose_by", "median_km")
    described = metrics["retrieval"]["validation"]
    assert (described["split"], described["num_photos"], described["choose_by"]) == ("validation", 24, "median_km")
    tried = described["tried"]["kernel_density"]
    assert [(trial["k"], trial["sigma_km"]) for trial in tried] == [(1, 100), (1, 900), (4, 100), (4, 900)]
    chosen = metrics["retrieval"]["chosen"]["kernel_density"]
    best = min(tried, key=lambda trial: trial["median_km"])
    assert chosen == {name: best[name] for name in ("k", "sigma_km", "similarity_exponent")}
    cosines = vectors_of(checkpoint, packed, "validation") @ vectors_of(checkpoint, packed, "train").T
    nearest = places_of(packed, "train")[cosines.argmax(axis=1)]
    assert tried[0]["median_km"] == pytest.approx(np.median(great_circle_km(nearest, places_of(packed, "validation"))))


def test_photos_of_the_index_do_not_answer_for_themselves(tmp_path, index, packed, checkpoint):
    metrics = run_search(tmp_path, index, checkpoint, packed, "--split", "train", *ONE_OF_EACH.split())
    cosines = vectors_of(checkpoint, packed, "train") @ vectors_of(checkpoint, packed, "train").T
    np.fill_diagonal(cosines, -2)
    places = places_of(packed, "train")
    errors = great_circle_km(places[cosines.argmax(axis=1)], places)
    assert metrics["decodings"]["nearest"]["mean_km"] == pytest.approx(errors.mean())
    assert errors.min() > 0


@pytest.mark.parametrize("temperature", [0.01, 3.0])
def test_a_cell_model_is_refined_by_the_most_similar_photo_of_its_cells(
    tmp_path, index, packed, checkpoint, temperature
):
    words = ["--refine_top_k", "2", "--refine_temperature", str(temperature), *ONE_OF_EACH.split()]
    metrics = run_search(tmp_path, index, checkpoint, packed, *words)
    model = GeoMAEForGeolocation.from_pretrained(checkpoint).eval()
    collator = PhotoCollator(16, augment=False, labelled=False)
    with torch.no_grad():
        batches = [collator([row])["pixel_values"] for row in load_photos(packed, "test")]
        log_mass = torch.cat([model(batch).logits for batch in batches]).double().log_softmax(dim=1).numpy()
    places = places_of(packed, "train")
    cell_of = great_circle_km(places[:, None], CENTROIDS_DEG[None]).argmin(axis=1)
    cosines = vectors_of(checkpoint, packed, "test") @ vectors_of(checkpoint, packed, "train").T
    log_mass[log_mass < np.sort(log_mass, axis=1)[:, [-2]]] = -np.inf
    expected = places[(log_mass[:, cell_of] + cosines / temperature).argmax(axis=1)]
    table = pq.read_table(tmp_path / "predictions_refined.parquet").to_pandas()
    assert table[["latitude", "longitude"]].to_numpy().tolist() == expected.tolist()
    assert metrics["retrieval"]["chosen"]["refined"] == {"temperature": temperature}
    assert set(metrics["decodings"]) == {"nearest", "refined"}


def test_the_temperature_of_a_refinement_is_chosen_too(tmp_path, index, packed, checkpoint):
    words = ["--validation", str(packed), "--refine_top_k", "2", "--refine_temperature", "0.001", "100"]
    metrics = run_search(tmp_path, index, checkpoint, packed, *words, *ONE_OF_EACH.split())
    tried = metrics["retrieval"]["validation"]["tried"]["refined"]
    assert [trial["temperature"] for trial in tried] == [0.001, 100]
    best = max(tried, key=lambda trial: trial["geoscore"])
    assert metrics["retrieval"]["chosen"]["refined"]["temperature"] == best["temperature"]


def test_damaged_photos_are_counted_and_left_out_and_damaged_test_photos_are_misses(tmp_path, checkpoint):
    folder = pack(tmp_path / "photos", train=20, test=10, num_damaged=1)
    words = ["--checkpoint", str(checkpoint), "--photos", str(folder), "--output_dir", str(tmp_path / "index")]
    with pytest.raises(TooManyDamagedPhotosError, match="2 of 20 photos are damaged"):
        main(["index", *words, "--max_damaged_share", "0.05"])
    assert not (tmp_path / "index").exists()
    main(["index", *words])
    read = read_index(tmp_path / "index")
    assert (read.record["num_photos"], read.record["num_damaged"], len(read.places.ids)) == (18, 2, 18)
    again = load_photos(folder, "train").to_pandas().set_index("id").loc[read.places.ids]
    assert read.places.coordinates_deg.tolist() == again[["latitude", "longitude"]].to_numpy().tolist()
    share = ["--max_damaged_share", "0.5"]
    metrics = run_search(tmp_path / "out", tmp_path / "index", checkpoint, folder, *ONE_OF_EACH.split(), *share)
    assert metrics["missing"] == ["test-0-0", "test-1-0"]


def test_a_pretraining_checkpoint_makes_an_index_that_its_fine_tuned_copy_may_not_search(tmp_path, packed, checkpoint):
    pretrained = save_checkpoint(tmp_path / "mae", GeoMAEForPreTraining, seed=1)
    words = ["--photos", str(packed), "--output_dir", str(tmp_path / "index"), "--kind", "hnsw"]
    main(["index", "--checkpoint", str(pretrained), *words])
    assert read_index(tmp_path / "index").record["kind"] == "hnsw"
    metrics = run_search(tmp_path / "out", tmp_path / "index", pretrained, packed, *ONE_OF_EACH.split())
    assert metrics["num_photos"] == 20
    with pytest.raises(ConfigError, match=r"the index was made with mae .*cells has other weights"):
        run_search(tmp_path / "other", tmp_path / "index", checkpoint, packed, *ONE_OF_EACH.split())
    words = [*ONE_OF_EACH.split(), "--refine_top_k", "2", "--refine_temperature", "1"]
    with pytest.raises(ConfigError, match="mae has no cells to refine within"):
        run_search(tmp_path / "refined", tmp_path / "index", pretrained, packed, *words)


def test_several_values_need_photos_to_choose_on(tmp_path, index, packed, checkpoint):
    with pytest.raises(
        ConfigError, match=r"k has 5 values to choose from and there are no photos.*--validation FOLDER"
    ):
        run_search(tmp_path / "out", index, checkpoint, packed)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["find"], "the first word must be index or search; got find"),
        ([], "the first word must be index or search; got nothing"),
        (["index", "--photos", "x", "--output_dir", "y"], "checkpoint is missing"),
        (["index", "--checkpoint", "x", "--photos", "x", "--output_dir", "y", "--kind", "tree"], "kind on the command"),
        (["index", "--checkpoint", "x", "--photos", "x", "--output_dir", "y", "--split_name", "z"], "unknown key"),
        (["index", "--checkpoint", "x", "--photos", "x", "--output_dir", "y"], "x is not a checkpoint"),
        (["search", "--checkpoint", "x", "--test_set", "x", "--output_dir", "y"], "index is missing"),
        (["search", "--index", "x", "--test_set", "x", "--output_dir", "y"], "checkpoint is missing"),
        (["search", "--ten_crop"], "unknown key --ten_crop"),
        (["search", "--decodings", "argmax"], "unknown key --decodings"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_embedded(words, message):
    with pytest.raises(ConfigError, match=message):
        main(words)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--k", "0"], "k must be numbers at least 1"),
        (["--sigma_km", "0"], "sigma_km must be numbers above 0"),
        (["--similarity_exponent", "-1"], "similarity_exponent must be numbers at least 0"),
        (["--uniform_share", "1"], "uniform_share must be numbers above 0 and below 1"),
        (["--refine_temperature", "0"], "refine_temperature must be numbers above 0"),
        (["--refine_top_k", "-1"], "refine_top_k must be at least 0"),
        (["--k", "61"], "k=61 neighbours were asked for, and the index holds 60 photos"),
        (["--index", "nowhere"], "nowhere is not an index of photos"),
    ],
)
def test_values_that_cannot_work_are_refused_by_their_names(tmp_path, index, packed, checkpoint, option, message):
    pairs = [ONE_OF_EACH.split()[at : at + 2] for at in range(0, 8, 2)]
    others = [word for pair in pairs if pair[0] != option[0] for word in pair]
    with pytest.raises((ConfigError, SourceError), match=message):
        run_search(tmp_path / "out", index, checkpoint, packed, *others, *option)


def test_a_yaml_file_says_the_same_as_the_command_line(tmp_path, index, packed, checkpoint):
    config = tmp_path / "search.yaml"
    config.write_text(
        f"index: {index}\ncheckpoint: {checkpoint}\ntest_set: {packed}\noutput_dir: {tmp_path / 'out'}\n"
        "k: [5]\nsigma_km: [500]\nsimilarity_exponent: [2]\nuniform_share: [0.05]\n"
    )
    main(["search", str(config)])
    metrics = run_search(tmp_path / "words", index, checkpoint, packed, *ONE_OF_EACH.split())
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["mean_km"] == metrics["mean_km"]


def test_help_lists_the_commands_and_their_options(capsys):
    main(["--help"])
    assert "python -m geomae.retrieval index" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["search", "--help"])
    printed = capsys.readouterr().out
    assert "--similarity_exponent" in printed
    others = ("predictions", "ten_crop", "decodings", "kernel_km", "top_k", "temperature", "spread_scale")
    assert [name for name in others if f" --{name} " in printed] == []


def test_help_needs_no_faiss_and_the_commands_say_that_they_do(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(SystemExit):
        main(["index", "--help"])
    words = ["--checkpoint", "x", "--photos", "x", "--output_dir", str(tmp_path / "y")]
    with pytest.raises(ConfigError, match="retrieval needs faiss, which is not installed"):
        main(["index", *words])


def test_values_are_never_chosen_on_the_photos_that_are_judged(tmp_path, index, packed, checkpoint):
    with pytest.raises(ConfigError, match=r"the split test of .*photos is a test set: values chosen on it"):
        run_search(
            tmp_path / "out", index, checkpoint, packed, "--validation", str(packed), "--validation_split", "test"
        )
    with pytest.raises(ConfigError, match="im2gps3k is a test set"):
        run_search(tmp_path / "out", index, checkpoint, packed, "--validation", "im2gps3k")
    words = ["--validation", str(packed), "--split", "validation", *ONE_OF_EACH.split()]
    with pytest.raises(ConfigError, match="24 of the 24 photos of validation are in the test set too"):
        run_search(tmp_path / "out", index, checkpoint, packed, *words)


def test_an_index_of_another_precision_is_not_searched(tmp_path, index, packed, checkpoint):
    with pytest.raises(ConfigError, match=r"made with bf16=False, and the search has bf16=True.*--bf16 false"):
        run_search(tmp_path / "out", index, checkpoint, packed, "--bf16", "true", *ONE_OF_EACH.split())


def test_a_process_that_is_not_the_main_one_embeds_without_the_index(tmp_path, index, packed, checkpoint, monkeypatch):
    def fail(folder):
        raise AssertionError(f"{folder} was read")

    monkeypatch.setattr("geomae.retrieval.__main__.is_main_process", lambda: False)
    monkeypatch.setattr("geomae.retrieval.__main__.read_index", fail)
    words = ["--index", str(index), "--checkpoint", str(checkpoint), "--test_set", str(packed)]
    main(["search", *words, "--validation", str(packed), "--output_dir", str(tmp_path / "out"), "--k", "5"])
    assert not (tmp_path / "out").exists()


def test_a_search_does_not_replace_what_the_head_answered(tmp_path, index, packed, checkpoint):
    old = {"checkpoint": "cells", "predictions": None, "test_set": {"name": "photos"}}
    (tmp_path / "metrics.json").write_text(json.dumps(old))
    with pytest.raises(ConfigError, match="holds an evaluation of cells on photos, and this one is by retrieval with"):
        run_search(tmp_path, index, checkpoint, packed, *ONE_OF_EACH.split())


def test_two_processes_index_each_photo_once_with_the_digits_of_one(tmp_path, checkpoint):
    folder = pack(tmp_path / "photos", train=27, num_damaged=1)
    words = ["--checkpoint", str(checkpoint), "--photos", str(folder), "--per_device_eval_batch_size", "4"]
    main(["index", *words, "--output_dir", str(tmp_path / "one")])
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "geomae.retrieval"]
    done = subprocess.run(
        [sys.executable, *launch, "index", *words, "--output_dir", str(tmp_path / "two")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    one, two = read_index(tmp_path / "one"), read_index(tmp_path / "two")
    assert one.places.ids == two.places.ids
    assert len(set(two.places.ids)) == two.record["num_photos"] == 25
    assert one.vectors.reconstruct_n(0, 25).tolist() == two.vectors.reconstruct_n(0, 25).tolist()


def test_importing_the_package_loads_neither_torch_nor_faiss():
    code = "import sys, geomae.retrieval; print(sorted({'torch', 'faiss', 'transformers', 'scipy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_can_be_imported():
    import geomae.retrieval as package

    assert all(getattr(package, name) is not None for name in package.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        package.nothing  # noqa: B018


def test_photos_in_a_folder_with_a_table_are_indexed_with_their_authors(tmp_path, make_photo, checkpoint):
    for number in range(4):
        make_photo(f"folder/{number}.jpg", seed=number)
    lines = [f"{number}.jpg,{number * 10},{number * 20},author {number % 2}" for number in range(4)]
    (tmp_path / "folder" / "table.csv").write_text("\n".join(["IMG_ID,LAT,LON,AUTHOR", *lines, ""]))
    words = ["--checkpoint", str(checkpoint), "--photos", str(tmp_path / "folder")]
    main(["index", *words, "--output_dir", str(tmp_path / "index"), "--kind", "ivf"])
    table = pq.read_table(tmp_path / "index" / "places.parquet")
    assert table.schema.field("author").type == pa.string()
    rows = table.to_pylist()
    assert rows[1] == {"id": "1.jpg", "latitude": 10.0, "longitude": 20.0, "author": "author 1"}
    (tmp_path / "folder" / "table.csv").rename(tmp_path / "elsewhere.csv")
    words += ["--csv_file", str(tmp_path / "elsewhere.csv"), "--swap_lat_lon", "--bf16"]
    main(["index", *words, "--output_dir", str(tmp_path / "swapped")])
    swapped = read_index(tmp_path / "swapped")
    assert swapped.places.coordinates_deg[1].tolist() == [20.0, 10.0]
    assert swapped.record["bf16"] is True
    exact, half = (read_index(tmp_path / name).vectors for name in ("index", "swapped"))
    exact.make_direct_map()  # of an inverted file
    assert half.reconstruct_n(0, 4) == pytest.approx(exact.reconstruct_n(0, 4), abs=0.02)


def test_another_split_may_be_the_validation_and_wandb_is_told_where_the_numbers_are(
    tmp_path, index, packed, checkpoint, monkeypatch
):
    told = []
    monkeypatch.setattr(
        "geomae.reporting.trackers.report_evaluation",
        lambda folder, report_to, **naming: told.append((folder, report_to, naming["name"])),
    )
    words = ["--validation", str(packed), "--validation_split", "train", "--split", "validation"]
    words += ["--report_to", "wandb", "--run_name", "neighbours", *ONE_OF_EACH.split()]
    metrics = run_search(tmp_path, index, checkpoint, packed, *words)
    assert metrics["retrieval"]["validation"]["split"] == "train"
    assert metrics["test_set"]["split"] == "validation"
    assert told == [(str(tmp_path), ["wandb"], "neighbours")]
