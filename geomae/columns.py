"""One list of the names under which the field's tables keep their columns, for packing and for judging alike."""

from collections.abc import Sequence

__all__ = ["COLUMN_ALIASES", "SCENES", "find_column", "name_scene"]

# Our name -> the names looked for, in this order, without regard to case. A table with a file and a number names its
# photos by the file: only that finds them in a folder, and the packed photos then have the ids that the table has.
COLUMN_ALIASES = {
    "image": ("image", "jpg", "jpeg", "img", "photo"),
    "id": ("file", "file_name", "filename", "img_id", "img_file", "id", "image_id", "photo_id"),
    "latitude": ("latitude", "lat"),
    "longitude": ("longitude", "lon", "lng", "long"),
    "author": ("author", "user", "user_id"),
    "scene": ("scene", "s3_label"),
    "country": ("country",),
}
SCENES = ("indoor", "natural", "urban")  # what the numbers of S3_Label mean


def find_column(name: str, available: Sequence[str]) -> str | None:
    """The first of the available columns that is one of ours under another name; None where there is none.

    Args:
        name: a key of `COLUMN_ALIASES`.
        available: the table's columns, as its header spells them.
    """
    spelled = {column.strip().lower(): column for column in reversed(available)}
    return next((spelled[alias] for alias in COLUMN_ALIASES[name] if alias in spelled), None)


def name_scene(value: str) -> str:
    """`indoor`, `natural` or `urban` for the numbers of S3_Label; anything else stays."""
    return SCENES[int(value)] if value in ("0", "1", "2") else value
