"""metrics.json: numbers with what made them."""

import json
import os

import pyarrow as pa
import pytest

from geomae.errors import ConfigError, SourceError
from geomae.evaluation import describe_run, read_metrics, refuse_unwritable, shown_path, write_evaluation


def test_paths_of_one_machine_are_not_written_down(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shown_path(tmp_path / "outputs" / "run") == "outputs/run"
    assert shown_path("/somewhere/else/set.csv") == "set.csv"
    assert shown_path("../data/set.csv") == "../data/set.csv"


def test_the_command_can_be_typed_again_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = describe_run(
        ["/elsewhere/run_evaluate_geo.py", "--test_set", "/data/a b.csv", f"--output_dir={tmp_path}/out"]
    )
    assert run["command"] == "python run_evaluate_geo.py --test_set 'a b.csv' --output_dir=out"
    assert (
        describe_run(["x.py", "--test_set", "https://h/x?token=SECRET"])["command"]
        == "python x.py --test_set https://h/x"
    )


def test_versions_name_what_computes_the_numbers():
    versions = describe_run(["x.py"])["versions"]
    assert {"python", "numpy", "scipy"} <= versions.keys()


def test_written_metrics_read_back_as_they_were(tmp_path):
    metrics = {
        "mean_km": 1 / 3,
        "intervals_95": {"mean_km": [0.1, 0.5]},
        "accuracy_within_km": {"1": 0.25, "2500": 1e-07},
        "texts": {"1": "a", "b": "{ c: 1 }"},
        "missing": ["a, b", "[ c ]", 'd"e'],
        "none": [],
    }
    written = write_evaluation(tmp_path / "out", metrics, predictions=pa.table({"id": ["a"]}))
    assert [path.name for path in written] == ["predictions.parquet", "metrics.json"]
    assert read_metrics(tmp_path / "out") == read_metrics(written[-1]) == metrics
    assert '"mean_km": [0.1, 0.5]' in written[-1].read_text()
    assert '"accuracy_within_km": {"1": 0.25, "2500": 1e-07}' in written[-1].read_text()


def test_metrics_that_are_not_numbers_are_never_written(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_evaluation(tmp_path, {"mean_km": float("nan")})
    assert not (tmp_path / "metrics.json").exists()


def test_an_evaluation_that_is_cut_off_leaves_no_metrics_of_an_older_one(tmp_path):
    write_evaluation(tmp_path, {"mean_km": 1.0}, predictions=pa.table({"id": ["a"]}))
    (tmp_path / "baselines.parquet").mkdir()  # the second table of the next evaluation cannot be written
    with pytest.raises(OSError, match=r"baselines\.parquet"):
        write_evaluation(
            tmp_path, {"mean_km": 2.0}, predictions=pa.table({"id": ["b"]}), baselines=pa.table({"id": ["b"]})
        )
    assert not (tmp_path / "metrics.json").exists()


def test_full_disk_leaves_the_older_evaluation_and_no_half_of_another(tmp_path, full_disk):
    many = pa.table({"id": [f"photo-{number}" for number in range(10_000)]})
    write_evaluation(tmp_path, {"mean_km": 1.0}, predictions=many.slice(0, 9))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with full_disk(2000), pytest.raises(ConfigError, match=r"which is as it was: .*Free space, and start it again"):
        write_evaluation(tmp_path, {"mean_km": 2.0}, predictions=many)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_metrics_appear_whole_or_not_at_all(tmp_path, monkeypatch):
    def fail(*paths):
        raise OSError("the disk is gone")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        write_evaluation(tmp_path, {"mean_km": 2.0})
    assert not (tmp_path / "metrics.json").exists()


def test_a_folder_that_can_be_made_passes_and_is_not_made_yet(tmp_path):
    refuse_unwritable(tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "b"):
        with pytest.raises(ConfigError, match="file is a file; choose another folder"):
            refuse_unwritable(folder)


def test_a_folder_without_metrics_says_who_writes_them(tmp_path):
    with pytest.raises(SourceError, match=r"metrics\.json.*run_evaluate_geo\.py writes it"):
        read_metrics(tmp_path)
    (tmp_path / "metrics.json").write_text(json.dumps([1]))
    with pytest.raises(SourceError, match="holds a list"):
        read_metrics(tmp_path)
