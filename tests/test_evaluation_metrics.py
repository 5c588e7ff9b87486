"""From errors to numbers."""

import numpy as np
import pytest

from geomae.errors import ConfigError, CoordinateError, PredictionError
from geomae.evaluation import compute_metrics, geoscores, summarise_errors
from geomae.geography import EARTH_RADIUS_KM


def north_of_the_equator(km):
    """Points whose distance from (0, 0) is `km`, by the length of a meridian."""
    return np.stack([np.degrees(np.asarray(km) / EARTH_RADIUS_KM), np.zeros(len(km))], axis=1)


def test_accuracy_counts_the_boundary_as_a_hit():
    metrics = summarise_errors([1.0, 25.0, 200.0, 750.0, 2500.0])
    assert metrics["num_within_km"] == {"1": 1, "25": 2, "200": 3, "750": 4, "2500": 5}
    assert metrics["accuracy_within_km"] == {"1": 0.2, "25": 0.4, "200": 0.6, "750": 0.8, "2500": 1.0}


def test_accuracy_counts_the_next_number_above_the_boundary_as_a_miss():
    assert summarise_errors(np.nextafter([1.0, 25.0], np.inf))["num_within_km"]["1"] == 0
    assert summarise_errors(np.nextafter([25.0], np.inf))["num_within_km"]["25"] == 0


def test_metrics_of_hand_made_errors_are_the_hand_made_numbers():
    km = [0.5, 10, 100, 500, 2000, 5000]
    metrics = compute_metrics(north_of_the_equator(km), np.zeros((6, 2)))
    assert metrics["num_photos"] == 6
    assert metrics["mean_km"] == pytest.approx(7610.5 / 6)
    assert metrics["median_km"] == pytest.approx(300)
    assert metrics["num_within_km"] == {"1": 1, "25": 2, "200": 3, "750": 4, "2500": 5}
    assert metrics["quantiles_km"]["0.5"] == pytest.approx(300)


def test_geoscore_has_the_published_constant():
    # A perfect answer has 5000 points; 1492.7 km away, e times fewer; the antipode, next to none.
    assert geoscores([0.0, 1492.7, 20015.1]) == pytest.approx([5000, 5000 / np.e, 0.0075], rel=0.01)
    assert summarise_errors([0.0, 1492.7])["geoscore"] == pytest.approx((5000 + 5000 / np.e) / 2)


def test_thresholds_can_be_any_radii():
    assert summarise_errors([0.4, 30.0], thresholds_km=(0.5, 50))["num_within_km"] == {"0.5": 1, "50": 2}


@pytest.mark.parametrize(
    ("thresholds_km", "message"),
    [
        ((25, -1), "at least 0, such as 1 25 200 750 2500; -1 is not one"),
        ((np.nan,), "nan is not one"),
        ((-0.0,), "-0 is not one"),
        ((1, np.inf), "inf is not one"),
        ((25, 200, 25.0), "25 stands twice"),
        ((), "none was given"),
    ],
)
def test_what_cannot_be_radii_is_refused_by_name(thresholds_km, message):
    with pytest.raises(ConfigError, match=f"thresholds_km must be different radii.*{message}"):
        summarise_errors([5.0], thresholds_km=thresholds_km)


def test_metrics_are_the_same_to_the_last_digit_in_any_order():
    error_km = np.random.default_rng(0).exponential(3000, 5000)
    assert summarise_errors(error_km) == summarise_errors(error_km[::-1])


@pytest.mark.parametrize(
    ("predicted_deg", "true_deg", "published_km"),
    [
        ((0.0, 0.0), (0.0, 180.0), np.pi * EARTH_RADIUS_KM),  # antipodes, three times
        ((90.0, 12.0), (-90.0, -50.0), np.pi * EARTH_RADIUS_KM),
        ((40.4, -3.7), (-40.4, 176.3), np.pi * EARTH_RADIUS_KM),
        ((0.0, 179.5), (0.0, -179.5), np.pi * EARTH_RADIUS_KM / 180),  # a degree, across the date line
        ((-17.0, 180.0), (-17.0, -180.0), 0.0),
        ((90.0, 0.0), (90.0, 77.0), 0.0),  # one pole has every longitude
        ((90.0, 0.0), (0.0, 77.0), np.pi * EARTH_RADIUS_KM / 2),
        # Nashville to Los Angeles airport, of rosettacode.org/wiki/Haversine_formula, for a sphere of 6,371 km
        ((36.12, -86.67), (33.94, -118.40), 2886.44444283798 * EARTH_RADIUS_KM / 6371),
        # Land's End to John o' Groats, of movable-type.co.uk/scripts/latlong.html, for a sphere of 6,371 km
        (
            (50 + 3 / 60 + 59 / 3600, -5 - 42 / 60 - 53 / 3600),
            (58 + 38 / 60 + 38 / 3600, -3 - 4 / 60 - 12 / 3600),
            968.9,
        ),
    ],
)
def test_known_distances_are_the_errors_and_hits_at_their_own_radius(predicted_deg, true_deg, published_km):
    metrics = compute_metrics([predicted_deg], [true_deg])
    assert metrics["mean_km"] == metrics["median_km"] == pytest.approx(published_km, rel=1e-4, abs=1e-9)
    at_its_own = compute_metrics([predicted_deg], [true_deg], thresholds_km=(metrics["mean_km"],))
    assert list(at_its_own["num_within_km"].values()) == [1]


def test_the_published_constant_has_its_published_numbers_on_the_real_lists(shared_data):
    published = {
        "im2gps3k": (5466, {"200": 0.017, "750": 0.143, "2500": 0.330}),
        "im2gps": (5380, {"200": 0.013, "750": 0.114, "2500": 0.342}),
        "yfcc25600": (5163, {"200": 0.028, "750": 0.160, "2500": 0.380}),
    }
    for name, (mean_km, accuracy) in published.items():
        file = shared_data / "geotags" / f"{name}_places365.csv"
        truth = np.genfromtxt(file, delimiter=",", skip_header=1, usecols=(2, 3))
        metrics = compute_metrics(np.broadcast_to([54.68, -3.04], truth.shape), truth)
        assert metrics["mean_km"] == pytest.approx(mean_km, abs=1.0), name
        for radius, share in accuracy.items():
            assert metrics["accuracy_within_km"][radius] == pytest.approx(share, abs=0.00055), (name, radius)


def test_a_prediction_that_is_not_a_number_fails_by_its_id():
    predicted = np.array([[0.0, 0.0], [np.nan, 5.0], [91.0, 0.0]])
    with pytest.raises(PredictionError, match=r"(?s)2 of 3 rows .* id b, which is not finite"):
        compute_metrics(predicted, np.zeros((3, 2)), ids=["a", "b", "c"])


def test_a_prediction_off_earth_fails_by_its_id():
    with pytest.raises(PredictionError, match=r"id 1, which is not on Earth: latitude=0, longitude=180\.5"):
        compute_metrics([[0.0, 0.0], [0.0, 180.5]], np.zeros((2, 2)))


def test_swapped_columns_of_predictions_are_suspected():
    with pytest.raises(PredictionError, match="Are the two columns swapped"):
        compute_metrics([[139.7, 35.7], [100.0, 13.8]], [[35.7, 139.7], [13.8, 100.0]])


@pytest.mark.parametrize("truth", [[np.nan, 0.0], [91.0, 0.0], [0.0, 181.0], [0.0, np.inf]])
def test_a_truth_off_earth_fails_by_its_id(truth):
    with pytest.raises(CoordinateError, match=r"1 of 2 rows of the truths are not on Earth; the first is id b\.jpg"):
        compute_metrics(np.zeros((2, 2)), [[0.0, 0.0], truth], ids=["a.jpg", "b.jpg"])
    with pytest.raises(CoordinateError, match="the first is id 1"):
        compute_metrics(np.zeros((2, 2)), [[0.0, 0.0], truth])


def test_every_radius_has_a_name_of_its_own():
    radii = (2500.123, 2500.12, 1234567.0, 1234568.0, 200.0, 0.5, 25, np.float64(750.0))
    names = ["2500.123", "2500.12", "1234567", "1234568", "200", "0.5", "25", "750"]
    assert list(summarise_errors([1.0], thresholds_km=radii)["num_within_km"]) == names


def test_predictions_and_truths_must_be_as_many():
    with pytest.raises(PredictionError, match=r"\(3, 2\) and \(2, 2\)"):
        compute_metrics(np.zeros((3, 2)), np.zeros((2, 2)))


def test_no_photos_have_no_metrics():
    with pytest.raises(PredictionError, match="at least one photo"):
        summarise_errors([])
