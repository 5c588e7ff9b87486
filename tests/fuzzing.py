"""Every reader of what comes from outside, attacked with spoilt inputs: a value or a named error, and nothing else.

    python tests/fuzzing.py photo --seconds 60
    python tests/fuzzing.py all --seconds 5

With atheris (`pip install atheris`) the mutations follow the code that they reach; without it, they are drawn blindly.
An input that ends otherwise is printed, so that it can become a test.
"""

import argparse
import inspect
import io
import json
import math
import os
import random
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgpack
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image
from safetensors.numpy import save as save_tensors

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a spoilt path may read like the name of a repository
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from geomae.data.archives import walk_msgpack, walk_tar, walk_zip
from geomae.data.coordinates import load_table, read_coordinate_table
from geomae.data.exif import read_gps
from geomae.data.manifest import read_splits
from geomae.data.photos import can_keep_jpeg, center_crop, decode_photo, strip_metadata
from geomae.data.sources import SourceOptions, open_source
from geomae.demo.photo_gate import parse_place, preview_uri, refuse_oversized
from geomae.documents import DocumentError, parse_json, parse_yaml
from geomae.errors import GeoMAEError
from geomae.evaluation import read_metrics
from geomae.evaluation.tables import read_predictions, read_test_set
from geomae.geocells.storage import SCHEMA, read_geocells
from geomae.predict.photo_list import list_photos
from geomae.reporting.records import read_evaluation, read_training
from geomae.reporting.step_profile import summarise_trace
from geomae.reporting.thesis_tables import read_published
from modeling.checkpoint_guard import list_weight_files, read_json
from modeling.image_to_coordinates import read_places

__all__ = ["TARGETS", "Target", "mutate", "run_target"]

FOLLOWED = ("geomae", "modeling", "tarfile", "zipfile", "yaml", "json", "PIL")
ROWS = {"id": ["a.jpg", "b.jpg"], "latitude": [48.8, -33.9], "longitude": [2.3, 151.2]}
CSV = b'id,latitude,longitude,author\n"a.jpg",48.8,2.3,ann\nb.jpg,-33.9,151.2,bob\n'
WORDS = (
    *(
        b"\0",
        b"\xff" * 4,
        b"\xff" * 8,
        b"\x80\0\0\0",
        b"\x7f\xff\xff\xff",
        b"-1",
        b"NaN",
        b"1e999",
        b"9" * 40,
        b"../",
        b"/etc/",
    ),
    *(
        b"<script>",
        b'"',
        b",",
        b"\n",
        b"[" * 40,
        b'{"a":' * 40,
        b"&a",
        b"*a",
        b"<<: ",
        b"!!python/name:os.system",
        b"\xed\xa0\x80",
    ),
)


@dataclass(frozen=True)
class Target:
    """A reader: what it does with bytes, what it may say, and whole inputs to begin with."""

    read: Callable[[bytes], object]
    seeds: Callable[[], Sequence[bytes]]
    errors: tuple[type[Exception], ...] = (GeoMAEError,)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """The bytes with one to four of them changed, cut, doubled, or overwritten by what parsers stumble over."""
    content = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(content) + 1)
        choice = rng.randrange(6)
        if choice == 0 and content:
            content[place % len(content)] = rng.randrange(256)
        elif choice == 1:
            del content[place : place + rng.choice((1, 4, 64, len(content)))]
        elif choice == 2:
            content[place:place] = rng.choice(WORDS)
        elif choice == 3:
            word = rng.choice(WORDS)
            content[place : place + len(word)] = word
        elif choice == 4:
            content[place:place] = content[place : place + rng.choice((4, 64, 512))]
        elif content:
            content[place % len(content)] ^= 1 << rng.randrange(8)
    return bytes(content)


def run_target(name: str, data: bytes) -> bool:
    """Read an input; whether it gave a value. Anything but a value or a named error with a sentence is raised."""
    target = TARGETS[name]
    try:
        target.read(data)
    except target.errors as error:
        if " " not in str(error):
            raise AssertionError(f"{type(error).__name__} of {name} says {str(error)!r}, no sentence") from error
        return False
    return True


def mutations(name: str, *, seed: int = 0) -> Iterator[bytes]:
    """Endless spoilt inputs, the whole ones first; the same for the same seed."""
    rng, seeds = random.Random(seed), TARGETS[name].seeds()
    yield from seeds
    while True:
        data = rng.choice(seeds)
        for _ in range(rng.randint(1, 3)):
            data = mutate(data, rng)
        yield data


def _with_file(name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """A reader of a file by that name, alone in a folder that vanishes."""

    def read_bytes(data: bytes) -> object:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            path = Path(folder) / name
            path.write_bytes(data)
            return read(path)

    return read_bytes


def _read_photo(data: bytes) -> None:
    can_keep_jpeg(data, 64)
    if data[:2] == b"\xff\xd8":
        strip_metadata(data)
    photo = decode_photo(data, min_short_side=37)
    assert (photo.dtype, photo.shape[2]) == (np.uint8, 3)
    assert center_crop(photo[:256, :256], 32).shape == (32, 32, 3)


def _read_upload(data: bytes) -> None:
    refuse_oversized(data)
    assert preview_uri(data).startswith("data:image/jpeg;base64,")


def _read_place(data: bytes) -> None:
    place = parse_place(data.decode("utf-8", "replace"))
    assert place is None or all(map(math.isfinite, place))


def _walk(data: bytes, walk: Callable[..., Iterator[object]], **options: int) -> None:
    for member in walk(io.BytesIO(data), **options):
        assert isinstance(member.name, str)  # type: ignore[attr-defined]
        member.name.encode()  # type: ignore[attr-defined]


def _open_archive(suffix: str, **options: bool) -> Callable[[bytes], object]:
    return _with_file(f"a{suffix}", lambda path: open_source(path, SourceOptions(**options), cache=False))


def _read_weights(path: Path) -> object:
    from modeling.encoder_weights import read_state_dict

    return read_state_dict(path)


def _read_index(path: Path) -> object:
    read_json(path)
    return list_weight_files(path.parent)


def _photos() -> list[bytes]:
    """A photo in each of the modes and formats that there are, with EXIF, and animated ones."""
    found = []
    noise = np.random.default_rng(0).integers(0, 255, (24, 36, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(0x8825).update({1: "N", 2: (48.0, 51.0, 29.5), 3: "E", 4: (2.0, 17.0, 40.0)})
    for file_format, modes in {
        "JPEG": ("RGB", "L", "CMYK"),
        "PNG": ("RGB", "RGBA", "P", "L", "LA", "1", "I;16"),
        "WEBP": ("RGB", "RGBA"),
        "TIFF": ("RGB", "CMYK", "LAB", "F", "YCbCr"),
        "GIF": ("P",),
        "BMP": ("RGB", "1"),
        "PPM": ("RGB", "I"),
        "JPEG2000": ("RGB",),
        "AVIF": ("RGB",),
    }.items():
        for mode in modes:
            image = Image.fromarray(noise)
            image = image.convert("I").convert(mode) if mode == "I;16" else image
            image = image if mode in ("I;16", "LAB") else image.convert(mode)
            buffer = io.BytesIO()
            try:
                image.save(
                    buffer, file_format, **({"exif": exif} if file_format in ("JPEG", "PNG", "WEBP", "TIFF") else {})
                )
            except (OSError, KeyError, ValueError):  # a Pillow without that codec
                continue
            found.append(buffer.getvalue())
    for file_format in ("GIF", "WEBP", "MPO"):
        buffer = io.BytesIO()
        frames = [Image.fromarray(noise), Image.fromarray(255 - noise)]
        frames[0].save(buffer, file_format, save_all=True, append_images=frames[1:])
        found.append(buffer.getvalue())
    return found


def _tars() -> list[bytes]:
    return [_tar(tar_format) for tar_format in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)]


def _tar(tar_format: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as archive:
        members = {"long/" * 30 + "a.jpg": b"\xff\xd8photo", "7.jpg": b"\xff\xd8photo"}
        members["7.json"] = json.dumps({"id": "é", "latitude": 1.5, "longitude": 2.5, "author": "ann"}).encode()
        members["../8.jpg"] = b"\xff\xd8photo"
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return buffer.getvalue()


def _zips() -> list[bytes]:
    found = []
    for how in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", how) as archive:
            for name in ("a.jpg", "../b.jpg", "/c.jpg", "é.jpg"):
                archive.writestr(name, b"\xff\xd8photo" * 4)
        found.append(buffer.getvalue())
    return found


def _msgpacks() -> list[bytes]:
    records = [
        {"id": "a", "image": b"\xff\xd8x", "size": [1, 2], "exif": {"a": None}},
        {"id": 7, "image": b"\xff\xd8y"},
    ]
    return [b"".join(map(msgpack.packb, records)), msgpack.packb(None)]


def _parquet(columns: dict[str, object], schema: pa.Schema | None = None) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns, schema=schema), sink)
    return bytes(sink.getvalue().to_pybytes())


def _geocells() -> list[bytes]:
    columns = {"partition": [0, 1, 1], "cell": [0, 0, 1], "latitude": [1.0, 1, 2], "longitude": [1.0, 1, 2]}
    columns |= {"num_photos": [2, 1, 1], "area_km2": [2.0, 1, 1], "spread_km": [2.0, 1, 1], "parent": [None, 0, 0]}
    return [_parquet({**columns, "s2_token": ["1", "2", "3"]}, SCHEMA)]


def _image_parquets() -> list[bytes]:
    image = {"bytes": b"\xff\xd8photo", "path": "a.jpg"}
    return [
        _parquet({**ROWS, "image": [image, image]}),
        _parquet({"jpg": [b"\xff\xd8x"], "json": [{"lat": 1.0, "lon": 2.0}]}),
    ]


def _judged() -> list[bytes]:
    truths = {f"true_{name}": ROWS[name] for name in ("latitude", "longitude")}
    return [_parquet({**ROWS, **truths, "error_km": [0.0, 0.0], "author": ["a", None]})]


def _read_judged(path: Path) -> object:
    from geomae.evaluation.paired_predictions import compare_predictions

    return compare_predictions(path, path, num_resamples=100)


def _documents(*values: object) -> Callable[[], list[bytes]]:
    return lambda: [json.dumps(value).encode() for value in values]


def _yamls() -> list[bytes]:
    published = {"thesis": {"rows": {"mae": {"im2gps": {"accuracy_within_km": {"25": 0.2}, "num_photos": 237}}}}}
    bomb = b"a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: {<<: {e: 2001-01-01}}\n"
    return [yaml.safe_dump(published).encode(), bomb, b"seed: 1\nlearning_rate: 1e-4\nsizes: [1, 2]\n"]


def _trace() -> dict[str, object]:
    step = {"ph": "X", "cat": "user_annotation", "name": "ProfilerStep#1", "ts": 0, "dur": 9, "tid": 1}
    return {"traceEvents": [step, {**step, "cat": "cpu_op", "name": "aten::mm", "args": {"External id": 3}}]}


TARGETS: dict[str, Target] = {
    "photo": Target(_read_photo, _photos),
    "gps": Target(read_gps, _photos),
    "upload": Target(_read_upload, _photos),
    "place": Target(_read_place, lambda: [b"48.8584, 2.2945", "48.8°; -2".encode(), b"-.5 +181."]),
    "tar": Target(lambda data: _walk(data, walk_tar, size=len(data)), _tars),
    "zip": Target(lambda data: _walk(data, walk_zip), _zips),
    "msgpack": Target(lambda data: _walk(data, walk_msgpack, size=len(data)), _msgpacks),
    "tar_source": Target(_open_archive(".tar", unlabelled=True), _tars),
    "webdataset": Target(_open_archive(".tar"), _tars),
    "zip_source": Target(_open_archive(".zip", unlabelled=True), _zips),
    "msgpack_source": Target(_open_archive(".msg", unlabelled=True), _msgpacks),
    "parquet_source": Target(_open_archive(".parquet"), _image_parquets),
    "csv": Target(_with_file("a.csv", load_table), lambda: [CSV]),
    "csv_test_set": Target(_with_file("a.csv", read_test_set), lambda: [CSV]),
    "csv_predictions": Target(_with_file("a.csv", read_predictions), lambda: [CSV]),
    "parquet_predictions": Target(_with_file("a.parquet", read_predictions), lambda: [_parquet(ROWS)]),
    "judged": Target(_with_file("a.parquet", _read_judged), _judged),
    "mapping": Target(_with_file("a.json", read_coordinate_table), _documents({"a": [1, 2.5], "é": [-3, 4]})),
    "photo_list": Target(_with_file("a.csv", lambda path: list_photos([f"@{path}"])), lambda: [CSV]),
    "json": Target(parse_json, _documents({"a": [1, 2.5, None, "é"]}), (ValueError,)),
    "yaml": Target(lambda data: parse_yaml(data.decode("utf-8", "replace")), _yamls, (DocumentError,)),
    "published": Target(_with_file("published.yaml", read_published), _yamls),
    "metrics": Target(_with_file("metrics.json", read_metrics), _documents({"num_photos": 2, "mean_km": 1.5})),
    "evaluation": Target(
        _with_file("metrics.json", lambda path: read_evaluation(path.parent)), _documents({"num_photos": 2})
    ),
    "training": Target(
        _with_file("trainer_state.json", lambda path: read_training(path.parent)), _documents({"log_history": [{}]})
    ),
    "trace": Target(_with_file("trace.json", summarise_trace), _documents(_trace())),
    "manifest": Target(
        _with_file("manifest.json", lambda path: read_splits(path.parent)),
        _documents({"splits": {"train": {"shards": [{"file": "a.parquet", "num_photos": 1}]}}}),
    ),
    "geocells": Target(_with_file("geocells.parquet", read_geocells), _geocells),
    "places": Target(
        _with_file("populated_places.csv", read_places),
        lambda: [b"name,country,latitude,longitude\nLyon,France,45.7,4.8\n"],
        (ValueError,),
    ),
    "weights": Target(
        _with_file("a.safetensors", _read_weights),
        lambda: [save_tensors({"a": np.zeros((2, 3), np.float32)})],
        (ValueError,),
    ),
    "weights_index": Target(
        _with_file("model.safetensors.index.json", _read_index),
        _documents({"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}),
        (ValueError,),
    ),
}


def fuzz_blindly(name: str, seconds: float, seed: int = 0) -> tuple[int, int]:
    """How many inputs were tried, and how many of them gave a value."""
    tried = values = 0
    end = time.monotonic() + seconds
    for data in mutations(name, seed=seed):
        if time.monotonic() > end:
            break
        try:
            values += run_target(name, data)
        except BaseException:
            print(f"{name} failed after {tried} inputs on {data!r}", file=sys.stderr)
            raise
        tried += 1
    return tried, values


def main() -> None:
    """Fuzz one target, or all of them in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=[*TARGETS, "all"])
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--blind", action="store_true", help="without atheris, also where it is installed")
    arguments = parser.parse_args()
    if arguments.target != "all" and not arguments.blind and _fuzz_with_atheris(arguments.target, arguments.seconds):
        return
    for name in TARGETS if arguments.target == "all" else [arguments.target]:
        tried, values = fuzz_blindly(name, arguments.seconds, arguments.seed)
        print(f"{name}: {tried:,} inputs in {arguments.seconds:g} s, {values:,} gave a value, the others a sentence")


def _followed_functions() -> Iterator[Callable[..., object]]:
    """Those of this project and of the parsers written in Python; all that are loaded would take minutes."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in FOLLOWED:
            for member in list(vars(module).values()):
                inside = vars(member).values() if inspect.isclass(member) else [member]
                yield from (each for each in inside if inspect.isfunction(each) and each.__module__ == name)


def _fuzz_with_atheris(name: str, seconds: float) -> bool:
    try:
        import atheris
    except ImportError:
        return False
    corpus = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-"))
    for number, seed in enumerate(TARGETS[name].seeds()):
        (corpus / str(number)).write_bytes(seed)
    options = [
        f"-max_total_time={math.ceil(seconds)}",
        "-rss_limit_mb=4096",
        "-timeout=20",
        f"-artifact_prefix={corpus}/",
    ]
    for function in _followed_functions():
        atheris.instrument_func(function)
    atheris.Setup([sys.argv[0], *options, str(corpus)], lambda data: bool(run_target(name, data)) and None)
    atheris.Fuzz()
    return True


if __name__ == "__main__":
    main()
