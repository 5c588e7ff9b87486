"""`python -m geomae.geocells build`: cells of the Earth for classifiers, from the coordinates of training photos.

python -m geomae.geocells build --train_coordinates mp16_places365.csv --test_set im2gps3k --output_dir data/mp16_cells
python -m geomae.geocells build --train_coordinates my_list.csv --max_photos 100 40 20 --min_photos 5 --output_dir cells
python -m geomae.geocells build --train_coordinates data/my_photos --kind kmeans --num_cells 50 400 --output_dir cells
"""

import argparse
import json
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geomae.command_line import CommandParser
from geomae.errors import ConfigError, GeoMAEError
from geomae.evaluation import (
    KNOWN_TEST_SETS,
    TestSet,
    find_known_list,
    read_test_set,
    read_training_coordinates,
    refuse_unwritable,
)
from geomae.files import write_whole
from geomae.geocells.build import BuiltGeocells, build_geocells
from geomae.geocells.ceiling import judge_ceiling
from geomae.geocells.kmeans import check_num_cells, draft_by_kmeans
from geomae.geocells.record import FILES, describe_partitions, format_ceilings, format_partitions, refuse_other_content
from geomae.geocells.s2 import check_photos_per_cell, draft_by_s2, refuse_missing_s2
from geomae.geocells.storage import write_geocells
from geomae.provenance import find_commit, find_versions, shown_command, shown_path

OPTIONS = {  # of each kind, with the values that they have where the command line does not say
    "s2": {"max_photos": [5000, 2000, 1000], "min_photos": 50},  # ISN's
    "kmeans": {"num_cells": [50, 400], "seed": 0},
}
PACKAGES = ("numpy", "scipy", "pyarrow", "s2geometry")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = CommandParser(prog="python -m geomae.geocells", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    _add_options(commands.add_parser("build", help="make cells, and say what they cover and allow"))
    _build(parser.parse_args(argv), list(sys.argv[1:] if argv is None else argv))


def _add_options(build: argparse.ArgumentParser) -> None:
    build.add_argument("--train_coordinates", required=True, help="packed folder or file with latitude and longitude")
    build.add_argument("--kind", choices=tuple(OPTIONS), default="s2", help="(default: %(default)s)")
    build.add_argument(
        "--max_photos",
        type=int,
        nargs="+",
        help="s2: a cell with more photos is divided; one number a partition, coarse to fine (default: 5000 2000 1000)",
    )
    build.add_argument("--min_photos", type=int, help="s2: a cell with fewer photos is dropped (default: 50)")
    build.add_argument(
        "--num_cells", type=int, nargs="+", help="kmeans: cells of each partition, coarse to fine (default: 50 400)"
    )
    build.add_argument("--seed", type=int, help="kmeans: of where the clusters start (default: 0)")
    build.add_argument(
        "--test_set",
        nargs="+",
        default=[],
        help=f"{', '.join(KNOWN_TEST_SETS)}, packed folders, CSV or parquet files: how near the centroids come to them",
    )
    build.add_argument("--test_sets_dir", default="data", help="where a test set given by its name lies")
    build.add_argument("--split", default="test", help="split of a packed folder that is a test set (default: test)")
    build.add_argument("--swap_lat_lon", action="store_true", help="read the test sets' columns the other way round")
    build.add_argument("--swap_train_lat_lon", action="store_true", help="the same for the training coordinates")
    build.add_argument("--output_dir", required=True, help=f"folder for {', '.join(FILES)}; it is created")


def _build(arguments: argparse.Namespace, words: Sequence[str]) -> None:
    """Check everything, read, make the cells, judge them, write, print."""
    options = _options_of_kind(arguments)
    refuse_unwritable(arguments.output_dir)
    refuse_other_content(arguments.output_dir, options)
    files = [find_known_list(name, arguments.test_sets_dir) for name in arguments.test_set]
    read = [read_test_set(file, split=arguments.split, swap_lat_lon=arguments.swap_lat_lon) for file in files]
    test_sets = _named(arguments.test_set, read)
    training_deg = read_training_coordinates(arguments.train_coordinates, swap_lat_lon=arguments.swap_train_lat_lon)
    print(f"{options['train_coordinates']}: {len(training_deg):,} training coordinates; making cells ...", flush=True)
    built = _make(training_deg, options)
    _refuse_useless(built.geocells.num_geocells, len(training_deg))
    record: dict[str, Any] = {
        "options": options,
        "num_train_coordinates": len(training_deg),
        "partitions": describe_partitions(built),
        "ceilings": {name: judge_ceiling(built.geocells, each.coordinates_deg) for name, each in test_sets.items()},
        "command": f"python {shown_command(['-m', 'geomae.geocells', *words])}",
        "commit": find_commit(),
        "versions": find_versions(PACKAGES),
    }
    print(format_partitions(record["partitions"]))
    if test_sets:
        print(format_ceilings(record["ceilings"]))
    _write(Path(arguments.output_dir), built, record)


def _options_of_kind(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the cells are made of; refuses options of the other kind and values that cannot work."""
    for kind, names in OPTIONS.items():
        given = [name for name in names if getattr(arguments, name) is not None]
        if kind != arguments.kind and given:
            raise ConfigError(f"--{given[0]} is an option of --kind {kind}, and the kind is {arguments.kind}")
    chosen: dict[str, Any] = {
        name: default if getattr(arguments, name) is None else getattr(arguments, name)
        for name, default in OPTIONS[arguments.kind].items()
    }
    if arguments.kind == "s2":
        check_photos_per_cell(**chosen)
        refuse_missing_s2()
    else:
        check_num_cells(chosen["num_cells"])
        if chosen["seed"] < 0:
            raise ConfigError(f"--seed must be at least 0; got {chosen['seed']}")
    name = shown_path(arguments.train_coordinates).rsplit("/", 1)[-1]
    return {"kind": arguments.kind, **chosen, "train_coordinates": name, "swapped": arguments.swap_train_lat_lon}


def _make(training_deg: NDArray[np.float64], options: dict[str, Any]) -> BuiltGeocells:
    draft: Any = draft_by_s2 if options["kind"] == "s2" else draft_by_kmeans
    blueprints = draft(training_deg, **{name: options[name] for name in OPTIONS[options["kind"]]})
    numbers = ", ".join(f"{each.num_cells:,}" for each in blueprints)
    print(f"{numbers} cells; giving every photo to the nearest centroid ...", flush=True)
    return build_geocells(training_deg, blueprints)


def _refuse_useless(num_geocells: Sequence[int], num_photos: int) -> None:
    """Refuses partitions that no head can be made of: of one cell, or as fine as the next."""
    if min(num_geocells) < 2 or sorted(set(num_geocells)) != num_geocells:
        raise ConfigError(
            f"{num_photos:,} training coordinates give partitions of {', '.join(map(str, num_geocells))} cells, and "
            "each must have more than the one before, the coarsest at least 2: ask for fewer partitions, or choose "
            "--max_photos and --min_photos, or --num_cells, for so many photos"
        )


def _named(given: Sequence[str], test_sets: Sequence[TestSet]) -> dict[str, TestSet]:
    """The test sets by their names: the field's, or those of their files and folders."""
    names = [word if word in KNOWN_TEST_SETS else each.name for word, each in zip(given, test_sets, strict=True)]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"two test sets are called {twice}: give each once, or rename one")
    return dict(zip(names, test_sets, strict=True))


def _write(folder: Path, built: BuiltGeocells, record: dict[str, Any]) -> None:
    """The cells, a map where it can be drawn, and last the record, so that its presence says that all is there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    written = [write_geocells(folder / "geocells.parquet", built.geocells)]
    if find_spec("cartopy") is None or find_spec("matplotlib") is None:
        print("no map: it needs cartopy and matplotlib (pip install 'geomae[report]')")
    else:
        from geomae.reporting.cell_maps import geocell_map
        from geomae.reporting.plots import save_figure

        title = f"{'S2' if record['options']['kind'] == 's2' else 'k-means'} cells of {built.num_photos:,} photos"
        written.append(save_figure(geocell_map(built.geocells, title=title), folder / "geocells.png"))
    write_whole(folder / "geocells.json", json.dumps(record, indent=2, allow_nan=False, ensure_ascii=False) + "\n")
    print("\n".join(f"wrote {shown_path(path)}" for path in [*written, folder / "geocells.json"]))


if __name__ == "__main__":
    try:
        main()
    except GeoMAEError as problem:
        sys.exit(f"{type(problem).__name__}: {problem}")
