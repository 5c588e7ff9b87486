"""Positions that cameras write into photos."""

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from geomae.data.coordinates import read_coordinate_table
from geomae.data.exif import read_gps
from geomae.errors import CoordinateError


def photo_with_gps(gps: dict[int, Any], image_format: str = "JPEG") -> bytes:
    exif = Image.Exif()
    exif[0x010F] = "a camera"  # Pillow writes no block that has a position alone
    exif.get_ifd(0x8825).update(gps)
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, image_format, exif=exif)
    return buffer.getvalue()


SOUTH_WEST: dict[int, Any] = {1: "S", 2: (33.0, 30.0, 36.0), 3: "W", 4: (70.0, 45.0, 0.0)}


def test_positions_of_real_photos_agree_with_their_table(shared_data: Path) -> None:
    folder = shared_data / "photos" / "geotagged"
    table = read_coordinate_table(folder.with_suffix(".csv"))
    assert table.ids is not None
    num_positions = 0
    for photo_id, latitude, longitude in zip(table.ids, table.latitude, table.longitude, strict=True):
        if not photo_id.startswith("mapillary"):
            num_positions += 1
            with (folder / photo_id).open("rb") as file:
                assert read_gps(file) == pytest.approx((latitude, longitude), abs=1e-6)
            assert read_gps((folder / photo_id).read_bytes()) == pytest.approx((latitude, longitude), abs=1e-6)
    assert num_positions == 26


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Issue 308.jpg", r"\(0, 0\)"),
        ("Nikon D5000.jpg", "not finite"),
        ("Multiple ICC segments.jpg", "no GPS position"),
        ("beach.jpg", "no photo"),
    ],
)
def test_positions_that_mean_nothing_are_refused(shared_data: Path, name: str, reason: str) -> None:
    with pytest.raises(CoordinateError, match=reason):
        read_gps((shared_data / "odd_images" / name).read_bytes())


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_hemispheres_and_minutes_are_read_from_every_format(image_format: str) -> None:
    assert read_gps(photo_with_gps(SOUTH_WEST, image_format)) == pytest.approx((-33.51, -70.75))


def test_position_beyond_the_poles_or_half_of_one_is_refused() -> None:
    with pytest.raises(CoordinateError, match="not on Earth"):
        read_gps(photo_with_gps({**SOUTH_WEST, 2: (133.0, 0.0, 0.0)}))
    with pytest.raises(CoordinateError, match="no GPS position"):
        read_gps(photo_with_gps({1: "N", 2: (1.0, 2.0, 3.0)}))


@pytest.mark.parametrize("wrong", [{1: None}, {3: None}, {1: ""}, {3: "N"}])
def test_position_without_a_hemisphere_is_refused(wrong: dict[int, str | None]) -> None:
    sydney = {1: "S", 2: (33.0, 51.0, 0.0), 3: "E", 4: (151.0, 12.0, 0.0)}
    assert read_gps(photo_with_gps(sydney)) == pytest.approx((-33.85, 151.2))
    with pytest.raises(CoordinateError, match="names no hemisphere"):
        read_gps(photo_with_gps({tag: value for tag, value in {**sydney, **wrong}.items() if value is not None}))


def test_only_the_head_of_an_open_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(photo_with_gps(SOUTH_WEST) + b"\0" * 10**6)
    with path.open("rb") as file:
        read_gps(file)
        assert file.tell() < 10**5


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"\xff\xd8\xff\xe1\x00\x10Exif\0\0", b"GIF89a", b"II*\0"])
def test_broken_heads_are_refused_and_never_crash(data: bytes) -> None:
    with pytest.raises(CoordinateError):
        read_gps(data)


@pytest.mark.parametrize("reference", [5, (1, 2), 2.5])
def test_hemisphere_that_is_no_text_is_refused(reference: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data = photo_with_gps(SOUTH_WEST)
    read = Image.Exif.get_ifd
    monkeypatch.setattr(Image.Exif, "get_ifd", lambda exif, tag: {**read(exif, tag), 1: reference})
    with pytest.raises(CoordinateError, match="names no hemisphere"):
        read_gps(data)
