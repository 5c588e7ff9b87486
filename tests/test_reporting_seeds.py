"""Numbers of several seeds: their mean, their spread, and how they and their differences are shown."""

import statistics

import pytest

from geomae.reporting.page import Cell
from geomae.reporting.seeds import difference_cells, over_seeds, seeds_cell, shown_p


def test_means_and_deviations_reach_into_groups_of_numbers():
    numbers = [{"mean_km": km, "shares": {"25": share}} for km, share in ((100.0, 0.1), (130.0, 0.2), (190.0, 0.6))]
    over = over_seeds(numbers)
    assert over["num_seeds"] == 3
    assert over["mean_km"] == pytest.approx(140.0)
    assert over["shares"]["25"] == pytest.approx(0.3)
    assert over["spread"]["mean_km"] == pytest.approx(statistics.stdev([100.0, 130.0, 190.0]))
    assert over["spread"]["shares"]["25"] == pytest.approx(statistics.stdev([0.1, 0.2, 0.6]))


def test_one_seed_has_no_spread():
    assert over_seeds([{"mean_km": 5.0}]) == {"num_seeds": 1, "mean_km": 5.0}


def test_cell_shows_the_mean_the_spread_and_the_interval_of_the_first_seed():
    over = {"mean_km": 1234.0, "spread": {"mean_km": 56.0}}
    first = {"mean_km": 1200.0, "intervals_95": {"mean_km": [1100.0, 1300.0]}}
    assert seeds_cell(over, first, ("mean_km",), is_best=True) == Cell("1,234 ± 56", "[1,100, 1,300]", True)
    del over["spread"]
    assert seeds_cell(over, first, ("mean_km",)).text == "1,234"


def test_p_says_where_the_resamples_end():
    assert shown_p(2 / 10_001, 10_000) == "≤ 0.0002"
    assert shown_p(4 / 10_001, 10_000) == "0.0004"


def test_difference_without_intervals_says_so():
    compared = {"mean_km": 0.0, "intervals_95": None, "bootstrap": {"p": None}, "paired_t_test": {"t": None, "p": None}}
    assert difference_cells(compared) == [Cell("+0", "no interval"), "–", Cell("–", "equal")]
