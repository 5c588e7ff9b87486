"""The demo page: drop a photo, see on a map where a model says that it was taken, and how sure it is.

    python app.py --model outputs/quick/finetune
    python app.py --model outputs/quick/finetune --pretrained outputs/demo/pretrain --photos outputs/demo/data

Needs `pip install gradio`, and no other address than its own; `docs/demo_page.md`.
"""

import sys
from collections.abc import Sequence

from geomae.demo import DemoArguments, GamePhotos, Geolocator, Reconstructor, find_port
from geomae.errors import GeoMAEError
from geomae.training.config_file import parse_config


def main(argv: Sequence[str]) -> None:
    """Read, load, build, serve."""
    (arguments,) = parse_config((DemoArguments,), argv)
    server_port = find_port(arguments.server_name, arguments.server_port)
    from geomae.demo.page import LAUNCH_OPTIONS, build_page  # Gradio: whoever asks for help need not have it

    geolocator = Geolocator(arguments.model)
    reconstructor = Reconstructor(arguments.pretrained) if arguments.pretrained else None
    game_photos = GamePhotos(arguments.photos, arguments.photos_split) if arguments.photos else None
    page = build_page(geolocator, reconstructor, game_photos)
    page.launch(server_name=arguments.server_name, server_port=server_port, share=arguments.share, **LAUNCH_OPTIONS)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except GeoMAEError as problem:
        sys.exit(f"{type(problem).__name__}: {problem}")
