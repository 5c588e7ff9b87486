"""Reads back what W&B wrote without a network.

The file is a log of records in LevelDB's format behind a header of seven bytes; each record is a protocol buffer of
`wandb.proto`. wandb itself reads it in a compiled program only.
"""

import json
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

HEADER_BYTES = 7
BLOCK_BYTES = 32_768
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class OfflineRun:
    """One run: who it is, and the last value of everything that it was told."""

    run: Any  # protocol buffer: display_name, run_group, tags, job_type, project, run_id
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    files: Path = Path()


def read_offline_runs(folder: Path) -> list[OfflineRun]:
    """Every run below `folder`, in the order in which they were started, once each has been written to its end."""
    files = sorted(folder.rglob("run-*.wandb"))
    return [_read_run(file) for file in files]


def _read_run(file: Path) -> OfflineRun:
    deadline = time.monotonic() + 60  # `finish` returns before wandb's own process has written its last block
    while True:
        records = list(_records(file.read_bytes()))
        if any(record.WhichOneof("record_type") == "exit" for record in records):
            break
        assert time.monotonic() < deadline, f"{file} was not written to its end"
        time.sleep(0.1)
    found: OfflineRun | None = None
    for record in records:
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found = found or OfflineRun(record.run, files=file.parent / "files")
            _update(found.config, record.run.config.update)
        elif found is not None and kind == "config":
            _update(found.config, record.config.update)
        elif found is not None and kind == "summary":
            _update(found.summary, record.summary.update)
        elif found is not None and kind == "history":
            entry: dict[str, Any] = {}
            _update(entry, record.history.item)
            found.history.append(entry)
            found.summary |= entry
    assert found is not None
    return found


def _update(values: dict[str, Any], items: Any) -> None:
    for item in items:
        values["/".join(item.nested_key) or item.key] = json.loads(item.value_json)


def _records(content: bytes) -> Iterator[Any]:
    """The whole records of a file that may still be growing."""
    assert content[:4] == b":W&B"
    place, parts = HEADER_BYTES, b""
    while place + 7 <= len(content):
        left = BLOCK_BYTES - place % BLOCK_BYTES
        if left < 7:  # a block's end that no record begins in
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        if place + 7 + length > len(content):
            return
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (FULL, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""
