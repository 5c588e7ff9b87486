"""The faiss index of photos' vectors: exact while that is cheap, approximate where it is not."""

import math
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geomae.errors import ConfigError

__all__ = ["FLAT_UP_TO", "HNSW_UP_TO", "KINDS", "build_vector_index", "choose_kind", "import_faiss", "search_vectors"]

KINDS = ("flat", "hnsw", "ivf")
FLAT_UP_TO = 100_000
"""Photos up to which every query is compared with all of them: exact, and seconds for a test set of thousands."""
HNSW_UP_TO = 1_000_000
"""Photos up to which a graph is built: the fastest to search, but it takes hours and 256 bytes a photo beyond."""

HNSW_LINKS = 32
HNSW_BUILD_CANDIDATES = 200
HNSW_SEARCH_CANDIDATES = 256
IVF_PHOTOS_PER_LIST = 39  # faiss wants as many to train each list's centre
IVF_SHARE_OF_LISTS = 1 / 32


def import_faiss() -> ModuleType:
    """The faiss library; ConfigError with what to install where it is not there."""
    try:
        import faiss
    except ImportError as problem:
        raise ConfigError(
            "retrieval needs faiss, which is not installed: run `pip install 'geomae[retrieval]'`, or in a checkout "
            "`pip install '.[retrieval]'`"
        ) from problem
    return faiss


def choose_kind(num_photos: int) -> str:
    """`flat` up to `FLAT_UP_TO` photos, `hnsw` up to `HNSW_UP_TO`, `ivf` beyond."""
    return "flat" if num_photos <= FLAT_UP_TO else "hnsw" if num_photos <= HNSW_UP_TO else "ivf"


def build_vector_index(vectors: NDArray[np.float32], kind: str) -> Any:
    """Put vectors into an index whose similarity is their inner product.

    Args:
        vectors: `(n, D)`; of length 1, so that the inner product is the cosine.
        kind: `flat`: exact. `hnsw`: a graph with 32 links. `ivf`: 4 sqrt(n) lists, one in 32 of them searched.

    Returns:
        A `faiss.Index` that numbers the vectors from 0.

    Raises:
        ConfigError: there is no faiss, or no such kind.

    Source: Malkov and Yashunin (2018) for the graph; Jégou, Douze and Schmid (2011) for the lists; for their number
    faiss's "Guidelines to choose an index".
    """
    faiss = import_faiss()
    num_photos, width = vectors.shape
    index: Any
    if kind == "flat":
        index = faiss.IndexFlatIP(width)
    elif kind == "hnsw":
        index = faiss.IndexHNSWFlat(width, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = HNSW_BUILD_CANDIDATES
        index.hnsw.efSearch = HNSW_SEARCH_CANDIDATES
    elif kind == "ivf":
        num_lists = max(1, min(round(4 * math.sqrt(num_photos)), num_photos // IVF_PHOTOS_PER_LIST))
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, num_lists, faiss.METRIC_INNER_PRODUCT)
        index.nprobe = max(min(8, num_lists), round(num_lists * IVF_SHARE_OF_LISTS))
        index.train(vectors)
    else:
        raise ConfigError(f"kind={kind!r} is no index; choose one of {', '.join(KINDS)}, or auto")
    index.add(vectors)
    return index


def search_vectors(
    index: Any, queries: NDArray[np.float32], num_neighbours: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The most similar vectors of an index.

    Args:
        index: of `build_vector_index`.
        queries: `(n, D)` of length 1.
        num_neighbours: k of each.

    Returns:
        `(n, k)` similarities, falling, and `(n, k)` numbers of vectors. An approximate index may find fewer than k:
        the number is then -1, and the similarity means nothing.
    """
    if hasattr(index, "hnsw"):  # it cannot return more than it considers
        index.hnsw.efSearch = max(index.hnsw.efSearch, 2 * num_neighbours)
    return index.search(np.ascontiguousarray(queries, dtype=np.float32), num_neighbours)
