"""`python -m geomae.data pack SOURCE --output_dir DIR` and `python -m geomae.data earth --output_dir DIR`."""

import argparse
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from geomae.data.earth import EarthCutter, EarthPicture, EarthSplit, default_extent_km, pack_earth
from geomae.data.pack import PhotoPacker, pack_photos
from geomae.data.places import (
    BLUE_MARBLE,
    find_shared_data,
    find_world_picture,
    splits_from_csvs,
    splits_from_shared_data,
    splits_near_places,
)
from geomae.data.sources import open_source
from geomae.errors import ConfigError, GeoMAEError

_DEFAULT_NUM = {"train": 30_000, "validation": 2_000}
_DEFAULT_NUM_TEST = 1_000


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m geomae.data", description="Make packed photos that training streams."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    _add_pack_arguments(commands.add_parser("pack", help="pack photos into shards"))
    _add_earth_arguments(commands.add_parser("earth", help="cut crops of a world picture into shards"))
    for command in commands.choices.values():
        command.add_argument(
            "--output_dir", type=Path, required=True, help="packed folder; a stopped run resumes in it"
        )
        command.add_argument("--photos_per_shard", type=_positive, default=5000, help="photos of a shard (%(default)s)")
        command.add_argument(
            "--swap_lat_lon", action="store_true", help="the CSVs hold longitude where they say latitude"
        )
        processes = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        command.add_argument("--num_processes", type=_positive, default=processes, help="all cores (%(default)s)")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def _add_pack_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="folder of photos, searched with its sub-folders")
    parser.add_argument(
        "--csv", type=Path, help="CSV of the photos' coordinates; by default the only one in the folder"
    )
    parser.add_argument(
        "--exif", action="store_true", help="take the coordinates from the photos, whatever CSV is there"
    )
    parser.add_argument(
        "--unlabelled", action="store_true", help="pack every photo, without coordinates: for pretraining"
    )
    parser.add_argument("--short_side", type=_positive, default=256, help="pixels; larger photos shrink (%(default)s)")
    parser.add_argument("--jpeg_quality", type=int, default=85, help="of photos that are re-encoded (%(default)s)")
    parser.add_argument("--split_name", default="train", help="split of all that the fractions leave (%(default)s)")
    parser.add_argument("--validation_fraction", type=float, default=0.0, help="share of authors to validate on (0)")
    parser.add_argument("--test_fraction", type=float, default=0.0, help="share of authors to test on (0)")
    parser.add_argument("--max_bad_fraction", type=float, default=0.1, help="stop above this share (%(default)s)")


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
    parser.add_argument("--jpeg_quality", type=int, default=90, help="of the crops (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of every draw (%(default)s)")
    parser.add_argument("--picture", type=Path, help="equirectangular picture of the Earth, 180 W and 90 N at top left")
    parser.add_argument("--shared_data", default="auto", help="auto, none, or the folder of real geotags (%(default)s)")
    parser.add_argument("--train_csv", type=Path, help="coordinates to draw --num_train from")
    parser.add_argument("--validation_csv", type=Path, help="coordinates to draw --num_validation from")
    parser.add_argument(
        "--test_csv", nargs="+", default=[], metavar="NAME=CSV", help="a split test_NAME of all its rows"
    )


def run_pack(arguments: argparse.Namespace) -> dict[str, Any]:
    """Pack photos; returns the manifest."""
    records, source = open_source(
        arguments.source,
        csv_file=arguments.csv,
        exif=arguments.exif,
        unlabelled=arguments.unlabelled,
        swap_lat_lon=arguments.swap_lat_lon,
    )
    return pack_photos(
        records,
        arguments.output_dir,
        PhotoPacker(arguments.short_side, arguments.jpeg_quality),
        source=source,
        folder=arguments.source.resolve().name,
        split_name=_split_name(arguments.split_name),
        validation_fraction=arguments.validation_fraction,
        test_fraction=arguments.test_fraction,
        max_bad_fraction=arguments.max_bad_fraction,
        photos_per_shard=arguments.photos_per_shard,
        num_processes=arguments.num_processes,
    )


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
        manifest = run_pack(arguments) if arguments.command == "pack" else run_earth(arguments)
    except GeoMAEError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    for split, entry in manifest["splits"].items():
        print(
            f"{split:<16} {entry['num_photos']:>9,} photos {len(entry['shards']):>5} shards {entry['num_bad']:>7,} bad"
        )
    for photo in manifest["bad"][:10]:
        print(f"left out {photo['file']}: {photo['reason']}")
    print(f"wrote {arguments.output_dir} in {time.perf_counter() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
