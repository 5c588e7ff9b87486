"""A batch that does not fit: what to change, in the words of the configuration."""

import functools
import re
from collections.abc import Callable
from typing import Any

import torch

from geomae.errors import DeviceMemoryError

__all__ = ["explains_memory"]


def explains_memory(method: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a trainer's method: where memory does not suffice, it raises a `DeviceMemoryError` that says what to do."""

    @functools.wraps(method)
    def explaining(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except RuntimeError as error:  # torch.OutOfMemoryError is one, and the CPU's has no name of its own
            if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
                raise
            raise DeviceMemoryError(_describe(self.args, error, is_training=method.__name__ == "train")) from error

    return explaining


def _describe(args: Any, error: RuntimeError, *, is_training: bool) -> str:
    asked = re.search(r"ried to allocate ([\d.]+ ?\w+)", str(error))
    name = "per_device_train_batch_size" if is_training else "per_device_eval_batch_size"
    size: int = getattr(args, name)
    ways = []
    if size > 1 and is_training:
        halved, accumulated = size // 2, args.gradient_accumulation_steps * 2
        ways.append(f"--{name} {halved} --gradient_accumulation_steps {accumulated}, which trains the same")
    elif size > 1:
        ways.append(f"--{name} {size // 2}")
    if not (args.bf16 or args.fp16):
        ways.append("--bf16 true")
    if is_training and not args.gradient_checkpointing:
        ways.append("--gradient_checkpointing true")
    if is_training:
        ways.append("configs/accelerate/ with FSDP on several GPUs")
    if not ways:
        ways.append("a device with more memory")
    return (
        f"{'a training step' if is_training else 'an evaluation'} with {name} {size} does not fit into the memory of "
        f"{args.device}{f' ({asked[1]} more were asked for)' if asked else ''}. Try {'; or '.join(ways)}. "
        "--resume_from_checkpoint last goes on from what was saved"
    )
