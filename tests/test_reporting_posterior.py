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
from geomae.reporting.wandb_run import summarise_for_wandb

AUTHORS = [f"author {number % 12}" for number in range(40)]


def test_the_calibration_curve_has_a_point_and_a_bar_for_each_share(tmp_path: Path) -> None:
    curves = {"sure": {"0.1": 0.02, "0.9": 0.6}, "shy": {"0.1": 0.2, "0.9": 0.97}}
    intervals = {"sure": {"0.1": [0.01, 0.05], "0.9": [0.5, 0.7]}, "shy": None}
    figure = calibration_curve(curves, intervals, title="set: calibration")
    sure, shy = figure.axes[0].containers
    assert sure.lines[0].get_ydata() == pytest.approx([2, 60])
    assert sure.lines[0].get_xdata() == pytest.approx([10, 90], abs=1)
    bars = [segment[:, 1].tolist() for segment in sure.lines[2][0].get_segments()]
    assert np.array(bars) == pytest.approx(np.array([[1, 5], [50, 70]]))
    assert not shy.lines[2]
    with Image.open(save_figure(figure, tmp_path / "calibration.png")) as picture:
        assert min(picture.size) > 300


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
    summary = summarise_for_wandb(metrics)
    posterior = metrics["posterior"]
    assert summary["test/set/nll"] == posterior["nll"]
    assert summary["test/set/mean_expected_km"] == posterior["mean_expected_km"]
    assert summary["test/set/coverage_0.9_high"] == posterior["intervals_95"]["coverage"]["0.9"][1]
    assert summary["test/set/argmax/mean_km"] == metrics["decodings"]["argmax"]["mean_km"]
    assert summary["test/set/argmax/mean_km_low"] == metrics["decodings"]["argmax"]["intervals_95"]["mean_km"][0]
    assert json.loads((tmp_path / "set" / "metrics.json").read_text())["decodings"] == metrics["decodings"]
    few = make_evaluation(tmp_path / "few", authors=["ann"] * 40, posterior=True)
    assert not [name for name in summarise_for_wandb(few) if name.endswith(("_low", "_high"))]
