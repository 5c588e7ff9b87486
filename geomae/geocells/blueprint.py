"""Where the cells of a partition are to be, before the nearest centroid decides which photos are theirs."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Blueprint"]


@dataclass(frozen=True)
class Blueprint:
    """The training photos in groups, one for each of K cells: a cell's centroid is the spherical mean of its group."""

    groups: NDArray[np.int64]  # (n,) cell of each photo; -1 for a photo that helps to shape none
    num_cells: int  # K
    parents: NDArray[np.int64] | None  # (K,) rows of the next coarser blueprint; None for the coarsest
    s2_tokens: tuple[str, ...] | None = None  # K names, of S2 cells
