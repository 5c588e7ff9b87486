"""`manifest.json`: what a packed folder holds, from what, how it was made, and which photos were left out."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geomae.data.damage import MAX_BAD_LISTED, BadPhoto, BadTally
from geomae.documents import parse_json, read_text
from geomae.errors import SourceError
from geomae.files import write_whole
from geomae.provenance import find_versions

__all__ = [
    "ShardReport",
    "mark_splits",
    "read_finished_splits",
    "read_splits",
    "refuse_other_photos",
    "refuse_other_run",
    "refuse_other_sizes",
    "write_manifest",
]

MAX_REASONS = 50  # kinds of reasons that the manifest counts one by one, the most frequent first
PACKAGES = ("numpy", "opencv-python-headless", "pillow", "pyarrow", "simplejpeg")


@dataclass(frozen=True)
class ShardReport:
    """One finished shard."""

    file: str
    split: str
    num_photos: int
    sha256: str
    bad: tuple[BadPhoto, ...]
    photos_digest: str = ""  # of its task


def write_manifest(
    output_dir: Path,
    reports: Sequence[ShardReport],
    *,
    source: str,
    options: dict[str, Any],
    left_out: BadTally | None = None,
) -> dict[str, Any]:
    """Write `manifest.json`; splits that earlier runs packed into the same folder stay listed.

    Args:
        output_dir: the packed folder.
        reports: the shards of this run.
        source: where the photos came from, in words.
        options: what the run was asked for.
        left_out: photos that the source names and that no shard was asked to hold; listed with the split that
            the run is for (`split_name`).

    Returns:
        The manifest. `source` and `options` at its top are those of the latest run; each split keeps its own.
    """
    splits = read_splits(output_dir)
    own_splits = list(dict.fromkeys(report.split for report in reports))
    blamed = options.get("split_name") if options.get("split_name") in own_splits else next(iter(own_splits), None)
    for split in own_splits:
        own = [report for report in reports if report.split == split]
        bad = BadTally.of(photo for report in own for photo in report.bad)
        if left_out is not None and split == blamed:
            bad = bad + left_out
        splits[split] = {
            "num_photos": sum(report.num_photos for report in own),
            "num_bad": len(bad),
            "num_bad_by_reason": _count_reasons(bad),
            "bad": [photo.to_json() for photo in bad.listed],
            "shards": [{"file": r.file, "num_photos": r.num_photos, "sha256": r.sha256} for r in own],
            "source": source,
            "options": options,
            "is_finished": True,
            "photos_digest": _digest_of_split([report.photos_digest for report in own]),
        }
    finished = list(_finished(splits).values())
    manifest = {
        "num_photos": sum(entry["num_photos"] for entry in finished),
        "num_bad": sum(entry["num_bad"] for entry in finished),
        "bad": [photo for entry in finished for photo in entry["bad"]][:MAX_BAD_LISTED],
        "source": source,
        "options": options,
        "versions": find_versions(PACKAGES),
        "splits": splits,
    }
    _write_json(output_dir / "manifest.json", manifest)
    return manifest


def _count_reasons(bad: BadTally) -> dict[str, int]:
    """They sum to all bad photos."""
    counts = dict(bad.counts.most_common(MAX_REASONS))
    rest = len(bad) - sum(counts.values())
    return counts | ({"other reasons": rest} if rest else {})


def _digest_of_split(digests: Sequence[str]) -> str:
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()[:32]


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_whole(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_splits(output_dir: Path) -> dict[str, Any]:
    """What the manifest of a packed folder says of each split whose shards were not deleted, finished or not."""
    path = output_dir / "manifest.json"
    if not path.is_file():
        return {}
    try:
        splits = dict(parse_json(read_text(path))["splits"])
        files = {name: [output_dir / shard["file"] for shard in entry["shards"]] for name, entry in splits.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(f"{path} is not a manifest of packed photos: {error!r}. Pack the folder anew.") from error
    return {name: entry for name, entry in splits.items() if any(file.is_file() for file in files[name])}


def read_finished_splits(output_dir: Path) -> dict[str, Any]:
    """Those of `read_splits` that no run has begun to write anew."""
    return _finished(read_splits(output_dir))


def _finished(splits: dict[str, Any]) -> dict[str, Any]:
    return {name: entry for name, entry in splits.items() if entry.get("is_finished", True)}


def refuse_other_run(output_dir: Path, splits: set[str], *, source: str, options: dict[str, Any]) -> None:
    """A finished split is never overwritten by photos of another source, or by the same photos packed otherwise.

    Args:
        output_dir: the packed folder.
        splits: those that the run would write.
        source: as `write_manifest`.
        options: as `write_manifest`.

    Raises:
        SourceError: the manifest lists one of the splits with another source or another option.
    """
    asked = {"source": source} | options
    for name, entry in read_splits(output_dir).items():
        made = {"source": entry["source"]} | entry["options"]
        changed = [key for key in asked if key in made and made[key] != asked[key]]
        if name in splits and changed:
            raise SourceError(
                f"{output_dir} holds a finished split {name!r} made with {changed[0]}={made[changed[0]]!r}, which this "
                f"run with {changed[0]}={asked[changed[0]]!r} would overwrite. Choose another --output_dir, or for "
                f"`pack` another --split_name, or delete {name}-*.parquet there."
            )


def refuse_other_photos(output_dir: Path, digests: dict[str, list[str]]) -> None:
    """A finished split is never overwritten by other photos, whatever their source is called.

    Args:
        output_dir: the packed folder.
        digests: of the photos of each shard that the run would write, by split.

    Raises:
        SourceError: the manifest lists one of the splits with other photos.
    """
    for name, entry in read_splits(output_dir).items():
        made = entry.get("photos_digest")
        if made is not None and name in digests and made != _digest_of_split(digests[name]):
            raise SourceError(
                f"{output_dir} holds a finished split {name!r} of other photos than this run would write: of another "
                "source, or of this one before photos or coordinates were added or changed. Choose another "
                f"--output_dir, or delete {name}-*.parquet there."
            )


def refuse_other_sizes(output_dir: Path, split: str, num_rows: Sequence[int]) -> None:
    """Halves and limits are defined on the manifest: refuse shards that it does not describe.

    Args:
        output_dir: the packed folder.
        split: whose shards.
        num_rows: of each shard, in order.

    Raises:
        SourceError: the manifest does not list the split, or lists other numbers of photos.
    """
    entry = read_finished_splits(output_dir).get(split)
    if entry is None:
        raise SourceError(
            f"{output_dir}/manifest.json does not list the split {split!r} as finished, by which subset and limit are "
            "defined. Was the run that packed it stopped? Start it again with the same options."
        )
    promised = [shard["num_photos"] for shard in entry["shards"]]
    if promised != list(num_rows):
        raise SourceError(
            f"the shards of {split!r} in {output_dir} hold {sum(num_rows)} photos where its manifest lists "
            f"{sum(promised)}: the halves would not be those of other machines. Pack the split anew."
        )


def mark_splits(output_dir: Path, splits: set[str], *, is_finished: bool) -> None:
    """Say of splits that their shards are being rewritten, or are whole again.

    A killed run leaves them unfinished: they are not trained on by halves, and other photos are refused all the same.
    """
    path = output_dir / "manifest.json"
    listed = read_splits(output_dir)
    if splits & listed.keys():
        manifest = json.loads(path.read_text(encoding="utf-8"))
        marked = {name: entry | {"is_finished": is_finished} for name, entry in listed.items() if name in splits}
        manifest["splits"] = listed | marked
        _write_json(path, manifest)
