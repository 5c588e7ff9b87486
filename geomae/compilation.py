"""What torch.compile is given to compile: batches of one size, and nothing else."""

from contextlib import AbstractContextManager
from typing import Any

import torch

__all__ = ["compiled_if_full"]


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
