"""A hook of mkdocs: what docs/ links to outside of it (results, configurations, code) comes along into the site.

`../results/heads/heads.md` in docs/heads.md works where the repository is browsed. In the site that file is the page
`repository/results/heads/heads.html`, and the link leads there. Configurations and code become pages, too; pictures
stay as they are. So the site needs no address of a repository, and shows the checkout that it was built from.
"""

import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

__all__ = ["on_files", "on_page_markdown"]

OUTSIDE = "repository/"  # where in the site the files outside of docs/ are
LISTINGS = {".json": "json", ".py": "python", ".yaml": "yaml", ".toml": "toml"}  # shown as pages
LINK = re.compile(r"\]\((?!\w+:|[#/])([^)\s#]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add every file of the checkout that a page links to, or that an added page links to."""
    root = Path(config.config_file_path).parent
    pages = list(files.documentation_pages())
    while pages:
        page = pages.pop()
        for path in _linked_outside(page.content_string, page.src_uri).values():
            if (root / path).is_file() and files.get_file_from_path(_uri_in_site(path)) is None:
                added = _file_of_checkout(config, root, path)
                files.append(added)
                pages += [added] if path.endswith(".md") else []
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Let links to files outside of docs/ lead to where the site has them."""
    source = page.file.src_uri
    if posixpath.splitext(posixpath.splitext(source)[0])[1] in LISTINGS:  # `](` of code is no link
        return markdown
    targets = _linked_outside(markdown, source)

    def relinked(match: re.Match[str]) -> str:
        if match[1] not in targets:
            return match[0]
        return f"]({posixpath.relpath(_uri_in_site(targets[match[1]]), posixpath.dirname(source) or '.')}"

    return LINK.sub(relinked, markdown)


def _linked_outside(markdown: str, source: str) -> dict[str, str]:
    """Every relative link that leaves docs/: as it is written, and the path in the checkout that it leads to."""
    folder = posixpath.dirname(source.removeprefix(OUTSIDE) if source.startswith(OUTSIDE) else f"docs/{source}")
    found = {target: posixpath.normpath(posixpath.join(folder, target)) for target in LINK.findall(markdown)}
    return {target: path for target, path in found.items() if not path.startswith("docs/")}


def _uri_in_site(path: str) -> str:
    return OUTSIDE + path + (".md" if Path(path).suffix in LISTINGS else "")


def _file_of_checkout(config: MkDocsConfig, root: Path, path: str) -> File:
    uri, level = _uri_in_site(path), InclusionLevel.NOT_IN_NAV
    language = LISTINGS.get(Path(path).suffix)
    if language is None:
        return File.generated(config, uri, abs_src_path=os.fspath(root / path), inclusion=level)
    code = (root / path).read_text(encoding="utf-8")
    page = f"---\nsearch:\n  exclude: true\n---\n# {path}\n\n~~~~~~{language}\n{code}\n~~~~~~\n"
    return File.generated(config, uri, content=page, inclusion=level)
