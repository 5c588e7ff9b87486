"""What the scripts put together: streams of several folders, validation photos, and the encoder's inherited sizes."""

import json
from pathlib import Path

import pytest
from packed_photos import pack, training_arguments

from geomae.errors import ConfigError, SourceError
from geomae.training import (
    DataArguments,
    GeoBaselineArguments,
    GeoMAEArguments,
    build_collators,
    build_stream,
    inherit_encoder,
    load_validation,
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


def test_other_weights_give_no_sizes(tmp_path: Path) -> None:
    own = GeoMAEArguments()
    assert inherit_encoder(own, None, given=set()) is own
    assert inherit_encoder(own, "facebook/vit-mae-base", given=set()) is own
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit_mae", "hidden_size": 48}))
    assert inherit_encoder(own, str(tmp_path), given=set()) is own
