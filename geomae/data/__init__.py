"""Photos in: sources -> shards -> samples -> batches.

Names are imported when they are first used: a process that only packs photos does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from geomae.data.collate import PhotoCollator
    from geomae.data.coordinates import read_coordinate_table
    from geomae.data.earth import EarthCutter, EarthPicture, EarthSplit, pack_earth
    from geomae.data.groups import IndexedPhotos, ParquetShards, PhotoGroups
    from geomae.data.layout import list_shards
    from geomae.data.loading import find_absent, load_photos, stream_photos
    from geomae.data.pack import PhotoPacker, pack_photos
    from geomae.data.photo_index import PhotoIndex
    from geomae.data.photos import center_crop, decode_photo, random_resized_crop
    from geomae.data.shards import read_coordinates
    from geomae.data.sources import SourceOptions, open_source
    from geomae.data.stream import PhotoStream, StreamPlace

__all__ = [
    "EarthCutter",
    "EarthPicture",
    "EarthSplit",
    "IndexedPhotos",
    "ParquetShards",
    "PhotoCollator",
    "PhotoGroups",
    "PhotoIndex",
    "PhotoPacker",
    "PhotoStream",
    "SourceOptions",
    "StreamPlace",
    "center_crop",
    "decode_photo",
    "find_absent",
    "list_shards",
    "load_photos",
    "open_source",
    "pack_earth",
    "pack_photos",
    "random_resized_crop",
    "read_coordinate_table",
    "read_coordinates",
    "stream_photos",
]

_HOME = {
    "collate": ("PhotoCollator",),
    "coordinates": ("read_coordinate_table",),
    "earth": ("EarthCutter", "EarthPicture", "EarthSplit", "pack_earth"),
    "groups": ("IndexedPhotos", "ParquetShards", "PhotoGroups"),
    "layout": ("list_shards",),
    "loading": ("find_absent", "load_photos", "stream_photos"),
    "pack": ("PhotoPacker", "pack_photos"),
    "photo_index": ("PhotoIndex",),
    "photos": ("center_crop", "decode_photo", "random_resized_crop"),
    "shards": ("read_coordinates",),
    "sources": ("SourceOptions", "open_source"),
    "stream": ("PhotoStream", "StreamPlace"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
