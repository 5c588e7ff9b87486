"""A process that dies takes a run back to its last checkpoint, and no further: torchrun starts all of them again."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from launching import ROOT
from packed_photos import pack

# `run_pretrain_mae.main(argv)`, in which rank 1 kills itself in the middle of a step, once; each process writes down
# the photos of each step that it trains on.
KILLED_ONCE = """
import os, signal, sys
from pathlib import Path
from geomae.training import StreamingTrainer
import run_pretrain_mae

folder, kill_at = Path(sys.argv[1]), int(sys.argv[2])
step = StreamingTrainer.training_step

def recording(self, model, inputs, *rest):
    number, attempt = self.state.global_step + 1, os.environ["TORCHELASTIC_RESTART_COUNT"]
    with open(folder / f"attempt-{attempt}-rank-{self.args.process_index}.txt", "a") as file:
        file.writelines(f"{number} {name}\\n" for name in inputs["ids"])
    if (number, attempt, self.args.process_index) == (kill_at, "0", 1):
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, model, inputs, *rest)

StreamingTrainer.training_step = recording
run_pretrain_mae.main(sys.argv[3:])
"""
SAVE_STEPS, KILL_AT, MAX_STEPS = 2, 6, 8


def run(folder: Path, photos: Path, *, kill_at: int) -> subprocess.CompletedProcess[str]:
    folder.mkdir()
    script = folder / "killed_once.py"
    script.write_text(KILLED_ONCE)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["--max_restarts", "2", "--monitor_interval", "0.1", str(script), str(folder), str(kill_at)]
    command += ["configs/pretrain/smoke.yaml", "--data_dirs", str(photos), "--output_dir", str(folder / "run")]
    command += ["--max_steps", str(MAX_STEPS), "--save_strategy", "steps", "--save_steps", str(SAVE_STEPS)]
    command += ["--per_device_train_batch_size", "4", "--logging_steps", "1", "--eval_strategy", "no"]
    command += ["--validation_split", "null"]
    command += ["--dataloader_num_workers", "1", "--peak_tflops", "1", "--use_cpu", "--disable_tqdm"]
    command += ["--resume_from_checkpoint", "last"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    # otherwise the restarted processes may read the addresses of the dead: github.com/pytorch/pytorch/issues/135712
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)


def photos_by_step(folder: Path, attempt: int) -> dict[int, set[str]]:
    seen: dict[int, set[str]] = {}
    for path in folder.glob(f"attempt-{attempt}-rank-*.txt"):
        for line in path.read_text().splitlines():
            step, name = line.split()
            seen.setdefault(int(step), set()).add(name)
    return seen


def losses(folder: Path) -> dict[int, Any]:
    history = json.loads((folder / "run/trainer_state.json").read_text())["log_history"]
    return {entry["step"]: entry["loss"] for entry in history if "loss" in entry}


@pytest.mark.slow
def test_killed_process_costs_less_than_a_save_interval(tmp_path: Path) -> None:
    photos = pack(tmp_path / "photos", train=80)
    unbroken, broken = (run(tmp_path / name, photos, kill_at=at) for name, at in (("unbroken", 0), ("broken", KILL_AT)))
    assert unbroken.returncode == 0, unbroken.stderr[-4000:]
    assert broken.returncode == 0, broken.stderr[-4000:]
    first, second = (photos_by_step(tmp_path / "broken", attempt) for attempt in (0, 1))
    expected = photos_by_step(tmp_path / "unbroken", 0)
    saved = (KILL_AT - 1) // SAVE_STEPS * SAVE_STEPS
    assert min(second) == saved + 1
    assert max(second) == MAX_STEPS
    assert {step: first[step] for step in range(1, saved + 1)} | second == expected
    assert len(set().union(*expected.values())) == MAX_STEPS * 8
    assert losses(tmp_path / "broken") == losses(tmp_path / "unbroken")
    weights = [(tmp_path / name / "run/model.safetensors").read_bytes() for name in ("unbroken", "broken")]
    assert weights[0] == weights[1]
