"""What torch.compile is given to compile: batches of one size, and nothing else; and whether it can compile."""

from contextlib import AbstractContextManager
from typing import Any

import torch

from geomae.errors import ConfigError

__all__ = ["compiled_if_full", "refuse_missing_compiler"]


def compiled_if_full(num_photos: int, batch_size: int) -> AbstractContextManager[Any]:
    """Inside, a compiled model runs as if it were not unless the batch is full; other models do not notice.

    The last batch of an evaluation is shorter, and so is one that a damaged photo has fallen out of. A graph for every
    such size, or one for any size, costs more than it saves, and padding would change losses that are means over a
    batch.

    Args:
        num_photos: of the batch.
        batch_size: of full batches, the one size that is compiled.
    """
    return torch.compiler.set_stance("default" if num_photos == batch_size else "force_eager")


def refuse_missing_compiler() -> None:
    """Say that there is no compiler before the first batch, which would end in torch's traceback, does.

    Raises:
        ConfigError: there is none of those that inductor looks for.
    """
    from torch._inductor import cpp_builder  # a second, which others need not wait
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        cpp_builder.get_cpp_compiler()
    except InvalidCxxCompiler as problem:
        raise ConfigError(
            f"torch_compile is true, but there is no C++ compiler that works ({problem}). Install one (on Debian and "
            "Ubuntu: apt install g++), name it in the variable CXX, or write torch_compile: false"
        ) from problem
