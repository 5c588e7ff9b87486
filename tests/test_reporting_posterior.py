"""A posterior on the report page, in W&B and in the picture of its calibration."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cartopy")

from PIL import Image
from report_folders import make_evaluation

from geomae.reporting.__main__ import main
from geomae.reporting.plots import calibration_curve, save_figure
from geomae.reporting.tracked_evaluation import summarise_evaluation

AUTHORS = [f"author {number % 12}" for number in range(40)]


def test_the_calibration_curve_has_a_point_and_a_bar_for_each_share(tmp_path: Path) -> None:
    curves = {"sure": {"0.1": 0.02, "0.9": 0.6}, "shy": {"0.1": 0.2, "0.9": 0.97}}
    intervals = {"sure": {"0.1": [0.01, 0.05], "0.9": [0.5, 0.7]}, "shy": None}
    figure = calibration_curve(curves, intervals, title="set: calibration")
    drawn = {line.get_label(): line.get_xydata() for line in figure.axes[0].get_lines()}
    np.testing.assert_allclose(drawn["sure"], [[10, 2], [90, 60]])
    np.testing.assert_allclose(drawn["shy"], [[10, 20], [90, 97]])
    (of_sure,) = figure.axes[0].containers  # the shy model has no intervals
    bars = [segment[:, 1].tolist() for segment in of_sure.lines[2][0].get_segments()]
    assert np.array(bars) == pytest.approx(np.array([[1, 5], [50, 70]]))
    with Image.open(save_figure(figure, tmp_path / "calibration.png")) as picture:
        assert min(picture.size) > 300


@pytest.mark.parametrize("has_intervals", [False, True])
def test_calibrated_models_lie_on_the_diagonal_however_many_they_are(has_intervals: bool) -> None:
    shares = {f"{tenth / 10}": tenth / 10 for tenth in range(1, 10)}
    names = [f"model {number}" for number in range(8)]
    ends = {share: [value - 0.05, value + 0.05] for share, value in shares.items()}
    intervals = dict.fromkeys(names, ends) if has_intervals else {}
    (axes,) = calibration_curve(dict.fromkeys(names, shares), intervals, title="all alike").axes
    points = {line.get_label(): line.get_xydata() for line in axes.get_lines()}
    for name in names:
        np.testing.assert_allclose(points[name][:, 0], points[name][:, 1])
    bars = [container.lines[2][0].get_segments()[0][0, 0] for container in axes.containers]
    assert len(set(bars)) == (8 if has_intervals else 0)  # side by side, none behind another


def test_a_report_shows_what_was_fitted_and_a_dash_for_a_retrieval_which_has_none(tmp_path: Path) -> None:
    fitted = {"model": {"temperature": 1.25, "spread_scale": 0.333}, "retrieval": {}}
    for name, values in fitted.items():
        file = tmp_path / name / "metrics.json"
        metrics = make_evaluation(file.parent, authors=AUTHORS, posterior=True)
        del metrics["posterior"]["temperature"]
        file.write_text(json.dumps({**metrics, "posterior": metrics["posterior"] | values}))
    words = ["--evaluation", *(str(tmp_path / name) for name in fitted), "--output_dir", str(tmp_path / "report")]
    assert main(["report", *words]) == 0
    text = (tmp_path / "report/report.md").read_text()
    assert "|  | temperature | spread scale | NLL" in text
    assert "| model, kernel | 1.25 | 0.333 |" in text
    assert "| retrieval, kernel | – | – |" in text


def test_the_report_has_the_posteriors_numbers_and_its_calibration(tmp_path: Path) -> None:
    metrics = make_evaluation(tmp_path / "mine", authors=AUTHORS, posterior=True, num_answered=38)
    make_evaluation(tmp_path / "plain", authors=AUTHORS)
    words = ["--evaluation", str(tmp_path / "mine"), str(tmp_path / "plain")]
    assert main(["report", *words, "--output_dir", str(tmp_path / "report")]) == 0
    text = (tmp_path / "report" / "report.md").read_text()
    low, high = metrics["posterior"]["intervals_95"]["coverage"]["0.5"]
    (row,) = [line for line in text.splitlines() if line.startswith("| mine, kernel | 1.25 |")]
    row = row.replace("\\[", "[").replace("\\]", "]")
    assert f"{metrics['posterior']['nll']:,.2f}" in row
    assert f"{100 * metrics['posterior']['coverage']['0.5']:.1f} [{100 * low:.1f}, {100 * high:.1f}]" in row
    assert "| mine, argmax |" in text
    assert (tmp_path / "report" / "calibration_1.png").is_file()


def test_a_report_without_a_posterior_says_nothing_of_one(tmp_path: Path) -> None:
    make_evaluation(tmp_path / "plain", authors=AUTHORS)
    main(["report", "--evaluation", str(tmp_path / "plain"), "--output_dir", str(tmp_path / "report")])
    assert "NLL" not in (tmp_path / "report" / "report.md").read_text()
    assert not (tmp_path / "report" / "calibration_1.png").exists()


def test_wandb_gets_every_decoding_and_the_posterior_with_its_intervals(tmp_path: Path) -> None:
    metrics = make_evaluation(tmp_path / "set", authors=AUTHORS, posterior=True)
    summary = summarise_evaluation(metrics)
    posterior = metrics["posterior"]
    assert summary["test/set/nll"] == posterior["nll"]
    assert summary["test/set/mean_expected_km"] == posterior["mean_expected_km"]
    assert summary["test/set/coverage_0.9_high"] == posterior["intervals_95"]["coverage"]["0.9"][1]
    assert summary["test/set/argmax/mean_km"] == metrics["decodings"]["argmax"]["mean_km"]
    assert summary["test/set/argmax/mean_km_low"] == metrics["decodings"]["argmax"]["intervals_95"]["mean_km"][0]
    assert json.loads((tmp_path / "set" / "metrics.json").read_text())["decodings"] == metrics["decodings"]
    few = make_evaluation(tmp_path / "few", authors=["ann"] * 40, posterior=True)
    assert not [name for name in summarise_evaluation(few) if name.endswith(("_low", "_high"))]
