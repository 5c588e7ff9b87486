"""The folder of a Hub Space that serves the page for a model on the Hub."""

import re
import shutil
import sys
import tomllib
from importlib.metadata import requires, version
from pathlib import Path

import yaml
from huggingface_hub.utils import HFValidationError, validate_repo_id

from geomae.checkpoints import models_folder
from geomae.errors import ConfigError
from geomae.files import list_files, write_whole

__all__ = ["write_space"]

PACKAGE = Path(__file__).resolve().parents[1]
NOT_FOR_THE_SPACE = shutil.ignore_patterns("__pycache__", "*.pyc")

APP = '''"""The demo page of GeoMAE, as a Space: `docs/demo_page.md` of GeoMAE says what it does and what it keeps."""

from huggingface_hub import snapshot_download

from geomae.demo import Geolocator
from geomae.demo.page import LAUNCH_OPTIONS, build_page

build_page(Geolocator(snapshot_download("{model}"))).launch(**LAUNCH_OPTIONS)
'''
README = """---
{front_matter}---

# Where was this photo taken?

Drop a photo: [{model}](https://huggingface.co/{model}) marks on a world map where it was taken, and how sure it is. The
photo is looked at once, in memory, and forgotten; its EXIF is read only where you ask for it. Photo geolocation is
dual-use: do not use it to find people who have not asked to be found.
"""


def write_space(model: str, output_dir: str | Path) -> list[Path]:
    """Write the Space's files; upload them with `hf upload OWNER/SPACE FOLDER --repo-type space`.

    Args:
        model: `OWNER/NAME` of a geolocator on the Hub.
        output_dir: is created, and must not hold anything.

    Returns:
        The files, sorted: `README.md` with the settings that the Hub reads, `requirements.txt`, `app.py`, and the code
        of this package.

    Raises:
        ConfigError: the model's name is none of the Hub's, or the folder is not empty.
    """
    try:
        validate_repo_id(model)
    except HFValidationError as error:
        raise ConfigError(f"--model {model!r} is no id of the Hub, which are OWNER/NAME: {error}") from error
    if model.count("/") != 1:
        raise ConfigError(f"--model {model!r} is no id of the Hub, which are OWNER/NAME")
    folder = Path(output_dir)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"--output_dir {folder} is not an empty folder: give a new one")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output_dir {folder} cannot be made: {error}") from error
    settings = {
        "title": "GeoMAE",
        "emoji": "🌍",
        "colorFrom": "green",
        "colorTo": "blue",
        "sdk": "gradio",
        "sdk_version": version("gradio"),
        "python_version": f"{sys.version_info.major}.{sys.version_info.minor}",  # the Hub's default is older than ours
        "app_file": "app.py",
        "license": "apache-2.0",
        "models": [model],
        "short_description": "Where on Earth was this photo taken?",
    }
    front_matter = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    write_whole(folder / "README.md", README.format(front_matter=front_matter, model=model))
    write_whole(folder / "requirements.txt", "\n".join(_requirements()) + "\n")
    write_whole(folder / "app.py", APP.format(model=model))
    shutil.copytree(PACKAGE, folder / "geomae", ignore=NOT_FOR_THE_SPACE)
    models = models_folder()
    if not models.is_relative_to(PACKAGE):  # in a checkout they stand beside the package, in a wheel within
        shutil.copytree(models, folder / models.name, ignore=NOT_FOR_THE_SPACE)
    return list_files(folder)


def _requirements() -> list[str]:
    """What the package needs, without its extras; the Hub installs Gradio by `sdk_version`."""
    project = PACKAGE.parent / "pyproject.toml"
    if project.is_file():
        return list(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"])
    return [line for line in requires("geomae") or [] if not re.search(r";.*\bextra\b", line)]
