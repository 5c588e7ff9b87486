"""One page, two renderings: a list of blocks becomes Markdown or a single HTML file that carries its pictures."""

import base64
import html
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from geomae.reporting.plots import save_figure

__all__ = [
    "Block",
    "Cell",
    "Code",
    "Heading",
    "Paragraph",
    "Picture",
    "Table",
    "copy_picture",
    "render_html",
    "render_markdown",
    "save_picture",
]


@dataclass(frozen=True)
class Heading:
    """A section's title."""

    text: str
    level: int = 2  # 1 is the page's title


@dataclass(frozen=True)
class Paragraph:
    """Plain text; nothing in it is taken for markup."""

    text: str
    is_warning: bool = False


@dataclass(frozen=True)
class Code:
    """A command or another verbatim text."""

    text: str


@dataclass(frozen=True)
class Cell:
    """A number with what belongs in small print beside it, such as its interval."""

    text: str
    note: str = ""
    is_best: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of text; the first column names the row, the others are numbers, aligned right."""

    header: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    caption: str = ""


@dataclass(frozen=True)
class Picture:
    """A PNG beside the page."""

    file: Path  # relative to the page
    caption: str


Block = Heading | Paragraph | Code | Table | Picture

CSS = """
:root { color-scheme: light; }
body { font: 16px/1.55 system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; color: #1b1b1b;
       max-width: 66rem; margin: 2rem auto 5rem; padding: 0 1.2rem; }
h1 { font-size: 1.9rem; line-height: 1.2; } h2 { margin-top: 2.6rem; border-bottom: 1px solid #ddd; }
h3 { margin-top: 1.8rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; margin: .8rem 0; }
caption { caption-side: top; text-align: left; color: #555; padding-bottom: .3rem; }
th, td { padding: .3rem .5rem; text-align: right; border-bottom: 1px solid #e6e6e6; vertical-align: top; }
th { border-bottom: 2px solid #999; }
th:first-child, td:first-child { text-align: left; min-width: 11rem; overflow-wrap: anywhere; }
td .note { display: block; color: #666; font-size: .8rem; white-space: nowrap; }
td.best { font-weight: 700; } td.best .note { font-weight: 400; }
pre { background: #f5f5f5; padding: .7rem .9rem; overflow-x: auto; font-size: .85rem; }
figure { margin: 1.2rem 0; } figure img { max-width: 100%; height: auto; }
figcaption { color: #555; font-size: .92rem; }
.warning { background: #fff3cd; border-left: 4px solid #d08700; padding: .6rem .9rem; }
"""


def save_picture(figure: Figure, folder: Path, name: str, caption: str) -> Picture:
    """Write a figure as `<name>.png` into the page's folder and return its block."""
    save_figure(figure, folder / f"{name}.png")
    return Picture(Path(f"{name}.png"), caption)


def copy_picture(file: Path, folder: Path, name: str, caption: str) -> Picture:
    """Copy a PNG as `<name>.png` into the page's folder and return its block."""
    shutil.copyfile(file, folder / f"{name}.png")
    return Picture(Path(f"{name}.png"), caption)


def render_markdown(blocks: Sequence[Block]) -> str:
    """GitHub-flavoured Markdown; characters with a meaning in it are escaped outside of code."""
    return "\n\n".join(_block_as_markdown(block) for block in blocks) + "\n"


def _block_as_markdown(block: Block) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {_escape_markdown(block.text)}"
    if isinstance(block, Paragraph):
        text = _escape_markdown(block.text)
        return f"> **Attention.** {text}" if block.is_warning else text
    if isinstance(block, Code):
        fence = "```"
        while fence in block.text:
            fence += "`"
        return f"{fence}\n{block.text}\n{fence}"
    if isinstance(block, Picture):
        caption = _escape_markdown(block.caption)
        return f"![{caption}]({block.file.as_posix().replace(' ', '%20')})\n\n*{caption}*"
    caption = f"{_escape_markdown(block.caption)}\n\n" if block.caption else ""
    lines = [
        "| " + " | ".join(map(_escape_markdown, block.header)) + " |",
        "|" + "|".join(["---", *["---:"] * (len(block.header) - 1)]) + "|",
        *("| " + " | ".join(_cell_as_markdown(cell) for cell in row) + " |" for row in block.rows),
    ]
    return caption + "\n".join(lines)


def _cell_as_markdown(cell: str | Cell) -> str:
    if isinstance(cell, str):
        return _escape_markdown(cell)
    text = _escape_markdown(cell.text)
    text = f"**{text}**" if cell.is_best else text
    return f"{text} {_escape_markdown(cell.note)}" if cell.note else text


def _escape_markdown(text: str) -> str:
    escaped = "".join(f"\\{letter}" if letter in r"\`*_{}[]<>|#" else letter for letter in text)
    return " ".join(escaped.split())


def render_html(blocks: Sequence[Block], *, title: str, folder: str | Path) -> str:
    """A page that needs no other file: its pictures are inside, it runs no script and loads nothing.

    Args:
        blocks: what stands on the page; all text is escaped.
        title: of the browser's window.
        folder: where the pictures' files are.
    """
    body = "\n".join(_block_as_html(block, Path(folder)) for block in blocks)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _block_as_html(block: Block, folder: Path) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{html.escape(block.text)}</h{block.level}>"
    if isinstance(block, Paragraph):
        opening = '<p class="warning">' if block.is_warning else "<p>"
        return f"{opening}{html.escape(block.text)}</p>"
    if isinstance(block, Code):
        return f"<pre>{html.escape(block.text)}</pre>"
    if isinstance(block, Picture):
        pixels = base64.b64encode((folder / block.file).read_bytes()).decode("ascii")
        caption = html.escape(block.caption)
        image = f'<img src="data:image/png;base64,{pixels}" alt="{caption}">'
        return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"
    caption = f"<caption>{html.escape(block.caption)}</caption>" if block.caption else ""
    header = "".join(f'<th scope="col">{html.escape(text)}</th>' for text in block.header)
    rows = "".join("<tr>" + "".join(map(_cell_as_html, row)) + "</tr>\n" for row in block.rows)
    return f'<div class="scroll"><table>{caption}<thead><tr>{header}</tr></thead>\n<tbody>{rows}</tbody></table></div>'


def _cell_as_html(cell: str | Cell) -> str:
    if isinstance(cell, str):
        return f"<td>{html.escape(cell)}</td>"
    note = f'<span class="note">{html.escape(cell.note)}</span>' if cell.note else ""
    opening = '<td class="best">' if cell.is_best else "<td>"
    return f"{opening}{html.escape(cell.text)}{note}</td>"
