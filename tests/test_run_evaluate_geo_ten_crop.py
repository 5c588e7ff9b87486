"""Ten crops from the photos to the files, and the same files from one process and from two."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch

from geomae.data import center_crop, decode_photo
from geomae.data.photos import evaluation_short_side, resize_short_side
from geomae.errors import ConfigError
from geomae.evaluation import EvaluationArguments
from geomae.geography import great_circle_km, to_degrees, unit_vectors
from geomae.reporting.results_section import evaluation_table
from modeling import GeoMAEConfig, GeoMAEForGeolocation
from run_evaluate_geo import main

ROOT = Path(__file__).resolve().parent.parent
NAMES = [f"{number}.jpg" for number in range(7)]
CROP = ("--per_device_eval_batch_size", "2", "--num_resamples", "100")


@pytest.fixture
def words(tmp_path: Path, make_photo: Callable[..., Path], tiny_sizes: dict[str, Any]) -> list[str]:
    """A checkpoint and seven photos of different shapes; the last one is no photo."""
    for number, name in enumerate(NAMES):
        make_photo(f"photos/{name}", seed=number, width=80 + 10 * number)
    (tmp_path / "photos" / NAMES[-1]).write_bytes(b"not a photo")
    rows = [f"{name},author {number % 3},{10 * number - 30},{40 * number - 120}" for number, name in enumerate(NAMES)]
    (tmp_path / "set.csv").write_text("\n".join(["IMG_ID,AUTHOR,LAT,LON", *rows, ""]))
    torch.manual_seed(0)
    GeoMAEForGeolocation(GeoMAEConfig(**{**tiny_sizes, "head_type": "sphere"})).save_pretrained(tmp_path / "checkpoint")
    paths = {"checkpoint": "checkpoint", "test_set": "set.csv", "photos": "photos"}
    given = [word for key, path in paths.items() for word in (f"--{key}", str(tmp_path / path))]
    return [*given, *CROP, "--max_damaged_share", "0.2"]


def evaluate(folder: Path, *words: str) -> dict[str, Any]:
    main([*words, "--output_dir", str(folder)])
    return json.loads((folder / "metrics.json").read_text())


def read_answers(folder: Path, table: str) -> np.ndarray:
    rows = pyarrow.parquet.read_table(folder / f"{table}.parquet").to_pandas()
    assert rows["id"].tolist() == NAMES
    return rows[["latitude", "longitude"]].to_numpy()[:-1]


def test_the_central_row_is_what_it_is_without_the_other_crops(tmp_path: Path, words: list[str]) -> None:
    alone, beside = evaluate(tmp_path / "alone", *words), evaluate(tmp_path / "beside", *words, "--ten_crop")
    one, other = (tmp_path / name / "predictions.parquet" for name in ("alone", "beside"))
    assert one.read_bytes() == other.read_bytes()
    assert "ten_crop" not in alone
    assert not (tmp_path / "alone" / "predictions_ten_crop.parquet").exists()
    ten_crop = beside.pop("ten_crop")
    assert {**alone, "command": ""} == {**beside, "command": ""}
    assert ten_crop.keys() >= {"num_photos", "mean_km", "intervals_95", "bootstrap", "missing", "accuracy_within_km"}
    assert ten_crop["mean_km"] != alone["mean_km"]
    assert ten_crop["missing"] == alone["missing"] == [NAMES[-1]]


def test_ten_crop_answers_are_the_mean_direction_of_ten_answers(tmp_path: Path, words: list[str]) -> None:
    """By slices and loops of their own: no code of the collator, the predictor or the head."""
    metrics = evaluate(tmp_path / "out", *words, "--ten_crop")
    model = GeoMAEForGeolocation.from_pretrained(tmp_path / "checkpoint").eval()
    expected = []
    for name in NAMES[:-1]:
        photo = decode_photo((tmp_path / "photos" / name).read_bytes(), min_short_side=evaluation_short_side(32))
        resized = resize_short_side(photo, evaluation_short_side(32))
        corners = [resized[:32, :32], resized[:32, -32:], resized[-32:, :32], resized[-32:, -32:]]
        crops = [center_crop(photo, 32), *corners]
        pixels = torch.from_numpy(np.stack([*crops, *(crop[:, ::-1] for crop in crops)])).permute(0, 3, 1, 2)
        with torch.no_grad():
            answers = model(pixels).coordinates_deg.double().numpy()
        expected.append(to_degrees(unit_vectors(answers).sum(axis=0)))
    answers = read_answers(tmp_path / "out", "predictions_ten_crop")
    assert great_circle_km(answers, np.array(expected)).max() < 0.1
    central = read_answers(tmp_path / "out", "predictions")
    assert great_circle_km(answers, central).min() > 1.0
    rows = pyarrow.parquet.read_table(tmp_path / "out" / "predictions_ten_crop.parquet").to_pandas()
    errors = great_circle_km(answers, rows[["true_latitude", "true_longitude"]].to_numpy()[:-1])
    assert metrics["ten_crop"]["answered"]["mean_km"] == pytest.approx(errors.mean())


def test_the_ten_crop_row_stands_below_the_central_one(
    tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = evaluate(tmp_path / "out", *words, "--ten_crop")
    labels = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()[4:6]]
    assert labels == ["checkpoint", "checkpoint, ten crops"]
    table = evaluation_table({"mine": metrics, "other": {**metrics, "mean_km": 1.0}})
    assert [row[0] for row in table.rows[:4]] == ["mine", "mine, ten crops", "other", "other, ten crops"]
    assert table.rows[1][1].text == f"{metrics['ten_crop']['mean_km']:,.0f}"


def test_a_later_evaluation_without_ten_crops_leaves_none_of_an_older_one(tmp_path: Path, words: list[str]) -> None:
    evaluate(tmp_path / "out", *words, "--ten_crop")
    assert (tmp_path / "out" / "predictions_ten_crop.parquet").is_file()
    assert "ten_crop" not in evaluate(tmp_path / "out", *words)
    assert not (tmp_path / "out" / "predictions_ten_crop.parquet").exists()


def test_ten_crops_of_a_file_of_predictions_are_refused() -> None:
    with pytest.raises(ConfigError, match="ten_crop needs a checkpoint"):
        EvaluationArguments(test_set="set.csv", output_dir="out", predictions="p.csv", ten_crop=True)


@pytest.mark.slow
def test_two_processes_write_the_bytes_of_one(tmp_path: Path, words: list[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launcher = ["-m", "accelerate.commands.launch", "--config_file", "configs/accelerate/two_cpu.yaml"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for folder, start in (("one", []), ("two", [*launcher, "--main_process_port", port])):
        command = [sys.executable, *start, "run_evaluate_geo.py", *words, "--ten_crop"]
        command += ["--output_dir", str(tmp_path / folder / "out")]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-4000:]
    written = sorted(path.name for path in (tmp_path / "one" / "out").iterdir())
    assert written == ["baselines.parquet", "metrics.json", "predictions.parquet", "predictions_ten_crop.parquet"]
    for name in written:
        one, two = ((tmp_path / folder / "out" / name).read_bytes() for folder in ("one", "two"))
        assert one == two, name
