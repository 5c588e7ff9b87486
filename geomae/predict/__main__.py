"""Say where photos were taken: one or millions.

python -m geomae.predict photo.jpg folder/ --model outputs/demo/geolocator
python -m geomae.predict @list.txt --model outputs/demo/geolocator --output_file outputs/places.geojson

It runs under `accelerate launch -m` too. docs/predict.md has every option.
"""

import argparse
import contextlib
import csv
import itertools
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from geomae.data import PhotoIndex
from geomae.data.filesystems import public_text
from geomae.data.shards import only_run
from geomae.errors import ConfigError, GeoMAEError, SourceError, TooManyDamagedPhotosError
from geomae.files import whole_file
from geomae.predict.arguments import parse_arguments
from geomae.predict.formats import write_answers
from geomae.predict.parts import AnswerParts
from geomae.predict.photo_list import list_photos
from geomae.predict.printing import printable
from geomae.provenance import shown_path

WRITER = "predict"  # its parts are locked: no other process writes the same file
_MOST_SHOWN = 20  # photos without an answer that are named on the terminal


def main(argv: Sequence[str] | None = None) -> int:
    """Predict; errors that a user can cause are one line on stderr and exit status 1."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    try:
        predict(parse_arguments(sys.argv[1:] if argv is None else argv))
    except GeoMAEError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print("\nstopped; with --output_file the same command goes on where it was", file=sys.stderr)
        return 130
    except OSError as error:  # a disk that is full
        kept = "With --output_file finished parts are kept: free space, and the same command goes on."
        print(f"{type(error).__name__}: {error}. {kept}", file=sys.stderr)
        return 1
    return 0


def predict(arguments: argparse.Namespace) -> None:
    """List the photos, load the model, answer what is missing, and on the first process write the answers.

    Raises:
        SourceError: a photo that is named does not exist.
        ConfigError: the checkpoint has no geolocator, or the parts that are there are of another run.
        TooManyDamagedPhotosError: more photos than allowed, or all, have no answer.
    """
    index = list_photos(arguments.photos, split=arguments.split)  # before seconds of imports

    from geomae.checkpoints import load_geolocator
    from geomae.evaluation.posterior_head import override_decoding
    from geomae.evaluation.predict import process_state
    from geomae.predict.predicting import predict_missing

    model = load_geolocator(arguments.model)
    override_decoding(model, decoding=arguments.decoding)
    state = process_state()
    with _parts_folder(arguments.output_file, state) as folder:
        if state.is_main_process:
            _claim(folder, arguments, model, index, state.num_processes)
        state.wait_for_everyone()
        parts = AnswerParts.claimed(folder)
        if parts.num_photos != len(index):
            raise SourceError(f"this process finds {len(index):,} photos, and the first one {parts.num_photos:,}")
        missing = parts.missing()
        state.wait_for_everyone()  # all have looked before anybody finishes another one
        predict_missing(
            model,
            index,
            parts,
            missing,
            top_k=arguments.top_k,
            compare_exif=arguments.compare_exif,
            batch_size=arguments.per_device_eval_batch_size,
            num_workers=arguments.dataloader_num_workers,
            bf16=arguments.bf16,
        )
        state.wait_for_everyone()
        if state.is_main_process:
            _finish(parts, index, arguments)


@contextlib.contextmanager
def _parts_folder(output_file: str | None, state: Any) -> Iterator[Path]:
    """`FILE.parts`, of which this run alone has the use, or a folder that vanishes with the run; on every process."""
    from accelerate.utils import broadcast_object_list

    if output_file is not None:
        folder = Path(f"{output_file}.parts")
        with only_run(folder, option="--output_file") if state.is_main_process else contextlib.nullcontext():
            state.wait_for_everyone()
            yield folder
        return
    with tempfile.TemporaryDirectory(prefix="geomae-") if state.is_main_process else contextlib.nullcontext() as made:
        names: list[Any] = broadcast_object_list([made])
        if not os.path.isdir(names[0]):
            raise ConfigError("processes on several machines need --output_file, on storage that all of them share")
        yield Path(names[0])


def _claim(folder: Path, arguments: argparse.Namespace, model: Any, index: PhotoIndex, num_processes: int) -> None:
    """Say whose parts these are: without an output file nobody else will ever look."""
    from geomae.evaluation.posterior_head import describe_decoding
    from geomae.predict.predicting import model_digest, round_shard_size

    batch_size = arguments.per_device_eval_batch_size
    manifest: dict[str, Any] = {"num_photos": len(index)}
    if arguments.output_file is not None:
        manifest |= {
            "photos": index.digest(),
            "model": model_digest(model),
            "decoding": describe_decoding(model),
            **{name: getattr(arguments, name) for name in ("top_k", "compare_exif", "bf16")},
            "per_device_eval_batch_size": batch_size,
        }
    size = round_shard_size(arguments.shard_size, len(index), num_processes, batch_size)
    AnswerParts.claim(folder, manifest, shard_size=size)


def _finish(parts: AnswerParts, index: PhotoIndex, arguments: argparse.Namespace) -> None:
    """Write the answers, and name what has none; parts are removed when their answers are safe elsewhere."""
    unread = [{"id": photo.file, "problem": photo.reason} for photo in index.bad.listed]
    num_bad = len(index.bad) + sum(1 for _ in parts.problems())
    num_photos = len(index) + len(index.bad)
    _name_problems(itertools.chain(unread, parts.problems()), num_bad, arguments.output_file)
    said = f"{num_photos - num_bad:,} of {num_photos:,} photos are answered"
    is_kept = arguments.output_file is not None
    if num_bad == num_photos or num_bad > arguments.max_damaged_share * num_photos:
        if num_bad == num_photos and is_kept:  # another time its server may answer
            parts.remove()
        raise TooManyDamagedPhotosError(
            f"{said}, fewer than --max_damaged_share {arguments.max_damaged_share:g} asks for"
            if num_bad < num_photos
            else f"not one of {num_photos:,} photos can be read"
        )
    how: dict[str, Any] = {"compares": arguments.compare_exif}
    if not is_kept:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() or "COLUMNS" in os.environ else None
        write_answers(parts.answers(), arguments.format, sys.stdout.buffer, width=width, **how)
        sys.stdout.buffer.flush()
    else:
        with whole_file(Path(arguments.output_file), writer=WRITER) as file:
            write_answers(parts.answers(), arguments.format, file, **how)
            parts.note_merge()
        parts.remove()
        said += f"; wrote {shown_path(arguments.output_file)}"
    print(said, file=sys.stderr)


def _name_problems(problems: Iterator[dict[str, str]], num_bad: int, output_file: str | None) -> None:
    """All in `FILE.bad.csv`, and the first on the terminal."""
    path = None if output_file is None else Path(f"{output_file}.bad.csv")
    if not num_bad:
        if path is not None:
            path.unlink(missing_ok=True)  # of a run before, which may have had other photos
        return
    first = list(itertools.islice(problems, _MOST_SHOWN))
    for row in first:
        print(f"no answer for {printable(public_text(row['id']))}: {printable(row['problem'])}", file=sys.stderr)
    if path is None:
        if num_bad > len(first):
            print(f"and {num_bad - len(first):,} more, which --output_file lists", file=sys.stderr)
        return
    with (
        whole_file(path, writer=WRITER) as file,
        open(os.dup(file.fileno()), "w", encoding="utf-8", newline="") as text,
    ):
        rows = csv.DictWriter(text, ["id", "problem"])
        rows.writeheader()
        rows.writerows(itertools.chain(first, problems))
    print(f"photos without an answer: {num_bad:,}; {shown_path(path)} says why", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
