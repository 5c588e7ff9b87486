"""The words and the options of `python -m geomae.predict`, checked before anything is loaded."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from geomae.command_line import CommandParser
from geomae.errors import ConfigError
from geomae.evaluation.arguments import check_loading
from geomae.evaluation.posterior import DECODINGS
from geomae.predict.formats import FORMATS, format_of
from geomae.predict.parts import AnswerParts

__all__ = ["build_parser", "parse_arguments"]

EXAMPLE = "python -m geomae.predict photo.jpg folder/ --model outputs/demo/geolocator"


def build_parser() -> argparse.ArgumentParser:
    """Every option, with what `--help` says of it."""
    parser = CommandParser(
        prog="python -m geomae.predict",
        description="Say where photos were taken: one or millions.",
        epilog=f"Example: {EXAMPLE} --output_file outputs/places.geojson. docs/predict.md has more.",
    )
    parser.add_argument(
        "photos",
        nargs="+",
        help="photos, folders of them, URLs, tars, zips, parquet files, data sets of the Hub, or @FILE with one a line",
    )
    parser.add_argument("--model", required=True, help="folder of a fine-tuned checkpoint")
    parser.add_argument("--format", choices=FORMATS, help="by default what FILE's suffix says, else a table")
    parser.add_argument("--output_file", metavar="FILE", help="by default the standard output; needed for a long run")
    parser.add_argument("--decoding", choices=DECODINGS, help="by default what the checkpoint says")
    parser.add_argument("--top_k", type=int, default=5, help="likeliest places of each photo (default: %(default)s)")
    parser.add_argument("--compare_exif", action="store_true", help="add the true place that a photo's EXIF block has")
    parser.add_argument("--split", help="of packed folders and data sets of the Hub (default: train)")
    parser.add_argument(
        "--per_device_eval_batch_size", type=int, default=64, help="photos in a forward pass (default: %(default)s)"
    )
    parser.add_argument(
        "--dataloader_num_workers", type=int, default=0, help="processes that decode photos, for each device"
    )
    parser.add_argument("--bf16", action="store_true", help="run the model in bfloat16")
    parser.add_argument(
        "--shard_size", type=int, default=8192, help="photos that are kept together (default: %(default)s)"
    )
    parser.add_argument(
        "--max_damaged_share",
        type=float,
        default=1.0,
        help="of the photos, 0 to 1, that may have no answer (default: any, as long as one has)",
    )
    return parser


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The options, with `format` filled in.

    Raises:
        ConfigError: an option cannot work, there is no checkpoint, or the output is there already.
        SystemExit: what is no option at all, and `--help`.
    """
    arguments = build_parser().parse_args(argv)
    check_loading(arguments.per_device_eval_batch_size, arguments.dataloader_num_workers, arguments.max_damaged_share)
    for name, least in {"top_k": 0, "shard_size": 1}.items():
        if getattr(arguments, name) < least:
            raise ConfigError(f"--{name} must be at least {least}; got {getattr(arguments, name)}")
    if not (Path(arguments.model) / "config.json").is_file():
        from geomae.checkpoints import read_architecture  # seconds of imports, where it will only say what is wrong

        read_architecture(arguments.model)
    arguments.format = arguments.format or format_of(arguments.output_file)
    if arguments.output_file is None:
        return arguments
    output_file = Path(arguments.output_file)
    if output_file.exists() and not AnswerParts.are_merged(Path(f"{output_file}.parts")):
        raise ConfigError(f"--output_file {output_file} is there already: remove it, or choose another name.")
    try:
        output_file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--output_file {output_file} cannot be written: {error.strerror}: {error.filename}. Choose another folder."
        ) from error
    return arguments
