"""Several runs on one page: what is found where, and what is said of it."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cartopy")

from report_folders import make_evaluation, make_run

from geomae.errors import ConfigError, SourceError
from geomae.evaluation import compare_predictions
from geomae.geography import draw_uniform
from geomae.reporting.__main__ import main
from geomae.reporting.comparison import read_runs, write_comparison
from geomae.reporting.plots import error_cdf, loss_curves

AUTHORS = [f"author {number % 9}" for number in range(40)]


def compare(folder, *words):
    assert main(["compare", *map(str, words), "--output_dir", str(folder / "out"), "--num_resamples", "200"]) == 0
    return (folder / "out" / "compare.md").read_text().replace("\\", "")


def section(text, heading):
    return text.split(f"## {heading}")[1].split("\n## ")[0]


def make_three(folder):
    """Two fine-tunings with an evaluation inside, and one with an evaluation beside it."""
    settings = {"learning_rate": 1e-3, "seed": 0, "output_dir": "outputs/one", "head_hidden_sizes": [32]}
    changes = ({}, {"learning_rate": 1e-4, "layer_decay": 0.75}, {"output_dir": "outputs/three"})
    for number, (name, changed) in enumerate(zip(("one", "two", "three"), changes, strict=True)):
        make_run(folder / name, [50.0, 40.0 + number], great_circle=True, config={**settings, **changed})
        beside = folder / "judged" if name == "three" else folder / name / "im2gps3k"
        make_evaluation(beside, seed=number, authors=AUTHORS, checkpoint=f"{folder.name}/{name}")
    return [folder / name for name in ("one", "two", "three")]


def test_page_has_numbers_differing_settings_curves_and_paired_tests(tmp_path, capsys):
    runs = make_three(tmp_path)
    text = compare(tmp_path, *runs)
    written = {path.name for path in (tmp_path / "out").iterdir()}
    figures = {"error_cdf_1", "finetuning_training_loss", "finetuning_validation_error"}
    assert written == {"compare.md", "compare.html"} | {f"{name}.png" for name in figures}
    assert all(f"| {name} |" in section(text, "Results on set.csv") for name in ("one", "two", "three"))
    settings = section(text, "What was set differently")
    assert "| learning_rate | 0.001 | 0.0001 | 0.001 |" in settings
    assert "| layer_decay | – | 0.75 | – |" in settings
    assert not [key for key in ("seed", "output_dir", "head_hidden_sizes") if key in settings]
    html = (tmp_path / "out" / "compare.html").read_text()
    assert html.count('src="data:image/png;base64,') == len(figures)
    assert not [word for word in ("<script", "http://", "https://") if word in html]
    assert f"wrote {tmp_path / 'out' / 'compare.html'}" in capsys.readouterr().out


def test_every_run_is_tested_against_the_first_by_authors_with_holm(tmp_path):
    one, two, three = make_three(tmp_path)
    results = section(compare(tmp_path, one, two, three), "Results on set.csv")
    assert "### Against one, photo by photo" in results
    folders = {"one": one / "im2gps3k", "two": two / "im2gps3k", "three": tmp_path / "judged"}
    tested = {
        name: compare_predictions(folders[name], folders["one"], num_resamples=200)["paired_t_test"]
        for name in ("two", "three")
    }
    small, large = sorted(each["p"] for each in tested.values())
    adjusted = {small: min(1.0, 2 * small), large: max(large, min(1.0, 2 * small))}
    for name, each in tested.items():
        row = next(line for line in results.splitlines() if line.startswith(f"| {name} |") and "(39)" in line)
        assert f"| {each['t']:.2f} (39) | {each['p']:.2g} Holm {adjusted[each['p']]:.2g} |" in row
    assert "200 resamples of 9 authors" in results


def test_another_run_can_be_the_reference_and_two_runs_need_no_adjustment(tmp_path):
    one, two, _ = make_three(tmp_path)
    text = compare(tmp_path, f"big={one}", f"small={two}", "--reference", "small", "--title", "Big and small")
    assert text.startswith("# Big and small")
    assert "### Against small, photo by photo" in text
    assert "The mean error of big is" in text
    assert "Holm" not in text
    with pytest.raises(ConfigError, match="no run is called one; --reference is one of big, small"):
        compare(tmp_path, f"big={one}", f"small={two}", "--reference", "one")


def test_training_brings_the_evaluations_inside_and_beside_it_and_no_other(tmp_path):
    outputs = tmp_path / "outputs"
    make_run(outputs / "run", [1.0])
    make_evaluation(outputs / "run" / "im2gps", test_seed=3)
    for name, checkpoint in {"by_path": "outputs/run", "by_name": "run", "from_below": "../outputs/run"}.items():
        make_evaluation(outputs / name, checkpoint=checkpoint)
    make_evaluation(outputs / "other", checkpoint="outputs/other_run")
    make_evaluation(outputs / "namesake", checkpoint="outputs/elsewhere/run")
    (run,) = read_runs([str(outputs / "run")])
    assert [record.folder.name for record in run.evaluations] == ["im2gps", "by_name", "by_path", "from_below"]
    assert run.training is not None
    (alone,) = read_runs([str(outputs / "other")])
    assert (alone.training, len(alone.evaluations)) == (None, 1)


def test_an_evaluation_beside_is_found_where_outputs_is_a_link(tmp_path, monkeypatch):
    make_run(tmp_path / "disk" / "run", [1.0])
    make_evaluation(tmp_path / "disk" / "judged", checkpoint="outputs/run")
    (tmp_path / "outputs").symlink_to(tmp_path / "disk")
    monkeypatch.chdir(tmp_path)
    (run,) = read_runs(["outputs/run"])
    assert [record.folder.name for record in run.evaluations] == ["judged"]


def test_every_evaluation_is_on_the_page_under_a_label_of_its_own(tmp_path):
    make_run(tmp_path / "run", [1.0])
    for seed, inside in enumerate(("p/eval", "q/eval", "im2gps3k")):
        make_evaluation(tmp_path / "run" / inside, seed=seed)
    make_evaluation(tmp_path / "im2gps3k", seed=3, checkpoint="run")
    make_evaluation(tmp_path / "run" / "z_set", seed=4, test_seed=5)
    make_evaluation(tmp_path / "other", seed=6)
    text = compare(tmp_path, tmp_path / "run", tmp_path / "other")
    first, second = text.split("## Results on set.csv")[1:]
    labels = ["run/p/eval", "run/q/eval", "run/run/im2gps3k", f"run/{tmp_path.name}/im2gps3k", "other"]
    assert all(f"| {label} |" in first for label in labels)
    assert "| run |" in second  # the run's only one on that test set
    assert "| other |" not in second


def test_a_label_that_two_evaluations_would_have_is_refused(tmp_path):
    for number, name in enumerate(("model/im2gps", "model/ten_crop", "third")):
        make_evaluation(tmp_path / name, seed=number)
    with pytest.raises(ConfigError, match=r"two evaluations on set\.csv would be called model/im2gps: .*other names"):
        compare(tmp_path, tmp_path / "model", f"model/im2gps={tmp_path / 'third'}")
    runs = read_runs([str(tmp_path / "third")])
    with pytest.raises(ConfigError, match="two runs are called third"):
        write_comparison(tmp_path / "out", [*runs, *runs])


def test_a_broken_neighbour_is_left_out_with_a_warning_and_a_broken_folder_that_was_named_is_refused(tmp_path, caplog):
    make_run(tmp_path / "run", [1.0])
    make_evaluation(tmp_path / "judged", checkpoint="run")
    for name, content in {"list": "[1, 2]", "mapping": '{"checkpoint": {"a": 1}}', "cut": '{"checkpo'}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text(content)
    make_evaluation(tmp_path / "rowless", checkpoint="run")
    (tmp_path / "rowless" / "predictions.parquet").unlink()
    (run,) = read_runs([str(tmp_path / "run")])
    assert [record.folder.name for record in run.evaluations] == ["judged"]
    warned = [Path(record.args[0]).name for record in caplog.records if "is left out" in record.msg]
    assert warned == ["cut", "list", "rowless"]
    for name in ("list", "mapping", "cut", "rowless"):
        with pytest.raises(SourceError, match=name):
            read_runs([str(tmp_path / name)])
    (tmp_path / "list").rename(tmp_path / "run" / "list")
    with pytest.raises(SourceError, match="holds a list, not the metrics"):
        read_runs([str(tmp_path / "run")])


def test_tables_show_the_radii_that_all_evaluations_have(tmp_path):
    for name, radii in {"a": [100, 500, 1], "b": [1, 25, 100]}.items():
        make_evaluation(tmp_path / name, thresholds_km=radii)
    text = compare(tmp_path, tmp_path / "a", tmp_path / "b")
    headers = [line for line in text.splitlines() if line.startswith("|") and "mean, km" in line]
    assert len([line for line in headers if "points" in line]) == 1
    assert all("≤ 100 km" in line and "≤ 1 km" in line for line in headers)
    assert not [line for line in headers if "500" in line or "25" in line]


def test_the_verdict_is_by_holm_where_there_are_several(tmp_path):
    """Differences that a single comparison would call sure, and twelve of them do not."""
    near = draw_uniform(40, np.random.default_rng(9))
    make_evaluation(tmp_path / "one", answers=near + np.array([0.0, 1.0]))
    rng = np.random.default_rng(4)
    for number in range(12):
        make_evaluation(
            tmp_path / f"run{number}", answers=near + np.stack([np.zeros(40), rng.normal(1, 0.5, 40)], axis=1)
        )
    folders = [tmp_path / f"run{number}" for number in range(12)]
    alone = [compare_predictions(folder, tmp_path / "one", num_resamples=200)["bootstrap"]["p"] for folder in folders]
    assert 0.05 / 12 < min(alone) < 0.05
    text = compare(tmp_path, tmp_path / "one", *folders)
    assert "by Holm, p is" in text
    assert "is better on photos" not in text


def test_a_file_in_the_place_of_the_folder_is_refused_before_anything_is_drawn(tmp_path):
    for number, name in enumerate("ab"):
        make_evaluation(tmp_path / name, seed=number)
    (tmp_path / "out").write_text("mine")
    for words in (
        ["compare", str(tmp_path / "a"), str(tmp_path / "b")],
        ["report", "--evaluation", str(tmp_path / "a")],
    ):
        with pytest.raises(ConfigError, match="out is a file; choose another folder"):
            main([*words, "--output_dir", str(tmp_path / "out")])


def test_a_folder_of_evaluations_is_a_run_and_two_of_one_test_set_are_told_apart(tmp_path):
    for number, name in enumerate(("im2gps3k", "im2gps3k_ten_crop")):
        make_evaluation(tmp_path / "model" / name, seed=number)
    make_evaluation(tmp_path / "other", seed=5)
    text = compare(tmp_path, tmp_path / "model", tmp_path / "other")
    assert "### Against model/im2gps3k, photo by photo" in text
    assert "| model/im2gps3k_ten_crop |" in text
    assert "| other |" in text


def test_a_test_set_on_which_only_one_run_was_judged_says_so(tmp_path):
    make_evaluation(tmp_path / "a", test_seed=1)
    make_evaluation(tmp_path / "b", test_seed=2)
    text = compare(tmp_path, tmp_path / "a", tmp_path / "b")
    assert "Only a was judged on these photos" in text
    assert "Only b was judged on these photos" in text


def test_pretrainings_have_curves_of_their_own(tmp_path):
    runs = [make_run(tmp_path / name, [3.0, 2.0], config={"mask_ratio": 0.75}) for name in ("a", "b")]
    text = compare(tmp_path, *runs)
    assert "were trained with the same settings" in text
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"pretraining_training_loss.png"}


def test_what_is_no_run_and_names_that_repeat_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="empty is neither a training"):
        read_runs([str(tmp_path / "empty")])
    with pytest.raises(SourceError, match="absent is neither a training"):
        read_runs([str(tmp_path / "absent")])
    run = make_run(tmp_path / "run", [1.0])
    with pytest.raises(ConfigError, match="two runs are called same"):
        read_runs([f"same={run}", f"same={run}"])
    with pytest.raises(ConfigError, match="at least two runs; got run"):
        compare(tmp_path, run)


def test_a_folder_with_an_equals_sign_needs_no_name(tmp_path):
    (run,) = read_runs([str(make_run(tmp_path / "lr=1e-4", [1.0]))])
    assert run.name == "lr=1e-4"


def test_many_runs_differ_in_colour_or_dashes_and_their_legend_leaves_the_curves_free():
    histories = {f"run {number}": [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}] for number in range(14)}
    curves = loss_curves(histories, {"loss": "Loss"}, title="Loss", unit="loss")
    cdf = error_cdf({name: [1.0, 50.0] for name in histories}, title="2 photos")
    for figure in (curves, cdf):
        lines = [line for line in figure.axes[0].lines if str(line.get_label()).startswith("run")]
        assert len({(line.get_color(), str(line._unscaled_dash_pattern)) for line in lines}) == 14
        assert figure.axes[0].get_legend() is None
        figure.draw_without_rendering()
        (legend,) = figure.legends
        assert legend.get_window_extent().y1 <= figure.axes[0].get_window_extent().y0
