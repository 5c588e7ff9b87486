"""What W&B gets of an evaluation and of a training, read back from offline runs."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cartopy")

import wandb
import yaml
from launching import ROOT, launch_on_two_processes
from offline_wandb import OfflineRun, read_offline_runs
from packed_photos import TINY, pack
from PIL import Image
from report_folders import make_evaluation

from geomae.errors import ConfigError
from geomae.evaluation import EvaluationArguments
from geomae.evaluation.known_test_sets import KNOWN_TEST_SETS
from geomae.reporting.__main__ import main as reporting_main
from geomae.reporting.tracked_evaluation import name_test_set, summarise_evaluation
from geomae.reporting.trackers import report_evaluation
from geomae.reporting.wandb_run import MAX_TABLE_ROWS, choose_rows
from modeling import GeoMAEConfig, GeoMAEForGeolocation

AUTHORS = [f"author {number % 12}" for number in range(40)]
NAMES = ["mean_km", "median_km", "geoscore", *(f"accuracy_within_{radius}km" for radius in (1, 25, 200, 750, 2500))]


@pytest.fixture(autouse=True)
def own_wandb_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Runs go below `tmp_path`, and nothing that another test has told wandb is left."""
    for name in ("WANDB_RUN_GROUP", "WANDB_TAGS", "WANDB_JOB_TYPE", "WANDB_PROJECT"):
        monkeypatch.setenv(name, "to be restored")  # what a training sets is taken back after the test
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "wandb_runs"))
    (tmp_path / "wandb_runs").mkdir()
    wandb.teardown()  # it reads its environment once, when it is first used
    monkeypatch.delenv("WANDB_SERVICE", raising=False)  # a child would leave its runs open in this process's service
    yield tmp_path / "wandb_runs"
    wandb.teardown()


def make_training(folder: Path, **config: Any) -> Path:
    folder.mkdir(parents=True)
    record = {"config": {"learning_rate": 1e-3, "run_group": "halves", **config}, "wandb": {"id": "abc123"}}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def logged(own_wandb_folder: Path) -> OfflineRun:
    (run,) = read_offline_runs(own_wandb_folder)
    return run


def test_evaluation_is_a_run_of_its_own_in_the_group_of_the_training(tmp_path: Path, own_wandb_folder: Path) -> None:
    metrics = make_evaluation(tmp_path / "outputs" / "mae" / "set", authors=AUTHORS)
    training = make_training(tmp_path / "mae", init_from="/somewhere/SECRET/pretrain", hub_token="hf_SECRET")
    assert report_evaluation(
        tmp_path / "outputs" / "mae" / "set", ["wandb"], checkpoint=str(training), tags=["half", "seed 0"]
    )
    run = logged(own_wandb_folder)
    assert (run.run.project, run.run.job_type, run.run.run_group) == ("geomae", "evaluate", "halves")
    assert (run.run.display_name, list(run.run.tags)) == ("set", ["half", "seed 0"])
    assert (run.config["learning_rate"], run.config["training_run"]) == (1e-3, "abc123")
    assert run.config["init_from"] == "pretrain"
    assert run.config["evaluation"]["test_set"] == metrics["test_set"]
    assert not [word for word in ("SECRET", str(tmp_path), str(Path.home()) + "/") if word in json.dumps(run.config)]


def test_summary_has_the_final_numbers_and_both_ends_of_their_intervals(tmp_path: Path, own_wandb_folder: Path) -> None:
    metrics = make_evaluation(tmp_path / "set", authors=AUTHORS, num_answered=38)
    report_evaluation(tmp_path / "set", ["wandb"])
    summary = logged(own_wandb_folder).summary
    names = {*NAMES, *(f"{name}_{end}" for name in NAMES for end in ("low", "high")), "num_photos", "num_missing"}
    assert {f"test/set/{name}" for name in names} <= set(summary)
    assert summary["test/set/mean_km"] == metrics["mean_km"]
    assert summary["test/set/accuracy_within_2500km"] == metrics["accuracy_within_km"]["2500"]
    low, high = metrics["intervals_95"]["median_km"]
    assert (summary["test/set/median_km_low"], summary["test/set/median_km_high"]) == (low, high)
    assert (summary["test/set/num_photos"], summary["test/set/num_missing"]) == (40, 2)


def test_summary_without_intervals_has_the_numbers_alone(tmp_path: Path) -> None:
    metrics = make_evaluation(tmp_path / "set", authors=["ann"] * 40)
    assert set(summarise_evaluation(metrics)) == {f"test/set/{name}" for name in [*NAMES, "num_photos", "num_missing"]}


def test_numbers_from_ten_crops_have_a_place_of_their_own(tmp_path: Path) -> None:
    metrics = make_evaluation(tmp_path / "set")
    other = make_evaluation(tmp_path / "other", seed=2)
    summary = summarise_evaluation({**metrics, "ten_crop": other})
    assert summary["test/set/mean_km"] == metrics["mean_km"]
    assert summary["test/set/ten_crop/mean_km"] == other["mean_km"] != metrics["mean_km"]
    assert summary["test/set/ten_crop/mean_km_high"] == other["intervals_95"]["mean_km"][1]
    assert summary["test/set/ten_crop/num_photos"] == 40


def test_table_has_every_answer_by_rising_error_and_pictures_are_pictures(
    tmp_path: Path, own_wandb_folder: Path
) -> None:
    make_evaluation(tmp_path / "set", num_answered=39, posterior=True)
    report_evaluation(tmp_path / "set", ["wandb"])
    run = logged(own_wandb_folder)
    table = json.loads((run.files / run.summary["test/set/predictions/path"]).read_text())
    assert table["columns"] == ["id", "true_latitude", "true_longitude", "latitude", "longitude", "error_km"]
    assert len(table["data"]) == 40
    errors = [row[-1] for row in table["data"]]
    assert errors[-1] is None  # without an answer, the farthest of all
    assert errors[:-1] == sorted(errors[:-1])
    for name in ("map", "error_cdf", "calibration"):
        with Image.open(run.files / run.summary[f"test/set/{name}/path"]) as picture:
            assert min(picture.size) > 300


def test_rows_of_a_large_table_are_both_ends_and_an_even_spread_between_them() -> None:
    error_km = np.random.default_rng(0).permutation(25_600).astype(float)  # its own rank
    chosen = error_km[choose_rows(error_km)]
    assert len(chosen) == len(set(chosen)) == MAX_TABLE_ROWS
    assert chosen[:250].tolist() == list(range(250))
    assert chosen[-250:].tolist() == list(range(25_350, 25_600))
    steps = np.diff(chosen[250:-250])
    assert (steps.min(), steps.max()) == (50, 51)
    assert choose_rows(error_km[:7], 10).tolist() == np.argsort(error_km[:7]).tolist()


def test_known_photos_have_the_name_of_their_set_and_others_that_of_their_file() -> None:
    digest = KNOWN_TEST_SETS["im2gps3k"].ids_sha256
    assert name_test_set({"name": "whatever.csv", "split": None, "ids_sha256": digest}) == "im2gps3k"
    assert name_test_set({"name": "mine.parquet", "split": None, "ids_sha256": ""}) == "mine"
    assert name_test_set({"name": "data", "split": "validation", "ids_sha256": ""}) == "data-validation"


@pytest.mark.parametrize("problem", ["nobody is logged in", "no network"])
def test_without_wandb_the_numbers_stand_and_a_warning_says_how_to_send_them(
    problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = pack(tmp_path / "photos", test=6)
    (tmp_path / "home").mkdir()
    environment = {**os.environ, "HOME": str(tmp_path / "home"), "WANDB_MODE": "online", "WANDB_INIT_TIMEOUT": "1"}
    environment["NETRC"] = str(tmp_path / "home" / ".netrc")
    environment.pop("WANDB_API_KEY", None)
    if problem == "no network":
        environment |= {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40}
    from geomae.evaluation import read_test_set

    test_set = read_test_set(photos)
    rows = [f"{name},{lat},{lon}" for name, (lat, lon) in zip(test_set.ids, test_set.coordinates_deg, strict=True)]
    (tmp_path / "answers.csv").write_text("\n".join(["id,latitude,longitude", *rows, ""]))
    words = ["--predictions", "answers.csv", "--test_set", "photos", "--output_dir", "judged", "--num_resamples", "100"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "run_evaluate_geo.py"), *words, "--report_to", "wandb"],
        **{"cwd": tmp_path, "env": environment, "stdin": subprocess.DEVNULL},
        **{"capture_output": True, "text": True, "timeout": 120},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "W&B did not take the evaluation" in done.stderr
    assert "python -m geomae.reporting track judged" in done.stderr
    assert json.loads((tmp_path / "judged" / "metrics.json").read_text())["num_photos"] == 6


@pytest.mark.parametrize(
    ("variable", "value"), [("WANDB_MODE", "foo"), ("WANDB_BASE_URL", "notaurl"), ("WANDB_TAGS", "x" * 65)]
)
def test_a_wrong_variable_of_wandb_ends_no_evaluation(
    variable: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make_evaluation(tmp_path / "set")
    monkeypatch.setenv(variable, value)
    assert not report_evaluation(tmp_path / "set", ["wandb"])
    assert "W&B did not take the evaluation" in caplog.text


def test_a_broken_record_of_the_training_ends_no_evaluation(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_evaluation(tmp_path / "set")
    training = make_training(tmp_path / "mae")
    (training / "run.json").write_text('{"config": ')
    assert not report_evaluation(tmp_path / "set", ["wandb"], checkpoint=str(training))
    assert "W&B did not take the evaluation: cannot read" in caplog.text
    assert str(training / "run.json") in caplog.text


@pytest.mark.parametrize("tag", ["", "x" * 70, "a,b"])
def test_a_tag_that_wandb_would_not_take_is_refused(tag: str, tmp_path: Path, own_wandb_folder: Path) -> None:
    make_evaluation(tmp_path / "set")
    with pytest.raises(ConfigError, match="run_tags holds"):
        reporting_main(["track", str(tmp_path / "set"), "--run_tags", tag])
    assert not read_offline_runs(own_wandb_folder)


@pytest.mark.parametrize("package", ["matplotlib", "cartopy", "wandb"])
def test_a_package_that_reporting_needs_is_asked_for_before_the_evaluation(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "geomae.tracking.find_spec", lambda name: None if name == package else importlib.util.find_spec(name)
    )
    given = {"test_set": "set.csv", "output_dir": str(tmp_path / "out"), "predictions": "answers.csv"}
    EvaluationArguments(**given)
    extra = "dashboards" if package == "wandb" else "report"
    with pytest.raises(
        ConfigError, match=rf"needs {package}, which is not installed.*geomae\[{extra}\].*--report_to none"
    ):
        EvaluationArguments(**given, report_to=["wandb"])
    with pytest.raises(ConfigError, match=f"needs {package}"):
        reporting_main(["track", str(tmp_path / "set")])


def test_an_evaluation_can_be_sent_later(tmp_path: Path, own_wandb_folder: Path) -> None:
    make_evaluation(tmp_path / "set", checkpoint=None)
    training = make_training(tmp_path / "mae" / "checkpoint-30")
    shutil.move(training / "run.json", tmp_path / "mae")
    words = ["--checkpoint", str(training), "--run_name", "later", "--run_group", "other", "--run_tags", "a", "b"]
    assert reporting_main(["track", str(tmp_path / "set"), *words]) == 0
    run = logged(own_wandb_folder)
    assert (run.run.display_name, run.run.run_group, list(run.run.tags)) == ("later", "other", ["a", "b"])
    assert run.config["training_run"] == "abc123"  # of the run that the checkpoint is of


@pytest.mark.slow
def test_training_and_evaluation_on_two_processes_are_one_run_each_that_belong_together(
    tmp_path: Path, own_wandb_folder: Path
) -> None:
    photos = pack(tmp_path / "photos", train=16, validation=4, test=5)
    out = tmp_path / "outputs" / "halves" / "mae"
    train_on_two_processes(photos, out, tmp_path)
    training = logged(own_wandb_folder)
    assert (training.run.run_group, list(training.run.tags), training.run.job_type) == ("halves", ["half"], "train")
    assert json.loads((out / "run.json").read_text())["wandb"] | {"project": "geomae", "group": "halves"} == {
        **{"id": training.run.run_id, "name": training.run.display_name, "group": "halves", "project": "geomae"},
        **{"entity": None, "url": None},
    }
    assert training.config["data_dirs"] == ["photos"]
    assert {f"eval/{name}" for name in NAMES} <= set(training.summary)
    assert not [word for word in (str(tmp_path), str(Path.home()) + "/") if word in json.dumps(training.config)]

    evaluate_on_two_processes(photos, out)
    _, evaluation = read_offline_runs(own_wandb_folder)
    assert (evaluation.run.run_group, evaluation.run.job_type) == ("halves", "evaluate")
    assert evaluation.config["training_run"] == training.run.run_id
    assert evaluation.summary["test/photos-test/num_photos"] == 5
    names = {key.removeprefix("eval/") for key in training.summary if key.startswith("eval/")}
    assert set(NAMES) <= names & {key.removeprefix("test/photos-test/") for key in evaluation.summary}


def train_on_two_processes(photos: Path, out: Path, folder: Path) -> None:
    settings = {**TINY, "data_dirs": [str(photos)], "output_dir": str(out), "run_group": "halves", "run_tags": ["half"]}
    settings |= {"max_steps": 2, "per_device_train_batch_size": 4, "logging_steps": 1, "eval_steps": 1, "save_steps": 1}
    settings |= {"report_to": "wandb", "prediction_maps": False, "disable_tqdm": True}
    written = {**yaml.safe_load((ROOT / "configs/finetune/smoke.yaml").read_text()), **settings}
    config = folder / "run.yaml"
    config.write_text(yaml.safe_dump({key: value for key, value in written.items() if not key.startswith("decoder")}))
    launch_on_two_processes("run_finetune_geo", folder, str(config))


def evaluate_on_two_processes(photos: Path, checkpoint: Path) -> None:
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", "configs/accelerate/two_cpu.yaml", "--main_process_port", "0", "run_evaluate_geo.py"]
    command += ["--checkpoint", str(checkpoint), "--test_set", str(photos), "--output_dir", str(checkpoint / "test")]
    command += ["--report_to", "wandb", "--num_resamples", "100", "--per_device_eval_batch_size", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]


def test_a_key_of_the_evaluation_names_its_run(tmp_path: Path, own_wandb_folder: Path) -> None:
    import run_evaluate_geo

    photos = pack(tmp_path / "photos", test=5)
    GeoMAEForGeolocation(GeoMAEConfig(**TINY)).save_pretrained(tmp_path / "model")
    words = ["--checkpoint", str(tmp_path / "model"), "--test_set", str(photos), "--output_dir", str(tmp_path / "out")]
    words += ["--run_name", "mine", "--run_group", "ours", "--run_tags", "a", "b", "--report_to", "wandb"]
    run_evaluate_geo.main([*words, "--num_resamples", "100"])
    run = logged(own_wandb_folder)
    assert (run.run.display_name, run.run.run_group, list(run.run.tags)) == ("mine", "ours", ["a", "b"])
