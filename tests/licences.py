"""Under which licence everything is that this project stands on: `python tests/licences.py` fills docs/dependencies.md.

Read from the metadata of what is installed, so it names the versions that were tested.
"""

import re
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "dependencies.md"
BEGIN, END = "<!-- licences -->", "<!-- /licences -->"
OURS = "geomae"
PEERS = "bench"  # the extra of what ours is measured beside, which nothing else imports
# What may be linked from, and shipped beside, a program under Apache-2.0; the weak copyleft ones stay separate files.
PERMISSIVE = re.compile(
    r"(?i)apache|mit|bsd|isc|psf|python software foundation|unlicense|zlib|hpnd|cc0|public domain|blueoak|bsl"
)
WEAK_COPYLEFT = re.compile(r"(?i)mpl|mozilla|lgpl|lesser general public")
PROPRIETARY = re.compile(r"(?i)nvidia|proprietary")


def licence_of(package: Distribution) -> str:
    """An SPDX expression where the package gives one, else its classifiers or what it calls its licence."""
    metadata = package.metadata
    if expression := metadata.get("License-Expression"):
        return expression
    classified = [line for line in metadata.get_all("Classifier") or () if line.startswith("License ::")]
    named = [line.rpartition(" :: ")[2] for line in classified if not line.endswith("OSI Approved")]
    text = (metadata.get("License") or "").strip().splitlines()
    return ", ".join(named) or (text[0][:60] if text else "")


def direct_requirements() -> list[tuple[str, Requirement]]:
    """Extra, or an empty text, and what the package itself asks for; its extras that name each other left out."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lists = {"": project["dependencies"], **project["optional-dependencies"]}
    rows = [(extra, Requirement(line)) for extra, lines in lists.items() if extra != PEERS for line in lines]
    return sorted((row for row in rows if row[1].name != OURS), key=lambda row: (row[0], row[1].name.lower()))


def requirements_of(package: Distribution, extras: Iterable[str]) -> Iterator[Requirement]:
    """What it asks for on this machine, with these extras."""
    for line in package.requires or ():
        requirement = Requirement(line)
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield requirement


def all_packages() -> dict[str, Distribution]:
    """Everything that comes along with all extras, by name; what is not installed here is left out."""
    found: dict[str, Distribution] = {}
    waiting = [requirement for _, requirement in direct_requirements()]
    while waiting:
        requirement = waiting.pop()
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        try:
            package = distribution(requirement.name)
        except PackageNotFoundError:
            continue
        if name not in found and name != OURS:
            found[name] = package
            waiting += requirements_of(package, requirement.extras)
    return found


def render_table() -> str:
    """Direct dependencies as Markdown."""
    lines = ["| package | for | allowed | licence |", "|---|---|---|---|"]
    for extra, requirement in direct_requirements():
        try:
            licence = licence_of(distribution(requirement.name))
        except PackageNotFoundError:
            licence = "not installed where this was made"
        lines.append(f"| {requirement.name} | {extra or 'everything'} | `{requirement.specifier}` | {licence} |")
    return "\n".join(lines)


def fill(text: str) -> str:
    """The page with its table made anew."""
    begin, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    return f"{text[:begin]}\n{render_table()}\n{text[end:]}"


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"wrote {PAGE.name}")
