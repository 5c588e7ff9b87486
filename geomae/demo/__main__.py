"""`python -m geomae.demo space --model OWNER/NAME --output_dir FOLDER`: the page as a Hub Space."""

import sys
from collections.abc import Sequence

from geomae.command_line import CommandParser
from geomae.demo.space import write_space
from geomae.errors import GeoMAEError

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = CommandParser(prog="python -m geomae.demo", description=__doc__.splitlines()[0])
    space = parser.add_subparsers(required=True).add_parser("space", help="write the folder of a Space")
    space.add_argument("--model", required=True, help="OWNER/NAME of a geolocator on the Hub")
    space.add_argument("--output_dir", required=True, help="folder of the Space; it is created")
    arguments = parser.parse_args(argv)
    files = write_space(arguments.model, arguments.output_dir)
    print(f"wrote {len(files)} files to {arguments.output_dir}; publish them with")
    print(f"  hf upload OWNER/SPACE {arguments.output_dir} --repo-type space")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except GeoMAEError as problem:
        sys.exit(f"{type(problem).__name__}: {problem}")
