"""What run_evaluate_geo.py can be told."""

import json

import pytest

from geomae.errors import ConfigError
from geomae.evaluation import EvaluationArguments
from geomae.training.config_file import parse_config

GIVEN = {"test_set": "set.csv", "output_dir": "out", "predictions": "p.csv"}
CHECKPOINT = {"predictions": None, "checkpoint": "outputs/run"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_set": None}, "test_set is missing: give --test_set PATH"),
        ({"output_dir": ""}, "output_dir is missing"),
        ({"predictions": None}, "either checkpoint or predictions; neither"),
        ({"checkpoint": "outputs/run"}, "either checkpoint or predictions; both"),
        ({"photos": "folder"}, "predictions are judged without them"),
        ({"per_device_eval_batch_size": 0}, "per_device_eval_batch_size must be at least 1"),
        ({"dataloader_num_workers": -1}, "dataloader_num_workers at least 0"),
        ({"max_damaged_share": 10}, "a share from 0 to 1; got 10"),
        ({"num_resamples": 10}, "at least 100 for a 95 % interval; got 10"),
        ({"decodings": ["kernel"]}, "decodings need a checkpoint that has a posterior"),
        ({"top_k": 3, "temperature": 2.0}, "top_k, temperature need a checkpoint that has a posterior"),
        ({**CHECKPOINT, "decodings": ["kernal"]}, "decodings holds 'kernal', .* did you mean kernel"),
        ({**CHECKPOINT, "kernel_km": 0.0}, "kernel_km must be a number above 0; got 0"),
        ({**CHECKPOINT, "temperature": float("nan")}, "temperature must be a number above 0; got nan"),
        ({"seed": -1}, "seed must be at least 0; got -1"),
        ({"thresholds_km": [25.0, 25.0]}, "thresholds_km must be different radii .* 25 stands twice"),
        ({"thresholds_km": [-3.0]}, "thresholds_km .* -3 is not one"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(change, message):
    EvaluationArguments(**GIVEN)
    with pytest.raises(ConfigError, match=message):
        EvaluationArguments(**{**GIVEN, **change})


@pytest.fixture
def photos(tmp_path):
    for name in ("photos", "packed", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "packed" / "test-00000-of-00001.parquet").touch()
    for name in ("set.csv", "set.parquet", "photos/labels.csv"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("test_set", "folder", "message"),
    [
        ("set.csv", None, "set.csv is a file, and a checkpoint needs photos.* their folder as --photos"),
        ("packed", "photos", "packed is a folder and photos is given too: leave out --photos"),
        ("absent.csv", "photos", "no file or folder .*absent.csv, which test_set names"),
        ("set.csv", "absent", "--photos must be a folder, .*; got .*absent and .*set.csv"),
        ("set.parquet", "photos", "--test_set the CSV file that names photos in it"),
        ("empty", None, "neither packed shards nor one CSV, .* their folder as --photos"),
    ],
)
def test_a_checkpoint_without_its_photos_is_refused_before_it_is_loaded(photos, test_set, folder, message):
    words = {"test_set": str(photos / test_set), "photos": folder and str(photos / folder), "output_dir": "out"}
    with pytest.raises(ConfigError, match=message):
        EvaluationArguments(checkpoint="outputs/run", **words)


@pytest.mark.parametrize(("test_set", "folder"), [("set.csv", "photos"), ("packed", None), ("photos", None)])
def test_photos_may_stand_in_a_packed_folder_or_beside_their_csv(photos, test_set, folder):
    words = {"test_set": str(photos / test_set), "photos": folder and str(photos / folder), "output_dir": "out"}
    EvaluationArguments(checkpoint="outputs/run", **words)


def test_an_output_folder_that_cannot_be_made_is_refused_before_anything_runs(tmp_path):
    (tmp_path / "taken").touch()
    with pytest.raises(ConfigError, match=r"output_dir .*out cannot be made or written: .*taken is a file"):
        EvaluationArguments(**{**GIVEN, "output_dir": str(tmp_path / "taken" / "out")})


def test_an_evaluation_of_another_model_is_not_overwritten(tmp_path):
    judged = {"predictions": "outputs/theirs.csv", "checkpoint": None, "test_set": {"name": "set.csv"}}
    (tmp_path / "metrics.json").write_text(json.dumps(judged))
    again = {"test_set": "elsewhere/set.csv", "output_dir": str(tmp_path), "predictions": "outputs/theirs.csv"}
    EvaluationArguments(**again)
    for change in ({"predictions": "outputs/mine.csv"}, {"test_set": "other.csv"}):
        with pytest.raises(
            ConfigError, match=r"holds an evaluation of outputs/theirs\.csv on set\.csv, and this one is of"
        ):
            EvaluationArguments(**{**again, **change})


def test_an_evaluation_of_the_head_does_not_replace_what_retrieval_answered(tmp_path):
    judged = {"checkpoint": "outputs/run", "test_set": {"name": "set"}}
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "photos.csv").write_text("image,latitude,longitude\n")
    (tmp_path / "out").mkdir()
    given = {"test_set": str(tmp_path / "set"), "checkpoint": "outputs/run", "output_dir": str(tmp_path / "out")}
    (tmp_path / "out" / "metrics.json").write_text(json.dumps(judged))
    EvaluationArguments(**given)
    (tmp_path / "out" / "metrics.json").write_text(json.dumps({**judged, "retrieval": {"chosen": {}}}))
    with pytest.raises(
        ConfigError, match="holds an evaluation by retrieval with outputs/run on set, and this one is of"
    ):
        EvaluationArguments(**given)


def test_reporting_is_to_some_trackers_or_to_nobody():
    words = [word for key, value in GIVEN.items() for word in (f"--{key}", value)]
    assert parse_config([EvaluationArguments], words)[0].report_to == ["none"]
    for places in (["none"], ["wandb"], ["trackio", "tensorboard"]):
        assert parse_config([EvaluationArguments], [*words, "--report_to", *places])[0].report_to == places
    for places in (["mlflow"], ["none", "wandb"]):
        with pytest.raises(ConfigError, match=r"it must be none, or one or more of wandb, trackio, tensorboard"):
            parse_config([EvaluationArguments], [*words, "--report_to", *places])
