"""`python -m geomae.evaluation baselines | show`: judge answers that never saw a photo; print what was judged.

python -m geomae.evaluation baselines --test_set im2gps3k --train_coordinates mp16_coordinates_100k.csv \
    --output_dir results/baselines/im2gps3k
python -m geomae.evaluation show outputs/demo/evaluate
"""

import argparse
import sys
from collections.abc import Sequence

from geomae.errors import GeoMAEError
from geomae.evaluation import (
    KNOWN_TEST_SETS,
    describe_run,
    describe_test_set,
    find_known_list,
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
from geomae.evaluation.summary import describe_shared_photos


def main(argv: Sequence[str] | None = None) -> None:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(prog="python -m geomae.evaluation", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    baselines = commands.add_parser("baselines", help="judge constants and random guesses on a test set")
    baselines.add_argument(
        "--test_set", required=True, help=f"{', '.join(KNOWN_TEST_SETS)}, packed folder, CSV or parquet file"
    )
    baselines.add_argument("--test_sets_dir", default="data", help="where a test set given by its name lies")
    baselines.add_argument("--split", default="test", help="split of a packed folder (default: test)")
    baselines.add_argument(
        "--train_coordinates", required=True, help="packed folder or file with latitude and longitude"
    )
    baselines.add_argument("--output_dir", required=True, help="folder for metrics.json; it is created")
    baselines.add_argument("--num_repeats", type=int, default=20, help="runs of each random baseline (default: 20)")
    baselines.add_argument(
        "--num_resamples", type=int, default=2000, help="resamples behind the intervals (default: 2000)"
    )
    baselines.add_argument(
        "--swap_lat_lon", action="store_true", help="read the test set's columns the other way round"
    )
    baselines.add_argument("--swap_train_lat_lon", action="store_true", help="the same for the training coordinates")
    baselines.add_argument("--seed", type=int, default=0)
    show = commands.add_parser("show", help="print the table of an evaluation that was made before")
    show.add_argument("evaluation", nargs="+", help="folders of run_evaluate_geo.py, or their metrics.json")
    arguments = parser.parse_args(argv)
    if arguments.command == "show":
        for folder in arguments.evaluation:
            metrics = read_metrics(folder)
            if "mean_km" in metrics:
                print(format_summary(metrics, label=metrics["checkpoint"] or metrics["predictions"]))
            else:  # of `baselines`: there is no model in it
                print(format_table(metrics["baselines"]))
    else:
        _judge_baselines(arguments, list(sys.argv[1:] if argv is None else argv))


def _judge_baselines(arguments: argparse.Namespace, words: Sequence[str]) -> None:
    """Fit the baselines on training coordinates, judge them, write and print the result."""
    refuse_unwritable(arguments.output_dir)
    test_set_file = find_known_list(arguments.test_set, arguments.test_sets_dir)
    test_set = read_test_set(test_set_file, split=arguments.split, swap_lat_lon=arguments.swap_lat_lon)
    training_deg = read_training_coordinates(arguments.train_coordinates, swap_lat_lon=arguments.swap_train_lat_lon)
    results, _ = judge_baselines(
        test_set,
        training_deg,
        num_repeats=arguments.num_repeats,
        num_resamples=arguments.num_resamples,
        seed=arguments.seed,
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


if __name__ == "__main__":
    try:
        main()
    except GeoMAEError as problem:
        sys.exit(f"{type(problem).__name__}: {problem}")
