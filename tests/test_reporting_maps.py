"""World maps, without a network."""

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("cartopy")

from matplotlib.text import Text

from geomae.geography import draw_uniform, great_circle_km
from geomae.reporting.maps import cluster_map, coordinate_map, prediction_map
from geomae.reporting.plots import save_figure


def test_prediction_map_shows_every_truth_and_every_prediction(tmp_path):
    truth, predicted = (draw_uniform(300, np.random.default_rng(seed)) for seed in (0, 1))
    error_km = great_circle_km(predicted, truth)
    figure = prediction_map(truth, predicted, error_km, title="set: 300 photos")
    truths, answers = figure.axes[:2]
    for axes, points in ((truths, truth), (answers, predicted)):
        drawn = np.asarray(axes.collections[0].get_offsets())  # longitude, latitude
        assert np.sort(drawn[:, 0]) == pytest.approx(np.sort(points[:, 1]))
        assert np.sort(drawn[:, 1]) == pytest.approx(np.sort(points[:, 0]))
    assert np.sort(np.asarray(truths.collections[0].get_array())) == pytest.approx(np.sort(error_km))
    assert answers.get_title("left") == "Predicted places, 250 of them joined to the truth"
    with Image.open(save_figure(figure, tmp_path / "map.png")) as picture:
        assert picture.width > 800


def test_prediction_map_of_one_photo_can_be_drawn(tmp_path):
    figure = prediction_map([[10.0, 20.0]], [[-80.0, -170.0]], [12_000.0], title="set: 1 photo")
    assert figure.axes[1].get_title("left") == "Predicted places, joined to the truth"
    save_figure(figure, tmp_path / "map.png")


def test_coordinate_map_counts_every_photo(tmp_path):
    figure = coordinate_map(draw_uniform(5000, np.random.default_rng(0)), title="5,000 photos")
    assert figure.axes[0].collections[0].get_array().sum() == 5000
    save_figure(figure, tmp_path / "map.png")


def test_cluster_map_draws_every_place_in_the_colour_of_its_cluster(tmp_path):
    means = np.array([[50.0, 0.0], [-30.0, 140.0]])
    places = np.concatenate([means[[0]] + [[0.0, 1.0], [1.0, 0.0]], means[[1]] + [[2.0, 2.0]]])
    figure = cluster_map(places, means, np.full((2, 2), 5.0), title="3 photos")
    first, second = (np.asarray(drawn.get_offsets()) for drawn in figure.axes[0].collections)
    assert first.tolist() == places[:2, ::-1].tolist()  # longitude, latitude
    assert second.tolist() == places[2:, ::-1].tolist()
    assert [text.get_text() for text in figure.axes[0].texts] == ["1", "2"]
    save_figure(figure, tmp_path / "map.png")


def test_titles_of_maps_are_no_formulas(tmp_path):
    places = np.array([[10.0, 20.0], [50.0, 0.0]])
    figures = [
        prediction_map(places, places + 1, [1.0, 2.0], title="$\\foo$ on x$y$z"),
        coordinate_map(np.repeat(places, 5, axis=0), title="$\\foo$"),
        cluster_map(places, places, np.ones((2, 2)), title="$\\foo$"),
    ]
    for number, figure in enumerate(figures):
        save_figure(figure, tmp_path / f"{number}.png")
        shown = [text.get_text() for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
        assert [text for text in shown if "\\foo" in text] == [text for text in shown if "$" in text]
