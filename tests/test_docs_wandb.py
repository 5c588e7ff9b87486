"""What `docs/wandb.md` tells a user to write or to plot exists, under exactly that name."""

import dataclasses
import re
import shlex
from pathlib import Path

import pytest

pytest.importorskip("cartopy")

from report_folders import make_evaluation
from test_layout import NOT_IN_THE_CHECKOUT, paths_named_in

from geomae.evaluation import EvaluationArguments
from geomae.evaluation import __main__ as evaluation_main
from geomae.evaluation.known_test_sets import KNOWN_TEST_SETS
from geomae.reporting import __main__ as reporting_main
from geomae.reporting.tracked_evaluation import summarise_evaluation
from geomae.reporting.wandb_run import MAX_TABLE_ROWS
from geomae.training import GeoMAEArguments, GeoMAETrainingArguments

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "wandb.md"
TEXT = DOCUMENT.read_text(encoding="utf-8")
WRITTEN_BY_RUNS = (
    "compare.md",
    "compare.html",
    "comparison.json",
    "metrics.json",
    "run.json",
    "runs/",
    "wandb/",
    *NOT_IN_THE_CHECKOUT,
)
# What test_training_callbacks.py and test_training_trainers.py find in the logs of a run.
OF_TRAINING = {"loss", "great_circle_km", "photos_per_second", "mfu", "learning_rate", "grad_norm", "num_bad_photos"}
OF_TRAINING |= {"epoch", "global_step"}


def test_files_exist() -> None:
    named = {name for name in paths_named_in(DOCUMENT) if not name.startswith(WRITTEN_BY_RUNS)}
    assert {"configs/sweeps/finetune_geo.yaml", "run_evaluate_geo.py"} <= named
    assert not sorted(name for name in named if not (ROOT / name).exists())


def test_metrics_are_logged_under_their_names(tmp_path: Path) -> None:
    metrics = make_evaluation(
        tmp_path / "set", authors=[f"author {number % 12}" for number in range(40)], posterior=True
    )
    metrics["test_set"]["ids_sha256"] = KNOWN_TEST_SETS["im2gps3k"].ids_sha256
    logged = set(summarise_evaluation({**metrics, "ten_crop": metrics}))
    pictures = {
        f"test/im2gps3k/{name}" for name in ("map", "error_cdf", "calibration", "predictions")
    }  # see test_reporting_wandb_run.py
    named = set(re.findall(r"`(test/[^`]+)`", TEXT))
    assert named <= logged | pictures
    others = ("/ten_crop/", "/argmax/")
    spelt_out = {
        name for name in logged if not any(map(name.__contains__, others)) and not name.endswith(("_low", "_high"))
    }
    assert spelt_out | pictures <= named
    of_metrics = {name.rpartition("/")[2] for name in logged} | {"loss"}
    assert {name.removeprefix("eval/") for name in re.findall(r"`(eval/[^`]+)`", TEXT)} <= of_metrics
    assert {name.removeprefix("train/") for name in re.findall(r"`(train/[^`]+)`", TEXT)} == OF_TRAINING


def test_table_is_as_long_as_it_says() -> None:
    assert MAX_TABLE_ROWS == 1000
    assert "at most 1,000 rows by rising error: 250 at either end and 500 evenly between" in TEXT


def test_keys_exist() -> None:
    keys = {field.name for kind in (GeoMAETrainingArguments, GeoMAEArguments) for field in dataclasses.fields(kind)}
    of_evaluation = {field.name for field in dataclasses.fields(EvaluationArguments)}
    for key in ("run_name", "run_group", "run_tags", "report_to"):
        assert f"`{key}`" in TEXT or f"--{key}" in TEXT
        assert key in keys & of_evaluation
    assert {"base_learning_rate", "layer_decay", "drop_path_rate", "pooling"} <= keys  # of the panels


@pytest.mark.parametrize("command", re.findall(r"python -m geomae\.\w+ (?:[^`\n\\]|\\\n)+", TEXT))
def test_commands_are_taken(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(command.replace("\\\n", " "))[3:]
    module = reporting_main if "geomae.reporting" in command else evaluation_main
    with pytest.raises(SystemExit) as ended:
        module.main([words[0], "--help"])
    assert ended.value.code == 0
    known = capsys.readouterr().out
    assert all(word in known for word in words if word.startswith("--"))
