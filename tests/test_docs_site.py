"""The site of docs/: it builds without a warning, names every public name once, and loads nothing from elsewhere."""

import ast
import dataclasses
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from launching import ROOT

pytest.importorskip("mkdocstrings")

import griffe
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort

from geomae.evaluation import EvaluationArguments
from geomae.training import DataArguments, FinetuneArguments, GeoMAETrainingArguments

PACKAGES = [ROOT / "modeling", *sorted(path.parent for path in (ROOT / "geomae").glob("*/__init__.py"))]


def public_names(package: Path) -> Iterator[str]:
    """`package.name` of every name in a package's `__all__`, read and not imported."""
    for node in ast.parse((package / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            dotted = ".".join(package.relative_to(ROOT).parts)
            yield from (f"{dotted}.{name}" for name in ast.literal_eval(node.value))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, as `make docs` builds it: `strict: true` in mkdocs.yml makes every warning an error."""
    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder)))
    return folder


def test_site_builds_strictly_with_every_page_of_docs(site: Path) -> None:
    assert load_config(str(ROOT / "mkdocs.yml")).strict
    pages = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    assert pages <= {path.relative_to(site) for path in site.rglob("*.html")}


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_every_public_name_is_in_the_reference_exactly_once(site: Path, package: Path) -> None:
    headings = Counter(
        anchor for page in (site / "api").glob("*.html") for anchor in re.findall(r'id="([\w.]+)"', page.read_text())
    )
    names = list(public_names(package))
    assert names
    for name in names:
        assert headings[name] == 1, f"docs/api has {name} {headings[name]} times: is it without a docstring?"


def test_site_loads_nothing_from_elsewhere(site: Path) -> None:
    loading = re.compile(
        r"""(?:<(?:script|img|iframe|source)[^>]*\ssrc|<link[^>]*\shref)=["']?(?:https?:)?//[^"'>\s]+"""
    )
    in_styles = re.compile(r"""(?:@import\s*|url\()["']?(?:https?:)?//[^"')\s]+""")
    found = [hit for page in site.rglob("*.html") for hit in loading.findall(page.read_text(encoding="utf-8"))]
    found += [hit for sheet in site.rglob("*.css") for hit in in_styles.findall(sheet.read_text(encoding="utf-8"))]
    assert (site / "search" / "search_index.json").is_file()
    assert not found


@pytest.mark.parametrize(
    "arguments",
    [DataArguments, EvaluationArguments, FinetuneArguments, GeoMAETrainingArguments],
    ids=lambda a: a.__name__,
)
def test_reference_explains_an_option_as_help_does(arguments: type) -> None:
    extensions = griffe.load_extensions(str(ROOT / "docs" / "option_explanations.py"))
    module = griffe.load(arguments.__module__, search_paths=[str(ROOT)], extensions=extensions)
    shown = module[arguments.__name__].members
    explained = {
        field.name: field.metadata["help"]
        for field in dataclasses.fields(arguments)
        if field.name in shown and "help" in field.metadata
    }
    assert explained
    for name, explanation in explained.items():
        written = shown[name].docstring.value
        assert written == explanation or re.fullmatch(as_pattern(written), explanation), name


def as_pattern(text: str) -> str:
    """A text whose `NAMES` in backticks stand for what is known at run time."""
    return "(?s)" + "".join(".*" if part.isupper() else re.escape(part) for part in re.split(r"`([A-Z_]+)`", text))


def make_site(folder: Path, page: str, **files: str) -> Path:
    """A site of one page, built strictly with the hook, in a checkout that holds the files; `__` stands for a dot."""
    (folder / "docs").mkdir()
    (folder / "docs" / "index.md").write_text(page)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    hook = str(ROOT / "docs" / "linked_files.py")
    (folder / "mkdocs.yml").write_text(yaml.safe_dump({"site_name": "one page", "strict": True, "hooks": [hook]}))
    config = load_config(str(folder / "mkdocs.yml"), site_dir=str(folder / "site"), use_directory_urls=False)
    build(config)
    return folder / "site"


def test_what_a_page_links_to_outside_of_docs_comes_along_and_what_that_links_to(tmp_path: Path) -> None:
    page = "[numbers](../numbers.md) and [settings](../run.yaml)\n"
    site = make_site(tmp_path, page, numbers__md="[picture](map.svg)\n", run__yaml="seed: 0\n", map__svg="<svg/>")
    shown = (site / "index.html").read_text()
    assert 'href="repository/numbers.html"' in shown
    assert 'href="repository/run.yaml.html"' in shown
    assert 'href="map.svg"' in (site / "repository" / "numbers.html").read_text()
    assert (site / "repository" / "map.svg").read_text() == "<svg/>"
    assert "seed" in (site / "repository" / "run.yaml.html").read_text()


def test_a_link_to_what_is_not_there_breaks_the_build(tmp_path: Path) -> None:
    with pytest.raises(Abort):
        make_site(tmp_path, "[numbers](../absent.md)\n")
