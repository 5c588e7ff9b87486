"""What becomes of the pixels of a training photo: colours as Pillow changes them, drawn from the photo's own seed."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from test_data_collate import sample

from geomae.data.augmentation import PixelAugmentation
from geomae.data.collate import PhotoCollator
from geomae.errors import ConfigError
from geomae.training import DataArguments, build_collators


class Chosen(random.Random):
    """Draws what a test has chosen."""

    def __init__(self, *numbers: float) -> None:
        super().__init__(0)
        self.numbers = list(numbers)

    def uniform(self, low: float, high: float) -> float:
        chosen = self.numbers.pop(0)
        assert low <= chosen <= high
        return chosen


@pytest.fixture
def crop() -> np.ndarray:
    """A smooth picture of middling colours, which no factor of the tests makes black or white."""
    colours = np.random.default_rng(0).integers(80, 150, (4, 4, 3), dtype=np.uint8)
    return np.array(Image.fromarray(colours).resize((48, 48), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("factors", [(1.3, 1.0, 1.0), (1.0, 0.7, 1.0), (1.0, 1.0, 1.4), (0.8, 1.3, 0.6)])
@pytest.mark.parametrize("order", ["bcs", "scb"])
def test_colours_are_those_that_pillow_makes_one_after_another_in_any_order(
    crop: np.ndarray, factors: tuple[float, float, float], order: str
) -> None:
    expected = Image.fromarray(crop)
    enhancers = {"b": ImageEnhance.Brightness, "c": ImageEnhance.Contrast, "s": ImageEnhance.Color}
    for name in order:
        expected = enhancers[name](expected).enhance(factors["bcs".index(name)])
    changed = crop.copy()
    PixelAugmentation((0.4, 0.4, 0.4)).apply(changed, Chosen(*factors))
    # Pillow rounds after each step, and rounds the mean grey too
    assert np.abs(changed.astype(int) - np.asarray(expected)).max() <= 3
    assert np.abs(changed.astype(int) - crop).max() > 5


def test_a_grey_crop_is_its_luma(crop: np.ndarray) -> None:
    expected = np.asarray(Image.fromarray(crop).convert("L"), dtype=int)
    PixelAugmentation(grey_probability=1.0).apply(crop, random.Random(0))
    assert np.abs(crop - expected[..., None]).max() <= 1
    assert (crop[..., 0] == crop[..., 2]).all()


def test_factors_of_the_jitter_fill_their_range(crop: np.ndarray) -> None:
    augmentation, rng = PixelAugmentation((0.4, 0.0, 0.0)), random.Random(0)
    means = []
    for _ in range(300):
        changed = crop.copy()
        augmentation.apply(changed, rng)
        means.append(changed.mean() / crop.mean())
    assert 0.595 < min(means) < 0.62
    assert 1.38 < max(means) < 1.405
    assert np.mean(means) == pytest.approx(1.0, abs=0.05)


def test_erased_part_is_one_rectangle_of_noise_of_2_to_33_percent(crop: np.ndarray) -> None:
    augmentation, rng = PixelAugmentation(erase_probability=0.5), random.Random(0)
    shares = []
    for _ in range(400):
        changed = crop.copy()
        augmentation.apply(changed, rng)
        is_changed = (changed != crop).any(axis=2)
        if not is_changed.any():
            continue
        rows, columns = np.flatnonzero(is_changed.any(axis=1)), np.flatnonzero(is_changed.any(axis=0))
        box = changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert is_changed.sum() >= 0.97 * box.shape[0] * box.shape[1]  # noise may hit the photo's own colour
        shares.append(box.shape[0] * box.shape[1] / (48 * 48))
    assert 160 < len(shares) < 240
    assert 0.01 < min(shares) < 0.05
    assert 0.28 < max(shares) < 0.35


EVERYTHING: dict[str, Any] = {"color_jitter": (0.4, 0.4, 0.4), "grey_probability": 0.5, "erase_probability": 0.5}


def test_pixels_are_a_function_of_the_photos_seed_alone() -> None:
    collator = PhotoCollator(48, augment=True, pixels=PixelAugmentation(**EVERYTHING))
    first, again, other = (collator([sample(1, augmentation_seed=seed)])["pixel_values"] for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    beside = collator([sample(0), sample(1, augmentation_seed=7)])["pixel_values"][1]
    assert torch.equal(first[0], beside)


def test_switched_off_it_draws_nothing_and_changes_no_photo(crop: np.ndarray) -> None:
    rng, before = random.Random(3), crop.copy()
    PixelAugmentation().apply(crop, rng)
    assert np.array_equal(crop, before)
    assert rng.random() == random.Random(3).random()


def test_switched_on_it_leaves_the_crop_where_it_was() -> None:
    plain = PhotoCollator(48, augment=True)([sample(1)])["pixel_values"]
    grey = PhotoCollator(48, augment=True, pixels=PixelAugmentation(grey_probability=1.0))([sample(1)])["pixel_values"]
    luma = torch.tensor([0.299, 0.587, 0.114])
    expected = (plain[0].float() * luma[:, None, None]).sum(dim=0)
    assert (grey[0, 0].float() - expected).abs().max() <= 1


def test_keys_of_the_yaml_reach_training_photos_and_not_those_that_are_judged() -> None:
    data = DataArguments(data_dirs=["x"], grey_probability=1.0)
    training, validation = build_collators(data, image_size=48, labelled=True)
    pixels = training([sample(1)])["pixel_values"]
    assert torch.equal(pixels[:, 0], pixels[:, 2])
    assert not torch.equal(*validation([sample(1)])["pixel_values"][:, [0, 2]].unbind(dim=1))
    data = DataArguments(data_dirs=["x"], color_jitter=[0.1, 0.2, 0.3], erase_probability=0.4)
    assert data.pixel_augmentation == PixelAugmentation((0.1, 0.2, 0.3), erase_probability=0.4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"color_jitter": [0.4, 0.4]}, "color_jitter is .*three numbers"),
        ({"color_jitter": [0.4, -0.1, 0.4]}, "color_jitter is .*three numbers from 0"),
        ({"grey_probability": 1.5}, "grey_probability is 1.5"),
        ({"erase_probability": -0.5}, "erase_probability is -0.5"),
    ],
)
def test_impossible_strengths_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        DataArguments(data_dirs=["x"], **options)
