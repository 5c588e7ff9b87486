"""From photos to coordinates: every photo exactly once, on any number of processes, with the same digits."""

import logging
import warnings
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from launching import run_twice_beside_itself

from geomae.errors import DamagedPhotoError, SourceError, TooManyDamagedPhotosError
from geomae.evaluation.predict import predict_coordinates
from modeling import GeoMAEConfig, GeoMAEForGeolocation

ROOT = Path(__file__).resolve().parent.parent


class Averages(torch.nn.Module):
    """Answers a photo's mean red and green, so that the right answer of each photo is known."""

    def __init__(self):
        super().__init__()
        self.seen_dtypes = []
        self.was_training = []
        self.unused = torch.nn.Linear(2, 2)

    def forward(self, pixel_values):
        self.was_training.append(self.training)
        self.seen_dtypes.append((self.unused(torch.zeros(1, 2))).dtype)
        return SimpleNamespace(coordinates_deg=pixel_values.float().mean(dim=(2, 3))[:, :2])


def collate(samples):
    good = [sample for sample in samples if not sample["damaged"]]
    if not good:
        raise DamagedPhotoError("all photos of a batch are damaged")
    pixels = torch.tensor([[sample["red"], sample["green"], 0] for sample in good], dtype=torch.uint8)
    return {"pixel_values": pixels[:, :, None, None].expand(-1, -1, 4, 4), "ids": [sample["id"] for sample in good]}


def photos(num_photos, damaged=()):
    rng = np.random.default_rng(0)
    return datasets.Dataset.from_dict(
        {
            "id": [f"photo {number}" for number in range(num_photos)],
            "red": rng.integers(0, 90, num_photos),
            "green": rng.integers(0, 180, num_photos),
            "damaged": [number in damaged for number in range(num_photos)],
        }
    )


@pytest.mark.parametrize(("batch_size", "num_workers"), [(1, 0), (4, 0), (5, 2), (100, 0)])
def test_every_photo_is_answered_once_in_the_order_of_the_test_set(batch_size, num_workers):
    dataset = photos(11)
    predictions = predict_coordinates(Averages(), dataset, collate, batch_size=batch_size, num_workers=num_workers)
    assert predictions.ids == list(dataset["id"])
    assert predictions.coordinates_deg.dtype == np.float64
    assert predictions.coordinates_deg.tolist() == [[row["red"], row["green"]] for row in dataset]


def test_a_damaged_photo_is_left_out_and_the_others_keep_their_answers():
    dataset = photos(11, damaged=[3])
    predictions = predict_coordinates(Averages(), dataset, collate, batch_size=4)
    assert predictions.ids == [name for name in dataset["id"] if name != "photo 3"]
    assert predictions.coordinates_deg[3].tolist() == [dataset[4]["red"], dataset[4]["green"]]


def test_a_batch_of_only_damaged_photos_does_not_end_the_evaluation(caplog):
    with caplog.at_level(logging.WARNING):
        predictions = predict_coordinates(Averages(), photos(21, damaged=[20]), collate, batch_size=4)
    assert len(predictions.ids) == 20
    assert "whole batch is damaged" in caplog.text


def test_too_many_damaged_photos_stop_the_run_with_their_number():
    with pytest.raises(TooManyDamagedPhotosError, match=r"3 of 10 photos are damaged.*max_damaged_share=0\.2"):
        predict_coordinates(Averages(), photos(10, damaged=[1, 2, 3]), collate, batch_size=4, max_damaged_share=0.2)


def test_a_test_set_that_repeats_a_photo_is_refused():
    dataset = datasets.concatenate_datasets([photos(3), photos(2)])
    with pytest.raises(SourceError, match="5 rows, 3 ids"):
        predict_coordinates(Averages(), dataset, collate, batch_size=4)


def test_the_model_predicts_in_evaluation_mode_and_without_gradients():
    model = Averages().train()
    predict_coordinates(model, photos(3), collate, batch_size=2)
    assert model.was_training == [False, False]


def test_bf16_runs_the_model_under_autocast():
    model = Averages()
    predict_coordinates(model, photos(2), collate, batch_size=2, bf16=True)
    assert model.seen_dtypes == [torch.bfloat16]


class ManyCrops(Averages):
    """Combines crops as unit vectors are not: by their largest answer, which tells that every crop is there."""

    def __init__(self):
        super().__init__()
        self.batch_sizes = []

    def forward(self, pixel_values):
        self.batch_sizes.append(len(pixel_values))
        return super().forward(pixel_values)

    def combine_crops(self, outputs):
        return SimpleNamespace(coordinates_deg=torch.stack([output.coordinates_deg for output in outputs]).amax(dim=0))


def collate_ten_crops(samples):
    batch = collate(samples)
    brighter = [batch["pixel_values"] + crop for crop in range(10)]
    return {**batch, "pixel_values": torch.cat(brighter)}


@pytest.mark.parametrize("damaged", [[], [3], [8, 9, 10]])
def test_ten_crops_give_the_answer_of_the_first_and_that_of_all(damaged):
    dataset, model = photos(11, damaged=damaged), ManyCrops()
    options = {"batch_size": 4, "max_damaged_share": 0.5}
    predictions = predict_coordinates(model, dataset, collate_ten_crops, **options)
    central = predict_coordinates(Averages(), dataset, collate, **options)
    assert predictions.ids == predictions.ten_crop.ids == central.ids
    assert predictions.coordinates_deg.tolist() == central.coordinates_deg.tolist()
    assert predictions.ten_crop.coordinates_deg.tolist() == (central.coordinates_deg + 9).tolist()
    assert max(model.batch_sizes) == 4  # a crop of each photo at a time: the batch that fits without the others fits
    assert central.ten_crop is None


class Mixes(ManyCrops):
    """Rounds: its digits would depend on the neighbours in a batch, if anything did."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.mix = torch.nn.Linear(3, 2)

    def forward(self, pixel_values):
        return SimpleNamespace(coordinates_deg=self.mix(pixel_values.float().mean(dim=(2, 3))))


def describe_thirteen_photos():
    predictions = predict_coordinates(Mixes(), photos(13, damaged=[5]), collate_ten_crops, batch_size=3)
    answers = [predictions.coordinates_deg.tolist(), predictions.ten_crop.coordinates_deg.tolist()]
    return f"{predictions.ids} {answers}"


ONE_OF_TWO = """
import os
from pathlib import Path

from geomae.evaluation.predict import is_main_process
from test_evaluation_predict import describe_thirteen_photos

described = describe_thirteen_photos()
Path(f"rank_{os.environ['RANK']}_{is_main_process()}.txt").write_text(described)
"""


def test_two_processes_give_every_photo_once_with_the_digits_of_one(tmp_path):
    run_twice_beside_itself(ONE_OF_TWO, tmp_path, num_threads=torch.get_num_threads())
    results = {path.stem: path.read_text() for path in tmp_path.glob("rank_*.txt")}
    assert sorted(results) == ["rank_0_True", "rank_1_False"]
    assert set(results.values()) == {describe_thirteen_photos()}


@pytest.mark.gpu
@pytest.mark.parametrize("head_type", ["tanh", "sphere"])
def test_no_batch_waits_for_the_gpu(tiny_sizes, head_type):
    """As many synchronising calls for twelve batches as for three: the answers are fetched once, at the end."""
    model = GeoMAEForGeolocation(GeoMAEConfig(**{**tiny_sizes, "head_type": head_type}))

    def collate_large(samples):
        batch = collate(samples)
        return {**batch, "pixel_values": batch["pixel_values"].repeat_interleave(8, 2).repeat_interleave(8, 3)}

    def count_waits(num_photos):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                predict_coordinates(model, photos(num_photos), collate_large, batch_size=4, bf16=True, device="cuda")
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing" in str(warning.message) for warning in caught)

    count_waits(12)  # the model moves to the GPU, libraries are loaded
    assert 0 < count_waits(12) == count_waits(48)
