"""The folder of a run: whose it is, where it was left, and a record of what made it."""

import json
import logging
import os
import platform
import re
import shutil
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from geomae.errors import ConfigError
from geomae.files import write_whole
from geomae.provenance import find_commit, find_versions, shown_command, shown_config

__all__ = ["claim_output_dir", "describe_run", "empty_output_dir", "find_checkpoint", "write_run_record"]

logger = logging.getLogger(__name__)

STATE_FILE = "trainer_state.json"  # transformers writes it last: a checkpoint without it was cut off
RECORD_FILE = "run.json"
# The copies of `modeling` beside a model stay: the next run writes them over.
MADE_BY_A_RUN = (
    *(RECORD_FILE, STATE_FILE, "checkpoint-*", "model*.safetensors*", "pictures", "profile", "runs"),
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
    """The checkpoint folder that a run continues from.

    Args:
        resume_from: a checkpoint folder; True or `true`: the newest whole one in `output_dir`; `last`: the same, or
            None where there is none; None or False: None.
        output_dir: the run's folder.

    Raises:
        ConfigError: the folder is not a whole checkpoint, or `true` finds none.
    """
    if resume_from in (None, False, "false"):
        return None
    if resume_from not in (True, "true", "last"):
        if not (Path(str(resume_from)) / STATE_FILE).is_file():
            raise ConfigError(
                f"resume_from_checkpoint is {resume_from}, which is no whole checkpoint ({STATE_FILE} is missing); "
                "name a checkpoint-* folder, or write true for the newest one"
            )
        return str(resume_from)
    whole = _whole_checkpoints(Path(output_dir))
    if whole:
        return str(whole[-1])
    if resume_from == "last":
        return None
    raise ConfigError(
        f"resume_from_checkpoint is true, but {output_dir} holds no whole checkpoint to continue from: nothing was "
        "saved yet. Start anew with --overwrite_output_dir true"
    )


def _whole_checkpoints(output_dir: Path) -> list[Path]:
    """Checkpoints of a run by rising step, without those that a killed run was still writing."""
    numbered = []
    for folder in output_dir.glob("checkpoint-*"):
        step = re.fullmatch(r"checkpoint-(\d+)", folder.name)
        if step and (folder / STATE_FILE).is_file():
            numbered.append((int(step[1]), folder))
        elif step:
            logger.warning("%s was not saved to its end and is left out", folder)
    return [folder for _, folder in sorted(numbered)]


def claim_output_dir(
    output_dir: str, *, resume_from: str | bool | None, overwrite: bool, init_from: str | None
) -> None:
    """Refuse a folder that holds another run; nothing is removed yet.

    Args:
        output_dir: the run's folder; need not exist.
        resume_from: as for `find_checkpoint`; a run that continues may keep its folder.
        overwrite: `empty_output_dir` will remove what an earlier run wrote there.
        init_from: what the run starts from; must not be removed.

    Raises:
        ConfigError: the folder holds a run, and it is neither continued nor overwritten; or it holds `init_from`.
    """
    leftovers = _leftovers(output_dir, resume_from)
    if leftovers and not overwrite:
        can_continue = bool(_whole_checkpoints(Path(output_dir)))
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
