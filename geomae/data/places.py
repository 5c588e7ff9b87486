"""Where on Earth to cut crops: near populated places, from a CSV, or from a folder of real geotags."""

import os
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from geomae.data.coordinates import read_coordinate_table
from geomae.data.earth import EarthSplit
from geomae.errors import SourceError
from geomae.geography import EARTH_RADIUS_KM, to_degrees, unit_vectors
from geomae.populated_places import read_populated_places

__all__ = [
    "draw_near_places",
    "find_shared_data",
    "find_world_picture",
    "split_from_csv",
    "splits_from_csvs",
    "splits_from_shared_data",
    "splits_near_places",
]

SHARED_DATA_VARIABLE = "GEOMAE_SHARED_DATA"
BLUE_MARBLE = Path("earth", "blue_marble_december_5400x2700.jpg")

_INSTALL = (
    "Install it with `pip install 'geomae[report]'`, or name a picture with --picture and coordinates with --train_csv."
)


def find_world_picture() -> Path:
    """The picture of the Earth that cartopy ships (Natural Earth shaded relief, public domain).

    Raises:
        SourceError: cartopy is not installed, or came without it.
    """
    try:
        import cartopy
    except ImportError as error:
        raise SourceError(
            f"the default picture of the Earth is cartopy's, which is not installed. {_INSTALL}"
        ) from error
    folder = Path(cartopy.__file__).parent / "data" / "raster" / "natural_earth"
    found = sorted(folder.glob("*.png")) + sorted(folder.glob("*.jpg"))
    if not found:
        raise SourceError(f"cartopy {cartopy.__version__} came without a picture in {folder}. Name one with --picture.")
    return found[0]


def find_shared_data(where: str) -> Path | None:
    """The folder of real geotags and the Blue Marble: `auto`, `none` or its path.

    `auto` looks at the environment variable GEOMAE_SHARED_DATA, then at ../shared/data from the project's root.

    Raises:
        SourceError: a path that was named does not hold it.
    """
    if where == "none":
        return None
    named = os.environ.get(SHARED_DATA_VARIABLE, "") if where == "auto" else where
    folder = Path(named) if named else Path(__file__).resolve().parents[2].parent / "shared" / "data"
    if (folder / BLUE_MARBLE).is_file():
        return folder
    if named:
        raise SourceError(
            f"{folder} holds no {BLUE_MARBLE}: it is not the shared data. Pass --shared_data none to do without."
        )
    return None


def draw_near_places(
    num_points: int, rng: np.random.Generator, *, jitter_km: float = 100.0, population_power: float = 0.5
) -> np.ndarray:
    """Points scattered around the places of GeoNames's list `cities15000` (`read_populated_places`).

    Args:
        num_points: how many.
        rng: the only source of chance.
        jitter_km: standard deviation of the distance from the place, in each direction.
        population_power: a place is drawn in proportion to its inhabitants to this power; 0.5 lets large cities lead
            without leaving the countryside empty, as photos do.

    Returns:
        `(num_points, 2)` float64 latitude and longitude in degrees.
    """
    places = read_populated_places(15_000)
    weights = places.num_inhabitants**population_power
    chosen = rng.choice(len(weights), num_points, p=weights / weights.sum())
    vectors = unit_vectors(places.coordinates_deg[chosen])
    # normal steps in space, then back onto the sphere: in the tangent plane they are normal in both directions
    vectors += rng.normal(scale=jitter_km / EARTH_RADIUS_KM, size=vectors.shape)
    return to_degrees(vectors)


def _rng(seed: int, split: str) -> np.random.Generator:
    return np.random.default_rng((seed, zlib.crc32(split.encode())))


def _generated_ids(split: str, num_points: int) -> list[str]:
    return [f"earth-{split}-{index:06d}" for index in range(num_points)]


def splits_near_places(num_points: Mapping[str, int], seed: int) -> list[EarthSplit]:
    """One split for each name, each a draw of its own; `num_points` maps names to numbers of crops."""
    splits = []
    for name, number in num_points.items():
        points = draw_near_places(number, _rng(seed, name))
        splits.append(EarthSplit(name, points[:, 0], points[:, 1], _generated_ids(name, number), {}))
    return splits


def split_from_csv(
    name: str,
    csv_file: Path,
    seed: int,
    *,
    num_points: int | None = None,
    max_points: int | None = None,
    swap_lat_lon: bool = False,
) -> EarthSplit:
    """The coordinates of a CSV, or `num_points` of them drawn without repetition, or at most `max_points`.

    Ids, authors and scenes are the file's own where it has them.

    Raises:
        SourceError: the file is not a table of coordinates, or holds fewer rows than asked for.
        CoordinateError: a coordinate is not on Earth.
    """
    table = read_coordinate_table(csv_file, swap_lat_lon=swap_lat_lon)
    rows = np.arange(len(table))
    if num_points is None and max_points is not None:
        num_points = min(max_points, len(table))
    if num_points is not None:
        if num_points > len(table):
            raise SourceError(
                f"{csv_file} holds {len(table)} coordinates; {num_points} were asked for split {name}. Pass "
                f"--num_{name} {len(table)} or fewer, or leave it out."
            )
        rows = _rng(seed, name).permutation(len(table))[:num_points]
    ids = _generated_ids(name, len(rows)) if table.ids is None else [table.ids[row] for row in rows]
    optional = {column: [values[row] for row in rows] for column, values in table.optional.items()}
    return EarthSplit(name, table.latitude[rows], table.longitude[rows], ids, optional)


def splits_from_csvs(
    csv_files: Mapping[str, Path],
    seed: int,
    *,
    num_points: Mapping[str, int | None],
    max_points: Mapping[str, int] | None = None,
    swap_lat_lon: bool = False,
) -> list[EarthSplit]:
    """One split for each name in `csv_files`; those with no number in `num_points` or `max_points` take every row."""
    most = max_points or {}
    return [
        split_from_csv(
            name,
            file,
            seed,
            num_points=num_points.get(name),
            max_points=most.get(name),
            swap_lat_lon=swap_lat_lon,
        )
        for name, file in csv_files.items()
    ]


def splits_from_shared_data(folder: Path, num_train: int, num_validation: int, seed: int) -> list[EarthSplit]:
    """Train at MP-16's coordinates, validate at YFCC25600's, test at all of Im2GPS's and Im2GPS3k's."""
    geotags = folder / "geotags"
    csv_files = {
        "train": geotags / "mp16_coordinates_100k.csv",
        "validation": geotags / "yfcc25600_places365.csv",
        "test_im2gps": geotags / "im2gps_places365.csv",
        "test_im2gps3k": geotags / "im2gps3k_places365.csv",
    }
    return splits_from_csvs(csv_files, seed, num_points={"train": num_train, "validation": num_validation})
