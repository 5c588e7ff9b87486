"""The way in for a checkpoint folder: nothing in it is run; configuration and weights fit each other or are refused.

A folder may come from anybody. transformers would fill weights that are missing with chance, take memory for sizes that
no weights have, follow an index out of the folder, and ask the Hub for kernels that a configuration names.
"""

import json
import math
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PreTrainedModel

from .configuration_geobaseline import GeoBaselineConfig
from .configuration_geolocation_head import GeolocationHeadConfig
from .configuration_geomae import GeoMAEConfig

__all__ = ["list_weight_files", "load_checkpoint", "read_json"]

CONFIGS: dict[str, type[GeolocationHeadConfig]] = {"geomae": GeoMAEConfig, "geobaseline": GeoBaselineConfig}
MAX_JSON_BYTES = 2**24
MAX_LAYERS = 1000
MAX_WIDTH = 2**16  # features, pixels, widths
MAX_GEOCELLS = 2**24
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
REFUSED_KEYS = ("quantization_config", "attn_implementation", "_attn_implementation", "experts_implementation")
"""Keys of a configuration that make transformers look for other code; this project writes none of them."""
DTYPES = ("float32", "bfloat16", "float16", None)
UNBUILDABLE = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError)
"""What transformers and timm raise where a key of theirs has a value that it cannot have."""
REFUSED_FILES = ("adapter_config.json",)


def load_checkpoint(auto_class: Any, path: str | Path) -> PreTrainedModel:
    """The model in a folder, in evaluation mode.

    Args:
        auto_class: one of transformers' Auto classes, for the model that is wanted.
        path: a folder with `config.json` and weights as safetensors.

    Raises:
        ValueError: the configuration is none of ours or cannot be, or the weights are no safetensors, lack a tensor, or
            have one of another shape.
    """
    path = Path(path)
    _refuse_config(read_json(path / "config.json"), path / "config.json")
    shapes = _read_shapes(path)
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        with torch.device("meta"):  # shapes alone, no memory
            model = auto_class.from_config(config)
    except UNBUILDABLE as error:
        raise ValueError(
            f"no model can be built from {path / 'config.json'}: {type(error).__name__}: {str(error)[:200]}"
        ) from error
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    prefix = f"{model.base_model_prefix}."  # a part of a model is filled from the whole one
    _refuse_misfits(wanted, {name.removeprefix(prefix): shape for name, shape in shapes.items()} | shapes, path)
    return auto_class.from_pretrained(path, trust_remote_code=False, use_safetensors=True).eval()


def read_json(path: Path) -> dict[str, Any]:
    """A small JSON object; ValueError where the file holds anything else."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"it has more than {MAX_JSON_BYTES:,} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected a JSON object.")
    return content


def list_weight_files(folder: Path) -> list[Path]:
    """The safetensors of a checkpoint folder: `model.safetensors`, or what its index names; empty where there are none.

    Raises:
        ValueError: the index is none, or names a file that is not in the folder.
    """
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file() or not index.is_file():
        return [whole] if whole.is_file() else []
    named = read_json(index).get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
        raise ValueError(f"{index} has no weight_map of tensors and files.")
    files = sorted(set(named.values()))
    for name in files:
        if name != Path(name).name or "\\" in name or not name.endswith(".safetensors"):
            raise ValueError(f"{index} names {name!r}, which is no safetensors file of this folder.")
        if not (folder / name).is_file():
            raise ValueError(f"{index} names {name}, which is not there. Is the folder copied whole?")
    return [folder / name for name in files]


def _read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor, from the headers."""
    files = list_weight_files(folder)
    if not files:
        pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES and "args" not in file.name)
        advice = (
            f": {', '.join(pickles)} is a pickle, which can run code when it is opened. Ask for the safetensors, or "
            "convert it on a machine that may be lost."
            if pickles
            else ". Was the training ended, and the folder copied whole?"
        )
        raise ValueError(f"{folder} has no model.safetensors{advice}")
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{file} is no whole safetensors file: {error}. Copy it again.") from error
    return shapes


def _refuse_misfits(wanted: Mapping[str, tuple[int, ...]], shapes: Mapping[str, tuple[int, ...]], path: Path) -> None:
    if missing := sorted(wanted.keys() - shapes.keys()):
        raise ValueError(
            f"{path} lacks {len(missing)} of the {len(wanted)} tensors that its config.json asks for: "
            f"{', '.join(missing[:4])}{', ...' if len(missing) > 4 else ''}. They would be filled with chance. Are the "
            "weights and config.json of one training?"
        )
    misfits = [name for name, shape in wanted.items() if shape != shapes[name]]
    if misfits:
        listed = "; ".join(f"{name} {shapes[name]} for {wanted[name]}" for name in misfits[:4])
        raise ValueError(
            f"{path} has {len(misfits)} tensors of other shapes than its config.json asks for: {listed}"
            f"{'; ...' if len(misfits) > 4 else ''}. Are the weights and config.json of one training?"
        )


def _refuse_config(config: Mapping[str, Any], file: Path) -> None:
    """Refuse what is no configuration of ours, in types and sizes, before a class takes it for one."""
    known = CONFIGS.get(str(config.get("model_type")))
    if known is None:
        raise ValueError(
            f"{file} is of model_type {config.get('model_type')!r}; expected {' or '.join(CONFIGS)}, without code of "
            "its own."
        )
    foreign = [key for key in REFUSED_KEYS if config.get(key) is not None]
    foreign += [name for name in REFUSED_FILES if (file.parent / name).exists()]
    if foreign:
        raise ValueError(f"{file.parent} asks for other code by {foreign[0]}, which this project does not write.")
    if config.get("dtype", config.get("torch_dtype")) not in DTYPES:
        raise ValueError(f"{file}: dtype={config.get('dtype')!r} is none of {', '.join(map(str, DTYPES[:-1]))}.")
    if not _is_of(config.get("num_labels", 0), int, most=MAX_WIDTH):
        raise ValueError(f"{file}: num_labels={_shown(config['num_labels'])} is no number of at most {MAX_WIDTH:,}.")
    for name, hint in _fields_of(known).items():
        if name in config and not _is_of(config[name], hint, most=_limit(name), least=_least(name)):
            raise ValueError(
                f"{file}: {name}={_shown(config[name])} cannot be: expected {_words(hint)}"
                + (f" from {_least(name)} to {_limit(name):,}." if "int" in _words(hint) else ".")
            )
    _refuse_backbone(config, file)


def _refuse_backbone(config: Mapping[str, Any], file: Path) -> None:
    """Timm opens folders and repositories whose names have a colon, and files that its options name."""
    options = config.get("backbone_kwargs") or {}
    numbers = [number for value in options.values() for number in (value if isinstance(value, list) else [value])]
    if (
        ":" in str(config.get("backbone", ""))
        or any("pretrained" in name or "path" in name or "dir" in name or "file" in name for name in options)
        or any(isinstance(number, int | float) and not abs(number) <= MAX_WIDTH for number in numbers)
        or any("depth" in name and not _is_small(value) for name, value in options.items())
    ):
        raise ValueError(
            f"{file}: backbone={_shown(config.get('backbone'))} with backbone_kwargs={_shown(options)} is no model "
            "of timm that is built from its name and sizes alone."
        )


def _is_small(value: Any) -> bool:
    numbers = value if isinstance(value, list) else [value]
    return all(isinstance(number, int) and 0 <= number <= MAX_LAYERS for number in numbers)


def _fields_of(config_class: type) -> dict[str, Any]:
    """Our own fields and their types, without those of transformers."""
    ours = [each for each in config_class.__mro__ if each.__module__.rpartition(".")[2].startswith("configuration_geo")]
    return {name: hint for each in ours for name, hint in each.__annotations__.items()}


def _limit(name: str) -> int:
    return {"num_geocells": MAX_GEOCELLS}.get(name, MAX_LAYERS if "layers" in name else MAX_WIDTH)


def _least(name: str) -> int:
    return 0 if name in ("num_mixture_components", "num_scenes") else 1


def _is_of(value: Any, hint: Any, *, most: int, least: int = 0) -> bool:
    """Whether a JSON value is of a field's type, and small enough."""
    if typing.get_origin(hint) is list:
        inside = typing.get_args(hint)[0]
        return (
            isinstance(value, list)
            and len(value) <= MAX_LAYERS
            and all(_is_of(each, inside, most=most, least=least) for each in value)
        )
    if hint is bool or isinstance(value, bool):
        return hint is bool and isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and least <= value <= most
    if hint is float:
        return isinstance(value, int | float) and abs(value) < 1e300 and math.isfinite(value)
    return isinstance(value, typing.get_origin(hint) or hint)


def _words(hint: Any) -> str:
    return getattr(hint, "__name__", str(hint)) if typing.get_origin(hint) is None else str(hint)


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
