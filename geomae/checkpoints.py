"""The one door to the models next door: commands of this package that take a checkpoint load it here."""

import hashlib
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from geomae.files import digest_file
from geomae.training import refuse_what_the_model_refuses

__all__ = [
    "digest_weights",
    "load_autoencoder",
    "load_embedder",
    "load_geolocator",
    "models_folder",
    "read_architecture",
]


def digest_weights(path: str | Path) -> str | None:
    """SHA-256 of the weights in a checkpoint folder, over all shards by name; None where there are none."""
    digests = [bytes.fromhex(digest_file(file)) for file in sorted(Path(path).glob("model*.safetensors"))]
    return hashlib.sha256(b"".join(digests)).hexdigest() if digests else None


def read_architecture(path: str | Path) -> str:
    """The class of the model in a checkpoint folder, or `unknown`.

    Raises:
        ConfigError: the folder holds no checkpoint, or a broken one.
    """
    with refuse_what_the_model_refuses():
        return str(_models().encoder_weights.read_architecture(path))


def load_autoencoder(path: str | Path) -> Any:
    """The model of pretraining in a checkpoint folder, decoder included, in evaluation mode.

    Raises:
        ConfigError: the folder holds no model, or one without a decoder.
    """
    with refuse_what_the_model_refuses():
        return _models().load_autoencoder(path)


def load_embedder(path: str | Path) -> Any:
    """The model in a checkpoint folder, of pretraining, an encoder, a geolocator or a baseline, in evaluation mode.

    Raises:
        ConfigError: the folder holds no model of GeoMAE.
    """
    with refuse_what_the_model_refuses():
        return _models().load_embedder(path)


def load_geolocator(path: str | Path) -> Any:
    """The fine-tuned model in a checkpoint folder, GeoMAE or baseline, in evaluation mode.

    Raises:
        ConfigError: the folder holds no model, or one that was not fine-tuned to coordinates yet.
    """
    with refuse_what_the_model_refuses():
        return _models().load_geolocator(path)


def models_folder() -> Path:
    """Where the code of the models lies."""
    return Path(_models().__file__).resolve().parent


def _models() -> Any:
    """`modeling` in a checkout, which stands beside this package; `geomae.modeling` where the wheel is installed."""
    beside = Path(__file__).resolve().parents[1] / "modeling" / "__init__.py"
    found = find_spec("modeling")
    is_checkout = found is not None and found.origin is not None and Path(found.origin).resolve() == beside
    return import_module("modeling" if is_checkout else f"{__package__}.modeling")
