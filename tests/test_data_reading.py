"""From rows to bytes: whatever holds them, and whatever is wrong with it."""

import os
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_files import photo, tar_bytes, write_file

from geomae.data import reading
from geomae.data.archives import Storage
from geomae.data.reading import PhotoReader
from geomae.errors import DamagedPhotoError


def row(file: str, storage: Storage = Storage.WHOLE, offset: int = 0, size: int = -1) -> dict[str, Any]:
    return {"file": file, "storage": int(storage), "offset": offset, "size": size}


def test_every_storage_is_read(tmp_path: Path) -> None:
    write_file(tmp_path / "sub" / "a.jpg", photo(1))
    write_file(tmp_path / "b.bin", b"xx" + photo(2) + b"yy")
    pq.write_table(pa.table({"image": [photo(3), photo(4), photo(5)]}), tmp_path / "c.parquet", row_group_size=2)
    reader = PhotoReader(str(tmp_path))
    assert reader.read(row("sub/a.jpg")) == photo(1)
    assert reader.read(row("b.bin", Storage.STORED, 2, 400)) == photo(2)
    assert reader.read(row("c.parquet", Storage.PARQUET, 1, 0)) == photo(5)
    assert reader.read(row("c.parquet", Storage.PARQUET, 0, 1)) == photo(4)


def test_what_is_wrong_with_one_photo_is_said_in_its_place(tmp_path: Path) -> None:
    write_file(tmp_path / "a.jpg", photo(1))
    write_file(tmp_path / "b.bin", photo(2))
    write_file(tmp_path / "broken.parquet", b"no parquet")
    rows = [row("a.jpg"), row("gone.jpg"), row("b.bin", Storage.STORED, 300, 200), row("x", Storage.MISSING)]
    rows += [row("b.bin", Storage.STORED, 0, 2**40), row("broken.parquet", Storage.PARQUET), row("a.jpg")]
    read = PhotoReader(str(tmp_path)).read_all(rows)
    assert (read[0], read[-1]) == (photo(1), photo(1))
    assert [type(result) for result in read[1:-1]] == [FileNotFoundError, *[DamagedPhotoError] * 4]
    assert [str(result) for result in read[2:5]] == [
        "its archive ends within it: b.bin",
        "it is named, but there is no such photo",
        "1,099,511,627,776 bytes are more than the 268,435,456 of any photo",
    ]


def test_deflated_member_that_breaks_off_is_no_photo(tmp_path: Path) -> None:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    data = packer.compress(photo(1)) + packer.flush()
    write_file(tmp_path / "b.bin", data)
    reader = PhotoReader(str(tmp_path))
    assert reader.read(row("b.bin", Storage.DEFLATED, 0, len(data))) == photo(1)
    with pytest.raises(DamagedPhotoError, match="it breaks off"):
        reader.read(row("b.bin", Storage.DEFLATED, 0, len(data) - 5))


def test_parquet_that_shrank_since_it_was_indexed_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [photo(3)]}), tmp_path / "c.parquet")
    for place in ((0, 5), (7, 0)):
        with pytest.raises(DamagedPhotoError, match=r"c\.parquet"):
            PhotoReader(str(tmp_path)).read(row("c.parquet", Storage.PARQUET, *place))


def test_file_larger_than_any_photo_is_not_read_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_file(tmp_path / "a.jpg", photo(1, 1001))
    monkeypatch.setattr(reading, "MAX_PHOTO_BYTES", 1000)
    with pytest.raises(DamagedPhotoError, match="1,000 of any photo"):
        PhotoReader(str(tmp_path)).read(row("a.jpg"))


def test_many_archives_do_not_exhaust_the_open_files(tmp_path: Path) -> None:
    reader = PhotoReader(str(tmp_path))
    before = len(os.listdir("/proc/self/fd"))
    for number in range(200):
        name = f"{number}.parquet" if number % 2 else f"{number}.tar"
        if number % 2:
            pq.write_table(pa.table({"image": [photo(number)]}), tmp_path / name)
            place = row(name, Storage.PARQUET, 0, 0)
        else:
            write_file(tmp_path / name, tar_bytes({"a.jpg": photo(number)}))
            place = row(name, Storage.STORED, 512, 400)
        assert reader.read(place) == photo(number)
    assert len(os.listdir("/proc/self/fd")) - before <= 70
    reader.close()
    assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_reading_goes_on_after_closing(tmp_path: Path) -> None:
    write_file(tmp_path / "b.bin", photo(2))
    reader = PhotoReader(str(tmp_path))
    for _ in range(2):
        assert reader.read(row("b.bin", Storage.STORED, 0, 400)) == photo(2)
        reader.close()
