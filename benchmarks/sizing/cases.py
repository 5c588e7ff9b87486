"""The models whose size is asked for: each is that of a shipped configuration file."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import PreTrainedModel

from geomae.training import GeoBaselineArguments, GeoMAEArguments
from modeling import (
    GeoBaselineConfig,
    GeoBaselineForGeolocation,
    GeoMAEConfig,
    GeoMAEForGeolocation,
    GeoMAEForPreTraining,
)

__all__ = ["CASES", "Case"]

ROOT = Path(__file__).resolve().parents[2]
NAMES = {"tiny": "ViT-Ti/16", "small": "ViT-S/16", "base": "ViT-B/16", "large": "ViT-L/16", "huge": "ViT-H/14"}


@dataclass(frozen=True)
class Case:
    """One model."""

    key: str
    title: str
    config_file: str
    """From the root of the checkout; its architecture alone counts."""

    def build_meta(self, *, checkpointed: bool = False) -> PreTrainedModel:
        """The model in training mode on the meta device, which takes no memory."""
        with torch.device("meta"):
            return self.build(torch.device("meta"), checkpointed=checkpointed)

    def build(self, device: torch.device, *, checkpointed: bool = False) -> PreTrainedModel:
        """The model in training mode on a device, with fresh weights."""
        written = yaml.safe_load((ROOT / self.config_file).read_text(encoding="utf-8"))
        is_baseline = written.get("model_type") == "geobaseline"
        arguments = GeoBaselineArguments if is_baseline else GeoMAEArguments
        known = {field.name for field in fields(arguments)}
        architecture: dict[str, Any] = {name: value for name, value in written.items() if name in known}
        if is_baseline:
            model = GeoBaselineForGeolocation(GeoBaselineConfig(**architecture))
        elif "/pretrain/" in self.config_file:
            model = GeoMAEForPreTraining(GeoMAEConfig(**architecture))
        else:
            model = GeoMAEForGeolocation(GeoMAEConfig(**architecture))
        if checkpointed:
            model.gradient_checkpointing_enable()
        return model.train().to(device)


CASES = [
    *(Case(f"pretrain_{s}", f"{NAMES[s]}, pretraining", f"configs/pretrain/mae_vit_{s}_mp16.yaml") for s in NAMES),
    *(Case(f"finetune_{s}", f"{NAMES[s]}, fine-tuning", f"configs/finetune/mae_vit_{s}_mp16.yaml") for s in NAMES),
    Case("supervised_vit_base", "ViT-B/16 of timm, supervised", "configs/finetune/vit_base_mp16.yaml"),
    Case("supervised_resnet152", "ResNet-152 of timm, supervised", "configs/finetune/thesis_resnet_mp16.yaml"),
]
