"""Photos by the million: a few hundred tiny JPEGs, over and over, at coordinates of their own."""

import io
from collections.abc import Iterator
from pathlib import Path

import msgpack
import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["draw_coordinates", "make_jpegs", "photo_ids", "write_msgpack", "write_table"]

NUM_AUTHORS_PER_PHOTO = 1 / 30  # of MP-16's 4.7 million photos
_PHOTOS_PER_FILE = 25_000


def make_jpegs(num_jpegs: int, side: int, seed: int = 0) -> list[bytes]:
    """JPEGs of four by four colours, `side` pixels wide and high."""
    rng = np.random.default_rng(seed)
    jpegs = []
    for _ in range(num_jpegs):
        colours = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        colours.resize((side, side), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=75)
        jpegs.append(buffer.getvalue())
    return jpegs


def draw_coordinates(num_photos: int, seed: int = 0) -> NDArray[np.float64]:
    """`(num_photos, 2)` degrees around 2,000 places that are spread over the land's latitudes."""
    rng = np.random.default_rng(seed)
    places = np.column_stack([rng.uniform(-50, 65, 2000), rng.uniform(-180, 180, 2000)])
    scattered = places[rng.integers(0, len(places), num_photos)] + rng.normal(0, 0.5, (num_photos, 2))
    return np.column_stack([scattered[:, 0], (scattered[:, 1] + 180) % 360 - 180])


def photo_ids(num_photos: int) -> Iterator[str]:
    """As MP-16 names them: two folders of a hash, and a number."""
    for number in range(num_photos):
        mixed = (number * 2654435761) % 2**32
        yield f"{mixed & 255:02x}/{mixed >> 8 & 255:02x}/{10**9 + number}.jpg"


def write_msgpack(folder: Path, num_photos: int, jpegs: list[bytes]) -> None:
    """MP-16 as GeoEstimation shares it: msgpack shards of names and bytes."""
    folder.mkdir(parents=True)
    packer, file = msgpack.Packer(), None
    for number, name in enumerate(photo_ids(num_photos)):
        if number % _PHOTOS_PER_FILE == 0:
            if file is not None:
                file.close()
            file = (folder / f"shard_{number // _PHOTOS_PER_FILE}.msg").open("wb")
        assert file is not None
        file.write(packer.pack({"id": name, "image": jpegs[number % len(jpegs)]}))
    if file is not None:
        file.close()


def write_table(path: Path, coordinates_deg: NDArray[np.float64]) -> None:
    """The table of coordinates of the same photos, with their photographers."""
    num_authors = max(1, int(len(coordinates_deg) * NUM_AUTHORS_PER_PHOTO))
    authors = np.random.default_rng(1).integers(0, num_authors, len(coordinates_deg))
    with path.open("w", encoding="utf-8") as file:
        file.write("IMG_ID,AUTHOR,LAT,LON\n")
        for name, author, (latitude, longitude) in zip(
            photo_ids(len(coordinates_deg)), authors, coordinates_deg, strict=True
        ):
            file.write(f"{name},{author}@N00,{latitude:.6f},{longitude:.6f}\n")
