"""One list of the names under which the field's tables keep their columns, for packing and for judging alike."""

from collections.abc import Sequence

__all__ = ["COLUMN_ALIASES", "SCENES", "UNKNOWN", "find_column", "name_scene"]

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
UNKNOWN = "unknown"  # the scene or the country of a photo of which it is not known
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
    """`indoor`, `natural` or `urban` for the numbers 0, 1 and 2 of S3_Label; any other text stays.

    Pandas writes a column of whole numbers in which one is missing as `2.0`, which is 2. Any other number is `unknown`:
    what it would mean is written nowhere.
    """
    try:
        number = float(value)
    except ValueError:
        return value
    return SCENES[int(number)] if number in range(len(SCENES)) else UNKNOWN
