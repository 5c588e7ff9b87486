"""Row groups of shards, and parts of them: halves and limits."""

import itertools
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numbered_shards import EVERYTHING, NUM_PHOTOS, UNEVEN, write_photos

from geomae.data.groups import ParquetShards, PhotoGroups
from geomae.data.stream import PhotoStream
from geomae.errors import ConfigError, SourceError


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_photos(tmp_path_factory.mktemp("shards"), UNEVEN)


def ids_of(groups: PhotoGroups) -> list[str]:
    stream = PhotoStream(groups, seed=0, batch_size=1, shuffle=False)
    return [sample["id"] for sample in itertools.islice(stream, groups.num_photos)]


def test_halves_share_no_photo_and_leave_out_none(files: list[Path]) -> None:
    shards = ParquetShards(files)
    first, last = (ids_of(PhotoGroups([shards], subset=half)) for half in ("first_half", "last_half"))
    assert first + last == EVERYTHING
    assert len(first) == 501


def test_halves_of_several_sources_are_halves_of_each(files: list[Path], tmp_path: Path) -> None:
    sources = [ParquetShards(files[:1]), ParquetShards(files[2:])]  # 456 and 547 photos
    assert ids_of(PhotoGroups(sources, subset="first_half")) == EVERYTHING[:228] + EVERYTHING[456 : 456 + 273]


def test_limit_takes_the_first_photos_and_deals_them_by_size(files: list[Path]) -> None:
    shards = ParquetShards(files)
    assert ids_of(PhotoGroups([shards], limit=130)) == EVERYTHING[:130]
    assert ids_of(PhotoGroups([shards], subset="last_half", limit=7)) == EVERYTHING[501:508]
    assert len(ids_of(PhotoGroups([shards], limit=5000))) == NUM_PHOTOS
    sources = [ParquetShards(files[:1]), ParquetShards(files[2:])]
    limited = ids_of(PhotoGroups(sources, limit=100))
    assert limited == EVERYTHING[:45] + EVERYTHING[456 : 456 + 55]


@pytest.mark.parametrize(("options", "message"), [({"subset": "middle"}, "first_half"), ({"limit": 0}, "limit is 0")])
def test_impossible_parts_are_refused_by_name(files: list[Path], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PhotoGroups([ParquetShards(files)], **options)


def test_no_shards_or_no_photos_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no shards were given"):
        PhotoStream([], seed=0, batch_size=1)
    with pytest.raises(SourceError, match="no photo at all"):
        PhotoStream(write_photos(tmp_path, [0]), seed=0, batch_size=1)


def test_shards_with_different_columns_are_refused(files: list[Path], tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(SourceError, match=r"other\.parquet has the columns"):
        PhotoStream([*files, tmp_path / "other.parquet"], seed=0, batch_size=1)


def test_broken_shard_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "broken.parquet").write_bytes(b"not parquet")
    with pytest.raises(SourceError, match=r"broken\.parquet cannot be read"):
        PhotoStream([tmp_path / "broken.parquet"], seed=0, batch_size=1)


def test_datasets_reads_the_shards_as_images(tmp_path: Path) -> None:
    metadata = pq.read_schema(write_photos(tmp_path, [3])[0]).metadata
    features = json.loads(metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}
