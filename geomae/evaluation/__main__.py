"""`python -m geomae.evaluation baselines | show | compare | calibrate`: all but judging a model, which has a script.

python -m geomae.evaluation baselines --test_set im2gps3k --train_coordinates mp16_coordinates_100k.csv \
    --output_dir results/baselines/im2gps3k
python -m geomae.evaluation calibrate --checkpoint outputs/heads/plain/pretrained/seed_0/geocells \
    --validation outputs/earth/data
python -m geomae.evaluation show outputs/demo/evaluate
python -m geomae.evaluation compare outputs/a/im2gps3k outputs/b/im2gps3k
python -m geomae.evaluation compare a.csv b.csv --test_set im2gps3k_places365.csv --output_dir results/a_and_b
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from geomae.command_line import CommandParser
from geomae.errors import ConfigError, GeoMAEError, SourceError
from geomae.evaluation import (
    KNOWN_TEST_SETS,
    THRESHOLDS_KM,
    compare_predictions,
    describe_run,
    describe_test_set,
    find_known_list,
    format_comparison,
    format_summary,
    format_table,
    judge_baselines,
    read_metrics,
    read_test_set,
    read_training_coordinates,
    read_training_ids,
    refuse_unwritable,
    shown_path,
    write_evaluation,
)
from geomae.evaluation.baselines import NUM_CLUSTERS
from geomae.evaluation.brief import format_brief
from geomae.evaluation.summary import describe_shared_photos
from geomae.files import write_whole


def main(argv: Sequence[str] | None = None) -> None:
    """Run one of the commands."""
    parser = CommandParser(prog="python -m geomae.evaluation", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    _add_options(commands.add_parser("baselines", help="judge constants and random guesses on a test set"))
    show = commands.add_parser("show", help="print the table of an evaluation that was made before")
    show.add_argument("evaluation", nargs="+", help="folders of run_evaluate_geo.py, or their metrics.json")
    show.add_argument("--brief", action="store_true", help="the model, the best constant, a guess, and some answers")
    _add_compare(commands)
    _add_calibrate(commands)
    arguments = parser.parse_args(argv)
    words = list(sys.argv[1:] if argv is None else argv)
    if getattr(arguments, "seed", 0) < 0:
        raise ConfigError(f"--seed must be at least 0; got {arguments.seed}")
    if arguments.command == "compare":
        _compare(arguments, words)
    elif arguments.command == "calibrate":
        _calibrate(arguments, words)
    elif arguments.command == "show":
        for folder in arguments.evaluation:
            _show(folder, brief=arguments.brief)
    else:
        _judge_baselines(arguments, words)


def _show(folder: str, *, brief: bool) -> None:
    """Print the tables of an evaluation, or that of `baselines`, in which there is no model."""
    metrics = read_metrics(folder)
    if {"mean_km", "test_set", "bootstrap", "baselines"} <= metrics.keys():
        label = metrics.get("checkpoint") or metrics.get("predictions") or "model"
        predictions_file = (Path(folder) if Path(folder).is_dir() else Path(folder).parent) / "predictions.parquet"
        print(format_brief(metrics, label, predictions_file) if brief else format_summary(metrics, label))
    elif metrics.get("baselines") and "mean_km" not in metrics:
        print(format_table(metrics["baselines"]))
    else:
        raise SourceError(
            f"{folder} is not an evaluation: its keys are {', '.join(metrics) or 'none'}. Expected the metrics.json of "
            "run_evaluate_geo.py or of `python -m geomae.evaluation baselines`"
        )


def _add_options(baselines: argparse.ArgumentParser) -> None:
    baselines.add_argument(
        "--test_set", required=True, help=f"{', '.join(KNOWN_TEST_SETS)}, packed folder, CSV or parquet file"
    )
    baselines.add_argument("--test_sets_dir", default="data", help="where a test set given by its name lies")
    baselines.add_argument("--split", default="test", help="split of a packed folder (default: test)")
    baselines.add_argument(
        "--train_coordinates", required=True, help="packed folder or file with latitude and longitude"
    )
    baselines.add_argument("--output_dir", required=True, help="folder for metrics.json; it is created")
    baselines.add_argument(
        "--thresholds_km",
        type=float,
        nargs="+",
        default=list(THRESHOLDS_KM),
        help="radii in km of the accuracies and of the densest points (default: 1 25 200 750 2500)",
    )
    baselines.add_argument(
        "--num_clusters", type=int, default=NUM_CLUSTERS, help="of the random guesses (default: %(default)s)"
    )
    baselines.add_argument("--num_repeats", type=int, default=20, help="runs of each random baseline (default: 20)")
    baselines.add_argument(
        "--num_resamples", type=int, default=2000, help="resamples behind the intervals (default: 2000)"
    )
    baselines.add_argument(
        "--swap_lat_lon", action="store_true", help="read the test set's columns the other way round"
    )
    baselines.add_argument("--swap_train_lat_lon", action="store_true", help="the same for the training coordinates")
    baselines.add_argument("--seed", type=int, default=0)


def _judge_baselines(arguments: argparse.Namespace, words: Sequence[str]) -> None:
    """Fit the baselines on training coordinates, judge them, write and print the result."""
    refuse_unwritable(arguments.output_dir)
    test_set_file = find_known_list(arguments.test_set, arguments.test_sets_dir)
    test_set = read_test_set(test_set_file, split=arguments.split, swap_lat_lon=arguments.swap_lat_lon)
    training_deg = read_training_coordinates(arguments.train_coordinates, swap_lat_lon=arguments.swap_train_lat_lon)
    options = ("thresholds_km", "num_clusters", "num_repeats", "num_resamples", "seed")
    results, _ = judge_baselines(
        test_set,
        training_deg,
        **{name: getattr(arguments, name) for name in options},
    )
    record = {
        "num_photos": len(test_set.ids),
        "baselines": results,
        "test_set": describe_test_set(test_set, read_training_ids(arguments.train_coordinates)),
        "train_coordinates": {
            "name": shown_path(arguments.train_coordinates).rsplit("/", 1)[-1],
            "num": len(training_deg),
        },
        **describe_run(["-m", "geomae.evaluation", *words]),
    }
    written = write_evaluation(arguments.output_dir, record)
    print(f"{test_set.name}: {len(test_set.ids):,} photos, {len(training_deg):,} training coordinates\n")
    print("\n".join([format_table(results), *describe_shared_photos(record["test_set"])]))
    print(f"\nwrote {shown_path(written[-1])}")


def _add_compare(commands: Any) -> None:
    compare = commands.add_parser("compare", help="paired comparison of two evaluations or files of predictions")
    for place in ("first", "second"):
        compare.add_argument(place, help="folder of run_evaluate_geo.py, or CSV or parquet file of predictions")
    compare.add_argument(
        "--test_set",
        help=f"{', '.join(KNOWN_TEST_SETS)}, packed folder, CSV or parquet file: needed for files; gives authors to "
        "old folders",
    )
    compare.add_argument("--test_sets_dir", default="data", help="where a test set given by its name lies")
    compare.add_argument("--split", default="test", help="split of a packed folder (default: test)")
    compare.add_argument("--swap_lat_lon", action="store_true", help="read the test set's columns the other way round")
    compare.add_argument(
        "--thresholds_km", type=float, nargs="+", help="radii in km (default: those that both folders have)"
    )
    compare.add_argument("--output_dir", help="folder for comparison.json; without it, the table is only printed")
    compare.add_argument("--num_resamples", type=int, default=10_000, help="of the bootstrap (default: 10000)")
    compare.add_argument("--seed", type=int, default=0)


def _compare(arguments: argparse.Namespace, words: Sequence[str]) -> None:
    """Compare two files of predictions, print the table, and write it where a folder is given."""
    if arguments.output_dir:
        refuse_unwritable(arguments.output_dir)
    test_set = None
    if arguments.test_set:
        test_set_file = find_known_list(arguments.test_set, arguments.test_sets_dir)
        test_set = read_test_set(test_set_file, split=arguments.split, swap_lat_lon=arguments.swap_lat_lon)
    comparison = compare_predictions(
        arguments.first,
        arguments.second,
        test_set,
        thresholds_km=arguments.thresholds_km,
        num_resamples=arguments.num_resamples,
        seed=arguments.seed,
    )
    names = [shown_path(path) for path in (arguments.first, arguments.second)]
    print(format_comparison(comparison, *names))
    if arguments.output_dir:
        folder = Path(arguments.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        described = {"names": names, **comparison, **describe_run(["-m", "geomae.evaluation", *words])}
        write_whole(folder / "comparison.json", json.dumps(described, indent=2, allow_nan=False) + "\n")
        print(f"\nwrote {folder / 'comparison.json'}")


def _add_calibrate(commands: Any) -> None:
    calibrate = commands.add_parser("calibrate", help="fit how sure a checkpoint's posterior is, on validation")
    calibrate.add_argument(
        "--checkpoint", required=True, help="folder of a fine-tuned model, whose config.json changes"
    )
    calibrate.add_argument(
        "--validation", required=True, help="photos to fit on, not to judge by: a packed folder, or a CSV with --photos"
    )
    calibrate.add_argument("--split", default="validation", help="split of a packed folder (default: validation)")
    calibrate.add_argument("--photos", help="folder of the photos that the CSV names")
    calibrate.add_argument("--swap_lat_lon", action="store_true", help="read the CSV's columns the other way round")
    calibrate.add_argument("--max_photos", type=int, help="draw so many of the photos (default: take all)")
    calibrate.add_argument("--per_device_eval_batch_size", type=int, default=64, help="photos in a forward pass")
    calibrate.add_argument("--dataloader_num_workers", type=int, default=0, help="processes that decode photos")
    calibrate.add_argument("--bf16", action="store_true", help="run the backbone in bfloat16")
    calibrate.add_argument("--max_damaged_share", type=float, default=0.1, help="of the photos (default: 0.1)")
    calibrate.add_argument("--num_resamples", type=int, default=2000, help="of the bootstrap (default: 2000)")
    calibrate.add_argument("--seed", type=int, default=0)


def _calibrate(arguments: argparse.Namespace, words: Sequence[str]) -> None:
    """Fit and write temperature and scale of the spread, and print what they did."""
    from geomae.evaluation.calibration import CALIBRATED, CalibrationArguments, calibrate, format_calibration

    options = {name: value for name, value in vars(arguments).items() if name != "command"}
    record = calibrate(CalibrationArguments(**options), words)
    if record is not None:  # None on processes that write nothing
        print(format_calibration(record))
        fitted = ", ".join(f"{name}={record[name]:.4g}" for name in CALIBRATED if name in record)
        print(f"\nwrote {fitted} to {shown_path(arguments.checkpoint)}/config.json")


if __name__ == "__main__":
    try:
        main()
    except GeoMAEError as problem:
        sys.exit(f"{type(problem).__name__}: {problem}")
