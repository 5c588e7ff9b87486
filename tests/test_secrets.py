"""Tokens, keys, passwords and home folders are planted, and looked for in everything that is written and printed."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from packed_photos import pack, training_arguments

from geomae.shown_argv import argv_without_secrets

ROOT = Path(__file__).resolve().parent.parent
USER = "planteduser"
ENVIRONMENT = {
    "HF_TOKEN": "hf_PLANTEDenvironment",
    "WANDB_API_KEY": "b0bafe77" * 5,
    "AWS_ACCESS_KEY_ID": "AKIAPLANTEDAWSKEY000",
    "AWS_SECRET_ACCESS_KEY": "PLANTEDawssecret",
    "WANDB_MODE": "offline",
    "HF_HUB_OFFLINE": "1",
    "MPLBACKEND": "Agg",
    "USER": USER,
    "LOGNAME": USER,
}
GIVEN = ("hf_PLANTEDoption", "PLANTEDpassword", "PLANTEDquery")
SECRETS = [*GIVEN, *(value for name, value in ENVIRONMENT.items() if name.startswith(("HF_T", "WANDB_A", "AWS")))]
# What stays on the machine: transformers needs the folder to go on, and W&B logs its own doings beside a run.
STAYS = ("trainer_state.json", "training_args.bin", "debug.log", "debug-internal.log", "debug-core.log")


def run_with_secrets(folder: Path, *words: str) -> str:
    """Run a command of the repository as the planted user; what it printed."""
    home = {name: str(folder / "caches") for name in ("HF_HOME", "HF_DATASETS_CACHE", "GEOMAE_CACHE", "XDG_CACHE_HOME")}
    home |= {"HOME": str(folder), "WANDB_DIR": str(folder), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env=os.environ | ENVIRONMENT | home,
        capture_output=True,
        text=True,
        check=False,
    )
    return f"{done.stdout}\n{done.stderr}\nexit {done.returncode}"


def files_that_say(secret: str, folder: Path) -> list[str]:
    files = [file for file in folder.rglob("*") if file.is_file() and "caches" not in file.parts]
    assert len(files) > 30
    return [str(file.relative_to(folder)) for file in files if secret.encode() in file.read_bytes()]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_planted_secret_is_in_any_file_or_output(tmp_path: Path) -> None:
    home = tmp_path / USER
    photos, run = pack(home / "photos", train=64, validation=13), home / "run"
    address = "https://user:PLANTEDpassword@127.0.0.1:1/x.jpg?token=PLANTEDquery"
    train = ["run_finetune_geo.py", "configs/finetune/smoke.yaml", "--data_dirs", str(photos), "--output_dir", str(run)]
    train += ["--max_steps", "2", "--eval_steps", "1", "--save_steps", "1", "--report_to", "wandb", "tensorboard"]
    judge = ["run_evaluate_geo.py", "--checkpoint", str(run), "--test_set", str(photos), "--split", "validation"]
    printed = [
        run_with_secrets(home, *train, "--disable_tqdm", "--hub_token", "hf_PLANTEDoption"),
        run_with_secrets(home, *judge, "--output_dir", str(run / "judged"), "--report_to", "wandb"),
        run_with_secrets(
            *(home, "-m", "geomae.reporting", "report", "--finetune_run", str(run)),
            *("--evaluation", str(run / "judged"), "--output_dir", str(home / "report")),
        ),
        run_with_secrets(home, "-m", "geomae.publish", str(run), "--repo_id", "owner/name", "--dry_run"),
        run_with_secrets(home, "-m", "geomae.publish", str(run), "--output_dir", str(home / "hub")),
    ]
    assert [text for text in printed if not text.endswith("exit 0")] == []
    failed = [
        run_with_secrets(home, "-m", "geomae.data", "pack", address, "--output_dir", str(home / "p"), "--unlabelled"),
        run_with_secrets(home, "-m", "geomae.predict", "--model", str(run), address),
    ]
    assert [text for text in failed if text.endswith("exit 0")] == []
    for secret in SECRETS:
        assert files_that_say(secret, home) == []
        assert [text for text in printed + failed if secret in text] == []
    telling = [file for file in files_that_say(USER, home) if Path(file).name not in STAYS]
    telling = [file for file in telling if Path(file).suffix != ".wandb"]  # W&B's own description of the machine
    assert telling == []


def test_the_token_is_not_in_the_arguments_that_a_checkpoint_keeps(tmp_path: Path) -> None:
    args = training_arguments(tmp_path, hub_token="hf_PLANTEDoption")
    assert args.hub_token == "hf_PLANTEDoption"
    kept = pickle.dumps(args)
    assert b"PLANTED" not in kept
    assert pickle.loads(kept).hub_token is None


def test_trackers_see_a_command_line_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    words = [
        "run.py",
        "a b.yaml",
        "--hub_token",
        "hf_PLANTEDoption",
        "--output_dir",
        f"/elsewhere/{USER}/run",
        "--seed",
        "1",
    ]
    monkeypatch.setattr(sys, "argv", words)
    with argv_without_secrets():
        assert sys.argv == ["run.py", "a b.yaml", "--hub_token", "HIDDEN", "--output_dir", "run", "--seed", "1"]
    assert sys.argv[3:6] == ["hf_PLANTEDoption", "--output_dir", f"/elsewhere/{USER}/run"], "a second run needs them"
