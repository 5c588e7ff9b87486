"""The report of real folders: training logs, evaluations, pictures."""

import json

import pyarrow.parquet
import pytest

pytest.importorskip("cartopy")

from report_folders import make_evaluation, make_run

from geomae.errors import SourceError
from geomae.reporting.__main__ import main
from geomae.reporting.records import read_evaluation, read_training, unique_names
from geomae.reporting.results_section import evaluation_table


def report(folder, *words):
    return main(["report", *map(str, words), "--output_dir", str(folder / "report")])


def test_report_tells_the_whole_story_in_both_pages(tmp_path, capsys):
    pretrain = make_run(tmp_path / "pretrain", [3.0, 2.0, 1.0], pictures=(0, 10, 200))
    finetune = make_run(tmp_path / "finetune", [50.0, 40.0], great_circle=True)
    metrics = make_evaluation(tmp_path / "evaluate", num_answered=38)
    status = report(
        tmp_path, "--pretrain_run", pretrain, "--finetune_run", finetune, "--evaluation", tmp_path / "evaluate"
    )
    assert status == 0
    written = {path.name for path in (tmp_path / "report").iterdir()}
    figures = {"pretraining_loss", "reconstruction_1_step_000000", "reconstruction_1_step_000200", "finetuning_loss"}
    figures |= {"finetuning_error", "error_cdf_1", "prediction_map_1_1"}
    assert written == {"report.md", "report.html"} | {f"{name}.png" for name in figures}
    for name in ("report.md", "report.html"):
        text = (tmp_path / "report" / name).read_text()
        assert f"{metrics['mean_km']:,.0f}" in text
        assert "2 of 40 photos have no answer" in text
        assert "<b>1" not in text
        assert "python run" in text.replace("\\", "")
    assert str(tmp_path / "report" / "report.html") in capsys.readouterr().out


def test_evaluations_of_two_test_sets_stand_in_two_tables(tmp_path):
    for name, test_seed in (("a", 9), ("b", 9), ("c", 10)):
        make_evaluation(tmp_path / name, seed=test_seed + ord(name), test_seed=test_seed)
    report(tmp_path, "--evaluation", *(tmp_path / name for name in "abc"))
    text = (tmp_path / "report" / "report.md").read_text()
    first, second = text.split("## Results on")[1:3]
    assert "| a |" in first
    assert "| b |" in first
    assert "| c |" not in first
    assert "| c |" in second.split("## How")[0]


def test_runs_of_one_name_keep_their_own_commands(tmp_path):
    words = []
    for kind in ("pretrain", "finetune"):
        folder = make_run(tmp_path / kind / "run", [2.0, 1.0])
        (folder / "run.json").write_text(json.dumps({"command": f"python make_{kind}", "versions": {}}))
        words += [f"--{kind}_run", folder]
    make_evaluation(tmp_path / "evaluate" / "run")
    report(tmp_path, *words, "--evaluation", tmp_path / "evaluate" / "run")
    made = (tmp_path / "report" / "report.md").read_text().split("## How it was made")[1]
    for command in ("python make_pretrain", "python make_finetune", "python run_evaluate_geo.py"):
        assert command in made
    assert all(f"### {kind}/run" in made for kind in ("pretrain", "finetune", "evaluate"))


def test_a_test_set_of_a_single_author_is_reported_without_intervals(tmp_path):
    make_evaluation(tmp_path / "evaluate", authors=["ann"] * 40)
    report(tmp_path, "--evaluation", tmp_path / "evaluate")
    text = (tmp_path / "report" / "report.md").read_text()
    assert "There are no intervals: no interval can be drawn from a single author" in text
    assert "km (no interval), " in text


def test_a_constant_that_is_never_wrong_is_compared_in_kilometres(tmp_path):
    metrics = make_evaluation(tmp_path / "evaluate")
    for constant in metrics["baselines"].values():
        constant["mean_km"] = 0.0
    (tmp_path / "evaluate" / "metrics.json").write_text(json.dumps(metrics))
    report(tmp_path, "--evaluation", tmp_path / "evaluate")
    text = (tmp_path / "report" / "report.md").read_text()
    assert f"], {metrics['mean_km']:,.0f} km above the best constant answer" in text.replace("\n", " ")


def test_every_model_is_shown_by_scene_and_by_continent(tmp_path):
    metrics = {name: make_evaluation(tmp_path / name, seed=ord(name)) for name in "ab"}
    report(tmp_path, "--evaluation", *(tmp_path / name for name in "ab"))
    text = (tmp_path / "report" / "report.md").read_text()
    by_scene = text.split("By scene")[1].split("By continent")[0]
    for name in "ab":
        for scene, num_photos in (("urban", 30), ("indoor", 10)):
            mean_km = metrics[name]["by"]["scene"][scene]["mean_km"]
            assert f"| {scene}: {name} | {num_photos} | {mean_km:,.0f}" in by_scene
    assert f"| unknown: a | {metrics['a']['by']['continent']['unknown']['num_photos']} |" in text


def test_training_coordinates_get_their_map(tmp_path):
    (tmp_path / "train.csv").write_text("LAT,LON\n10,20\n11,21\n")
    make_evaluation(tmp_path / "evaluate")
    report(tmp_path, "--evaluation", tmp_path / "evaluate", "--train_coordinates", tmp_path / "train.csv")
    assert (tmp_path / "report" / "training_coordinates.png").is_file()


def test_the_best_of_each_column_is_marked_and_zero_is_never_the_best(tmp_path):
    metrics = make_evaluation(tmp_path)
    table = evaluation_table({"model": metrics, "better": {**metrics, "mean_km": 1.0}})
    marked = [row[0] for row in table.rows if row[1].is_best]
    assert marked == ["better"]
    assert not any(cell.is_best for row in table.rows for cell in row[1:] if cell.text == "0.0")


def test_nothing_to_report_on_is_said(tmp_path, capsys):
    assert report(tmp_path) == 2
    assert "nothing to report on" in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(SourceError, match="is not a training run"):
        report(tmp_path, "--pretrain_run", tmp_path)


def test_a_run_that_was_cut_off_is_read_from_its_newest_checkpoint(tmp_path):
    make_run(tmp_path, [3.0], checkpoint="checkpoint-90")
    make_run(tmp_path, [3.0, 2.0], checkpoint="checkpoint-1000")
    assert [entry["loss"] for entry in read_training(tmp_path).history] == [3.0, 2.0]


def test_pictures_are_in_the_order_of_their_steps(tmp_path):
    run = read_training(make_run(tmp_path, [1.0], pictures=(900, 1_000_000, 20)))
    assert [path.stem[-7:] for path in run.pictures("reconstruction")] == ["_000020", "_000900", "1000000"]


def test_runs_with_the_same_folder_name_are_told_apart(tmp_path):
    assert unique_names([tmp_path / "a" / "run", tmp_path / "b" / "run"]) == ["a/run", "b/run"]
    assert unique_names([tmp_path / "first", tmp_path / "second"]) == ["first", "second"]
    assert len(set(unique_names([tmp_path / "x", tmp_path / "x"]))) == 2


def test_photos_that_a_model_was_trained_on_are_a_warning_said_once(tmp_path):
    for name in ("a", "b"):
        metrics = make_evaluation(tmp_path / name)
        metrics["test_set"] |= {"num_in_training": 3, "in_training": ["1.jpg"], "shared_with": {"im2gps": ["2.jpg"]}}
        (tmp_path / name / "metrics.json").write_text(json.dumps(metrics))
    report(tmp_path, "--evaluation", tmp_path / "a", tmp_path / "b")
    text = (tmp_path / "report" / "report.md").read_text()
    assert text.count("**Attention.** 3 of 40 photos are among the training photos") == 1
    assert text.count("1 of its photos are also in im2gps") == 1


def test_a_cut_file_of_a_training_is_named(tmp_path):
    for name, cut, message in (
        ("trainer_state.json", '{"log_hist', r"cannot read .*trainer_state\.json: .*cut off"),
        ("trainer_state.json", "{}", r"trainer_state\.json has no log_history"),
        ("run.json", '{"config": ', r"cannot read .*run\.json: .*cut off"),
        ("run.json", "[]", r"run\.json holds a list; expected a JSON object"),
    ):
        run = make_run(tmp_path / "run", [1.0])
        (run / name).write_text(cut)
        with pytest.raises(SourceError, match=message):
            read_training(run)
        (run / name).unlink()


def test_a_folder_that_is_no_whole_evaluation_is_refused_by_what_it_lacks(tmp_path):
    metrics = make_evaluation(tmp_path / "set")
    file = tmp_path / "set" / "metrics.json"
    for key in ("test_set", "mean_km"):
        file.write_text(json.dumps({name: value for name, value in metrics.items() if name != key}))
        with pytest.raises(SourceError, match=rf"metrics\.json has no {key}"):
            read_evaluation(tmp_path / "set")
    file.write_text(json.dumps(metrics))
    rows = tmp_path / "set" / "predictions.parquet"
    pyarrow.parquet.write_table(pyarrow.parquet.read_table(rows).drop_columns(["error_km"]), rows)
    with pytest.raises(SourceError, match=r"predictions\.parquet has no column error_km"):
        read_evaluation(tmp_path / "set")
    for name in ("baselines", "predictions"):
        (tmp_path / "set" / f"{name}.parquet").write_text("no table")
    with pytest.raises(SourceError, match=r"cannot read .*predictions\.parquet"):
        read_evaluation(tmp_path / "set")
