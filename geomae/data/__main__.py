"""`python -m geomae.data inspect SOURCE`, `... pack SOURCE --output_dir DIR` and `... earth --output_dir DIR`."""

import argparse
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from geomae.command_line import CommandParser
from geomae.data.earth import EarthCutter, EarthPicture, EarthSplit, default_extent_km, pack_earth
from geomae.data.filesystems import public_name
from geomae.data.hub import is_hub_id
from geomae.data.listing import KINDS
from geomae.data.pack import ORDERS, PhotoPacker, pack_photos
from geomae.data.photo_index import PhotoIndex
from geomae.data.places import (
    BLUE_MARBLE,
    find_shared_data,
    find_world_picture,
    splits_from_csvs,
    splits_from_shared_data,
    splits_near_places,
)
from geomae.data.sources import SourceOptions, open_source
from geomae.errors import ConfigError, GeoMAEError
from geomae.files import FULL_DISK

_DEFAULT_NUM = {"train": 30_000, "validation": 2_000}
_DEFAULT_NUM_TEST = 1_000


def _build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="python -m geomae.data", description="Make packed photos that training streams.")
    commands = parser.add_subparsers(dest="command", required=True)
    _add_source_arguments(
        commands.add_parser("inspect", help="say what a source holds; nothing is written but its index")
    )
    packing = commands.add_parser("pack", help="pack photos into shards")
    _add_source_arguments(packing)
    _add_pack_arguments(packing)
    earth = commands.add_parser("earth", help="cut crops of a world picture into shards")
    _add_earth_arguments(earth)
    earth.add_argument("--swap_lat_lon", action="store_true", help=_SWAP)
    for command in (packing, earth):
        command.add_argument(
            "--output_dir", type=Path, required=True, help="packed folder; a stopped run resumes in it"
        )
        command.add_argument("--photos_per_shard", type=_positive, default=5000, help="photos of a shard (%(default)s)")
        processes = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        command.add_argument("--num_processes", type=_positive, default=processes, help="all cores (%(default)s)")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


_SWAP = "the tables hold longitude where they say latitude"


def _add_source_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", help="folder, file, URL, pattern such as 'tars/{00..18}.tar', or data set id of the Hub (owner/name)"
    )
    parser.add_argument("--kind", choices=("auto", *KINDS), default="auto", help="of the source (%(default)s)")
    parser.add_argument(
        "--csv", help="CSV or mapping JSON of the photos' coordinates; by default the only one in the source"
    )
    parser.add_argument(
        "--exif", action="store_true", help="take the coordinates from the photos, whatever table is there"
    )
    parser.add_argument("--unlabelled", action="store_true", help="every photo, without coordinates: for pretraining")
    parser.add_argument("--swap_lat_lon", action="store_true", help=_SWAP)
    parser.add_argument(
        "--partial", action="store_true", help="the table names more photos than are here: those are not bad"
    )
    parser.add_argument("--source_split", help="of a packed folder or a data set of the Hub (train)")
    parser.add_argument(
        "--min_photo_bytes", type=_positive, help="smaller photos are dead (5121 for MP16-Pro's tars, else 1)"
    )


def _add_pack_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--short_side", type=_positive, default=256, help="pixels; larger photos shrink (%(default)s)")
    parser.add_argument("--jpeg_quality", type=int, default=85, help="of photos that are re-encoded (%(default)s)")
    parser.add_argument("--split_name", default="train", help="split of all that the fractions leave (%(default)s)")
    parser.add_argument("--validation_fraction", type=float, default=0.0, help="share of authors to validate on (0)")
    parser.add_argument("--test_fraction", type=float, default=0.0, help="share of authors to test on (0)")
    parser.add_argument("--max_bad_fraction", type=float, default=0.1, help="stop above this share (%(default)s)")
    parser.add_argument(
        "--order",
        choices=ORDERS,
        default="auto",
        help="mixed: by a hash of the ids; source: each archive from end to end; auto: source by network (%(default)s)",
    )
    parser.add_argument(
        "--ray",
        nargs="?",
        const="auto",
        metavar="ADDRESS",
        help="pack on a Ray cluster: its address, auto for the one at hand, local for a new one on this machine",
    )


def _add_earth_arguments(parser: argparse.ArgumentParser) -> None:
    for split, default in _DEFAULT_NUM.items():
        fewer = f"{default}, or all rows of a shorter --{split}_csv"
        parser.add_argument(f"--num_{split}", type=_positive, help=f"crops ({fewer})")
    parser.add_argument("--num_test", type=_positive, default=_DEFAULT_NUM_TEST, help="crops near places (%(default)s)")
    parser.add_argument("--image_size", type=_positive, default=96, help="pixels of a crop's side (%(default)s)")
    parser.add_argument(
        "--extent_km", type=float, nargs=2, metavar=("LO", "HI"), help="ground seen (40-200 picture pixels)"
    )
    parser.add_argument(
        "--rotation_deg", type=float, default=180.0, help="largest turn; 0 keeps north up (%(default)s)"
    )
    parser.add_argument("--light", type=float, default=0.2, help="change of brightness, contrast, tint (%(default)s)")
    parser.add_argument("--grey", action="store_true", help="brightness alone, so that more places fit a crop")
    parser.add_argument("--jpeg_quality", type=int, default=90, help="of the crops (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of every draw (%(default)s)")
    parser.add_argument("--picture", type=Path, help="equirectangular picture of the Earth, 180 W and 90 N at top left")
    parser.add_argument("--shared_data", default="auto", help="auto, none, or the folder of real geotags (%(default)s)")
    parser.add_argument("--train_csv", type=Path, help="coordinates to draw --num_train from")
    parser.add_argument("--validation_csv", type=Path, help="coordinates to draw --num_validation from")
    parser.add_argument(
        "--test_csv", nargs="+", default=[], metavar="NAME=CSV", help="a split test_NAME of all its rows"
    )


def _open(arguments: argparse.Namespace) -> PhotoIndex:
    options = SourceOptions(
        kind=arguments.kind,
        csv_file=arguments.csv,
        exif=arguments.exif,
        unlabelled=arguments.unlabelled,
        swap_lat_lon=arguments.swap_lat_lon,
        partial=arguments.partial,
        split=arguments.source_split,
        min_photo_bytes=arguments.min_photo_bytes,
    )
    photos = open_source(arguments.source, options)
    if arguments.source_split is not None:
        _refuse_idle_split(arguments, photos)
    return photos


def _refuse_idle_split(arguments: argparse.Namespace, photos: PhotoIndex) -> None:
    first_file = photos.table["file"][0].as_py()
    of_osv5m = arguments.unlabelled and first_file.startswith(f"images/{arguments.source_split}/")
    if not (photos.kind == "packed" or is_hub_id(arguments.source) or of_osv5m):
        raise ConfigError(
            f"--source_split is of packed folders and data sets of the Hub; this is {KINDS[photos.kind]}."
        )


def run_inspect(arguments: argparse.Namespace) -> None:
    """Print what a source holds."""
    photos = _open(arguments)
    num_placed = len(photos) - photos.table["latitude"].null_count
    print(f"{photos.description}: kind {photos.kind}, {len(photos):,} photos, {num_placed:,} of them with coordinates")
    place = ["latitude", "longitude"] if num_placed else []
    known = [*place, *photos.known_columns()]
    print(f"known of them: {', '.join(known) or 'no more than their names'}; the first is {photos.table['id'][0]}")
    if place:
        print(_describe_places(photos))
    for reason, count in photos.bad.counts.most_common():
        print(f"left out {count:>9,}: {reason}")
    for photo in photos.bad.listed[:10]:
        print(f"left out {photo.file}: {photo.reason}")


def _describe_places(photos: PhotoIndex) -> str:
    """What a reader sees swapped columns by, where no check can."""
    latitude, longitude = (photos.table[name] for name in ("latitude", "longitude"))
    ranges = [
        f"{name} {pc.min(column).as_py():.4g} to {pc.max(column).as_py():.4g}"
        for name, column in (("latitude", latitude), ("longitude", longitude))
    ]
    first = f"the first at {latitude[0].as_py():.5g}, {longitude[0].as_py():.5g}" if latitude[0].is_valid else ""
    return f"degrees: {', '.join(ranges)}{'; ' * bool(first)}{first}"


def run_pack(arguments: argparse.Namespace) -> dict[str, Any]:
    """Pack photos; returns the manifest."""
    _refuse_output_inside(arguments.source, arguments.output_dir)
    photos = _open(arguments)
    print(f"{photos.description}: {len(photos):,} to pack, {len(photos.bad):,} that cannot be used")
    return pack_photos(
        photos,
        arguments.output_dir,
        PhotoPacker(arguments.short_side, arguments.jpeg_quality),
        folder=public_name(arguments.source),
        split_name=_split_name(arguments.split_name),
        validation_fraction=arguments.validation_fraction,
        test_fraction=arguments.test_fraction,
        max_bad_fraction=arguments.max_bad_fraction,
        photos_per_shard=arguments.photos_per_shard,
        order=arguments.order,
        num_processes=arguments.num_processes,
        ray_address=arguments.ray,
    )


def _refuse_output_inside(source: str, output_dir: Path) -> None:
    """The next run would take the shards for photos of the source."""
    source = source.removeprefix("file://")
    if Path(source).is_dir() and output_dir.resolve().is_relative_to(Path(source).resolve()):
        raise ConfigError(f"--output_dir {output_dir} lies in the source {source}: choose a folder outside of it.")


def run_earth(arguments: argparse.Namespace) -> dict[str, Any]:
    """Cut crops of the Earth; returns the manifest."""
    shared_data = find_shared_data(arguments.shared_data)
    picture_file = arguments.picture or (shared_data / BLUE_MARBLE if shared_data else find_world_picture())
    extent_km = tuple(arguments.extent_km or default_extent_km(EarthPicture.open(picture_file)))
    cutter = EarthCutter(
        str(picture_file),
        image_size=arguments.image_size,
        extent_km=extent_km,
        rotation_deg=arguments.rotation_deg,
        light=arguments.light,
        grey=arguments.grey,
        jpeg_quality=arguments.jpeg_quality,
        seed=arguments.seed,
    )
    splits, coordinates = _choose_splits(arguments, shared_data)
    print(f"{coordinates}; {Path(picture_file).name}, {extent_km[0]:.0f} to {extent_km[1]:.0f} km across")
    return pack_earth(
        splits,
        arguments.output_dir,
        cutter,
        source=f"{Path(picture_file).name} at {coordinates}",
        photos_per_shard=arguments.photos_per_shard,
        num_processes=arguments.num_processes,
    )


def _choose_splits(arguments: argparse.Namespace, shared_data: Path | None) -> tuple[list[EarthSplit], str]:
    """CSVs that are named make exactly their splits; else the shared data does; else populated places do."""
    named = {"train": arguments.train_csv, "validation": arguments.validation_csv}
    csv_files = {name: file for name, file in named.items() if file is not None}
    for item in arguments.test_csv:
        name, found, file = item.rpartition("=")
        csv_files[_split_name(f"test_{name}" if found else "test")] = Path(file)
    asked = {"train": arguments.num_train, "validation": arguments.num_validation}
    if csv_files:
        splits = splits_from_csvs(
            csv_files,
            arguments.seed,
            num_points=asked,
            max_points=_DEFAULT_NUM,
            swap_lat_lon=arguments.swap_lat_lon,
        )
        return splits, f"coordinates of {', '.join(file.name for file in csv_files.values())}"
    if arguments.swap_lat_lon:
        raise ConfigError(
            "--swap_lat_lon swaps two columns of a CSV, but no CSV is named. Leave it out, or name one with "
            "--train_csv, --validation_csv or --test_csv."
        )
    numbers = {name: asked[name] or default for name, default in _DEFAULT_NUM.items()}
    if shared_data is not None:
        splits = splits_from_shared_data(shared_data, numbers["train"], numbers["validation"], arguments.seed)
        return splits, "coordinates of MP-16 (train), YFCC25600 (validation), Im2GPS and Im2GPS3k (test)"
    return splits_near_places(
        numbers | {"test": arguments.num_test}, arguments.seed
    ), "coordinates near populated places"


def _split_name(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9_]+", text):
        raise ConfigError(f"the split name {text!r} must consist of a-z, 0-9 and _ only: files are named after it.")
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; errors that a user can cause are one line on stderr and exit status 2."""
    arguments = _build_parser().parse_args(argv)
    started = time.perf_counter()
    try:
        if arguments.command == "inspect":
            run_inspect(arguments)
            return 0
        manifest = run_pack(arguments) if arguments.command == "pack" else run_earth(arguments)
    except GeoMAEError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        goes_on = "" if arguments.command == "inspect" else "; the same command goes on where it was"
        print(f"\nstopped{goes_on}", file=sys.stderr)
        return 130
    except OSError as error:
        if error.errno in FULL_DISK:
            full = error.filename or getattr(arguments, "output_dir", "a file")
            print(
                f"{error.strerror}: {full} cannot be written. Free space; the same command then goes on where it was",
                file=sys.stderr,
            )
            return 2
        print(f"{type(error).__name__}: {error}. What is finished is kept; start again to go on.", file=sys.stderr)
        return 2
    for split, entry in manifest["splits"].items():
        print(
            f"{split:<16} {entry['num_photos']:>9,} photos {len(entry['shards']):>5} shards {entry['num_bad']:>7,} bad"
        )
    for split, entry in manifest["splits"].items():
        for reason, count in list(entry.get("num_bad_by_reason", {}).items())[:10]:
            print(f"{split:<16} left out {count:,}: {reason}")
    for photo in manifest["bad"][:10]:
        print(f"left out {photo['file']}: {photo['reason']}")
    print(f"wrote {arguments.output_dir} in {time.perf_counter() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
