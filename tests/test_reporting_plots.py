"""Figures: what is drawn is what was given."""

import gc
import weakref

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("matplotlib")

from matplotlib.text import Text

from geomae.reporting.plots import error_cdf, loss_curves, reconstruction_grid, save_figure


def lines_of(figure):
    return {line.get_label(): line for line in figure.axes[0].lines if not line.get_label().startswith("_")}


def photos(value, num_photos=3):
    return np.full((num_photos, 3, 8, 8), value, dtype=np.uint8)


def test_reconstruction_grid_shows_original_masked_and_restored_under_each_other():
    figure = reconstruction_grid(photos(10), photos(20), photos(30), title="step 7")
    shown = [int(axes.images[0].get_array()[0, 0, 0]) for axes in figure.axes]
    assert shown == [10] * 3 + [20] * 3 + [30] * 3
    assert [axes.get_ylabel() for axes in figure.axes[::3]] == ["original", "masked", "restored"]


def test_reconstruction_grid_shows_channels_in_their_place():
    red = np.zeros((1, 3, 4, 4), dtype=np.uint8)
    red[:, 0] = 255
    figure = reconstruction_grid(red, red, red)
    assert figure.axes[0].images[0].get_array()[2, 3].tolist() == [255, 0, 0]


def test_a_figure_that_is_saved_holds_nothing_more(tmp_path):
    """Or a training that draws grows by megabytes with every picture, until Python looks for circles."""
    gc.collect()
    gc.disable()
    try:
        figure = reconstruction_grid(photos(10), photos(20), photos(30))
        held = weakref.ref(figure.axes[0].images[0].get_array())
        save_figure(figure, tmp_path / "grid.png")
        assert not figure.axes
        del figure
        assert held() is None
    finally:
        gc.enable()


def test_reconstruction_grid_refuses_what_is_not_photos():
    with pytest.raises(ValueError, match=r"restored \(3, 3, 8, 8\) float64"):
        reconstruction_grid(photos(1), photos(1), photos(1) / 255.0)
    with pytest.raises(ValueError, match="same shape"):
        reconstruction_grid(photos(1), photos(1, 2), photos(1))


def test_loss_curves_draw_each_metric_where_it_was_logged():
    history = [
        {"step": 10, "loss": 3.0},
        {"step": 20, "loss": 2.0},
        {"step": 20, "eval_loss": 2.5},
        {"step": 20, "x": 1},
    ]
    figure = loss_curves({"run": history}, {"loss": "training", "eval_loss": "validation"}, title="Loss", unit="loss")
    curves = lines_of(figure)
    assert list(curves) == ["training (2 at the end)", "validation (2.5 at the end)"]
    assert np.array(curves["training (2 at the end)"].get_data()).tolist() == [[10, 20], [3, 2]]


def test_loss_curves_of_runs_share_a_figure_and_keep_their_names():
    histories = {name: [{"step": 1, "loss": value}] for name, value in (("first", 1.0), ("second", 2.0))}
    curves = lines_of(
        loss_curves(histories, {"loss": "training", "eval_loss": "validation"}, title="Loss", unit="loss")
    )
    assert list(curves) == ["first: training (1 at the end)", "second: training (2 at the end)"]
    assert len({line.get_color() for line in curves.values()}) == 2


def test_loss_curves_without_a_single_point_are_an_empty_figure(tmp_path):
    save_figure(loss_curves({"run": []}, {"loss": "training"}, title="Loss", unit="loss"), tmp_path / "loss.png")


def test_error_cdf_reaches_each_share_at_its_error():
    figure = error_cdf({"model": [100.0, 10.0, 1000.0, 2000.0]}, {"constant": [5000.0] * 4}, title="set: 4 photos")
    error_km, share = lines_of(figure)["model, 550 km"].get_data()
    assert dict(zip(error_km, share, strict=True)) == {1e-3: 0, 10: 25, 100: 50, 1000: 75, 2000: 100}
    assert "constant, 5,000 km" in lines_of(figure)


def test_saved_figures_are_pictures_of_a_readable_size(tmp_path):
    path = save_figure(reconstruction_grid(photos(1), photos(2), photos(3)), tmp_path / "new" / "grid.png")
    with Image.open(path) as picture:
        assert min(picture.size) > 300


def test_full_disk_leaves_the_earlier_picture(tmp_path, full_disk):
    path = save_figure(reconstruction_grid(photos(1), photos(2), photos(3)), tmp_path / "grid.png")
    before = path.read_bytes()
    with full_disk(2000), pytest.raises(OSError, match="too large"):
        save_figure(reconstruction_grid(photos(4), photos(5), photos(6)), path)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["grid.png"]


def test_loss_curves_can_run_along_epochs():
    history = [{"step": 10, "epoch": 0.5, "loss": 3.0}, {"step": 20, "epoch": 1.0, "loss": 2.0}]
    figure = loss_curves({"run": history}, {"loss": "training"}, title="t", unit="u", along="epoch")
    assert figure.axes[0].lines[0].get_xdata().tolist() == [0.5, 1.0]
    assert figure.axes[0].get_xlabel() == "epoch"


STRANGE_NAMES = ("$\\foo$", "x$y$z", "_mae", "a_b^c", "50 % \\alpha")


def texts_of_legend(figure):
    return [text.get_text().strip() for text in figure.axes[0].get_legend().get_texts()]


def test_names_stand_in_legends_and_titles_as_they_are_spelt(tmp_path):
    curves = loss_curves(
        {name: [{"step": 1, "loss": 1.0}] for name in STRANGE_NAMES},
        {"loss": "Loss"},
        title="$\\foo$",
        unit="$\\bar$",
        log_scale=True,
    )
    cdf = error_cdf({name: [1.0, 50.0] for name in STRANGE_NAMES}, {"_$\\b$": [3.0]}, title="$\\foo$ on x$y$z")
    grid = reconstruction_grid(photos(1), photos(2), photos(3), title="$\\foo$")
    assert texts_of_legend(curves) == [f"{name} (1 at the end)" for name in STRANGE_NAMES]
    assert texts_of_legend(cdf) == ["_$\\b$, 3 km", *(f"{name}, 26 km" for name in STRANGE_NAMES)]
    for number, figure in enumerate((curves, cdf, grid)):
        save_figure(figure, tmp_path / f"{number}.png")  # `$\\foo$` is no formula that matplotlib knows
        texts = [text for text in figure.findobj(Text) if text.get_text()]
        assert not [text for text in texts if text.get_parse_math()]
        assert not [text for text in texts if "\\mathdefault" in text.get_text()]  # ticks, which would be shown so
