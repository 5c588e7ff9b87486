"""Photos in: sources -> shards -> samples -> batches.

Names are imported when they are first used: a process that only packs photos does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from geomae.data.collate import PhotoCollator
    from geomae.data.earth import EarthCutter, EarthPicture, EarthSplit, pack_earth
    from geomae.data.pack import PhotoPacker, pack_photos
    from geomae.data.photos import center_crop, decode_photo, random_resized_crop
    from geomae.data.shards import list_shards, read_coordinates
    from geomae.data.sources import PhotoRecord, open_source, read_coordinate_table
    from geomae.data.stream import PhotoStream, load_photos

__all__ = [
    "EarthCutter",
    "EarthPicture",
    "EarthSplit",
    "PhotoCollator",
    "PhotoPacker",
    "PhotoRecord",
    "PhotoStream",
    "center_crop",
    "decode_photo",
    "list_shards",
    "load_photos",
    "open_source",
    "pack_earth",
    "pack_photos",
    "random_resized_crop",
    "read_coordinate_table",
    "read_coordinates",
]

_HOME = {
    "collate": ("PhotoCollator",),
    "earth": ("EarthCutter", "EarthPicture", "EarthSplit", "pack_earth"),
    "pack": ("PhotoPacker", "pack_photos"),
    "photos": ("center_crop", "decode_photo", "random_resized_crop"),
    "shards": ("list_shards", "read_coordinates"),
    "sources": ("PhotoRecord", "open_source", "read_coordinate_table"),
    "stream": ("PhotoStream", "load_photos"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
