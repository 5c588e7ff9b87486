"""Records name the code that made them, and only that code."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from geomae import __version__, provenance

ROOT = Path(__file__).resolve().parent.parent


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
    done = subprocess.run(["git", *identity, *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def commit_found_in(folder: Path) -> str:
    code = "import sys; sys.path.insert(0, '.'); from geomae.provenance import find_commit; print(find_commit())"
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def checkout(tmp_path: Path) -> Path:
    for name in ("__init__.py", "provenance.py"):
        (tmp_path / "geomae").mkdir(exist_ok=True)
        shutil.copyfile(ROOT / "geomae" / name, tmp_path / "geomae" / name)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "metrics.json").write_text("{}")
    (tmp_path / "README.md").write_text("")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    return tmp_path


def test_changed_code_is_told_from_changed_results(tmp_path: Path) -> None:
    folder = checkout(tmp_path)
    commit = git(folder, "rev-parse", "HEAD")
    (folder / "results" / "metrics.json").write_text('{"mean_km": 1}')
    (folder / "README.md").write_text("filled")
    assert commit_found_in(folder) == commit
    with (folder / "geomae" / "provenance.py").open("a") as file:
        file.write("\n")
    assert commit_found_in(folder) == f"{commit}+changes"


def test_a_copy_inside_another_repository_does_not_claim_its_commit(tmp_path: Path) -> None:
    folder = checkout(tmp_path)
    inside = folder / "site-packages" / "geomae"
    shutil.copytree(folder / "geomae", inside)
    assert commit_found_in(inside.parent) == "None"


def test_versions_leave_out_what_is_not_installed() -> None:
    versions = provenance.find_versions(["numpy", "no-such-package"])
    assert versions["geomae"] == __version__
    assert {"python", "numpy"} <= versions.keys()
    assert "no-such-package" not in versions


def test_a_shown_configuration_has_no_tokens_no_passwords_and_no_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = {
        "hub_token": "hf_SECRET",
        "output_dir": str(tmp_path / "outputs/run"),
        "init_from": "/elsewhere/SECRET/pretrain",
        "data_dirs": ["s3://key:SECRET@bucket/x", "data/mp16"],
        "nested": {"push_token": "SECRET", "path": "/elsewhere/SECRET/x"},
        "learning_rate": 1e-4,
    }
    assert provenance.shown_config(config) == {
        "output_dir": "outputs/run",
        "init_from": "pretrain",
        "data_dirs": ["s3://bucket/x", "data/mp16"],
        "nested": {"path": "x"},
        "learning_rate": 1e-4,
    }


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("file:///elsewhere/alice/x", "x"),
        ("~/alice/x", "x"),
        ("../../../elsewhere/alice/x", "x"),
        ("see /elsewhere/alice/x, or ~alice/y", "see x, or y"),
        ('{"path": "/elsewhere/alice/x"}', '{"path": "x"}'),
        (("/elsewhere/alice/x", 0.9), ["x", 0.9]),
        (Path("/elsewhere/alice/my photos"), "my photos"),
        ("/elsewhere/alice/my photos", "my photos"),
    ],
)
def test_no_spelling_of_a_path_names_the_folders_above_it(value, shown):
    assert provenance.shown_config({"key": value}) == {"key": shown}


@pytest.mark.parametrize("value", ["https://h:80/a/b", "hf://datasets/x/y", "a/b or 1 / 2", "../data/x", "org/model"])
def test_what_is_no_absolute_path_is_shown_as_it_is(value):
    assert provenance.shown_config({"key": value}) == {"key": value}


def test_no_key_that_names_a_secret_is_shown():
    secrets = ("token", "hub_token", "password", "api_key", "WANDB_API_KEY", "secret_access_key", "client_secret")
    kept = {"pad_token_id": 0, "num_tokens": 1, "tokenizer": "x", "keys": [1]}
    assert provenance.shown_config({"nested": {**dict.fromkeys(secrets, "SECRET"), **kept}}) == {"nested": kept}


def test_a_shown_command_has_no_secrets_and_no_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = ["run.py", "--hub_token", "hf_SECRET", "--hub-token=hf_SECRET", "--output_dir", "/elsewhere/alice/x"]
    argv += ["--test_set", "https://key:SECRET@h/x?token=SECRET", f"--photos={tmp_path}/a b", "--token", "--lr=1e-4"]
    assert provenance.shown_command(argv) == (
        "run.py --hub_token HIDDEN --hub-token=HIDDEN --output_dir x --test_set https://h/x '--photos=a b' "
        "--token --lr=1e-4"
    )
