"""What makes a training step fast, thing by thing: what each was predicted to be worth, and how to undo it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from modeling import (
    GeoBaselineConfig,
    GeoBaselineForGeolocation,
    GeoMAEConfig,
    GeoMAEForGeolocation,
    GeoMAEForPreTraining,
    modeling_geomae,
)
from modeling.attention import DeviceAwareAttention
from stepping.contestants import Batch
from stepping.thesis_model import looped_great_circle_loss

__all__ = ["CASES", "Case", "Change", "Step"]

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 64}
TINY |= {"decoder_hidden_size": 32, "decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 2}


class Step:
    """One model in training: forward, backward, clip, AdamW, zero_grad."""

    def __init__(self, model: nn.Module, batch: Batch) -> None:
        self.model, self.batch = model.train().to(batch.photos.device), batch
        self.pixel_values = batch.pixel_values
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizers = {"fused": self._adamw(fused=True)}
        self.adamw = "fused"
        self.clips_by = "foreach"
        self.forward_options: dict[str, Any] = {}
        if isinstance(model, GeoMAEForPreTraining):
            self.loss = lambda: self.model(self.pixel_values, **self.forward_options).loss
        else:
            self.loss = lambda: self.model(self.pixel_values, batch.coordinates_deg).loss

    def run(self) -> None:
        """All of it, without waiting for the device."""
        with torch.autocast(self.batch.photos.device.type, torch.bfloat16):
            loss = self.loss()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=self.clips_by == "foreach")
        self.optimizers[self.adamw].step()
        self.optimizers[self.adamw].zero_grad()

    def choose_adamw(self, name: str) -> None:
        """`fused`, `foreach` or `loop`: each with a state of its own."""
        if name not in self.optimizers:
            self.optimizers[name] = self._adamw(foreach=name == "foreach")
        self.adamw = name

    def _adamw(self, **implementation: bool) -> torch.optim.AdamW:
        return torch.optim.AdamW(self.parameters, lr=1e-6, **implementation)


@dataclass(frozen=True)
class Change:
    """Something that makes the step fast, and how to undo it."""

    key: str
    title: str
    predicted_percent: float
    """By how much the step takes longer without it, on the CPU; written down before it was measured."""

    undone: Callable[[Step], AbstractContextManager[Any]]
    """A context in which the step runs without it."""


@contextmanager
def every_patch_is_embedded(step: Step) -> Iterator[None]:
    """Normalise and embed all patches, then choose the visible ones."""
    model, seen = step.model.geomae, []
    embed, gather = model.embed_patches, modeling_geomae.gather_patches

    def note_and_gather(patches: Tensor, ids: Tensor) -> Tensor:
        if not patches.is_floating_point() and len(seen) < 2:  # the first are the photos', the next the targets'
            seen[:] = [patches, ids]
        return gather(patches, ids)

    def embed_all(_: Tensor) -> Tensor:
        patches, ids = seen
        return gather(embed(patches), ids)

    def forget(*_: Any) -> None:
        seen.clear()

    handle = step.model.register_forward_pre_hook(forget)
    with (
        patch.object(modeling_geomae, "gather_patches", note_and_gather),
        patch.object(model, "embed_patches", embed_all),
    ):
        yield
    handle.remove()


def _whole_blocks(self: Any, tokens: Tensor, blocks: Any, wanted: slice) -> Tensor:
    for block in blocks:
        tokens = block(tokens)
    return tokens[:, wanted]


def the_last_block_is_whole(step: Step) -> AbstractContextManager[Any]:
    """Every block works for every token; what nobody reads is thrown away."""
    return patch.object(modeling_geomae.CheckpointedBlocks, "forward", _whole_blocks)


@contextmanager
def everything_is_predicted(step: Step) -> Iterator[None]:
    """Predict the pixels of all patches, put them in order, and hand them out with the mask."""
    step.forward_options = {"return_logits": True}
    yield
    step.forward_options = {}


def attention_is_the_other(step: Step) -> AbstractContextManager[Any]:
    """Fused attention where the plain products are taken, and the other way round."""
    takes_fused = step.batch.photos.device.type == "cpu"
    return patch.object(
        DeviceAwareAttention, "fused_attn", property(lambda self: takes_fused, lambda self, value: None)
    )


def _attention_of_timm(self: Any, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
    return super(DeviceAwareAttention, self).forward(x)


def attention_is_timm_s(step: Step) -> AbstractContextManager[Any]:
    """Queries are scaled before they meet the keys."""
    return patch.object(DeviceAwareAttention, "forward", _attention_of_timm)


@contextmanager
def photos_are_floats(step: Step) -> Iterator[None]:
    """Photos arrive normalised, in four times the bytes; that somebody had to normalise them is not counted."""
    step.pixel_values = step.batch.photos
    yield
    step.pixel_values = step.batch.pixel_values


def adamw(name: str) -> Callable[[Step], AbstractContextManager[None]]:
    """Another implementation of AdamW."""

    @contextmanager
    def other_adamw(step: Step) -> Iterator[None]:
        step.choose_adamw(name)
        yield
        step.choose_adamw("fused")

    return other_adamw


@contextmanager
def clipping_is_one_by_one(step: Step) -> Iterator[None]:
    """Norms and factors tensor by tensor."""
    step.clips_by = "loop"
    yield
    step.clips_by = "foreach"


@contextmanager
def the_loss_is_a_loop(step: Step) -> Iterator[None]:
    """The thesis's great-circle loss: photo by photo, with `.item()` of each."""
    loss = step.loss

    def loop_over_photos() -> Tensor:
        outputs = step.model.head.to_logits(step.model.embed(step.pixel_values)).tanh()
        predicted_deg = torch.stack((90 * outputs[:, 0], 180 * outputs[:, 1]), dim=1)  # the thesis's head
        return looped_great_circle_loss(predicted_deg, step.batch.coordinates_deg)

    step.loss = loop_over_photos
    yield
    step.loss = loss


@contextmanager
def channels_come_first(step: Step) -> Iterator[None]:
    """Photos go into the network as torch has them by default."""
    handle = step.model.backbone.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
    yield
    handle.remove()


VISIBLE = Change("embed_visible", "only visible patches are normalised and embedded", 1.5, every_patch_is_embedded)
DECODER = Change(
    "last_decoder_block", "the last decoder block works for hidden patches only", 1.5, the_last_block_is_whole
)
HIDDEN = Change("predict_hidden", "in training nothing but the loss is made", 3.0, everything_is_predicted)
ENCODER = Change("last_encoder_block", "the last block works for the class token only", 7.0, the_last_block_is_whole)
ATTENTION = Change("attention", "attention is chosen by device", 6.0, attention_is_the_other)
SCALED = Change("scaled_product", "plain attention scales while it multiplies", 1.0, attention_is_timm_s)
SCALED_MORE = replace(SCALED, predicted_percent=2.0)
BYTES = Change("uint8", "photos are uint8 until they are on the device", 0.5, photos_are_floats)
FUSED = Change("fused_adamw", "AdamW is fused; undone: foreach, torch's default on a GPU", 4.0, adamw("foreach"))
NOT_A_LOOP = Change(
    "foreach_adamw", "AdamW is fused; undone: a loop over tensors, torch's default on a CPU", 6.0, adamw("loop")
)
CLIP = Change("foreach_clip", "clipping goes over all tensors at once", 0.5, clipping_is_one_by_one)
LOSS = Change("vectorised_loss", "the great-circle loss is one expression, not a loop", 0.1, the_loss_is_a_loop)
CHANNELS_LAST = Change("channels_last", "a ResNet has its channels last", 42.0, channels_come_first)


@dataclass(frozen=True)
class Case:
    """A model in training, and what makes it fast."""

    key: str
    title: str
    build: Callable[[bool], nn.Module]
    batch_size: int
    """By default."""

    changes: tuple[Change, ...]


def _pretraining(tiny: bool) -> nn.Module:
    return GeoMAEForPreTraining(GeoMAEConfig(**(TINY if tiny else {})))


def _fine_tuning(tiny: bool) -> nn.Module:
    return GeoMAEForGeolocation(GeoMAEConfig(**(TINY if tiny else {})))


def _resnet(tiny: bool) -> nn.Module:
    config = GeoBaselineConfig(backbone="resnet18", image_size=64) if tiny else GeoBaselineConfig()
    return GeoBaselineForGeolocation(config)


CASES = (
    Case(
        "pretraining",
        "GeoMAE, pretraining",
        _pretraining,
        32,
        (VISIBLE, DECODER, HIDDEN, ATTENTION, SCALED, BYTES, FUSED, NOT_A_LOOP, CLIP),
    ),
    Case("fine_tuning", "GeoMAE ViT-B, fine-tuning", _fine_tuning, 16, (ENCODER, ATTENTION, SCALED_MORE, LOSS)),
    Case("resnet", "ResNet-152, training", _resnet, 16, (CHANNELS_LAST,)),
)
