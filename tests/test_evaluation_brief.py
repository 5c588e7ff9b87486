"""`python -m geomae.evaluation show FOLDER --brief`: what a newcomer reads first."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from report_folders import make_evaluation

from geomae.evaluation.__main__ import main


def show(folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    main(["show", str(folder), *options])
    return capsys.readouterr().out


def test_it_has_the_model_the_best_constant_a_guess_and_five_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = make_evaluation(tmp_path, authors=[str(number) for number in range(40)])
    printed = show(tmp_path, capsys, "--brief")
    assert f"{metrics['mean_km']:,.0f}" in printed
    assert "the best constant (" in printed
    assert "a random guess" in printed
    assert "that of the best constant, one place for every photo." in printed
    answers = printed[printed.index("taken near") :].splitlines()[2:]
    errors = sorted(pq.read_table(tmp_path / "predictions.parquet")["error_km"].to_pylist())
    expected = [f"{errors[round(share * (len(errors) - 1))]:,.0f}" for share in (0.1, 0.3, 0.5, 0.7, 0.9)]
    assert [line.split()[-1] for line in answers] == expected


def test_misses_are_said_and_are_no_examples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_evaluation(tmp_path, num_answered=30)
    printed = show(tmp_path, capsys, "--brief")
    assert "ATTENTION: 10 photos have no answer and count as misses of 20,015 km." in printed
    answers = printed[printed.index("taken near") :].splitlines()[2:]
    assert len(answers) == 5
    assert not any("20,015" in line for line in answers)


def test_numbers_without_their_answers_are_shown_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_evaluation(tmp_path, authors=[str(number) for number in range(40)])
    (tmp_path / "predictions.parquet").unlink()
    printed = show(tmp_path / "metrics.json", capsys, "--brief")
    assert "a random guess" in printed
    assert "taken near" not in printed
