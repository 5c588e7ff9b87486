"""Names that strangers chose, for a terminal and for files of text."""

import unicodedata

__all__ = ["printable", "shorten_left", "text_width"]


def printable(text: str) -> str:
    r"""A name without power over a terminal: control characters and bytes that are no UTF-8 become `\x1b`, `\udcff`."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
    )


def text_width(text: str) -> int:
    """Columns that a text takes in a terminal: two for a Chinese character, none for a combining accent."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(letter) in ("W", "F") for letter in text)
    return len(text) + wide - sum(unicodedata.combining(letter) > 0 for letter in text)


def shorten_left(text: str, width: int) -> str:
    """The end of a text that is wider than `width` columns, behind an ellipsis: the end of a path tells files apart."""
    if text_width(text) <= width:
        return text
    while text and text_width(text) >= width:
        text = text[1:]
    return f"…{text}"
