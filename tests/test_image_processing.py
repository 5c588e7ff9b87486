"""What a model is shown of a photo: the square that evaluations show it, whatever the photo comes as."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from geomae.data.photos import center_crop, decode_photo, evaluation_short_side, ten_crops
from modeling import GeoMAEImageProcessor, image_processing_geomae

PROCESSOR = GeoMAEImageProcessor.for_image_size(32)


def pixels_of(photo: object) -> np.ndarray:
    """`(3, 32, 32)`"""
    return PROCESSOR(photo)["pixel_values"][0].numpy()


@pytest.fixture(scope="module")
def gradient() -> np.ndarray:
    """`(60, 90, 3)` uint8, no two quarters alike."""
    rows, columns = np.mgrid[0:60, 0:90]
    return np.stack((rows * 4, columns * 2, (rows + columns) % 256), axis=-1).astype(np.uint8)


@pytest.mark.parametrize(("height", "width"), [(60, 90), (300, 97), (37, 37), (20, 31), (500, 375)])
def test_pixels_are_resized_as_opencv_does_it(height: int, width: int) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    image = Image.fromarray(photo)
    image.format = "PNG"  # what was no JPEG is not reduced before it is resized
    expected = center_crop(photo, 32).transpose(2, 0, 1)
    assert np.abs(pixels_of(image).astype(int) - expected).max() <= 1


def test_area_weights_are_opencvs() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (101, 77, 3), np.uint8)
    expected = cv2.resize(photo, (19, 23), interpolation=cv2.INTER_AREA)
    assert np.abs(image_processing_geomae._resize(photo, 23, 19).numpy().astype(int) - expected).max() <= 1


def test_photos_look_nearly_as_the_evaluation_sees_them(shared_data: Path) -> None:
    differences = []
    for file in sorted((shared_data / "photos" / "geotagged").glob("*.jpg"))[:8]:
        decoded = decode_photo(file.read_bytes(), min_short_side=evaluation_short_side(64))
        expected = center_crop(decoded, 64).transpose(2, 0, 1).astype(float)
        with Image.open(file) as image:
            seen = GeoMAEImageProcessor.for_image_size(64)(image)["pixel_values"][0].numpy()
        differences.append(np.abs(seen - expected).mean())
    assert len(differences) == 8
    assert np.mean(differences) < 1.5


def test_arrays_tensors_and_images_are_the_same_photo(gradient: np.ndarray) -> None:
    expected = pixels_of(Image.fromarray(gradient))
    chw = np.ascontiguousarray(gradient.transpose(2, 0, 1))
    for same in (gradient, chw, torch.from_numpy(chw), torch.from_numpy(gradient), gradient.astype(np.float32) / 255):
        assert np.array_equal(pixels_of(same), expected)
    batch = PROCESSOR([gradient, torch.from_numpy(chw)])["pixel_values"]
    assert batch.shape == (2, 3, 32, 32)
    assert batch.dtype == torch.uint8
    assert torch.equal(PROCESSOR(np.stack([gradient] * 2))["pixel_values"], batch)
    assert isinstance(PROCESSOR(gradient, return_tensors="np")["pixel_values"], np.ndarray)


def test_exif_orientation_is_applied(tmp_path: Path, gradient: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(gradient).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as turned:
        seen = pixels_of(turned)
    image = Image.fromarray(np.ascontiguousarray(gradient[::-1, ::-1]))
    image.format = "PNG"
    assert np.array_equal(seen, pixels_of(image))


def test_transparent_pixels_are_white() -> None:
    for mode, colour in (("RGBA", (200, 0, 0, 0)), ("LA", (9, 0))):
        assert (pixels_of(Image.new(mode, (50, 50), colour)) == 255).all()
    assert (pixels_of(np.zeros((50, 50, 4), np.uint8)) == 255).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "LAB", "F", "I", "I;16"])
def test_every_mode_of_pillow_is_a_photo(mode: str) -> None:
    image = Image.new(mode, (50, 40))
    assert pixels_of(image).shape == (3, 32, 32)


def test_sixteen_bit_grey_keeps_its_shades() -> None:
    grey = np.full((50, 40), 128 * 256, np.uint16)
    assert (pixels_of(Image.fromarray(grey)) == 128).all()


@pytest.mark.parametrize(
    ("photo", "message"),
    [
        ("a path", "a PIL image, an array or a tensor, not str"),
        (np.zeros((5, 5, 7), np.uint8), r"expected \(H, W\), \(H, W, C\) or \(C, H, W\)"),
        (np.zeros((9, 9, 3), np.int64), "expected uint8 of 0 to 255"),
        (np.full((9, 9, 3), 200.0), "expected floats in 0 to 1"),
        (np.full((9, 9, 3), np.nan), "expected floats in 0 to 1"),
        (np.zeros((0, 9, 3), np.uint8), "holds no pixel"),
        ([], "no photo was given"),
        ([np.zeros((9, 9, 3), np.uint8), None], "photo 1 of 2: .* not NoneType"),
    ],
)
def test_what_is_no_photo_is_refused(photo: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PROCESSOR(photo)


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    Image.new("1", (20_000, 6_000)).save(tmp_path / "bomb.png")
    with pytest.warns(Image.DecompressionBombWarning):
        bomb = Image.open(tmp_path / "bomb.png")
    with bomb, pytest.raises(ValueError, match="20000 x 6000 is more than 100,000,000 pixels"):
        PROCESSOR(bomb)


def test_a_truncated_file_is_refused(tmp_path: Path, gradient: np.ndarray) -> None:
    Image.fromarray(gradient).save(tmp_path / "whole.png")
    (tmp_path / "part.png").write_bytes((tmp_path / "whole.png").read_bytes()[:100])
    with Image.open(tmp_path / "part.png") as part, pytest.raises(ValueError, match="cannot be decoded"):
        PROCESSOR(part)


def test_unknown_options_and_squares_that_do_not_fit_are_refused(gradient: np.ndarray) -> None:
    with pytest.raises(ValueError, match="do_normalize: not an option"):
        PROCESSOR(gradient, do_normalize=True)
    with pytest.raises(ValueError, match="does not lie within a short side"):
        GeoMAEImageProcessor({"shortest_edge": 20}, {"height": 30, "width": 30})
    with pytest.raises(ValueError, match="height and width of a square"):
        GeoMAEImageProcessor({"shortest_edge": 40}, {"height": 30, "width": 20})


def test_a_saved_processor_is_read_back(tmp_path: Path, gradient: np.ndarray) -> None:
    PROCESSOR.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert written["size"] == {"shortest_edge": 37}
    assert written["crop_size"] == {"height": 32, "width": 32}
    assert written["auto_map"] == {"AutoImageProcessor": "image_processing_geomae.GeoMAEImageProcessor"}
    again = AutoImageProcessor.from_pretrained(tmp_path, trust_remote_code=True)
    assert torch.equal(again(gradient)["pixel_values"], PROCESSOR(gradient)["pixel_values"])


def test_a_line_of_pixels_takes_no_memory_and_gives_the_crop_of_an_evaluation() -> None:
    """Resized whole to a short side of 256 it would be 47 GB."""
    line = np.random.default_rng(0).integers(0, 256, (1, 60_000, 3), dtype=np.uint8)
    crop = GeoMAEImageProcessor.for_image_size(224)(line)["pixel_values"][0]
    assert crop.shape == (3, 224, 224)
    assert np.abs(crop.permute(1, 2, 0).numpy().astype(int) - center_crop(line, 224)).max() <= 1
    assert ten_crops(line.transpose(1, 0, 2), 224)[0].shape == (224, 224, 3)


def test_photo_in_bfloat16_is_one_of_floats() -> None:
    photo = torch.rand(3, 40, 50).bfloat16()
    processor = GeoMAEImageProcessor.for_image_size(32)
    assert torch.equal(processor(photo)["pixel_values"], processor(photo.float())["pixel_values"])
