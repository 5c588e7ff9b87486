"""What comes from outside gives a value or a named error: a short run of each reader here, a long one by hand."""

import io
import itertools
import random
import subprocess
import sys
import tarfile
from pathlib import Path

import fuzzing
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from source_files import photo, tar_bytes, write_file, zip_bytes

from geomae.data.archives import walk_tar, walk_zip
from geomae.data.earth import EarthPicture
from geomae.data.filesystems import expand_pattern
from geomae.data.sources import SourceOptions, open_source
from geomae.documents import DocumentError, DuplicateKeyError, parse_json, parse_yaml
from geomae.errors import SourceError
from geomae.geocells.storage import SCHEMA, read_geocells
from geomae.reporting.records import read_training

ROOT = Path(__file__).resolve().parent.parent
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)
UNLABELLED = SourceOptions(unlabelled=True)


@pytest.mark.parametrize("name", fuzzing.TARGETS)
def test_spoilt_inputs_give_a_value_or_a_named_error(name: str) -> None:
    for data in itertools.islice(fuzzing.mutations(name, seed=1), 30):
        fuzzing.run_target(name, data)


@pytest.mark.parametrize("name", ["json", "yaml", "place", "msgpack", "tar"])
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(data=st.binary(max_size=600))
def test_any_bytes_give_a_value_or_a_named_error(name: str, data: bytes) -> None:
    fuzzing.run_target(name, data)


@pytest.mark.slow
@pytest.mark.parametrize("name", fuzzing.TARGETS)
def test_many_spoilt_inputs_give_a_value_or_a_named_error(name: str) -> None:
    tried, _ = fuzzing.fuzz_blindly(name, seconds=20, seed=random.randrange(10**6))
    assert tried > 100


def test_a_reader_that_fails_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(data: bytes) -> int:
        return 1 // (len(data) % 2)

    monkeypatch.setitem(fuzzing.TARGETS, "broken", fuzzing.Target(read, lambda: [b"abc"]))
    with pytest.raises(ZeroDivisionError):
        fuzzing.fuzz_blindly("broken", seconds=5)


def test_aliases_that_would_fill_the_memory_are_refused() -> None:
    with pytest.raises(DocumentError, match=r"stands for [\d,]{10,} values, and 100,000 are allowed"):
        parse_yaml(BOMB)
    with pytest.raises(DocumentError, match="within what it names"):
        parse_yaml("a: &a [*a]")
    assert parse_yaml("a: &a [1, 2]\nb: *a") == {"a": [1, 2], "b": [1, 2]}


@pytest.mark.parametrize(
    "text",
    ["[" * 2000, "? [a]\n: b", "a: 2001-99-99", "a: !!bool x", "a: !!int x", "a: 1" + "0" * 5000, "<<: 5", "a: \0"],
)
def test_yaml_that_pyyaml_stumbles_over_is_one_kind_of_error(text: str) -> None:
    with pytest.raises(DocumentError):
        parse_yaml(text)


def test_a_key_that_stands_twice_is_refused_with_its_line_and_no_tag_runs_code() -> None:
    with pytest.raises(DuplicateKeyError, match="key a stands twice, the second time on line 3"):
        parse_yaml("a: 1\nb: 2\na: 3")
    with pytest.raises(DocumentError, match="could not determine a constructor"):
        parse_yaml("a: !!python/object/apply:os.system [exit 1]")


def test_json_that_is_nested_too_deeply_is_a_value_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json("[" * 100_000)
    write_file(tmp_path / "trainer_state.json", '{"a":' * 100_000)
    with pytest.raises(SourceError, match=r"cannot read .*trainer_state.json: it is nested too deeply"):
        read_training(tmp_path)


def test_a_folder_called_like_a_checkpoint_and_more_is_passed_over(tmp_path: Path) -> None:
    write_file(tmp_path / "checkpoint-9old" / "trainer_state.json", '{"log_history": [{"step": 9}]}')
    write_file(tmp_path / "checkpoint-3" / "trainer_state.json", '{"log_history": [{"step": 3}]}')
    assert read_training(tmp_path).history == [{"step": 3}]


def test_names_that_are_no_utf8_are_ids_in_archives_and_counted_in_folders(tmp_path: Path) -> None:
    members = {"\udce9t\udce9.jpg": photo(1), "b.jpg": photo(2)}
    write_file(tmp_path / "a.tar", tar_bytes(members, format=tarfile.GNU_FORMAT, errors="surrogateescape"))
    assert open_source(tmp_path / "a.tar", UNLABELLED, cache=False).column("id") == [r"\udce9t\udce9.jpg", "b.jpg"]
    write_file(tmp_path / "photos" / "b.jpg", photo(2))
    try:
        write_file(tmp_path / "photos" / "\udce9.jpg", photo(1))
    except OSError:
        pytest.skip("this file system takes no names but UTF-8")
    index = open_source(tmp_path / "photos", UNLABELLED, cache=False)
    assert index.column("id") == ["b.jpg"]
    assert index.bad.describe() == "1 x its path is not UTF-8"


def test_half_a_pair_of_utf16_in_a_json_is_escaped(tmp_path: Path) -> None:
    record = b'{"id": "\\ud800", "latitude": 1, "longitude": 2, "country": "\\udfff"}'
    write_file(tmp_path / "a.tar", tar_bytes({"7.jpg": photo(1), "7.json": record}))
    index = open_source(tmp_path / "a.tar", cache=False)
    assert (index.column("id"), index.column("country")) == ([r"\ud800"], [r"\udfff"])


@pytest.mark.parametrize("headers", [{"GNU.sparse.map": "0,1,x"}, {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}])
def test_a_tar_that_lies_about_holes_is_no_archive(headers: dict[str, str]) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("a.jpg")
        member.size, member.pax_headers = 600, headers
        archive.addfile(member, io.BytesIO(photo(1, 600)))
    with pytest.raises(SourceError, match="no uncompressed tar archive"):
        list(walk_tar(io.BytesIO(buffer.getvalue()), len(buffer.getvalue())))


def test_places_that_no_archive_has_are_problems_of_their_members() -> None:
    data = zip_bytes({"a.jpg": photo(1), "b.jpg": photo(2)})
    directory = data.index(b"PK\1\2")
    huge = b"".join([data[: directory + 42], b"\xfe\xff\xff\xff", data[directory + 46 :]])
    assert [member.problem is None for member in walk_zip(io.BytesIO(huge))].count(True) == 1


def test_partitions_by_the_billion_are_refused_at_once(tmp_path: Path) -> None:
    columns = {"partition": [0, 2**31 - 1], "cell": [0, 1], "latitude": [1.0, 2], "longitude": [1.0, 2]}
    columns |= {"num_photos": [1, 1], "area_km2": [1.0, 1], "spread_km": [1.0, 1]}
    columns |= {"parent": [None, None], "s2_token": ["a", "b"]}
    pq.write_table(pa.table(columns, schema=SCHEMA), tmp_path / "geocells.parquet")
    with pytest.raises(SourceError, match="partition 1 has no cells"):
        read_geocells(tmp_path / "geocells.parquet")


def test_patterns_that_stand_for_too_many_paths_are_refused() -> None:
    for pattern in ("/a/{0..999999999}.tar", "/a/{0..999}/{0..999}/{0..9}.tar"):
        with pytest.raises(SourceError, match="more than 1,000,000 paths"):
            expand_pattern(pattern)
    assert expand_pattern("/a/{08..10}.tar") == ["/a/08.tar", "/a/09.tar", "/a/10.tar"]


def test_addresses_that_are_none_are_named() -> None:
    with pytest.raises(SourceError, match="cannot be opened: Invalid IPv6 URL"):
        open_source("http://[x/a.tar", UNLABELLED)


def test_a_picture_of_more_pixels_than_opencv_takes_is_refused(tmp_path: Path) -> None:
    header = b"P6 200000 100000 255\n"
    with pytest.raises(SourceError, match="not a picture that OpenCV can read"):
        EarthPicture.open(write_file(tmp_path / "earth.ppm", header + bytes(1000)))


# Read in one process, that may take 900 MB beyond what it has after its imports: what each prints.
BOMBS = {
    "list(walk_msgpack(io.BytesIO(b'\\x81\\xa1a\\xdd\\x1f\\xff\\xff\\xff'), 8))": "the archive is damaged",
    "parse_yaml(BOMB)": "DocumentError",
    "PhotoReader(str(FOLDER)).read({'file': 'bomb', 'storage': 2, 'offset': 0, 'size': SIZE})": "inflates to more",
    "decode_photo(PIXELS, min_short_side=0)": "more than 100,000,000 pixels",
    "read_predictions(FOLDER / 'answers.parquet')": "made to fill memory",
}
ATTACK = """
import io, resource, struct, zlib
from pathlib import Path
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
from geomae.data.archives import walk_msgpack
from geomae.data.photos import decode_photo
from geomae.data.reading import PhotoReader
from geomae.documents import parse_yaml
from geomae.errors import GeoMAEError
from geomae.evaluation import read_predictions

def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

packer = zlib.compressobj(9, zlib.DEFLATED, -15)
packed = b"".join([packer.compress(bytes(2**24)) for _ in range(24)] + [packer.flush()])
(FOLDER / "bomb").write_bytes(packed)
SIZE = len(packed)
header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
PIXELS = b"\\x89PNG\\r\\n\\x1a\\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed[:1000]) + chunk(b"IEND", b"")
ids = pa.DictionaryArray.from_arrays(np.zeros(10**6, np.int32), ["x" * 10**6])  # in a file of 60 KB
answers = {"id": ids, "latitude": np.zeros(10**6), "longitude": np.zeros(10**6)}
pq.write_table(pa.table(answers), FOLDER / "answers.parquet", store_schema=False)
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 900 * 2**20,) * 2)
for bomb in BOMBS:
    try:
        print(eval(bomb))
    except (GeoMAEError, ValueError) as error:
        print(type(error).__name__, *str(error).splitlines())
"""


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="needs Linux's /proc to know what is taken")
def test_bombs_go_off_in_little_memory(tmp_path: Path) -> None:
    given_to_it = f"from pathlib import Path\nFOLDER, BOMB, BOMBS = Path({str(tmp_path)!r}), {BOMB!r}, {list(BOMBS)!r}"
    command = [sys.executable, "-c", given_to_it + ATTACK]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = run.stdout.splitlines()
    assert len(lines) == len(BOMBS), run.stderr
    for line, expected in zip(lines, BOMBS.values(), strict=True):
        assert expected in line


@pytest.mark.slow
def test_the_command_says_how_many_inputs_it_tried() -> None:
    command = [sys.executable, "tests/fuzzing.py", "place", "--seconds", "0.2", "--blind"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "place: " in run.stdout
    assert "gave a value" in run.stdout
