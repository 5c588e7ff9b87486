"""What the scripts put together: streams of several folders, validation photos, and the encoder's inherited sizes."""

import itertools
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from geocell_models import save_cell_model
from packed_photos import TINY, pack, training_arguments
from PIL import Image
from torch.utils.data import DataLoader

from geomae.checkpoints import load_geolocator
from geomae.data.collate import PhotoCollator
from geomae.data.manifest import ShardReport, write_manifest
from geomae.data.pack import PhotoPacker, pack_photos
from geomae.data.sources import SourceOptions, open_source
from geomae.errors import ConfigError, SourceError, TooManyDamagedPhotosError
from geomae.training import (
    DataArguments,
    GeoBaselineArguments,
    GeoMAEArguments,
    build_collators,
    build_stream,
    inherit_encoder,
    load_validation,
    refuse_training_photos,
    refuse_what_the_model_refuses,
)
from modeling import GeoMAEConfig


def test_folders_are_mixed_into_one_stream(tmp_path: Path) -> None:
    folders = [str(pack(tmp_path / name, train=size)) for name, size in (("a", 10), ("b", 30))]
    data = DataArguments(data_dirs=folders)
    assert build_stream(data, training_arguments(tmp_path / "run"), labelled=True).num_photos == 40


def test_pretraining_reads_no_coordinates(tmp_path: Path) -> None:
    data = DataArguments(data_dirs=[str(pack(tmp_path, train=10))])
    sample = next(iter(build_stream(data, training_arguments(tmp_path), labelled=False)))
    assert set(sample) == {"image", "id", "augmentation_seed", "lane", "position", "num_bad"}


@pytest.fixture
def zipped(tmp_path: Path, make_photo: Callable[..., Path]) -> Path:
    """A folder with a zip of twelve photos and the table of their coordinates: nothing is packed."""
    (tmp_path / "source").mkdir()
    with zipfile.ZipFile(tmp_path / "source/00.zip", "w") as archive:
        for number in range(12):
            archive.write(make_photo(f"loose/{number}.jpg", seed=number), f"{number}.jpg")
    lines = [f"{number},{number + 1},{-number}" for number in range(12)]
    (tmp_path / "source/photos.csv").write_text("id,latitude,longitude\n" + "\n".join(lines))
    return tmp_path / "source"


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_sources_that_are_not_packed_are_streamed_as_they_are(zipped: Path, tmp_path: Path, num_workers: int) -> None:
    data = DataArguments(data_dirs=[str(zipped)])
    args = training_arguments(tmp_path / "run", per_device_train_batch_size=3)
    stream = build_stream(data, args, labelled=True)
    training, _ = build_collators(data, image_size=16, labelled=True)
    stream.prepare = training.prepare
    loader = DataLoader(stream, batch_size=3, collate_fn=training, num_workers=num_workers)
    epoch = list(itertools.islice(loader, 4))
    assert sorted(int(name) for batch in epoch for name in batch["ids"]) == list(range(12))
    for batch in epoch:
        numbers = torch.tensor([float(name) for name in batch["ids"]])
        assert torch.equal(batch["coordinates_deg"], torch.stack([numbers + 1, -numbers], dim=1))


def test_packed_and_unpacked_sources_are_mixed(zipped: Path, tmp_path: Path) -> None:
    data = DataArguments(data_dirs=[str(zipped), str(pack(tmp_path / "packed", train=10))])
    stream = build_stream(data, training_arguments(tmp_path / "run"), labelled=True)
    ids = {sample["id"] for sample in itertools.islice(stream, 22)}
    assert len(ids) == 22


def test_unpacked_source_with_too_many_bad_photos_is_refused(zipped: Path, tmp_path: Path) -> None:
    with (zipped / "photos.csv").open("a") as file:
        file.write("\ngone,1,1\nlost,2,2")
    args = training_arguments(tmp_path / "run")
    with pytest.raises(TooManyDamagedPhotosError, match=r"2 of 14 photos .*--max_bad_source_fraction"):
        build_stream(DataArguments(data_dirs=[str(zipped)]), args, labelled=True)
    data = DataArguments(data_dirs=[str(zipped)], max_bad_source_fraction=0.2)
    assert build_stream(data, args, labelled=True).num_photos == 12


def test_table_and_kind_of_an_unpacked_source_can_be_named(zipped: Path, tmp_path: Path) -> None:
    (zipped / "photos.csv").rename(tmp_path / "swapped.csv")
    options: dict[str, Any] = {"data_kind": "zip", "data_csv": str(tmp_path / "swapped.csv"), "swap_lat_lon": True}
    data = DataArguments(data_dirs=[str(zipped)], **options)
    sample = next(iter(build_stream(data, training_arguments(tmp_path / "run"), labelled=True)))
    assert (sample["latitude"], sample["longitude"]) == (-int(sample["id"]), int(sample["id"]) + 1)


def make_manifest(folder: Path, *sizes: int) -> None:
    reports = [
        ShardReport(f"train-{index:05d}-of-{len(sizes):05d}.parquet", "train", size, "", ())
        for index, size in enumerate(sizes)
    ]
    write_manifest(folder, reports, source="a test", options={})


def test_halves_of_the_manifest_share_no_photo(tmp_path: Path) -> None:
    folder = pack(tmp_path / "packed", train=21)
    make_manifest(folder, 10, 11)
    halves = []
    for subset in ("first_half", "last_half"):
        data = DataArguments(data_dirs=[str(folder)], subset=subset)
        stream = build_stream(data, training_arguments(tmp_path / "run"), labelled=True)
        halves.append({sample["id"] for sample in itertools.islice(stream, stream.num_photos)})
    assert [len(half) for half in halves] == [10, 11]
    assert len(set.union(*halves)) == 21
    assert halves[0] == {f"train-0-{number}" for number in range(10)}
    limited = DataArguments(data_dirs=[str(folder)], subset="last_half", limit=4)
    assert build_stream(limited, training_arguments(tmp_path / "run"), labelled=True).num_photos == 4


def test_halves_without_a_manifest_or_with_another_one_are_refused(tmp_path: Path) -> None:
    folder, args = pack(tmp_path / "packed", train=20), training_arguments(tmp_path / "run")
    data = DataArguments(data_dirs=[str(folder)], subset="first_half")
    with pytest.raises(SourceError, match=r"manifest\.json does not list the split 'train'.*subset and limit"):
        build_stream(data, args, labelled=True)
    make_manifest(folder, 10, 9)
    with pytest.raises(SourceError, match=r"hold 20 photos where its manifest lists 19"):
        build_stream(data, args, labelled=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subset": "half"}, "subset is 'half'.*first_half"),
        ({"limit": 0}, "limit is 0"),
        ({"data_kind": "rar"}, "data_kind is 'rar'.*msgpack"),
        ({"crops_per_photo": 0}, "crops_per_photo is 0"),
        ({"max_bad_source_fraction": 2.0}, r"max_bad_source_fraction is 2\.0"),
    ],
)
def test_impossible_choices_of_data_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DataArguments(data_dirs=["x"], **options)


def test_crops_that_do_not_fit_the_batch_are_refused(tmp_path: Path) -> None:
    data = DataArguments(data_dirs=[str(pack(tmp_path / "packed", train=10))], crops_per_photo=3)
    with pytest.raises(ConfigError, match="per_device_train_batch_size is 8; it must be a multiple of crops_per_photo"):
        build_stream(data, training_arguments(tmp_path / "run"), labelled=True)


def test_validation_takes_evenly_spread_photos_of_its_own_folder(tmp_path: Path) -> None:
    trained = str(pack(tmp_path / "a", train=10, validation=4))
    other = str(pack(tmp_path / "b", validation=9))
    photos = load_validation(DataArguments(data_dirs=[trained]))
    assert photos is not None
    assert len(photos) == 4
    photos = load_validation(DataArguments(data_dirs=[trained], validation_dir=other, max_validation_photos=3))
    assert photos is not None
    assert photos["id"][:] == ["validation-0-0", "validation-1-0", "validation-1-4"]
    assert load_validation(DataArguments(data_dirs=[trained], validation_split=None)) is None


def test_unpacked_training_photos_are_not_validated_on(zipped: Path) -> None:
    with pytest.raises(SourceError, match=r"not packed, so it has no split 'validation'.*validation_dir"):
        load_validation(DataArguments(data_dirs=[str(zipped)]))
    assert load_validation(DataArguments(data_dirs=[str(zipped)], validation_split=None)) is None


@pytest.mark.parametrize("labelled", [True, False])
def test_unpacked_photos_can_be_validated_on_where_they_are_named(zipped: Path, labelled: bool) -> None:
    photos = load_validation(DataArguments(data_dirs=["x"], validation_dir=str(zipped)), labelled=labelled)
    assert photos is not None
    assert len(photos) == 12
    collator = PhotoCollator(16, augment=False, labelled=labelled)
    batch = collator([photos[n] for n in range(3)])
    assert batch["num_bad"] == 0


def test_packed_shards_are_streamed_from_a_url(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for file in pack(tmp_path / "packed", train=20).iterdir():
        memory.pipe(f"/bucket/packed/{file.name}", file.read_bytes())
    data = DataArguments(data_dirs=["memory://bucket/packed"])
    stream = build_stream(data, training_arguments(tmp_path / "run"), labelled=True)
    samples = list(itertools.islice(stream, 20))
    assert len({sample["id"] for sample in samples}) == 20
    assert all(sample["image"]["bytes"] for sample in samples)
    memory.rm("/bucket/packed/train-00001-of-00002.parquet")
    with pytest.raises(SourceError, match="holds 1 shards of 'train' where their names promise 2"):
        build_stream(data, training_arguments(tmp_path / "run"), labelled=True)


def test_part_of_the_photos_of_a_table_is_enough_where_it_is_said_to_be(zipped: Path, tmp_path: Path) -> None:
    with (zipped / "photos.csv").open("a") as file:
        file.write("".join(f"\ngone{number},1,1" for number in range(50)))
    data = DataArguments(data_dirs=[str(zipped)], data_partial=True)
    assert build_stream(data, training_arguments(tmp_path / "run"), labelled=True).num_photos == 12


def test_missing_split_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no split 'validation'.*validation_split: null"):
        load_validation(DataArguments(data_dirs=[str(pack(tmp_path, train=4))]))


def test_collators_follow_the_arguments() -> None:
    data = DataArguments(data_dirs=["x"], crop_scale=[0.3, 0.9], flip=False)
    training, validation = build_collators(data, image_size=32, labelled=False, num_patches=16)
    assert (training.augment, training.crop_scale, training.flip, training.num_patches) == (
        True,
        (0.3, 0.9),
        False,
        None,
    )
    assert (validation.augment, validation.num_patches, validation.labelled) == (False, 16, False)


def test_encoder_sizes_come_from_the_checkpoint_unless_given(tmp_path: Path) -> None:
    saved = {"model_type": "geomae", "hidden_size": 48, "patch_size": 8, "mask_ratio": 0.5, "drop_path_rate": 0.3}
    (tmp_path / "config.json").write_text(json.dumps(saved))
    own = GeoMAEArguments(patch_size=4, pooling="mean")
    taken = inherit_encoder(own, str(tmp_path), given={"patch_size", "pooling"})
    assert taken == GeoMAEArguments(hidden_size=48, patch_size=4, pooling="mean")  # mask and dropout are a run's own


def test_baseline_takes_from_the_checkpoint_what_it_has_itself(tmp_path: Path) -> None:
    saved = {"model_type": "geomae", "hidden_size": 48, "patch_size": 8, "image_size": 96}
    (tmp_path / "config.json").write_text(json.dumps(saved))
    assert inherit_encoder(GeoBaselineArguments(), str(tmp_path), given=set()) == GeoBaselineArguments(image_size=96)


def test_refusal_of_the_model_becomes_one_of_ours_and_ours_stay() -> None:
    with pytest.raises(ConfigError, match="image_size=30 is not a multiple"), refuse_what_the_model_refuses():
        GeoMAEConfig(image_size=30)
    with pytest.raises(SourceError, match="mine"), refuse_what_the_model_refuses():
        raise SourceError("mine")


@pytest.mark.parametrize("left", ["[1]", "5", "{", "[" * 100_000])
def test_configuration_that_is_none_is_refused_by_its_path(tmp_path: Path, left: str) -> None:
    (tmp_path / "config.json").write_text(left)
    with pytest.raises(ConfigError, match=r"init_from: .*config\.json is no configuration of a model"):
        inherit_encoder(GeoMAEArguments(), str(tmp_path), given=set())


@pytest.mark.parametrize(
    "wrong",
    [
        {"hidden_size": "large"},
        {"hidden_size": None},
        {"num_hidden_layers": 10**8},
        {"patch_size": True},
        {"qkv_bias": 1},
        {"layer_norm_eps": "x"},
        {"image_mean": 5},
        {"image_std": ["a"]},
        {"position_embedding": []},
    ],
    ids=str,
)
def test_size_of_a_checkpoint_that_cannot_be_is_refused_by_its_key(tmp_path: Path, wrong: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "geomae", **wrong}))
    with pytest.raises(ConfigError, match=f"init_from: {next(iter(wrong))} in .*which cannot be"):
        inherit_encoder(GeoMAEArguments(), str(tmp_path), given=set())


def test_other_weights_give_no_sizes(tmp_path: Path) -> None:
    own = GeoMAEArguments()
    assert inherit_encoder(own, None, given=set()) is own
    assert inherit_encoder(own, "facebook/vit-mae-base", given=set()) is own
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit_mae", "hidden_size": 48}))
    assert inherit_encoder(own, str(tmp_path), given=set()) is own


def test_geolocator_is_not_trained_on_photos_without_coordinates(tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.new("RGB", (30, 30), (number, 0, 0)).save(tmp_path / "photos" / f"{number}.jpg")
    packer = PhotoPacker()
    pack_photos(open_source(tmp_path / "photos", SourceOptions(unlabelled=True)), tmp_path / "packed", packer)
    data = DataArguments(data_dirs=[str(tmp_path / "packed")])
    args = training_arguments(tmp_path / "run", per_device_train_batch_size=2)
    assert build_stream(data, args, labelled=False).num_photos == 6
    with pytest.raises(SourceError, match=r"packed have no coordinates: its first is \d\.jpg"):
        build_stream(data, args, labelled=True)


def test_more_workers_than_photos_are_refused_before_any_starts(tmp_path: Path) -> None:
    data = DataArguments(data_dirs=[str(pack(tmp_path / "photos", train=10))])
    args = training_arguments(tmp_path / "run", dataloader_num_workers=11)
    with pytest.raises(ConfigError, match="10 photos are fewer than 1 processes x dataloader_num_workers 11"):
        build_stream(data, args, labelled=True)


def test_photos_that_are_trained_on_are_not_validated_on(zipped: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    pack_photos(open_source(zipped), packed, PhotoPacker(), validation_fraction=0.5)
    data = DataArguments(data_dirs=[str(zipped)], validation_dir=str(packed))
    stream = build_stream(data, training_arguments(tmp_path / "run", per_device_train_batch_size=2), labelled=True)
    with pytest.raises(SourceError, match=r"validation photos are among the photos of source .*--validation_fraction"):
        refuse_training_photos(stream, load_validation(data))
    refuse_training_photos(stream, None)
    rows = "".join(f"{number},{number + 1},{number + 40}\n" for number in range(12))
    (zipped / "photos.csv").write_text("id,latitude,longitude\n" + rows)  # of the same names, but elsewhere
    elsewhere = build_stream(data, training_arguments(tmp_path / "run", per_device_train_batch_size=2), labelled=True)
    refuse_training_photos(elsewhere, load_validation(data))


def test_path_that_is_not_there_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"there is nothing at .*nowhere"):
        build_stream(DataArguments(data_dirs=[str(tmp_path / "nowhere")]), training_arguments(tmp_path), labelled=True)


def test_photos_of_the_same_names_are_named_where_nothing_tells_them_apart(
    zipped: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    packed = tmp_path / "packed"
    pack_photos(open_source(zipped, SourceOptions(unlabelled=True)), packed, PhotoPacker(), validation_fraction=0.5)
    data = DataArguments(data_dirs=[str(zipped)], validation_dir=str(packed))
    stream = build_stream(data, training_arguments(tmp_path / "run", per_device_train_batch_size=2), labelled=False)
    refuse_training_photos(stream, load_validation(data, labelled=False))
    assert "validation photos are called as some of the photos of source" in caplog.text


def test_split_without_photos_is_named(tmp_path: Path) -> None:
    data = DataArguments(data_dirs=[str(pack(tmp_path / "photos", train=0))])
    with pytest.raises(SourceError, match="hold no photo at all"):
        build_stream(data, training_arguments(tmp_path / "run"), labelled=True)


@pytest.mark.parametrize("damage", ["cut off", "gone"])
def test_weights_that_are_damaged_are_told_in_a_sentence(tmp_path: Path, damage: str) -> None:
    save_cell_model(tmp_path, TINY)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    if damage == "gone":
        weights.unlink()
    with pytest.raises(
        ConfigError, match=r"is no whole safetensors file: .*|has no model\.safetensors\. Was the training ended"
    ):
        load_geolocator(tmp_path)
