import contextlib
import io
import os
import random
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from geomae.data.photos import (
    PHOTO_FORMATS,
    can_keep_jpeg,
    center_crop,
    decode_photo,
    encode_jpeg,
    evaluation_short_side,
    random_resized_crop,
    read_orientation,
    resize_short_side,
    strip_metadata,
    ten_crops,
)
from geomae.errors import DamagedPhotoError
from modeling import image_to_coordinates
from modeling.image_to_coordinates import open_photo

# The quadrants of the upright picture, as they lie; their colours are far enough apart to survive JPEG.
QUADRANTS = np.array([[[230, 30, 30], [30, 230, 30]], [[30, 30, 230], [230, 230, 30]]], dtype=np.uint8)


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n0 0 9 9 rectfill\nshowpage\n%%EOF\n"


def quadrant_photo(height: int = 64, width: int = 96) -> np.ndarray:
    return QUADRANTS.repeat(height // 2, axis=0).repeat(width // 2, axis=1)


def encoded(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def assert_shows_quadrants(photo: np.ndarray, tolerance: int = 40) -> None:
    height, width = photo.shape[:2]
    centers = photo[[height // 4, 3 * height // 4]][:, [width // 4, 3 * width // 4]]
    np.testing.assert_allclose(centers.astype(int), QUADRANTS.astype(int), atol=tolerance)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_of_real_photos_shows_the_same_picture(shared_data: Path, orientation: int) -> None:
    folder = shared_data / "odd_images" / "orientation"
    for name, shape in (("Landscape", (1200, 1800, 3)), ("Portrait", (1800, 1200, 3))):
        photo = decode_photo((folder / f"{name}_{orientation}.jpg").read_bytes(), min_short_side=0)
        upright = decode_photo((folder / f"{name}_1.jpg").read_bytes(), min_short_side=0)
        assert photo.shape == shape
        # each file prints its own number in the middle; the rest of the picture is the same
        assert np.abs(photo.astype(int) - upright.astype(int)).mean() < 8


def test_an_orientation_of_zero_leaves_the_photo_as_it_lies(shared_data: Path) -> None:
    data = (shared_data / "odd_images" / "orientation" / "Landscape_0.jpg").read_bytes()
    assert read_orientation(data) == 1
    assert decode_photo(data, min_short_side=0).shape == (1200, 1800, 3)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_in_every_format(file_format: str, orientation: int) -> None:
    # the stored picture of an orientation is the upright one turned back; EXIF 2.32, table 4, tag 0x0112
    undo = {
        1: [],
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    image = Image.fromarray(quadrant_photo())
    for transpose in undo[orientation]:
        image = image.transpose(transpose)
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo = decode_photo(encoded(image, file_format, exif=exif), min_short_side=0)
    assert photo.shape == (64, 96, 3)
    assert_shows_quadrants(photo)


DECODABLE_THOUGH_DAMAGED = {"316be81dfdeeb942e904feb3a77f4f83.jpg", "b55977028a3a574336966b6536640fc9.jpg"}


def test_damaged_files_are_refused_with_a_reason(shared_data: Path) -> None:
    files = sorted((shared_data / "odd_images" / "damaged").glob("*.jpg"))
    assert len(files) == 20
    for file in files:
        if file.name in DECODABLE_THOUGH_DAMAGED:
            assert decode_photo(file.read_bytes(), min_short_side=224).ndim == 3
        else:
            with pytest.raises(DamagedPhotoError, match=r"no photo in a format|truncated|broken data stream"):
                decode_photo(file.read_bytes(), min_short_side=224)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("Issue 308.jpg", (1536, 2048, 3)),
        ("Multiple ICC segments.jpg", (140, 140, 3)),
        ("Nikon D5000.jpg", (570, 858, 3)),
    ],
)
def test_odd_but_whole_files_are_read(shared_data: Path, name: str, shape: tuple[int, ...]) -> None:
    data = (shared_data / "odd_images" / name).read_bytes()
    assert decode_photo(data, min_short_side=0).shape == shape


@pytest.mark.parametrize(
    ("name", "reason"), [("User Comment Encoding.jpg", "truncated"), ("beach.jpg", "no photo in a format")]
)
def test_odd_and_broken_files_are_refused(shared_data: Path, name: str, reason: str) -> None:
    with pytest.raises(DamagedPhotoError, match=reason):
        decode_photo((shared_data / "odd_images" / name).read_bytes(), min_short_side=0)


def test_all_real_photos_decode(shared_data: Path) -> None:
    files = [file for file in (shared_data / "photos").rglob("*") if file.suffix.lower() == ".jpg"]
    assert len(files) == 120
    for file in files:
        photo = decode_photo(file.read_bytes(), min_short_side=224)
        assert photo.ndim == 3
        assert min(photo.shape[:2]) >= 220


def test_cmyk_jpeg_becomes_rgb() -> None:
    data = encoded(Image.fromarray(quadrant_photo()).convert("CMYK"), "JPEG", quality=95)
    assert_shows_quadrants(decode_photo(data, min_short_side=0))


def test_grey_jpeg_becomes_three_equal_channels() -> None:
    photo = decode_photo(encoded(Image.new("L", (40, 30), 120), "JPEG"), min_short_side=0)
    assert photo.shape == (30, 40, 3)
    assert np.ptp(photo, axis=2).max() == 0


def test_truncated_jpeg_is_refused() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (128, 128, 3), dtype=np.uint8))
    data = encoded(noise, "JPEG", quality=90)
    with pytest.raises(DamagedPhotoError, match="truncated"):
        decode_photo(data[: len(data) // 2], min_short_side=0)


def test_sixteen_bit_png_keeps_its_greys() -> None:
    levels = np.linspace(0, 65535, 64).astype(np.uint16).repeat(64).reshape(64, 64)
    photo = decode_photo(encoded(Image.fromarray(levels), "PNG"), min_short_side=0)
    np.testing.assert_allclose(photo[:, 0, 0], levels[:, 0] / 257, atol=1)


def test_palette_png_becomes_rgb() -> None:
    data = encoded(Image.fromarray(quadrant_photo()).quantize(4), "PNG")
    assert_shows_quadrants(decode_photo(data, min_short_side=0))


def test_transparent_pixels_become_white() -> None:
    image = Image.fromarray(quadrant_photo()).convert("RGBA")
    image.putalpha(0)
    assert decode_photo(encoded(image, "PNG"), min_short_side=0).min() == 255


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP"])
def test_first_frame_of_an_animation_is_taken(file_format: str) -> None:
    first, second = Image.fromarray(quadrant_photo()), Image.new("RGB", (96, 64), "black")
    data = encoded(first, file_format, save_all=True, append_images=[second])
    assert_shows_quadrants(decode_photo(data, min_short_side=0))


def test_postscript_is_refused_without_a_program_that_would_run_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow hands EPS to Ghostscript, wherever one is installed."""
    called = tmp_path / "called"
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\necho $@ >> {called}\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # it is looked for once
    with pytest.raises(DamagedPhotoError, match="no photo in a format that is read here"):
        decode_photo(POSTSCRIPT, min_short_side=0)
    (tmp_path / "a.jpg").write_bytes(POSTSCRIPT)
    with pytest.raises(ValueError, match="no photo in a format that is read here"):
        open_photo(tmp_path / "a.jpg", 64, 1.0)
    assert not called.exists()
    with contextlib.suppress(OSError), Image.open(io.BytesIO(POSTSCRIPT)) as image:
        image.load()
    assert called.exists(), "Pillow by itself does not run it any more: this test shows nothing"


def test_the_pipeline_opens_the_same_formats() -> None:
    assert image_to_coordinates.PHOTO_FORMATS == PHOTO_FORMATS


def test_empty_file_is_refused() -> None:
    with pytest.raises(DamagedPhotoError, match="empty"):
        decode_photo(b"", min_short_side=0)


def test_decompression_bomb_is_refused_from_its_header() -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    side = (20_000).to_bytes(4, "big")  # 400 Mpixel, declared in 60 bytes
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", side + side + b"\x08\x02\0\0\0") + chunk(b"IDAT", zlib.compress(b""))
    with pytest.raises(DamagedPhotoError, match=r"pixels"):
        decode_photo(png + chunk(b"IEND", b""), min_short_side=0)


def test_large_jpeg_bomb_is_refused_from_its_header() -> None:
    data = bytearray(encoded(Image.new("RGB", (16, 16)), "JPEG"))
    start = data.index(b"\xff\xc0") + 5  # height and width in the frame header: ITU-T T.81, B.2.2
    data[start : start + 4] = (60_000).to_bytes(2, "big") * 2
    with pytest.raises(DamagedPhotoError, match="more than 100,000,000 pixels"):
        decode_photo(bytes(data), min_short_side=256)


def test_scaled_decoding_keeps_the_short_side_that_was_asked_for() -> None:
    data = encode_jpeg(quadrant_photo(800, 1200), 90)
    for asked in (0, 50, 100, 101, 256, 400, 401, 800, 2000):
        photo = decode_photo(data, min_short_side=asked)
        assert min(photo.shape[:2]) >= min(asked or 800, 800)
        assert_shows_quadrants(photo)
    assert decode_photo(data, min_short_side=100).shape == (100, 150, 3)


@pytest.mark.parametrize(
    ("asked", "divisor"), [(0, 1), (376, 1), (300, 1), (189, 1), (188, 2), (187, 2), (94, 4), (93, 4), (47, 8), (20, 8)]
)
def test_jpegs_are_scaled_by_halves_only(asked: int, divisor: int) -> None:
    """The scales between are slower than the whole photo."""
    data = encode_jpeg(quadrant_photo(376, 500), 90)
    height, width = -(-376 // divisor), -(-500 // divisor)
    assert decode_photo(data, min_short_side=asked).shape == (height, width, 3)


@pytest.mark.parametrize("filler", [b"", b"\xff", b"\xff\xe2\x10\x02" + b"p" * 4096])
def test_orientation_is_found_behind_other_segments_and_not_in_comments(filler: bytes) -> None:
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40)).save(buffer, "JPEG", exif=exif)
    turned = buffer.getvalue()
    assert read_orientation(turned[:2] + filler + turned[2:]) == 6
    comment = b"\xff\xfe\x00\x10 says Exif\0\0 "
    assert read_orientation(turned[:2] + comment + encode_jpeg(np.zeros((8, 8, 3), np.uint8), 90)[2:]) == 1


def test_mirrored_crops_are_the_mirror_of_the_others() -> None:
    photo = np.random.default_rng(1).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    plain = random_resized_crop(photo, 32, (0.1, 1.0), random.Random(5))
    mirrored = random_resized_crop(photo, 32, (0.1, 1.0), random.Random(5), flip_probability=1.0)
    assert (mirrored == plain[:, ::-1]).all()


@pytest.mark.parametrize("flip_probability", [0.0, 1.0])
@pytest.mark.parametrize("side", [32, 300])
def test_crop_is_written_where_it_is_wanted(flip_probability: float, side: int) -> None:
    photo = np.random.default_rng(1).integers(0, 255, (side, side, 3), dtype=np.uint8)
    batch = np.zeros((3, 32, 32, 3), np.uint8)
    options = {"flip_probability": flip_probability}
    random_resized_crop(photo, 32, (1.0, 1.0), random.Random(3), out=batch[1], **options)
    assert (batch[1] == random_resized_crop(photo, 32, (1.0, 1.0), random.Random(3), **options)).all()
    assert not batch[[0, 2]].any()


def test_evaluation_crop_is_256_to_224() -> None:
    assert evaluation_short_side(224) == 256
    # a bar at the border: resizing to 256 and cutting 224 removes a sixteenth of the short side at each edge
    photo = np.zeros((512, 512, 3), dtype=np.uint8)
    photo[: 512 // 16 - 2] = 255
    assert center_crop(photo, 224).max() < 16
    photo[: 512 // 16 + 4] = 255
    assert center_crop(photo, 224)[0].min() > 200


@pytest.mark.parametrize("shape", [(100, 300), (300, 100), (31, 17), (224, 224), (1, 1), (3, 999)])
def test_crops_have_the_size_of_the_model_whatever_the_photo(shape: tuple[int, int]) -> None:
    photo = np.full((*shape, 3), 77, dtype=np.uint8)
    rng = random.Random(0)
    assert center_crop(photo, 48).shape == (48, 48, 3)
    crop = random_resized_crop(photo, 48, (0.66, 1.0), rng)
    assert crop.shape == (48, 48, 3)
    assert (crop == 77).all()


@pytest.mark.parametrize("shape", [(256, 384, 3), (400, 256, 3), (256, 256, 3)])
def test_ten_crops_of_an_even_margin_are_torchvisions_and_begin_with_the_central_one(shape: tuple[int, ...]) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    photo = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)  # its short side is that of the protocol
    crops = ten_crops(photo, 224)
    expected = [np.asarray(crop) for crop in transforms.TenCrop(224)(Image.fromarray(photo))]
    assert {crop.tobytes() for crop in crops} == {crop.tobytes() for crop in expected}
    assert len(crops) == 10
    assert np.array_equal(crops[0], center_crop(photo, 224))


@pytest.mark.parametrize("shape", [(256, 341, 3), (256, 455, 3), (259, 256, 3)])
def test_where_the_margin_is_odd_torchvisions_central_crops_lie_one_pixel_beside_ours(shape: tuple[int, ...]) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    photo = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    crops = ten_crops(photo, 224)
    expected = [np.asarray(crop) for crop in transforms.TenCrop(224)(Image.fromarray(photo))]
    central, corners = (crops[0], crops[5]), [*crops[1:5], *crops[6:]]
    assert {crop.tobytes() for crop in corners} == {crop.tobytes() for crop in [*expected[:4], *expected[5:9]]}
    assert {crop.tobytes() for crop in central} != {crop.tobytes() for crop in (expected[4], expected[9])}
    top, left = (shape[0] - 224) // 2, (shape[1] - 224) // 2
    near = {
        mirrored.tobytes()
        for down in (-1, 0, 1)
        for right in (-1, 0, 1)
        for crop in [photo[top + down : top + down + 224, left + right : left + right + 224]]
        for mirrored in (crop, crop[:, ::-1])
    }
    assert {expected[4].tobytes(), expected[9].tobytes()} <= near


def test_ten_crops_are_cut_from_the_photo_as_the_central_one_resizes_it() -> None:
    photo = quadrant_photo(512, 1024)
    central, *corners = ten_crops(photo, 224)[:5]
    assert_shows_quadrants(central)
    for corner, colour in zip(corners, QUADRANTS.reshape(4, 3), strict=True):
        assert np.array_equal(corner[112, 112], colour)


def test_random_crop_covers_the_share_it_was_asked_for() -> None:
    # a ramp along each axis: the range that a crop shows is the share of the side that it covers
    ramp = np.linspace(0, 255, 400)
    photo = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None, :], 0.0), axis=-1).astype(np.uint8)
    rng = random.Random(0)
    shares = []
    for _ in range(200):
        crop = random_resized_crop(photo, 64, (0.3, 0.5), rng).astype(float)
        shares.append(np.ptp(crop[..., 0]) / 255 * np.ptp(crop[..., 1]) / 255)
    assert 0.26 < min(shares) < 0.33
    assert 0.46 < max(shares) < 0.53


def test_equal_generators_give_equal_crops() -> None:
    photo = np.random.default_rng(1).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    crops = [random_resized_crop(photo, 32, (0.1, 1.0), random.Random(seed)) for seed in (5, 5, 6)]
    assert (crops[0] == crops[1]).all()
    assert (crops[0] != crops[2]).any()


def test_resizing_keeps_the_aspect() -> None:
    assert resize_short_side(np.zeros((300, 400, 3), np.uint8), 256).shape == (256, 341, 3)
    assert resize_short_side(np.zeros((400, 300, 3), np.uint8), 256).shape == (341, 256, 3)


def test_stripped_jpeg_has_the_same_pixels_and_no_metadata() -> None:
    exif = Image.Exif()
    exif[0x010E] = "taken at 55.68 N, 12.57 E"
    data = encoded(Image.fromarray(quadrant_photo()), "JPEG", exif=exif, comment=b"at home", icc_profile=b"profile")
    stripped = strip_metadata(data)
    assert stripped is not None
    assert len(stripped) < len(data)
    assert not any(secret in stripped for secret in (b"55.68", b"at home", b"profile", b"Exif"))
    assert (decode_photo(stripped, min_short_side=0) == decode_photo(data, min_short_side=0)).all()


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 1}])
def test_stripped_jpeg_ends_where_its_first_image_ends(options: dict[str, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), "JPEG", quality=95, **options)
    for trailer in (b"SEFT taken at home", data, b"\xff\xe1\0\x10Exif at home"):
        stripped = strip_metadata(data + trailer)
        assert stripped == strip_metadata(data)
        assert stripped is not None
        assert (decode_photo(stripped, min_short_side=0) == decode_photo(data, min_short_side=0)).all()


def test_comment_between_two_scans_is_stripped() -> None:
    data = encoded(Image.fromarray(quadrant_photo()), "JPEG", progressive=True)
    second_scan = data.index(b"\xff\xda", data.index(b"\xff\xda") + 2)
    spoilt = data[:second_scan] + b"\xff\xfe\0\x09at home" + data[second_scan:]
    assert (decode_photo(spoilt, min_short_side=0) == decode_photo(data, min_short_side=0)).all()
    assert strip_metadata(spoilt) == strip_metadata(data)


def test_jpeg_whose_end_cannot_be_found_is_not_stripped() -> None:
    data = encoded(Image.fromarray(quadrant_photo()), "JPEG")
    assert strip_metadata(data[:-2]) is None
    assert strip_metadata(data[:20] + b"rubbish" + data[20:]) is None


def test_only_small_upright_colour_jpegs_are_kept_as_they_are() -> None:
    image = Image.fromarray(quadrant_photo(64, 96))
    exif = Image.Exif()
    exif[0x0112] = 6
    assert can_keep_jpeg(encoded(image, "JPEG"), 64)
    assert not can_keep_jpeg(encoded(image, "JPEG"), 63)
    assert not can_keep_jpeg(encoded(image, "JPEG", exif=exif), 64)
    assert not can_keep_jpeg(encoded(image.convert("L"), "JPEG"), 64)
    assert not can_keep_jpeg(encoded(image.convert("CMYK"), "JPEG"), 64)
    assert not can_keep_jpeg(encoded(image, "PNG"), 64)
