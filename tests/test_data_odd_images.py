"""The odd files of the shared data, by name: which are read, which refused, and why, on their way into a shard."""

from pathlib import Path

import numpy as np
import pytest

from geomae.data.pack import PhotoPacker
from geomae.data.photos import decode_photo
from geomae.data.reading import PhotoReader
from geomae.data.sources import SourceOptions, open_source
from geomae.errors import DamagedPhotoError

NOT_A_PHOTO = "it is no photo in a format that is read here"
TRUNCATED = "image file is truncated"
BROKEN = "broken data stream"

# Height and width of what is packed at a short side of 256; or why nothing is.
EXPECTED: dict[str, tuple[int, int] | str] = {
    "Issue 308.jpg": (256, 341),
    "Multiple ICC segments.jpg": (140, 140),  # CMYK, a logo on white; smaller than 256 and not enlarged
    "Nikon D5000.jpg": (256, 385),
    "User Comment Encoding.jpg": TRUNCATED,
    "beach.jpg": NOT_A_PHOTO,
    "damaged/138d3b9e0d9fbf641b8135981e597c3a.jpg": NOT_A_PHOTO,
    "damaged/21ad703b38e2c350215bb92a849486f3.jpg": NOT_A_PHOTO,
    "damaged/316be81dfdeeb942e904feb3a77f4f83.jpg": (256, 345),  # a whole photo of a procession
    "damaged/3cc4a7fc6481ea3681138da4643f3d16.jpg": NOT_A_PHOTO,
    "damaged/46e5ac4a62d7a445a7c1fb704fafe05c.jpg": NOT_A_PHOTO,
    "damaged/551c2656a4f6f9f5ea7e9945b9081202.jpg": BROKEN,
    "damaged/5baad44ca4702949724234e35c5bb341.jpg": NOT_A_PHOTO,
    "damaged/6903d4538fd33c8fd0ded32cb30d618e.jpg": NOT_A_PHOTO,
    "damaged/786b67badc535fc95a4a76c29a0e0146.jpg": TRUNCATED,
    "damaged/7e7cdf7f4ee50b308531313bbf43e0c3.jpg": NOT_A_PHOTO,
    "damaged/8a9cc8eeed66aeb423a91c44111d9450.jpg": BROKEN,
    "damaged/9efd60f04cd971daa83d3131e6d6f389.jpg": TRUNCATED,
    "damaged/acce3629083f0e348e94fb58f952d3de.jpg": NOT_A_PHOTO,
    "damaged/b55977028a3a574336966b6536640fc9.jpg": (261, 4),  # its header says so to Pillow too, and it decodes
    "damaged/c4ced510f44a9bfe85c696c05a7f791d.jpg": BROKEN,
    "damaged/cc4ee796d16c9fe68978166c7cd1ae1b.jpg": NOT_A_PHOTO,
    "damaged/d3b044a94486cae0224c002800ddd642.jpg": BROKEN,
    "damaged/eddea4ef9629be031f750a8ff0b7497c.jpg": NOT_A_PHOTO,
    "damaged/f012a4321f00f12af6b1eee7580ffb9c.jpg": NOT_A_PHOTO,
    "damaged/f8e19feecd246156b5d7e79efc455e99.jpg": TRUNCATED,
    **{f"orientation/Landscape_{number}.jpg": (256, 384) for number in range(9)},
    **{f"orientation/Portrait_{number}.jpg": (384, 256) for number in range(9)},
}

# No file of the folder has a position that means anything.
NO_POSITION = {
    "Issue 308.jpg": "its GPS position is (0, 0), which cameras write when they have none",
    "Nikon D5000.jpg": "its GPS position is not finite: nan, nan",
    "beach.jpg": "no GPS position: it is no photo in a format that is read here",
    "Multiple ICC segments.jpg": "no GPS position in its EXIF block",
    "orientation/Landscape_1.jpg": "no GPS position in its EXIF block",
}


@pytest.fixture
def folder(shared_data: Path) -> Path:
    return shared_data / "odd_images"


def read_all(folder: Path) -> dict[str, bytes]:
    index = open_source(folder, SourceOptions(unlabelled=True))
    read = PhotoReader(index.root).read_all(index.table.to_pylist())
    return {name: data for name, data in zip(index.column("id"), read, strict=True) if isinstance(data, bytes)}


def test_every_odd_image_is_packed_or_refused_as_its_name_expects(folder: Path) -> None:
    found: dict[str, tuple[int, int] | str] = {}
    for name, data in read_all(folder).items():
        assert data == (folder / name).read_bytes()
        try:
            packed = PhotoPacker().pack_bytes(data)
        except DamagedPhotoError as error:
            found[name] = next((words for words in (NOT_A_PHOTO, TRUNCATED, BROKEN) if words in str(error)), str(error))
            continue
        assert b"Exif\0\0" not in packed
        found[name] = decode_photo(packed, min_short_side=0).shape[:2]
    assert found == EXPECTED


def test_positions_of_odd_images_are_refused_for_their_reasons(folder: Path, tmp_path: Path) -> None:
    for name in NO_POSITION:
        link = tmp_path / name
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(folder / name)
    good = sorted((folder.parent / "photos" / "geotagged").glob("*.jpg"))
    (tmp_path / "good.jpg").symlink_to(next(file for file in good if not file.name.startswith("mapillary")))
    index = open_source(tmp_path, SourceOptions(exif=True))
    assert index.column("id") == ["good.jpg"]
    assert {photo.file: photo.reason for photo in index.bad.listed} == NO_POSITION


@pytest.mark.parametrize("kind", ["Landscape", "Portrait"])
def test_photos_of_every_orientation_come_out_upright_and_alike(folder: Path, kind: str) -> None:
    """They differ in the digit that is drawn on them; turned or mirrored they would differ by 40 grey levels."""

    def pixels(number: int) -> np.ndarray:
        data = (folder / "orientation" / f"{kind}_{number}.jpg").read_bytes()
        return decode_photo(PhotoPacker().pack_bytes(data), min_short_side=0).astype(np.float64)

    upright = pixels(1)
    assert min(np.abs(upright[::-1] - upright).mean(), np.abs(upright[:, ::-1] - upright).mean()) > 30
    for number in range(9):
        assert np.abs(pixels(number) - upright).mean() < 4
