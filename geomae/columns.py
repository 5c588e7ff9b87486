"""One list of the names under which the field's tables keep their columns, for packing and for judging alike."""

from collections.abc import Sequence

__all__ = [
    "COLUMN_ALIASES",
    "OPTIONAL_COLUMNS",
    "SCENES",
    "SCENE_COLUMNS",
    "UNKNOWN",
    "as_utf8",
    "find_column",
    "label_scene",
    "name_scene",
    "show_columns",
    "tidy_text",
]

# Our name -> the names looked for, in this order, without regard to case. A table with a file and a number names its
# photos by the file: only that finds them in a folder, and the packed photos then have the ids that the table has.
COLUMN_ALIASES = {
    "image": ("image", "jpg", "jpeg", "img", "photo"),
    "id": ("file", "file_name", "filename", "img_id", "img_file", "id", "image_id", "photo_id"),
    "latitude": ("latitude", "lat"),
    "longitude": ("longitude", "lon", "lng", "long"),
    "author": ("author", "user", "user_id"),
    "scene": ("scene", "s3_label"),
    "scene16": ("scene16", "s16_label"),
    "country": ("country",),
}
OPTIONAL_COLUMNS = ("author", "scene", "scene16", "country")  # texts that a source may know of a photo
_MOST_SHOWN, _LONGEST_SHOWN = 40, 80  # columns of a table in a message, letters of each
UNKNOWN = "unknown"  # the scene or the country of a photo of which it is not known
SCENES = ("indoor", "natural", "urban")  # what the numbers of S3_Label mean
SCENE_COLUMNS = {3: "scene", 16: "scene16"}  # by the number of scenes: S3, and S16, which are numbers without names


def find_column(name: str, available: Sequence[str]) -> str | None:
    """The first of the available columns that is one of ours under another name; None where there is none.

    Args:
        name: a key of `COLUMN_ALIASES`.
        available: the table's columns, as its header spells them.
    """
    spelled = {column.strip().lower(): column for column in reversed(available)}
    return next((spelled[alias] for alias in COLUMN_ALIASES[name] if alias in spelled), None)


def as_utf8(text: str) -> str:
    r"""The text, with `\xe9` or `\ud800` for what UTF-8 cannot write: Latin-1 in a tar, half a pair in a JSON."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def show_columns(names: Sequence[str]) -> str:
    """The names of a table's columns for a message, which a file that is no table would fill with megabytes."""
    shown = [name if len(name) <= _LONGEST_SHOWN else f"{name[:_LONGEST_SHOWN]}..." for name in names[:_MOST_SHOWN]]
    return ", ".join(shown) + (f", ... ({len(names):,} in all)" if len(names) > _MOST_SHOWN else "")


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


def tidy_text(column: str, value: str) -> str:
    """What we keep of a table's text in one of our optional columns: scenes by name, those of S16 as `0` to `15`."""
    if column == "scene":
        return name_scene(value)
    if column == "scene16":
        label = label_scene(value, 16)
        return UNKNOWN if label < 0 else str(label)
    return value


def label_scene(value: str | None, num_scenes: int) -> int:
    """The number of a scene, 0 to `num_scenes` - 1; -1 where it is unknown.

    Args:
        value: of the column `SCENE_COLUMNS[num_scenes]`.
        num_scenes: 3: indoor, natural and urban are 0, 1 and 2, as in S3_Label; 16: a whole number, as in S16_Label.

    Source: Mueller-Budack et al. (2018), "Geolocation estimation of photos using a hierarchical model and scene
    classification", whose tables have these labels of the Places365 hierarchy.
    """
    if num_scenes == len(SCENES):
        return SCENES.index(value) if value in SCENES else -1
    try:
        number = float(value or "")
    except ValueError:
        return -1
    return int(number) if number in range(num_scenes) else -1
