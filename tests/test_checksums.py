"""A folder that lists its files: whatever has happened to one of them is named."""

import json
from pathlib import Path

import pytest

from geomae.checksums import CHECKSUMS_FILE, find_damage, refresh_checksums, write_checksums
from geomae.files import write_whole


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "part").mkdir()
    (tmp_path / "weights.bin").write_bytes(bytes(range(256)) * 8)
    (tmp_path / "part/state.json").write_text("{}")
    write_checksums(tmp_path)
    return tmp_path


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "emptied": lambda path: path.write_bytes(b""),
    "flipped": flip,
    "removed": Path.unlink,
}


def test_unchanged_folder_is_whole_and_may_hold_more_than_its_list(folder: Path) -> None:
    assert find_damage(folder) is None
    (folder / "notes.txt").write_text("mine")
    assert find_damage(folder) is None
    assert find_damage(folder, is_thorough=False) is None


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["weights.bin", "part/state.json", CHECKSUMS_FILE])
def test_damaged_file_is_named(folder: Path, name: str, damage: str) -> None:
    DAMAGES[damage](folder / name)
    found = find_damage(folder)
    assert found is not None
    assert name in found or name == CHECKSUMS_FILE


@pytest.mark.parametrize("left", ['{"files": {"weights.bin": {"bytes": 1e999, "sha256": ""}}}', "[" * 100_000, "[]"])
def test_list_that_is_none_is_told(folder: Path, left: str) -> None:
    (folder / CHECKSUMS_FILE).write_text(left)
    assert str(find_damage(folder)).startswith(f"{CHECKSUMS_FILE} cannot be read")
    (folder / CHECKSUMS_FILE).write_text('{"files": {}}')
    assert find_damage(folder) == f"{CHECKSUMS_FILE} names no file"


def test_sizes_alone_are_looked_at_where_it_must_be_quick(folder: Path) -> None:
    flip(folder / "weights.bin")
    assert find_damage(folder, is_thorough=False) is None
    (folder / "weights.bin").write_bytes(b"short")
    assert find_damage(folder, is_thorough=False) == "weights.bin has 5 bytes, and had 2048 when it was saved"


def test_file_changed_on_purpose_is_taken_over_and_no_other(folder: Path) -> None:
    (folder / "part/state.json").write_text('{"temperature": 2}')
    assert "part/state.json" in str(find_damage(folder))
    refresh_checksums(folder, ["part/state.json"])
    assert find_damage(folder) is None
    flip(folder / "weights.bin")
    refresh_checksums(folder, ["part/state.json"])
    assert find_damage(folder) == "weights.bin is not what was saved: its SHA-256 is another"


def test_folder_without_a_list_gets_none_by_a_refresh(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    refresh_checksums(tmp_path, ["config.json"])
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_list_is_what_sha256sum_says(folder: Path) -> None:
    known = json.loads((folder / CHECKSUMS_FILE).read_text())["files"]["part/state.json"]
    assert known["sha256"] == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"  # of {}
    assert known["bytes"] == 2


def test_failed_write_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_whole(tmp_path / "run.json", "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("geomae.files.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "run.json", "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("run.json", "old")]
