"""Weights in and out: whatever the public calls a ViT checkpoint -> our encoder, and our encoder -> timm."""

import math
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file, save_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor
from transformers import AutoModel, AutoModelForImageClassification, AutoModelForPreTraining, PreTrainedModel

from .checkpoint_guard import list_weight_files, load_checkpoint, read_json
from .patches import sincos_positions

__all__ = ["LoadReport", "export_encoder", "load_embedder", "load_encoder_weights", "load_geolocator", "to_timm_names"]

WEIGHT_FILES = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin")

# transformers has written two dialects of the same ViT: `encoder.layer.0.attention.attention.query` on disk, and
# `layers.0.attention.q_proj` in the modules of release 5.
TRANSFORMERS_TO_TIMM = (
    (r"^(?:vit\.)?embeddings\.cls_token$", "cls_token"),
    (r"^(?:vit\.)?embeddings\.position_embeddings$", "pos_embed"),
    (r"^(?:vit\.)?embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^(?:vit\.)?(?:encoder\.layer|layers)\.(\d+)\.layernorm_before\.", r"blocks.\1.norm1."),
    (r"^(?:vit\.)?(?:encoder\.layer|layers)\.(\d+)\.layernorm_after\.", r"blocks.\1.norm2."),
    (r"^(?:vit\.)?(?:encoder\.layer|layers)\.(\d+)\.attention\.(?:attention\.query|q_proj)\.", r"blocks.\1.attn.q."),
    (r"^(?:vit\.)?(?:encoder\.layer|layers)\.(\d+)\.attention\.(?:attention\.key|k_proj)\.", r"blocks.\1.attn.k."),
    (r"^(?:vit\.)?(?:encoder\.layer|layers)\.(\d+)\.attention\.(?:attention\.value|v_proj)\.", r"blocks.\1.attn.v."),
    (r"^(?:vit\.)?(?:encoder\.layer|layers)\.(\d+)\.attention\.(?:output\.dense|o_proj)\.", r"blocks.\1.attn.proj."),
    (r"^(?:vit\.)?(?:encoder\.layer|layers)\.(\d+)\.(?:intermediate\.dense|mlp\.fc1)\.", r"blocks.\1.mlp.fc1."),
    (r"^(?:vit\.)?(?:encoder\.layer|layers)\.(\d+)\.(?:output\.dense|mlp\.fc2)\.", r"blocks.\1.mlp.fc2."),
    (r"^(?:vit\.)?layernorm\.", "norm."),
)


@dataclass(frozen=True)
class LoadReport:
    """What became of every tensor; `str()` is for people."""

    source: str
    loaded: tuple[str, ...]
    """Backbone tensors that the checkpoint filled, by timm name."""
    new: tuple[str, ...]
    """Parameters of the model that keep their fresh values: the head, the decoder."""
    unused: tuple[str, ...]
    """Tensors of the checkpoint that the backbone has no place for, such as a decoder or a classifier."""
    resized: tuple[str, ...] = ()
    """Position embeddings that were interpolated to another grid."""
    decoder: tuple[str, ...] = ()
    """Tensors of GeoMAE's decoder that were filled as well, where a pretraining goes on."""

    def __str__(self) -> str:
        lines = [f"Loaded {len(self.loaded)} tensors of the backbone from {self.source}."]
        for name, words in (
            ("new", "Fresh in the model"),
            ("unused", "Unused in the checkpoint"),
            ("resized", "Resized"),
            ("decoder", "Loaded of the decoder"),
        ):
            names = getattr(self, name)
            if names:
                shown = ", ".join(names[:6]) + (f", ... ({len(names)} in all)" if len(names) > 6 else "")
                lines.append(f"  {words}: {shown}")
        return "\n".join(lines)


def load_encoder_weights(model: PreTrainedModel, source: str | Path) -> LoadReport:
    """Start a model's backbone from a checkpoint, wherever it comes from.

    Args:
        model: any model here; its `backbone` is filled, and its `decoder` where the checkpoint is of a GeoMAE whose
            decoder has the same sizes. Everything else stays.
        source: a folder of GeoMAE, transformers `ViTMAE` / `ViT` or timm; a `.pth`, `.bin` or `.safetensors` file with
            timm's names (facebookresearch's MAE has them); or the id of such a repository on the Hub.

    Returns:
        What was loaded, what is new and what was not used.

    Raises:
        ValueError: the weights do not fit: nothing of the backbone is in them, a tensor has another shape, part of the
            backbone is missing, or learned positions meet a model of fixed ones. The model is left as it was.
    """
    offered = to_timm_names(read_state_dict(Path(source)))
    backbone = model.backbone
    wanted = backbone.state_dict()
    resized = settle_positions(offered, backbone, source)
    missing = sorted(wanted.keys() - offered.keys())
    if missing:
        raise ValueError(
            f"{source} has {len(wanted) - len(missing)} of the backbone's {len(wanted)} tensors; missing are "
            f"{', '.join(missing[:4])}{', ...' if len(missing) > 4 else ''}. Is it another architecture? "
            f"The checkpoint's names begin with {', '.join(sorted(offered)[:4])}."
        )
    misfits = [name for name, tensor in wanted.items() if offered[name].shape != tensor.shape]
    if misfits:
        shapes = "; ".join(f"{n} {tuple(offered[n].shape)} for {tuple(wanted[n].shape)}" for n in misfits[:4])
        raise ValueError(
            f"{source} does not fit the model in {len(misfits)} tensors: {shapes}. Adapt the model's sizes."
        )
    backbone.load_state_dict({name: offered[name] for name in wanted})
    decoder = load_decoder(model, offered)
    inside = {id(parameter) for parameter in backbone.parameters()}
    new = (name for name, p in model.named_parameters() if id(p) not in inside and name not in decoder)
    unused = sorted(offered.keys() - wanted.keys() - set(decoder))
    return LoadReport(str(source), tuple(wanted), tuple(new), tuple(unused), tuple(resized), tuple(decoder))


def load_decoder(model: PreTrainedModel, offered: Mapping[str, Tensor]) -> list[str]:
    """Fill the decoder of a model that has one where one of the same sizes is offered; the names of its tensors."""
    decoder = getattr(model, "decoder", None)
    found = {name.removeprefix("decoder."): tensor for name, tensor in offered.items() if name.startswith("decoder.")}
    shapes = {} if decoder is None else {name: tensor.shape for name, tensor in decoder.state_dict().items()}
    if decoder is None or shapes != {name: tensor.shape for name, tensor in found.items()}:
        return []
    decoder.load_state_dict(found)
    return [f"decoder.{name}" for name in found]


def read_state_dict(source: Path) -> dict[str, Tensor]:
    """Tensors of a file, a folder or a Hub repository, by the names they have there; pickles are read weights-only."""
    if not source.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        try:
            source = Path(snapshot_download(str(source), allow_patterns=["*.json", *WEIGHT_FILES]))
        except (OSError, ValueError) as error:  # huggingface_hub's errors are one or the other
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"{source} is no folder here, and the Hub could not give a repository of that name: {reason}"
            ) from error
    if source.is_dir():
        if files := list_weight_files(source):
            return {name: tensor for file in files for name, tensor in _load_tensors(file).items()}
        present = [source / name for name in WEIGHT_FILES if (source / name).is_file()]
        if not present:
            raise ValueError(f"no weights in {source}: looked for {', '.join(WEIGHT_FILES)}.")
        source = present[0]
    if not source.is_file():
        raise ValueError(
            f"{source} does not exist: give a checkpoint folder, a weight file or a Hub id such as owner/name."
        )
    return _load_tensors(source)


def _load_tensors(file: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file; of any other a pickle's, of which nothing is run."""
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{file} holds more than tensors, and loading it could run code: save its state_dict() instead, "
            "best as .safetensors."
        ) from error
    except Exception as error:  # of bytes that are no weights torch says KeyError, EOFError, ...
        raise ValueError(f"{file} is no whole file of weights: {type(error).__name__}: {error}.") from error
    for key in ("model", "state_dict"):
        content = content.get(key, content) if isinstance(content, dict) else content
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}; expected tensors by name.")
    return {name: tensor for name, tensor in content.items() if isinstance(name, str) and isinstance(tensor, Tensor)}


def to_timm_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename an encoder's tensors to timm's names; separate queries, keys and values become one `qkv`.

    Understands our own prefixes (`geomae.encoder.`, `encoder.`, `backbone.`), transformers' ViT and ViTMAE in both
    dialects, and leaves timm's own names, which facebookresearch's MAE shares, alone.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        name = re.sub(r"^(?:module\.)?(?:(?:geomae\.)?encoder\.(?!layer\.)|backbone\.)?", "", name)
        for pattern, replacement in TRANSFORMERS_TO_TIMM:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    for name in [name for name in renamed if re.fullmatch(r"blocks\.\d+\.attn\.q\.(weight|bias)", name)]:
        parts = [name.replace(".attn.q.", f".attn.{part}.") for part in "qkv"]
        renamed[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat([renamed.pop(part) for part in parts])
    return renamed


def settle_positions(offered: dict[str, Tensor], backbone: Any, source: str | Path) -> list[str]:
    """Fit `pos_embed` to the model, in place: interpolated to its grid, or its own table where positions are fixed.

    Returns:
        The names of what was interpolated.
    """
    old, parameter = offered.get("pos_embed"), dict(backbone.named_parameters()).get("pos_embed")
    if old is None or parameter is None or old.shape[-1] != parameter.shape[-1]:
        return []
    if not parameter.requires_grad:
        table = sincos_positions(old.shape[-1], math.isqrt(old.shape[1] - 1))
        if table.shape != old.shape or not torch.allclose(old.float(), table, atol=1e-3):
            raise ValueError(
                f"{source} was trained with positions of its own, and the model has position_embedding=sincos: "
                "set position_embedding to learned."
            )
        offered["pos_embed"] = parameter.detach()
    elif old.shape != parameter.shape:
        grid = list(backbone.patch_embed.grid_size)
        offered["pos_embed"] = resample_abs_pos_embed(old, new_size=grid, num_prefix_tokens=backbone.num_prefix_tokens)
        return ["pos_embed"]
    return []


def export_encoder(model: PreTrainedModel, path: str | Path) -> Path:
    """Write the backbone under timm's names, for `timm.create_model(..., num_classes=0, checkpoint_path=path)`.

    Args:
        model: any model here.
        path: the `.safetensors` file to write; its folder is made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in model.backbone.state_dict().items()}, path)
    return path


def load_embedder(path: str | Path) -> PreTrainedModel:
    """The model in a checkpoint folder, for its `embed`, in evaluation mode.

    Args:
        path: a folder of pretraining (only its encoder is loaded), of an encoder, of a geolocator or of a baseline.

    Raises:
        ValueError: the folder holds no model, or one that is not of this package.
    """
    architecture = read_architecture(path)
    if architecture.endswith("ForGeolocation"):
        return load_geolocator(path)
    if not architecture.startswith("GeoMAE"):
        raise ValueError(
            f"{path} holds a {architecture}, which is no model of GeoMAE: give the folder that a run of "
            "run_pretrain_mae.py or run_finetune_geo.py wrote."
        )
    return load_checkpoint(AutoModel, path)


def load_geolocator(path: str | Path) -> PreTrainedModel:
    """The fine-tuned model in a checkpoint folder, GeoMAE or baseline, in evaluation mode.

    Raises:
        ValueError: the folder holds no model, or one that was not fine-tuned to coordinates yet.
    """
    architecture = read_architecture(path)
    if not architecture.endswith("ForGeolocation"):
        raise ValueError(
            f"{path} holds a {architecture}, which answers no coordinates: fine-tune it first, "
            f"with run_finetune_geo.py ... --init_from {path}."
        )
    return load_checkpoint(AutoModelForImageClassification, path)


def load_autoencoder(path: str | Path) -> PreTrainedModel:
    """The model of pretraining in a checkpoint folder, decoder included, in evaluation mode.

    Raises:
        ValueError: the folder holds no model, or one without a decoder.
    """
    architecture = read_architecture(path)
    if not architecture.endswith("ForPreTraining"):
        raise ValueError(
            f"{path} holds a {architecture}, which has no decoder to restore photos with: give the folder that a run "
            "of run_pretrain_mae.py wrote."
        )
    return load_checkpoint(AutoModelForPreTraining, path)


def read_architecture(path: str | Path) -> str:
    """The class of the model in a checkpoint folder, or `unknown`; ValueError where there is no checkpoint."""
    config_file = Path(path) / "config.json"
    if not config_file.is_file():
        lacks = "it has no config.json" if Path(path).is_dir() else "there is no such folder"
        raise ValueError(f"{path} is not a checkpoint: {lacks}. Give the folder that training wrote.")
    named = read_json(config_file).get("architectures") or ["unknown"]
    if not isinstance(named, list) or not isinstance(named[0], str):
        raise ValueError(f"{config_file} is no configuration of a model: its architectures are {str(named)[:80]}.")
    return named[0]
