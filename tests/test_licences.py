"""Everything that is installed with this project may be used with it, and the page says under which licence."""

import re

import pytest
from licences import PAGE, PERMISSIVE, PROPRIETARY, WEAK_COPYLEFT, all_packages, direct_requirements, fill, licence_of

PACKAGES = all_packages()


def test_every_licence_is_one_that_goes_together_with_apache() -> None:
    assert len(PACKAGES) > 100
    assert {"torch", "transformers", "numpy", "gradio", "pytest"} <= PACKAGES.keys()
    refused = {}
    for name, package in PACKAGES.items():
        licence = licence_of(package)
        is_cuda = name.startswith(("nvidia-", "cuda-")) and (PROPRIETARY.search(licence) or not licence)
        if not (PERMISSIVE.search(licence) or WEAK_COPYLEFT.search(licence) or is_cuda):
            refused[name] = licence
    assert refused == {}


@pytest.mark.parametrize("licence", ["GPL-3.0-only", "GNU Affero General Public License v3", "SSPL-1.0", "", "Other"])
def test_licences_that_do_not_are_noticed(licence: str) -> None:
    assert not PERMISSIVE.search(licence)
    assert not WEAK_COPYLEFT.search(licence)


def test_the_page_lists_every_direct_dependency_with_its_floor_and_licence() -> None:
    rows = [line.split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    listed = {(row[0].strip("| "), row[2].strip("`")) for row in rows if len(row) == 4 and row[2].startswith("`>=")}
    asked = {(requirement.name, str(requirement.specifier)) for _, requirement in direct_requirements()}
    assert listed == asked, "run python tests/licences.py"
    text = PAGE.read_text(encoding="utf-8")
    assert "not installed where this was made" not in fill(text)
    assert not re.search(r"\| *\|$", text, re.MULTILINE), "a licence is missing"
