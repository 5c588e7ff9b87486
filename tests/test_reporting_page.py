"""One page, two renderings: nothing in the text is taken for markup."""

from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("matplotlib")

from geomae.reporting.page import Cell, Code, Heading, Paragraph, Picture, Table, render_html, render_markdown

EVIL = '<script>alert("x")</script> & | *bold* `code` ![x](y) \n# title'
BLOCKS = [
    Heading(EVIL),
    Paragraph(EVIL),
    Paragraph(EVIL, is_warning=True),
    Code(EVIL),
    Table([EVIL, "mean, km"], [[EVIL, Cell(EVIL, note=EVIL, is_best=True)]], caption=EVIL),
]


class Collector(HTMLParser):
    """Tags and texts as a browser would read them."""

    def __init__(self):
        super().__init__()
        self.tags, self.texts = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)


def read(page):
    collector = Collector()
    collector.feed(page)
    return collector


def test_ids_and_names_in_html_stay_text(tmp_path):
    page = read(render_html(BLOCKS, title=EVIL, folder=tmp_path))
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.texts.count(EVIL) == 10  # title, heading, 2 paragraphs, code, caption, header, 2 cells, note


def test_an_html_page_needs_no_other_file(tmp_path):
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "a.png")
    page = read(render_html([Picture(Path("a.png"), 'a "quoted" <caption>')], title="x", folder=tmp_path))
    (image,) = [attributes for tag, attributes in page.tags if tag == "img"]
    assert image["src"].startswith("data:image/png;base64,")
    assert image["alt"] == 'a "quoted" <caption>'
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}


def test_ids_in_markdown_do_not_break_tables_or_open_tags():
    lines = render_markdown([BLOCKS[-1]]).splitlines()
    row = lines[-1].replace(r"\|", "")
    assert row.count("|") == 3  # two cells
    assert "<script>" not in row.replace(r"\<", "").replace(r"\>", "")
    assert r"\<script\>" in row


def test_markdown_code_outlives_a_fence_inside_it():
    text = render_markdown([Code("a\n```\nb")])
    assert text == "````\na\n```\nb\n````\n"


def test_markdown_pictures_point_to_their_files():
    assert "![a caption](my%20figure.png)" in render_markdown([Picture(Path("my figure.png"), "a caption")])


def test_best_cells_are_marked_in_both():
    table = Table(["", "km"], [["a", Cell("12", "[1, 20]", is_best=True)]])
    assert "**12** \\[1, 20\\]" in render_markdown([table])
    assert '<td class="best">12<span class="note">[1, 20]</span></td>' in render_html([table], title="x", folder=".")
