"""Photos that answer for others: an index of embedded photos, and answers from a photo's nearest neighbours in it.

Names are imported when they are first used: neither torch nor faiss is loaded by `import geomae.retrieval`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from geomae.retrieval.embedding import Embeddings, embed_photos, embedder_digest
    from geomae.retrieval.index_folder import PhotoPlaces, RetrievalIndex, read_index, write_index
    from geomae.retrieval.kernel_density import densest_neighbours, kernel_log_density
    from geomae.retrieval.neighbours import Neighbours, find_neighbours
    from geomae.retrieval.refinement import CellPrototypes, refine_cells
    from geomae.retrieval.vector_index import build_vector_index, choose_kind

__all__ = [
    "CellPrototypes",
    "Embeddings",
    "Neighbours",
    "PhotoPlaces",
    "RetrievalIndex",
    "build_vector_index",
    "choose_kind",
    "densest_neighbours",
    "embed_photos",
    "embedder_digest",
    "find_neighbours",
    "kernel_log_density",
    "read_index",
    "refine_cells",
    "write_index",
]

_HOME = {
    "embedding": ("Embeddings", "embed_photos", "embedder_digest"),
    "index_folder": ("PhotoPlaces", "RetrievalIndex", "read_index", "write_index"),
    "kernel_density": ("densest_neighbours", "kernel_log_density"),
    "neighbours": ("Neighbours", "find_neighbours"),
    "refinement": ("CellPrototypes", "refine_cells"),
    "vector_index": ("build_vector_index", "choose_kind"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
