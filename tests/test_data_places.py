from pathlib import Path

import numpy as np
import pytest

from geomae.data.places import (
    draw_near_places,
    find_shared_data,
    find_world_picture,
    split_from_csv,
    splits_from_shared_data,
    splits_near_places,
)
from geomae.errors import SourceError


def haversine_km(first_deg: np.ndarray, second_deg: np.ndarray) -> np.ndarray:
    first_lat, first_lon = np.moveaxis(np.radians(first_deg), -1, 0)
    second_lat, second_lon = np.moveaxis(np.radians(second_deg), -1, 0)
    chord = np.sin((second_lat - first_lat) / 2) ** 2
    chord += np.cos(first_lat) * np.cos(second_lat) * np.sin((second_lon - first_lon) / 2) ** 2
    return 2 * 6371.0088 * np.arcsin(np.sqrt(chord))


def test_cartopy_s_picture_of_the_world_is_found() -> None:
    pytest.importorskip("cartopy")
    assert find_world_picture().is_file()


def test_points_lie_near_places_where_people_live() -> None:
    points = draw_near_places(3000, np.random.default_rng(0))
    assert points.shape == (3000, 2)
    assert np.abs(points[:, 0]).max() < 80
    assert (points[:, 0] > 0).mean() > 0.75  # nine in ten people live north of the equator
    tokyo, pacific = np.array([35.69, 139.69]), np.array([0.0, -130.0])
    assert (haversine_km(points, tokyo[None]) < 300).sum() > 10
    assert (haversine_km(points, pacific[None]) < 1000).sum() == 0


def test_large_cities_draw_more_points_than_towns() -> None:
    cities = np.array([[35.69, 139.69], [31.22, 121.46], [-23.55, -46.64], [19.43, -99.13], [6.45, 3.39]])
    shares = []
    for power in (0.0, 0.5, 1.0):
        points = draw_near_places(20000, np.random.default_rng(0), jitter_km=0.0, population_power=power)
        shares.append((haversine_km(points[:, None], cities[None]).min(axis=1) < 10).mean())
    assert 1.5 * shares[0] < shares[1] < shares[2] / 1.5


def test_jitter_moves_points_by_its_size_in_every_direction() -> None:
    still = draw_near_places(4000, np.random.default_rng(0), jitter_km=0.0)
    moved = draw_near_places(4000, np.random.default_rng(0), jitter_km=100.0)
    # a normal step in both directions of the ground: its length has the mean sigma * sqrt(pi / 2)
    assert haversine_km(still, moved).mean() == pytest.approx(100 * np.sqrt(np.pi / 2), rel=0.05)
    assert np.abs((moved - still)[:, 0].mean()) < 0.1


def test_splits_are_separate_draws_that_the_seed_repeats() -> None:
    first, second = splits_near_places({"train": 50, "test": 50}, seed=1)
    again = splits_near_places({"train": 50}, seed=1)[0]
    assert (first.latitude == again.latitude).all()
    assert not np.isin(first.latitude, second.latitude).any()
    assert first.ids[:2] == ["earth-train-000000", "earth-train-000001"]
    assert second.ids[0] == "earth-test-000000"


def test_rows_of_a_csv_are_drawn_without_repetition_and_keep_their_ids(tmp_path: Path) -> None:
    table = tmp_path / "points.csv"
    rows = "\n".join(f"photo {n},me,{n / 2},{-n}" for n in range(100))
    table.write_text(f"IMG_ID,AUTHOR,LAT,LON\n{rows}\n")
    drawn = split_from_csv("train", table, 0, num_points=40)
    assert len(set(drawn.ids)) == 40
    numbers = np.array([int(name.removeprefix("photo ")) for name in drawn.ids])
    assert (drawn.latitude == numbers / 2).all()
    assert (drawn.longitude == -numbers).all()
    assert drawn.optional["author"] == ["me"] * 40
    everything = split_from_csv("test", table, 0)
    assert list(everything.ids) == [f"photo {n}" for n in range(100)]


def test_more_rows_than_there_are_are_refused(tmp_path: Path) -> None:
    table = tmp_path / "points.csv"
    table.write_text("LAT,LON\n1,2\n")
    with pytest.raises(SourceError, match=r"holds 1 coordinates; 5 were asked for split train\. Pass --num_train 1"):
        split_from_csv("train", table, 0, num_points=5)
    assert len(split_from_csv("train", table, 0, max_points=5).ids) == 1


def test_real_geotags_make_the_thesis_s_splits(shared_data: Path) -> None:
    splits = {split.name: split for split in splits_from_shared_data(shared_data, 500, 100, seed=0)}
    assert {name: len(split.ids) for name, split in splits.items()} == {
        "train": 500,
        "validation": 100,
        "test_im2gps": 237,
        "test_im2gps3k": 2997,
    }
    assert splits["train"].ids[0] == "earth-train-000000"
    assert splits["test_im2gps3k"].ids[0] == "1000269685_e60e9cdfb4_1125_78841376@N00.jpg"
    assert (splits["test_im2gps3k"].latitude[0], splits["test_im2gps3k"].longitude[0]) == (32.325436, -64.764404)


def test_shared_data_is_found_by_its_variable_by_path_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "earth").mkdir()
    (tmp_path / "earth" / "blue_marble_december_5400x2700.jpg").touch()
    monkeypatch.setenv("GEOMAE_SHARED_DATA", str(tmp_path))
    assert find_shared_data("auto") == tmp_path
    assert find_shared_data("none") is None
    monkeypatch.delenv("GEOMAE_SHARED_DATA")
    assert find_shared_data(str(tmp_path)) == tmp_path
    with pytest.raises(SourceError, match="not the shared data"):
        find_shared_data(str(tmp_path / "elsewhere"))
