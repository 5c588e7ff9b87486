"""The folder of a run: whose it is, where it was left, and a record of what made it."""

import json
import logging
import os
import platform
import re
import shutil
import sys
from collections.abc import Mapping, Set
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from geomae.checksums import find_damage
from geomae.errors import ConfigError
from geomae.files import write_whole
from geomae.provenance import find_commit, find_versions, shown_command, shown_config
from geomae.training.run_lock import lock_output_dir

__all__ = [
    "claim_output_dir",
    "describe_run",
    "empty_output_dir",
    "find_checkpoint",
    "remove_checkpoints",
    "set_aside_damaged",
    "write_run_record",
]

logger = logging.getLogger(__name__)

STATE_FILE = "trainer_state.json"
STAGING_FOLDER = ".saving"  # where a checkpoint lies until all of it is on the disk
RECORD_FILE = "run.json"
# The copies of `modeling` beside a model stay: the next run writes them over.
MADE_BY_A_RUN = (
    *(RECORD_FILE, STATE_FILE, "checkpoint-*", "model*.safetensors*", "pictures", "profile", "runs"),
    *(STAGING_FOLDER, "damaged-checkpoint-*", "not_finite_*.json"),
    *(
        "config.json",
        "preprocessor_config.json",
        "populated_places.csv",
        "training_args.bin",
        "all_results.json",
        "eval_results.json",
        "train_results.json",
    ),
)
PACKAGES = ("accelerate", "datasets", "numpy", "timm", "torch", "transformers")


def find_checkpoint(resume_from: str | bool | None, output_dir: str) -> str | None:
    """The checkpoint folder that a run continues from; every file in it is what was saved.

    Args:
        resume_from: a checkpoint folder; True or `true`: the newest whole one in `output_dir`; `last`: the same, or
            None where there is none; None or False: None.
        output_dir: the run's folder.

    Raises:
        ConfigError: the folder is not a whole checkpoint, `true` finds none, or all that there are are damaged.
    """
    if resume_from in (None, False, "false"):
        return None
    if resume_from not in (True, "true", "last"):
        if (damage := find_damage(Path(str(resume_from)))) is not None:
            raise ConfigError(
                f"resume_from_checkpoint is {resume_from}, which is no whole checkpoint: {damage}. Name another "
                "checkpoint-* folder, or write true for the newest whole one"
            )
        return str(resume_from)
    found = _numbered_checkpoints(Path(output_dir))
    why = "nothing was saved yet"
    for folder in reversed(found):
        damage = find_damage(folder)
        if damage is None:
            return str(folder)
        logger.warning("%s is damaged and is left out: %s", folder, damage)
        why = f"{folder.name} is damaged: {damage}"
    if not found and resume_from == "last":
        return None
    raise ConfigError(
        f"resume_from_checkpoint is {str(resume_from).lower()}, but {output_dir} holds no whole checkpoint to continue "
        f"from: {why}. Start anew with --overwrite_output_dir true"
    )


def set_aside_damaged(output_dir: str, checkpoint: str) -> None:
    """Rename the damaged checkpoints behind the one that a run goes on from, so that they do not count as kept ones."""
    for folder in _numbered_checkpoints(Path(output_dir)):
        if _step_of(folder) > _step_of(Path(checkpoint)) and find_damage(folder) is not None:
            aside = folder.with_name(f"damaged-{folder.name}")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)


def remove_checkpoints(output_dir: str, limit: int | None, *, latest: int, kept: Set[str | None]) -> None:
    """Remove the oldest checkpoints of a run, each at once.

    Args:
        output_dir: the run's folder.
        limit: so many stay; None or 0: all.
        latest: step of the newest; those of later steps are of a run that was given up, and count as the oldest.
        kept: paths of those that stay whatever the limit says.
    """
    found = sorted(_numbered_checkpoints(Path(output_dir)), key=lambda path: (_step_of(path) <= latest, _step_of(path)))
    removable = [path for path in found if str(path) not in kept]
    for path in removable[: max(0, len(found) - limit)] if limit else ():
        trash = path.parent / STAGING_FOLDER / f"removed-{path.name}"
        trash.parent.mkdir(exist_ok=True)
        path.rename(trash)
        shutil.rmtree(trash, ignore_errors=True)


def _numbered_checkpoints(output_dir: Path) -> list[Path]:
    """Checkpoints of a run by rising step, damaged ones too."""
    found = [path for path in output_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=_step_of)


def _step_of(checkpoint: Path) -> int:
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1


def claim_output_dir(
    output_dir: str,
    *,
    resume_from: str | bool | None,
    overwrite: bool,
    init_from: str | None,
    is_main_process: bool = True,
) -> None:
    """Refuse a folder that holds another run, or that another run is writing to; nothing is removed yet.

    Args:
        output_dir: the run's folder; need not exist.
        resume_from: as for `find_checkpoint`; a run that continues may keep its folder.
        overwrite: `empty_output_dir` will remove what an earlier run wrote there.
        init_from: what the run starts from; must not be removed.
        is_main_process: this process locks the folder, until it ends.

    Raises:
        ConfigError: the folder holds a run, and it is neither continued nor overwritten; it holds `init_from`; another
            process uses it; or it cannot be written to.
    """
    if is_main_process:
        lock_output_dir(output_dir)
    leftovers = _leftovers(output_dir, resume_from)
    if leftovers and not overwrite:
        found = _numbered_checkpoints(Path(output_dir))
        can_continue = any(find_damage(folder, is_thorough=False) is None for folder in found)
        continues = "continue that run with --resume_from_checkpoint true, " if can_continue else ""
        raise ConfigError(
            f"output_dir {output_dir} already holds a run ({leftovers[0].name}). Choose another, {continues}or remove "
            "it with --overwrite_output_dir true"
        )
    start = Path(init_from or "").resolve()
    if init_from and any(start in (path.parent, path) or path in start.parents for path in leftovers):
        raise ConfigError(
            f"init_from {init_from} lies in output_dir {output_dir}, which overwrite_output_dir would empty. "
            "Choose another output_dir"
        )


def empty_output_dir(output_dir: str, *, resume_from: str | bool | None, is_main_process: bool) -> None:
    """Remove what an earlier run wrote, once all else of the new one stands; other files stay.

    Args:
        output_dir: the run's folder, which `claim_output_dir` has let pass.
        resume_from: as for `find_checkpoint`; a run that continues keeps its folder.
        is_main_process: only this process removes anything.
    """
    for path in _leftovers(output_dir, resume_from) if is_main_process else ():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _leftovers(output_dir: str, resume_from: str | bool | None) -> list[Path]:
    """What another run has left in the folder; nothing where that run continues."""
    if resume_from not in (None, False, "false"):
        return []
    return [path for pattern in MADE_BY_A_RUN for path in sorted(Path(output_dir).resolve().glob(pattern))]


def write_run_record(output_dir: str, record: Mapping[str, Any]) -> Path:
    """Write `run.json` whole or not at all; returns its path."""
    path = Path(output_dir) / RECORD_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(record, indent=2, default=str) + "\n")
    return path


def describe_run(config: Mapping[str, Any], *, seed: int, num_processes: int) -> dict[str, Any]:
    """What is needed to repeat a run: command, configuration, commit, versions, hardware, seed."""
    return {
        "command": shown_command([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "config": shown_config(config),
        "commit": find_commit(),
        "versions": find_versions(PACKAGES),
        "hardware": _describe_hardware(),
        "num_processes": num_processes,
        "seed": seed,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _describe_hardware() -> dict[str, Any]:
    hardware: dict[str, Any] = {"machine": platform.machine(), "num_cpus": os.cpu_count()}
    hardware["num_threads"] = torch.get_num_threads()
    if torch.cuda.is_available():
        hardware["gpus"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return hardware
