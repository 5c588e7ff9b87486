"""`python -m geomae.reporting report | compare | thesis | heads | posteriors | profile | fill | track | workspace`.

python -m geomae.reporting report --pretrain_run outputs/pretrain --finetune_run outputs/finetune \
    --evaluation outputs/evaluate --output_dir report
python -m geomae.reporting compare outputs/a outputs/b --output_dir report
python -m geomae.reporting fill README.md [--check]
python -m geomae.reporting track outputs/evaluate --report_to wandb
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from geomae.command_line import CommandParser
from geomae.errors import GeoMAEError
from geomae.provenance import shown_path
from geomae.tracking import TRACKERS, refuse_missing_trackers

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of the commands; returns the exit status."""
    parser = CommandParser(prog="python -m geomae.reporting", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    for add in (
        _add_report,
        _add_compare,
        _add_thesis,
        _add_heads,
        _add_posteriors,
        _add_profile,
        _add_fill,
        _add_track,
        _add_workspace,
    ):
        add(commands)
    arguments = parser.parse_args(argv)
    return int(arguments.run(arguments))


def _add_report(commands: Any) -> None:
    report = commands.add_parser("report", help="write report.md, report.html and their figures")
    for name, script in {"pretrain": "run_pretrain_mae.py", "finetune": "run_finetune_geo.py"}.items():
        report.add_argument(f"--{name}_run", nargs="+", action="extend", default=[], help=f"folders of {script}")
    report.add_argument("--evaluation", nargs="+", action="extend", default=[], help="folders of run_evaluate_geo.py")
    report.add_argument("--train_coordinates", help="packed folder or file with latitude and longitude, for their map")
    report.add_argument("--title", default="GeoMAE report")
    report.add_argument("--output_dir", required=True, help="folder of the report; it is created")
    report.set_defaults(run=_report)


def _add_compare(commands: Any) -> None:
    compare = commands.add_parser("compare", help="write compare.md, compare.html and their figures about several runs")
    compare.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="PATH or NAME=PATH: a training with the evaluations inside and beside it, or an evaluation",
    )
    compare.add_argument("--reference", help="NAME of the run that the others are tested against (default: the first)")
    compare.add_argument("--num_resamples", type=int, default=10_000, help="of the paired bootstrap (default: 10000)")
    compare.add_argument("--title", default="Comparison of runs")
    compare.add_argument("--output_dir", required=True, help="folder of the pages; it is created")
    compare.set_defaults(run=_compare)


def _add_thesis(commands: Any) -> None:
    thesis = commands.add_parser("thesis", help="the thesis's tables and figures beside ours; `make thesis` calls it")
    thesis.add_argument("runs", help="folder of seed_0/..., as `make thesis` makes it")
    thesis.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the runs, the first for the tables (0)")
    thesis.add_argument("--train_coordinates", required=True, help="packed folder or file with latitude and longitude")
    thesis.add_argument("--measured_on", required=True, help="what the runs were trained and tested on, in a few words")
    thesis.add_argument("--stand_in", action="store_true", help="that is no photos: say what still needs MP-16")
    thesis.add_argument("--baselines", default="results/baselines", help="folder of baselines (default: %(default)s)")
    thesis.add_argument("--published", default="results/published.yaml", help="by others (default: %(default)s)")
    thesis.add_argument("--output_dir", required=True, help="folder of the pages; it is created")
    thesis.set_defaults(run=_thesis)


def _add_heads(commands: Any) -> None:
    heads = commands.add_parser("heads", help="heads beside each other, in one table; `make heads` calls it")
    heads.add_argument("runs", help="folder of plain/pretrained/seed_0/..., as `make heads` makes it")
    heads.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the runs, the first for intervals (0)")
    heads.add_argument("--measured_on", required=True, help="what the runs were trained and tested on, in a few words")
    heads.add_argument("--test_set", default="im2gps3k", help="folder of each run's evaluation (default: %(default)s)")
    heads.add_argument("--output_dir", required=True, help="folder of the pages; it is created")
    heads.set_defaults(run=_heads)


def _add_posteriors(commands: Any) -> None:
    posteriors = commands.add_parser(
        "posteriors", help="photos beside maps of where a model thinks that they were taken"
    )
    posteriors.add_argument(
        "--checkpoint", required=True, help="folder of run_finetune_geo.py, of a head with a posterior"
    )
    posteriors.add_argument(
        "--photos", required=True, help="packed folder, or another source of photos with coordinates"
    )
    posteriors.add_argument("--split", default="test", help="of a packed folder (default: %(default)s)")
    posteriors.add_argument("--num_photos", type=int, default=12, help="drawn at random (default: %(default)s)")
    posteriors.add_argument("--seed", type=int, default=0, help="of the draw (default: %(default)s)")
    posteriors.add_argument("--output_file", required=True, help="PNG; its folder is created")
    posteriors.set_defaults(run=_posteriors)


def _add_profile(commands: Any) -> None:
    profile = commands.add_parser("profile", help="a picture of where a training step's time goes")
    profile.add_argument("profile", help="profile.json that a run with --profile has written to OUTPUT_DIR/profile")
    profile.add_argument("--output_file", required=True, help="PNG; its folder is created")
    profile.set_defaults(run=_profile)


def _add_fill(commands: Any) -> None:
    fill = commands.add_parser("fill", help="fill the results between markers of Markdown files")
    fill.add_argument("files", nargs="+", help="Markdown files with <!-- results:NAME --> markers")
    fill.add_argument(
        "--tables", default="results/tables.yaml", help="what each NAME shows (default: results/tables.yaml)"
    )
    fill.add_argument("--check", action="store_true", help="change nothing; exit with 1 where a file is stale")
    fill.set_defaults(run=_fill)


def _add_track(commands: Any) -> None:
    track = commands.add_parser("track", help="send an evaluation to W&B, trackio or TensorBoard that was made without")
    track.add_argument("evaluation", help="folder of run_evaluate_geo.py")
    track.add_argument("--report_to", nargs="+", choices=TRACKERS, default=["wandb"], help="default: wandb")
    track.add_argument("--checkpoint", help="folder of the training, where metrics.json does not lead to it")
    track.add_argument("--run_name", help="default: the folder's path below outputs/")
    track.add_argument("--run_group", help="default: the group of the training")
    track.add_argument("--run_tags", nargs="+", default=[])
    track.set_defaults(run=_track)


def _report(arguments: argparse.Namespace) -> int:
    from geomae.evaluation import read_training_coordinates
    from geomae.reporting.report import write_report  # matplotlib and cartopy: `fill` does without

    if not (arguments.pretrain_run or arguments.finetune_run or arguments.evaluation):
        print("nothing to report on: give --pretrain_run, --finetune_run or --evaluation", file=sys.stderr)
        return 2
    training_deg = read_training_coordinates(arguments.train_coordinates) if arguments.train_coordinates else None
    written = write_report(
        arguments.output_dir,
        pretrain_runs=arguments.pretrain_run,
        finetune_runs=arguments.finetune_run,
        evaluations=arguments.evaluation,
        training_deg=training_deg,
        title=arguments.title,
    )
    return _say_written(written)


def _compare(arguments: argparse.Namespace) -> int:
    from geomae.reporting.comparison import read_runs, write_comparison  # matplotlib and cartopy

    written = write_comparison(
        arguments.output_dir,
        read_runs(arguments.runs),
        reference=arguments.reference,
        num_resamples=arguments.num_resamples,
        title=arguments.title,
    )
    return _say_written(written)


def _thesis(arguments: argparse.Namespace) -> int:
    from geomae.evaluation import read_training_coordinates
    from geomae.reporting.thesis import write_thesis  # matplotlib and cartopy

    written = write_thesis(
        arguments.runs,
        arguments.output_dir,
        seeds=arguments.seeds,
        training_deg=read_training_coordinates(arguments.train_coordinates),
        measured_on=arguments.measured_on,
        needs_mp16=arguments.stand_in,
        baselines_dir=arguments.baselines,
        published_file=arguments.published,
        argv=["-m", "geomae.reporting", *sys.argv[1:]],
    )
    return _say_written(written)


def _heads(arguments: argparse.Namespace) -> int:
    from geomae.reporting.heads import write_heads  # matplotlib and cartopy

    written = write_heads(
        arguments.runs,
        arguments.output_dir,
        seeds=arguments.seeds,
        measured_on=arguments.measured_on,
        test_set=arguments.test_set,
        argv=["-m", "geomae.reporting", *sys.argv[1:]],
    )
    return _say_written(written)


def _posteriors(arguments: argparse.Namespace) -> int:
    from geomae.reporting.plots import save_figure
    from geomae.reporting.posterior_maps import posterior_map
    from geomae.reporting.posteriors import compute_posteriors  # torch

    photos = compute_posteriors(
        arguments.checkpoint, arguments.photos, arguments.split, num_photos=arguments.num_photos, seed=arguments.seed
    )
    title = f"{shown_path(arguments.checkpoint)}: {len(photos)} photos of {arguments.split}, drawn at random"
    return _say_written([save_figure(posterior_map(photos, title=title), arguments.output_file)])


def _profile(arguments: argparse.Namespace) -> int:
    from geomae.reporting.plots import profile_bars, save_figure  # matplotlib
    from geomae.reporting.step_profile import read_profile

    return _say_written([save_figure(profile_bars(read_profile(arguments.profile)), arguments.output_file)])


def _add_workspace(commands: Any) -> None:
    workspace = commands.add_parser("workspace", help="save the panels of docs/wandb.md as a view of a W&B project")
    workspace.add_argument("--entity", required=True, help="user or team of W&B")
    workspace.add_argument("--project", default=os.environ.get("WANDB_PROJECT", "geomae"), help="default: %(default)s")
    workspace.add_argument("--test_set", default="im2gps3k", help="whose numbers are shown (default: %(default)s)")
    workspace.add_argument("--name", default="GeoMAE", help="of the view (default: %(default)s)")
    workspace.add_argument("--dry_run", action="store_true", help="print the view as JSON; W&B is not asked")
    workspace.set_defaults(run=_workspace)


def _workspace(arguments: argparse.Namespace) -> int:
    from geomae.reporting.workspace import build_workspace, describe_workspace, save_workspace

    view = build_workspace(arguments.entity, arguments.project, test_set=arguments.test_set, name=arguments.name)
    if arguments.dry_run:
        print(describe_workspace(view))
    else:
        print(f"the view is at {save_workspace(view)}")
    return 0


def _say_written(written: Sequence[Path]) -> int:
    print("\n".join(f"wrote {path}" for path in written))
    return 0


def _track(arguments: argparse.Namespace) -> int:
    refuse_missing_trackers(arguments.report_to, draws=True)
    from geomae.reporting.trackers import report_evaluation  # matplotlib and cartopy

    is_sent = report_evaluation(
        arguments.evaluation,
        arguments.report_to,
        checkpoint=arguments.checkpoint,
        name=arguments.run_name,
        group=arguments.run_group,
        tags=arguments.run_tags,
    )
    return 0 if is_sent else 1


def _fill(arguments: argparse.Namespace) -> int:
    from geomae.reporting.readme import fill_file

    stale = [file for file in arguments.files if fill_file(file, arguments.tables, writes=not arguments.check)]
    for file in stale:
        print(f"{file} is stale: run python -m geomae.reporting fill {file}" if arguments.check else f"filled {file}")
    return 1 if stale and arguments.check else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except GeoMAEError as problem:
        sys.exit(f"{type(problem).__name__}: {problem}")
