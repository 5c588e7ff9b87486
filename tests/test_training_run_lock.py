"""One run to a folder: a second is refused while the first lives, however the first came to its end."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from launching import ROOT

from geomae.errors import ConfigError
from geomae.training.run_lock import LOCK_FILE, lock_output_dir, release_output_dir

HOLD = "import sys, time; from geomae.training.run_lock import *; "
HOLD += "lock_output_dir(sys.argv[1]); print('locked', flush=True)"


@pytest.fixture
def holder(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that has the folder, with a child of its own that outlives it, as a reader of photos may."""
    code = f"{HOLD}; import os; os.fork(); time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    yield process
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_folder_in_use_is_refused_with_who_uses_it_until_that_process_is_killed(
    tmp_path: Path, holder: "subprocess.Popen[str]"
) -> None:
    with pytest.raises(
        ConfigError, match=rf"is in use by another run, process {holder.pid} on .*, started 20"
    ) as refused:
        lock_output_dir(str(tmp_path))
    assert "Choose another output_dir" in str(refused.value)
    os.kill(holder.pid, signal.SIGKILL)  # its child lives on
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
    lock_output_dir(str(tmp_path))
    assert f'"pid": {os.getpid()}' in (tmp_path / LOCK_FILE).read_text()
    release_output_dir(str(tmp_path))


def test_folder_is_locked_twice_by_one_process_and_free_once_released(tmp_path: Path) -> None:
    lock_output_dir(str(tmp_path / "run"))
    lock_output_dir(str(tmp_path / "run"))
    take = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    refused = subprocess.run(take, env=environment, capture_output=True, text=True, check=False)
    assert f"in use by another run, process {os.getpid()} on" in refused.stderr
    release_output_dir(str(tmp_path / "run"))
    subprocess.run(take, env=environment, check=True, capture_output=True)


def test_folder_that_cannot_be_written_to_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ConfigError, match=r"output_dir .*file/run cannot be written to \(Not a directory\): choose another"
    ):
        lock_output_dir(str(tmp_path / "file/run"))
