"""One run to a folder: the first has it until its process ends, however it ends."""

import contextlib
import errno
import json
import logging
import os
import socket
from datetime import UTC, datetime
from pathlib import Path

from geomae.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["LOCK_FILE", "lock_output_dir", "release_output_dir"]

logger = logging.getLogger(__name__)

LOCK_FILE = ".run.lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)
_held: dict[Path, int] = {}  # open for as long as the process lives: closing any opening of the file frees the lock


def lock_output_dir(output_dir: str) -> None:
    """Take a run's folder for this process, and make it where it is not there.

    The kernel holds the lock, and lets go of it when the process ends, killed or not: the file of a dead run locks
    nothing. Readers that the process forks have no part in it. Filesystems without locks are told in the log.

    Raises:
        ConfigError: another process has the folder, or it cannot be written to.
    """
    path = Path(output_dir).resolve() / LOCK_FILE
    if path in _held or fcntl is None:
        return
    opened = -1
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        fcntl.lockf(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(opened, 0)
        os.write(opened, json.dumps(_describe_process()).encode())
        os.fsync(opened)
    except OSError as error:
        if opened >= 0 and error.errno not in NO_LOCKS:
            os.close(opened)
        if opened < 0 or error.errno not in (*NO_LOCKS, errno.EACCES, errno.EAGAIN):
            raise ConfigError(
                f"output_dir {output_dir} cannot be written to ({error.strerror}): choose another, free space, or "
                "change its permissions"
            ) from error
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise ConfigError(
                f"output_dir {output_dir} is in use by another run, {_read_owner(path)}. Choose another output_dir, or "
                "wait for that run to end"
            ) from error
        logger.warning("%s has no locks (%s): see to it that no other run writes there", output_dir, error.strerror)
    _held[path] = opened


def release_output_dir(output_dir: str) -> None:
    """Give a run's folder back before the process ends, which may be a notebook's."""
    opened = _held.pop(Path(output_dir).resolve() / LOCK_FILE, None)
    if opened is not None:
        os.close(opened)


def _describe_process() -> dict[str, object]:
    started = datetime.now(UTC).isoformat(timespec="seconds")
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": started}


def _read_owner(path: Path) -> str:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        owner = json.loads(path.read_text(encoding="utf-8"))
        return f"process {owner['pid']} on {owner['host']}, started {owner['started']}"
    return f"whose process {path} does not name"
