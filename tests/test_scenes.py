"""Scenes from the field's tables to the batch: S3 by name, S16 by number, -1 where a photo has none."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from packed_photos import TINY, rows, training_arguments
from source_files import write_csv, write_photos
from torch.utils.data import DataLoader

from geomae.columns import label_scene, tidy_text
from geomae.data.__main__ import main as run_data
from geomae.data.collate import PhotoCollator
from geomae.data.layout import shard_name
from geomae.data.loading import load_photos
from geomae.data.shards import write_shard
from geomae.errors import ConfigError, SourceError
from geomae.training import DataArguments, GeolocationTrainer, build_collators, build_stream, load_validation
from modeling import GeoMAEConfig, GeoMAEForGeolocation

HEADER = "IMG_ID,AUTHOR,LAT,LON,S3_Label,S16_Label,S365_Label,Prob_indoor,Prob_natural,Prob_urban"
S3 = {"0.jpg": 0, "1.jpg": 1, "2.jpg": 2, "3.jpg": -1, "4.jpg": 2, "5.jpg": 0}
S16 = {"0.jpg": 0, "1.jpg": 15, "2.jpg": 7, "3.jpg": 4, "4.jpg": -1, "5.jpg": 10}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six photos and the table of MP-16's kind beside them; pandas made numbers with a point of one column."""
    folder = tmp_path_factory.mktemp("source") / "photos"
    for number, name in enumerate(S3):
        write_photos(folder, [name], first=10 + 45 * number)
    places = [
        ("0.jpg", "a", 10, 20, 0, "0.0", 1, 1, 0, 0),
        ("1.jpg", "b", 11, 21, 1, "15.0", 2, 0, 1, 0),
        ("2.jpg", "c", 12, 22, 2, "7.0", 3, 0, 0, 1),
        ("3.jpg", "d", 13, 23, "", "4.0", 4, 0, 0, 1),
        ("4.jpg", "e", 14, 24, 2, "", 5, 0, 0, 1),
        ("5.jpg", "f", 15, 25, 0, "10.0", 6, 1, 0, 0),
    ]
    write_csv(folder.parent / "photos.csv", HEADER, places)
    return folder


@pytest.fixture(scope="module")
def packed(source: Path) -> Path:
    folder = source.parent / "packed"
    for split in ("train", "validation"):
        out = ["--output_dir", str(folder / split), "--split_name", split, "--num_processes", "1"]
        run_data(["pack", str(source), "--csv", f"{source}.csv", *out])
    return folder


def labels_of_stream(stream: Any, collator: PhotoCollator, num_workers: int = 0) -> dict[str, int]:
    stream.prepare = collator.prepare
    loader = DataLoader(stream, batch_size=2, collate_fn=collator, num_workers=num_workers)
    batches = list(itertools.islice(loader, 3))
    assert all(batch["scene_labels"].dtype == torch.int64 for batch in batches)
    return {name: int(label) for b in batches for name, label in zip(b["ids"], b["scene_labels"], strict=True)}


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize(("num_scenes", "expected"), [(3, S3), (16, S16)])
@pytest.mark.parametrize("is_packed", [True, False])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_scenes_of_the_table_arrive_in_the_batches_of_training(
    source: Path, packed: Path, tmp_path: Path, num_scenes: int, expected: dict, is_packed: bool, num_workers: int
) -> None:
    data = DataArguments(data_dirs=[str(packed / "train" if is_packed else source)])
    args = training_arguments(tmp_path, per_device_train_batch_size=2)
    stream = build_stream(data, args, labelled=True, num_scenes=num_scenes)
    collator, _ = build_collators(data, image_size=16, labelled=True, num_scenes=num_scenes)
    assert labels_of_stream(stream, collator, num_workers) == expected


@pytest.mark.parametrize(("num_scenes", "expected"), [(3, S3), (16, S16)])
def test_scenes_arrive_in_the_batches_of_validation(packed: Path, num_scenes: int, expected: dict) -> None:
    data = DataArguments(data_dirs=["x"], validation_dir=str(packed / "validation"))
    photos = load_validation(data)
    assert photos is not None
    _, collator = build_collators(data, image_size=16, labelled=True, num_scenes=num_scenes)
    batch = collator([photos[row] for row in range(len(photos))])
    assert dict(zip(batch["ids"], batch["scene_labels"].tolist(), strict=True)) == expected


def test_packed_photos_keep_scenes_by_name_and_by_number(packed: Path) -> None:
    row = {photo["id"]: photo for photo in load_photos(packed / "train", "train")}
    assert [row[name]["scene"] for name in ("0.jpg", "2.jpg", "3.jpg")] == ["indoor", "urban", None]
    assert [row[name]["scene16"] for name in ("1.jpg", "2.jpg", "4.jpg")] == ["15", "7", None]


def test_photos_without_scenes_can_be_judged_and_not_trained_on(tmp_path: Path) -> None:
    write_shard(tmp_path / shard_name("train", 0, 1), rows("train", 0, 4), optional_columns=(), digest="")
    batch = PhotoCollator(16, augment=False, num_scenes=3)([*load_photos(tmp_path, "train")])
    assert batch["scene_labels"].tolist() == [-1] * 4
    data = DataArguments(data_dirs=[str(tmp_path)])
    args = training_arguments(tmp_path / "run")
    with pytest.raises(SourceError, match=r"train-00000-of-00001\.parquet has no column 'scene16'"):
        build_stream(data, args, labelled=True, num_scenes=16)


def test_batches_have_no_scenes_where_the_model_has_none(packed: Path) -> None:
    assert "scene_labels" not in PhotoCollator(16, augment=False)([load_photos(packed / "train", "train")[0]])


@pytest.mark.parametrize(
    ("value", "num_scenes", "label"),
    [
        *((name, 3, number) for number, name in enumerate(("indoor", "natural", "urban"))),
        *((nothing, 3, -1) for nothing in (None, "", "unknown", "beach", "1")),
        *(("0", 16, 0), ("15", 16, 15), ("15.0", 16, 15)),
        *((nothing, 16, -1) for nothing in (None, "", "unknown", "16", "-1", "2.5", "nan")),
    ],
)
def test_a_scene_is_its_number_in_the_tables_or_minus_one(value: str | None, num_scenes: int, label: int) -> None:
    assert label_scene(value, num_scenes) == label


def test_texts_are_kept_in_one_spelling() -> None:
    assert [tidy_text("scene16", text) for text in ("7", "7.0", "17", "beach")] == ["7", "7", "unknown", "unknown"]
    assert [tidy_text("scene", text) for text in ("2", "urban")] == ["urban", "urban"]
    assert tidy_text("author", "2.0") == "2.0"


def test_other_numbers_of_scenes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"num_scenes is 5; write 3 \(S3_Label\), 16"):
        PhotoCollator(16, augment=False, num_scenes=5)


@pytest.mark.parametrize("num_scenes", [3, 16])
def test_scenes_are_learned_and_their_accuracy_is_logged(packed: Path, tmp_path: Path, num_scenes: int) -> None:
    data = DataArguments(data_dirs=[str(packed / "train")], validation_dir=str(packed / "validation"), augment=False)
    args = training_arguments(tmp_path, per_device_train_batch_size=6, max_steps=100, learning_rate=0.01)
    training, judging = build_collators(data, image_size=16, labelled=True, num_scenes=num_scenes)
    trainer = GeolocationTrainer(
        GeoMAEForGeolocation(GeoMAEConfig(**TINY, head_type="sphere", num_scenes=num_scenes, scene_loss_weight=50)),
        args,
        train_dataset=build_stream(data, args, labelled=True, num_scenes=num_scenes),
        train_collator=training,
        eval_dataset=load_validation(data),
        eval_collator=judging,
    )
    trainer.train()
    metrics = trainer.evaluate()
    columns = trainer.latest_evaluation.columns
    expected = S3 if num_scenes == 3 else S16
    assert dict(zip(trainer.latest_evaluation.ids, columns["scene"].tolist(), strict=True)) == expected
    is_known = columns["scene"] >= 0
    hits = [int(a == b) for a, b in zip(columns["predicted_scene"][is_known], columns["scene"][is_known], strict=True)]
    assert len(hits) == 5
    assert metrics["eval_scene_accuracy"] == pytest.approx(sum(hits) / 5)
    assert metrics["eval_scene_accuracy"] >= 0.8  # five photos of five grey levels can be learned by heart
