"""What every model here shares, and the three repairs that transformers 5 needs after loading a checkpoint."""

import copy
import os
from dataclasses import fields
from typing import Any, Self, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from .geocell_tensors import GeocellTensors
from .image_processing_geomae import GeoMAEImageProcessor
from .image_to_coordinates import CUSTOM_PIPELINES, HubAccess
from .step_flops import count_step_flops

__all__ = ["GeoPreTrainedModel"]

ALIGNMENT_BYTES = 64
"""torch's own allocations on the CPU begin at a multiple of this."""


class GeoPreTrainedModel(PreTrainedModel):
    """Base class of GeoMAE and of the baselines: takes photos, keeps its head in float32, counts its work."""

    main_input_name = "pixel_values"
    input_modalities = "image"
    supports_gradient_checkpointing = True
    _keep_in_fp32_modules_strict = {"head"}

    hub_access: HubAccess | None = None
    """What the model was fetched with, for files beside its weights; None of one that was not loaded."""

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Self:
        """As transformers does it; `hub_access` keeps which revision was asked for, and how."""
        known = {each.name for each in fields(HubAccess)}
        access = HubAccess(**{name: value for name, value in kwargs.items() if name in known})
        loaded: Any = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # with output_loading_info
        model.hub_access = access
        return cast(Self, loaded)

    def save_pretrained(
        self, save_directory: str | os.PathLike[Any], is_main_process: bool = True, *args: Any, **kwargs: Any
    ) -> None:
        """As transformers does it, with the image processor and, for a geolocator, the pipeline that a folder offers.

        Args:
            save_directory: the folder; made where it is missing.
            is_main_process: whether this process, of several, writes what all share.
            args: of `PreTrainedModel.save_pretrained`.
            kwargs: of `PreTrainedModel.save_pretrained`.
        """
        self.config.__dict__.pop("custom_pipelines", None)  # an encoder's configuration may come from a geolocator's
        if hasattr(self, "head"):
            self.config.custom_pipelines = copy.deepcopy(CUSTOM_PIPELINES)
        if is_main_process:  # before transformers, which may upload what it then finds in the folder
            GeoMAEImageProcessor.for_image_size(self.config.image_size).save_pretrained(save_directory)
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)

    def flops_per_photo(self) -> float:
        """Floating point operations of one training step for one photo, forward and backward; needs a loss."""
        return count_step_flops(self)

    def get_input_embeddings(self) -> None:  # type: ignore[override]  # accelerate's FSDP takes None for none
        """None: FSDP would make a unit of its own of it, gathered in its `forward` only, and patches skip that."""

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """Called by transformers when a model is built and again when its weights are loaded: nothing is tied here."""
        super().tie_weights(*args, **kwargs)
        self._align_storage()
        for module in self.modules():
            if isinstance(module, GeocellTensors):
                module.keep_integers()
        self._freeze_fixed_parameters()

    @torch.no_grad()
    def _align_storage(self) -> None:
        """Move tensors that lie anywhere in a mapped file to aligned memory.

        Kernels choose their path by alignment: a loaded ResNet differed from the saved one in the last bits.
        """
        for tensor in (*self.parameters(), *self.buffers()):
            if tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNMENT_BYTES:
                tensor.data = tensor.data.clone(memory_format=torch.preserve_format)

    def _freeze_fixed_parameters(self) -> None:
        """Stop the gradient of parameters that are constants: `from_pretrained` makes every parameter trainable."""
        for parameter in self.fixed_parameters():
            parameter.requires_grad_(False)

    def fixed_parameters(self) -> list[nn.Parameter]:
        """Parameters that training must not change; none by default."""
        return []
