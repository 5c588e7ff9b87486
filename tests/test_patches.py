"""Cutting photos into patches, choosing the visible ones, and saying where each one stands."""

import math

import pytest
import torch
from torch.nn import functional

from modeling.patches import PixelNormalizer, gather_patches, patchify, shuffle_patches, sincos_positions, unpatchify


def test_patch_order_makes_a_convolution_a_matrix_product() -> None:
    photos, weight = torch.randn(2, 3, 24, 16, dtype=torch.float64), torch.randn(5, 3, 8, 8, dtype=torch.float64)
    convolved = functional.conv2d(photos, weight, stride=8).flatten(2).transpose(1, 2)
    assert torch.allclose(patchify(photos, 8) @ weight.flatten(1).T, convolved)


def test_unpatchify_puts_every_pixel_back() -> None:
    photos = torch.randint(0, 256, (2, 3, 24, 40), dtype=torch.uint8)
    assert torch.equal(unpatchify(patchify(photos, 8), 8, 24, 40), photos)


def test_patches_of_the_smallest_noise_stay_visible() -> None:
    noise = torch.tensor([[0.9, 0.1, 0.5, 0.3], [0.2, 0.8, 0.1, 0.4]])
    visible, hidden = shuffle_patches(noise, 2)
    assert visible.tolist() == [[1, 3], [2, 0]]
    assert hidden.tolist() == [[2, 0], [3, 1]]


def test_gathering_takes_each_photos_own_patches() -> None:
    patches = torch.arange(12).reshape(2, 3, 2)
    assert gather_patches(patches, torch.tensor([[2, 0], [1, 1]])).tolist() == [[[4, 5], [0, 1]], [[8, 9], [8, 9]]]


@pytest.mark.parametrize(("row", "column"), [(0, 0), (2, 5), (13, 1)])
def test_sincos_positions_follow_the_published_formula(row: int, column: int) -> None:
    dim, grid = 16, 14
    frequencies = [1 / 10000 ** (2 * i / (dim / 2)) for i in range(dim // 4)]
    expected = [wave(place * f) for place in (column, row) for wave in (math.sin, math.cos) for f in frequencies]
    positions = sincos_positions(dim, grid)
    assert positions.shape == (1, 1 + grid**2, dim)
    assert (positions[0, 0] == 0).all()
    assert positions[0, 1 + row * grid + column].tolist() == pytest.approx(expected, abs=1e-6)


def test_normalizer_matches_its_definition_on_photos_and_patches() -> None:
    mean, std = [0.5, 0.25, 0.0], [0.5, 0.25, 1.0]
    photos = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    expected = torch.stack([(photos[:, c] / 255 - mean[c]) / std[c] for c in range(3)], dim=1)
    normalizer = PixelNormalizer(mean, std)
    assert torch.allclose(normalizer(photos), expected, atol=1e-6)
    assert torch.allclose(normalizer(patchify(photos, 8)), patchify(expected, 8), atol=1e-6)


def test_normalizer_of_a_model_in_bfloat16_keeps_the_photos_digits() -> None:
    photos = torch.arange(256, dtype=torch.uint8).repeat(3).reshape(1, 3, 16, 16)
    normalizer = PixelNormalizer([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]).to(torch.bfloat16)
    floats = normalizer(photos)
    assert floats.dtype == torch.float32
    mean, std = (buffer.double().view(1, 3, 1, 1) for buffer in (normalizer.mean, normalizer.std))
    assert torch.allclose(floats.double(), (photos.double() / 255 - mean) / std, atol=1e-5)
    assert torch.equal(normalizer.to_uint8(floats), photos)


def test_normalizer_takes_floats_as_they_are_and_can_be_undone() -> None:
    photos = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    normalizer = PixelNormalizer([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    floats = normalizer(photos)
    assert normalizer(floats) is floats
    assert torch.equal(normalizer.to_uint8(floats), photos)
    assert torch.equal(
        normalizer.to_uint8(1000 * torch.ones(1, 3, 2, 2)), torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    )
