"""A run's folder: never taken from another run by accident, continued where it was left, and on record."""

import json
import logging
from pathlib import Path

import pytest

from geomae.checksums import write_checksums
from geomae.errors import ConfigError
from geomae.training import claim_output_dir, empty_output_dir, find_checkpoint
from geomae.training.run_folder import describe_run, write_run_record


def make_checkpoint(folder: Path, step: int, *, is_whole: bool = True) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    if is_whole:
        (checkpoint / "trainer_state.json").write_text("{}")
        write_checksums(checkpoint)
    return checkpoint


@pytest.mark.parametrize("resume", ["true", "last", True])
def test_newest_whole_checkpoint_is_found(tmp_path: Path, resume: str | bool, caplog: pytest.LogCaptureFixture) -> None:
    make_checkpoint(tmp_path, 900)
    newest = make_checkpoint(tmp_path, 1000)
    make_checkpoint(tmp_path, 1100, is_whole=False)
    with caplog.at_level(logging.WARNING):
        assert find_checkpoint(resume, str(tmp_path)) == str(newest)
    assert "checkpoint-1100 is damaged and is left out: checksums.json, which is written last, is miss" in caplog.text


def test_true_needs_a_checkpoint_and_last_does_without(tmp_path: Path) -> None:
    assert find_checkpoint("last", str(tmp_path / "absent")) is None
    with pytest.raises(ConfigError, match="holds no whole checkpoint to continue from"):
        find_checkpoint("true", str(tmp_path))


def test_named_checkpoint_must_be_whole(tmp_path: Path) -> None:
    whole = make_checkpoint(tmp_path, 1)
    assert find_checkpoint(str(whole), "elsewhere") == str(whole)
    with pytest.raises(ConfigError, match="no whole checkpoint"):
        find_checkpoint(str(make_checkpoint(tmp_path, 2, is_whole=False)), "elsewhere")


@pytest.mark.parametrize("resume", [None, False, "false"])
def test_fresh_start_has_no_checkpoint(tmp_path: Path, resume: str | bool | None) -> None:
    make_checkpoint(tmp_path, 1)
    assert find_checkpoint(resume, str(tmp_path)) is None


def claim(
    folder: Path, *, resume_from: str | None = None, overwrite: bool = False, init_from: Path | str | None = None
) -> None:
    start = None if init_from is None else str(init_from)
    claim_output_dir(str(folder), resume_from=resume_from, overwrite=overwrite, init_from=start)


def test_folder_of_another_run_is_refused_with_the_ways_out(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    claim(tmp_path)
    claim(tmp_path / "absent")
    make_checkpoint(tmp_path, 3)
    with pytest.raises(ConfigError, match=r"already holds a run.*--resume_from_checkpoint.*--overwrite_output_dir"):
        claim(tmp_path)
    claim(tmp_path, resume_from="last")
    assert (tmp_path / "checkpoint-3").is_dir()


def test_run_that_saved_nothing_is_not_said_to_continue(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ConfigError, match="already holds a run") as refusal:
        claim(tmp_path)
    assert "--resume_from_checkpoint" not in str(refusal.value)
    with pytest.raises(ConfigError, match=r"nothing was saved yet\. Start anew with --overwrite_output_dir true"):
        find_checkpoint("true", str(tmp_path))


def test_overwriting_removes_what_a_run_wrote_and_nothing_else_and_not_before_it_is_told_to(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 3)
    written = ("run.json", "trainer_state.json", "model.safetensors", "config.json", "training_args.bin")
    for name in (*written, "eval_results.json", "all_results.json", "notes.txt"):
        (tmp_path / name).write_text("")
    (tmp_path / "pictures").mkdir()
    claim(tmp_path, overwrite=True)
    before = sorted(tmp_path.iterdir())
    empty_output_dir(str(tmp_path), resume_from=None, is_main_process=False)
    empty_output_dir(str(tmp_path), resume_from="last", is_main_process=True)
    assert sorted(tmp_path.iterdir()) == before
    empty_output_dir(str(tmp_path), resume_from=None, is_main_process=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".run.lock", "notes.txt"]


@pytest.mark.parametrize("start", [".", "checkpoint-3", "checkpoint-3/model.safetensors", "../run/checkpoint-3"])
def test_weights_to_start_from_are_not_overwritten(tmp_path: Path, start: str) -> None:
    run = tmp_path / "run"
    make_checkpoint(run, 3)
    with pytest.raises(ConfigError, match=r"init_from .* lies in output_dir .*Choose another output_dir"):
        claim(run, overwrite=True, init_from=run / start)
    claim(run, resume_from="true", init_from=run / start)
    claim(run, overwrite=True, init_from=make_checkpoint(tmp_path / "other", 3))
    claim(run, overwrite=True, init_from="facebook/vit-mae-base")


def test_record_says_how_to_repeat_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/run_pretrain_mae.py", "configs/pretrain/demo.yaml", "--seed", "3"])
    record = describe_run({"seed": 3, "path": Path("a")}, seed=3, num_processes=2)
    path = write_run_record(str(tmp_path / "run"), record)
    read = json.loads(path.read_text())
    assert read["command"] == "run_pretrain_mae.py configs/pretrain/demo.yaml --seed 3"
    assert read["config"] == {"seed": 3, "path": "a"}
    assert {"python", "torch", "transformers", "datasets", "accelerate", "timm"} <= set(read["versions"])
    assert read["hardware"]["num_cpus"] >= 1
    assert (read["seed"], read["num_processes"]) == (3, 2)
    assert not [file for file in path.parent.iterdir() if file.name.endswith((".partial", ".tmp"))]


def test_record_has_no_passwords_and_no_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "sys.argv",
        ["run.py", "--data_dirs", "[s3://key:PASSWORD@bucket/x, https://h/0.tar?sig=TOKEN]", "--hub_token", "hf_TOKEN"],
    )
    config = {"data_dirs": ["s3://key:PASSWORD@bucket/x", "https://h/0.tar?sig=TOKEN"], "seed": 1}
    text = json.dumps(describe_run(config, seed=0, num_processes=1))
    assert "s3://bucket/x" in text
    assert not [secret for secret in ("PASSWORD", "TOKEN") if secret in text]
