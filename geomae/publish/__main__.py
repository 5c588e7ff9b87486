"""`python -m geomae.publish outputs/RUN [--repo_id OWNER/NAME] [--dry_run]`: a run -> a folder for the Hub, uploaded.

Without --repo_id the folder is only built. `python -m geomae.publish cards` writes the cards in model_cards/.
"""

import argparse
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from geomae.command_line import CommandParser
from geomae.errors import GeoMAEError
from geomae.files import digest_file

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> None:
    """Build, list or upload."""
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = _parser().parse_args(words)
    if arguments.run == "cards":
        from geomae.publish.shipped import write_cards

        print("\n".join(f"wrote {path}" for path in write_cards()))
    elif arguments.dry_run:
        _show(arguments)
    else:
        _publish(arguments, words)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="python -m geomae.publish", description=__doc__.splitlines()[0])
    parser.add_argument("run", metavar="RUN", help="folder of a finished training; or the word cards")
    parser.add_argument(
        "--repo_id", metavar="OWNER/NAME", help="repository of the Hub to upload to; made where missing"
    )
    parser.add_argument("--dry_run", action="store_true", help="list the files, with sizes and sha256; leave nothing")
    parser.add_argument("--overwrite", action="store_true", help="build anew what somebody has edited")
    parser.add_argument("--as_it_is", action="store_true", help="upload the folder that was built, with your edits")
    parser.add_argument(
        "--include_photos",
        action="store_true",
        help="with pictures of photos of your own and where they were taken: reconstructions, maps of your test sets",
    )
    parser.add_argument("--private", action="store_true", help="a new repository is seen by its owner alone")
    parser.add_argument("--output_dir", metavar="FOLDER", help="where the folder is built (default: RUN/hub)")
    return parser


def _show(arguments: argparse.Namespace) -> None:
    from geomae.publish.folder import build_hub_folder  # matplotlib, cartopy and torch
    from geomae.publish.upload import refuse_bad_name

    if arguments.repo_id:
        refuse_bad_name(arguments.repo_id)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "hub"
        files = build_hub_folder(
            arguments.run, folder, repo_id=arguments.repo_id, include_photos=arguments.include_photos
        )
        for file in files:
            print(f"{file.stat().st_size:>12,}  {digest_file(file)}  {file.relative_to(folder).as_posix()}")
        total = sum(file.stat().st_size for file in files)
        target = f" would be uploaded to {arguments.repo_id}" if arguments.repo_id else ""
        print(f"{len(files)} files, {total:,} bytes{target}. Nothing was written: that was a dry run.")


def _publish(arguments: argparse.Namespace, words: Sequence[str]) -> None:
    from geomae.publish.folder import build_hub_folder, refuse_unbuilt  # matplotlib, cartopy and torch
    from geomae.publish.upload import refuse_bad_target, upload_hub_folder

    folder = Path(arguments.output_dir or Path(arguments.run) / "hub")
    if arguments.repo_id:
        refuse_bad_target(arguments.repo_id)
    if arguments.as_it_is:
        refuse_unbuilt(folder)
    else:
        files = build_hub_folder(
            *(arguments.run, folder),
            repo_id=arguments.repo_id,
            overwrite=arguments.overwrite,
            include_photos=arguments.include_photos,
        )
        print(f"built {folder}: {len(files)} files; its card is {folder / 'README.md'}")
    again = shlex.join(["python", "-m", "geomae.publish", *words])
    if arguments.repo_id:
        private = True if arguments.private else None
        print(f"uploaded to {upload_hub_folder(folder, arguments.repo_id, repeat=again, private=private)}")
    else:
        print(f"Nothing was uploaded. To upload it: {again} --repo_id OWNER/NAME")


if __name__ == "__main__":
    try:
        main()
    except GeoMAEError as problem:
        sys.exit(f"{type(problem).__name__}: {problem}")
