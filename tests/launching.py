"""Starts a training script on two CPU processes, as `accelerate launch` does it, and records what each one saw."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Runs `SCRIPT.main(argv)` after making every process write down the photos that it trains on.
LAUNCHED = """
import importlib, sys
from pathlib import Path
from geomae.training import StreamingTrainer

script, folder = sys.argv[1:3]
step = StreamingTrainer.training_step

def recording(self, model, inputs, *rest):
    with open(Path(folder) / f"ids-{self.args.process_index}-of-{self.args.world_size}.txt", "a") as file:
        file.writelines(f"{name}\\n" for name in inputs["ids"])
    return step(self, model, inputs, *rest)

StreamingTrainer.training_step = recording
importlib.import_module(script).main(sys.argv[3:])
"""


def launch_on_two_processes(script: str, folder: Path, *argv: str) -> list[list[str]]:
    """Run `script.py argv` on two processes; returns the ids of the photos that each has trained on."""
    launch_code(LAUNCHED, folder, "two_cpu", script, str(folder), *argv)
    return [(folder / f"ids-{rank}-of-2.txt").read_text().split() for rank in (0, 1)]


def launch_code(code: str, folder: Path, config: str, *argv: str) -> None:
    """Run code with `argv` on two processes, otherwise as `configs/accelerate/CONFIG.yaml` says."""
    launched = folder / "launched.py"
    launched.write_text(code)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2"]
    command += ["--config_file", f"configs/accelerate/{config}.yaml", "--main_process_port", str(find_free_port())]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(launched), *argv], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-4000:]


def find_free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def run_twice_beside_itself(code: str, folder: Path, *, num_threads: int) -> None:
    """Run code on two processes of torch's launcher, in a folder, with the tests' own modules at hand."""
    (folder / "on_two_processes.py").write_text(code)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "on_two_processes.py"]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": str(num_threads)}
    done = subprocess.run(
        [sys.executable, *launch], cwd=folder, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]


def run_beside_itself(code: str, folder: Path, *argv: str) -> str:
    """Run code with `argv` in a fresh process, with the tests' own modules at hand; returns what it printed."""
    (folder / "beside_itself.py").write_text(code)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "beside_itself.py", *argv]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout
