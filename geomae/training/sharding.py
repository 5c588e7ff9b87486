"""What FSDP2 changes: precision stays as DDP keeps it, checkpoints are like any other, the rest is refused.

With DDP every process holds the whole model; with FSDP2 each holds a share of every weight, of its gradient and of the
optimizer's state, and gathers a block's weights when the block runs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from torch.distributed.fsdp import FSDPModule

from geomae.errors import ConfigError
from geomae.training.arguments import GeoMAETrainingArguments

__all__ = ["own_class", "refuse_other_sharding", "set_up_sharding"]

SHARDED_WEIGHTS_FILE = "pytorch_model_fsdp.bin"  # accelerate writes it into the checkpoints of FSDP


def set_up_sharding(plugin: Any, args: GeoMAETrainingArguments) -> None:
    """Refuse what cannot work with FSDP, and leave 16 bits to autocast.

    Accelerate's own policy for bf16 casts whole modules: labels, the head and the sums of gradients too, and a
    longitude in bf16 is wrong by up to 78 km. So weights and gradients travel in float32, and autocast chooses what is
    computed in 16 bits, as it does without FSDP.

    Args:
        plugin: accelerate's `FullyShardedDataParallelPlugin`, before the model is prepared.
        args: of the run.

    Raises:
        ConfigError: version 1 of FSDP, weights that would be saved in shards, an average of weights, or compilation.
    """
    if plugin.fsdp_version != 2:
        raise ConfigError(f"fsdp_version is {plugin.fsdp_version}; only 2 is supported: write fsdp_version: 2")
    if plugin.state_dict_type.name != "FULL_STATE_DICT":
        raise ConfigError(
            f"fsdp_state_dict_type is {plugin.state_dict_type.name}, which leaves no model that from_pretrained can "
            "load: write fsdp_state_dict_type: FULL_STATE_DICT"
        )
    if args.ema_decay is not None:
        raise ConfigError(
            f"ema_decay is {args.ema_decay}, but a moving average of weights that FSDP shares out is not supported: "
            "write ema_decay: null, or launch with DDP, such as configs/accelerate/eight_a100.yaml"
        )
    if args.torch_compile:
        raise ConfigError(
            "torch_compile is true, but compilation of a model that FSDP shares out is not supported: write "
            "torch_compile: false, or launch with DDP, such as configs/accelerate/eight_a100.yaml"
        )
    plugin.mixed_precision_policy = None


def refuse_other_sharding(checkpoint: str, *, is_sharded: bool) -> None:
    """Refuse to go on from the optimizer states of a run that was launched the other way.

    Raises:
        ConfigError: the checkpoint was saved with FSDP and this run is without, or the other way round.
    """
    was_sharded = (Path(checkpoint) / SHARDED_WEIGHTS_FILE).is_file()
    if was_sharded != is_sharded:
        with_or_without = {True: "with FSDP", False: "without FSDP"}
        raise ConfigError(
            f"{checkpoint} was saved {with_or_without[was_sharded]} and this run is {with_or_without[is_sharded]}: "
            "launch it as before, or start from its weights with --init_from"
        )


@contextmanager
def own_class(model: nn.Module) -> Iterator[None]:
    """The model has the class that it was built as meanwhile.

    FSDP gives it one that is made on the spot, and `save_pretrained` would copy torch's source files beside the
    weights in the place of ours.
    """
    sharded = type(model)
    if issubclass(sharded, FSDPModule):
        model.__class__ = sharded.__mro__[2]  # FSDP<Name>, FSDPModule, <Name>, ...
    try:
        yield
    finally:
        model.__class__ = sharded
