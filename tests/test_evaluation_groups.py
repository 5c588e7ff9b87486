"""Scenes, continents, countries and authors."""

import numpy as np
import pytest

from geomae.evaluation import TestSet
from geomae.evaluation.groups import NUM_AUTHORS_LISTED, find_groups, summarise_authors

PARIS_SYDNEY_ATLANTIC = np.array([[48.86, 2.35], [-33.87, 151.21], [30.0, -45.0]])
IDS = ["1.jpg", "2.jpg", "3.jpg"]


def test_countries_and_continents_are_those_of_the_place_and_scenes_the_test_set_s():
    groups = find_groups(TestSet("set", IDS, PARIS_SYDNEY_ATLANTIC, scenes=["urban", "natural", "unknown"]))
    assert groups == {
        "scene": ["urban", "natural", "unknown"],
        "continent": ["Europe", "Oceania", "unknown"],
        "country": ["France", "Australia", "unknown"],
    }


def test_the_test_set_s_own_countries_come_before_those_of_the_place():
    groups = find_groups(TestSet("set", IDS, PARIS_SYDNEY_ATLANTIC, countries=["FR", "AU", "PT"]))
    assert groups == {"continent": ["Europe", "Oceania", "unknown"], "country": ["FR", "AU", "PT"]}


def test_each_author_counts_once_in_the_mean_of_author_means():
    summary = summarise_authors(np.array([100.0, 300.0, 1000.0, 200.0]), ["ann", "ann", "bob", "ann"])
    assert (summary["num_authors"], summary["largest_share"]) == (2, 0.75)
    assert summary["mean_of_author_means_km"] == pytest.approx((200 + 1000) / 2)
    assert summary["largest"] == {
        "ann": {"num_photos": 3, "mean_km": pytest.approx(200), "median_km": 200.0},
        "bob": {"num_photos": 1, "mean_km": 1000.0, "median_km": 1000.0},
    }


def test_only_the_authors_with_most_photos_are_listed():
    authors = [f"author {number:02d}" for number in range(20) for _ in range(number + 1)]
    summary = summarise_authors(np.ones(len(authors)), authors)
    assert summary["num_authors"] == 20
    assert list(summary["largest"]) == [f"author {number}" for number in range(19, 19 - NUM_AUTHORS_LISTED, -1)]
