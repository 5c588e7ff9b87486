"""The house rules that a reviewer would otherwise watch: who may import whom, and that documents name what exists."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODELING = sorted((ROOT / "modeling").glob("*.py"))
GEOMAE = sorted((ROOT / "geomae").rglob("*.py"))
DOCUMENTS = [path.name for path in sorted(ROOT.glob("*.md"))]

# Distributions whose module has another name, and those that a dependency imports on our behalf.
OTHER_NAMES = {
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
    "faiss": "faiss-cpu",
    "huggingface_hub": "huggingface-hub",
    "wandb_workspaces": "wandb-workspaces",
    "yaml": "pyyaml",
}
# timm; transformers, when a configuration says `report_to: wandb`; torch, for `report_to: tensorboard` and for ONNX
IMPORTED_BY_OTHERS = {"torchvision", "wandb", "tensorboard", "onnxscript"}

# What the documents name and a run writes, or a reader brings.
NOT_IN_THE_CHECKOUT = ("outputs/", "data/my", "my_photos", ".venv/")


def imported_modules(path: Path) -> Iterator[str]:
    """Every module that a file imports, absolutely, anywhere in it: by statement or by `import_module("...")`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or ""
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            yield from (a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str))


def top_level(path: Path) -> set[str]:
    return {module.partition(".")[0] for module in imported_modules(path)}


def relative_imports(path: Path) -> list[ast.ImportFrom]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level > 0]


def text_files() -> list[Path]:
    """Every text file that git tracks; without git, every one neither hidden nor in outputs/."""
    if (ROOT / ".git").exists():
        command = ["git", "ls-files"]
        names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
        paths = [ROOT / name for name in names]
    else:
        paths = [path for path in ROOT.rglob("*") if not path.relative_to(ROOT).parts[0].startswith((".", "outputs"))]
    endings = (".py", ".toml", ".md", ".yaml", ".yml", ".json", ".csv", ".cff", ".html", ".svg", ".txt")
    return [path for path in paths if path.is_file() and (path.suffix in endings or path.name in ("Makefile", "run"))]


def paths_named_in(document: Path) -> Iterator[str]:
    """Paths in backticks and in fenced blocks; below an unindented `folder/` of a tree, relative to that folder."""
    fenced, folder = False, ""
    for line in document.read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            fenced, folder = not fenced, ""
            continue
        for passage in [line] if fenced else re.findall(r"`([^`]+)`", line):
            for name in re.findall(r"(?<![\w*/.-])[\w.-]+(?:/[\w.-]+)*/?(?![\w*/-])", passage):
                if not name.endswith(("/", ".py", ".yaml", ".toml", ".md", ".cff", "Makefile", "LICENSE")):
                    continue
                yield folder + name if fenced and line.startswith("  ") else name
        if fenced and not line.startswith(" "):
            first = line.split(" ")[0]
            folder = first if first.endswith("/") else ""


@pytest.mark.parametrize("path", MODELING, ids=lambda path: path.name)
def test_modeling_imports_nothing_that_a_checkpoint_folder_lacks(path: Path) -> None:
    # transformers cannot be installed without the first three, nor timm without torchvision, which brings Pillow
    with_these = {"huggingface_hub", "numpy", "safetensors", "PIL"}
    allowed = {"torch", "transformers", "timm", *with_these, *sys.stdlib_module_names}
    assert top_level(path) <= allowed, f"{path.name} imports {sorted(top_level(path) - allowed)}"


@pytest.mark.parametrize("path", GEOMAE, ids=lambda path: str(path.relative_to(ROOT)))
def test_geomae_never_imports_modeling(path: Path) -> None:
    modules = list(imported_modules(path))
    assert "modeling" not in top_level(path)
    assert not [module for module in modules if module.startswith("geomae.modeling")]
    assert not [node for node in relative_imports(path) if (node.module or "").partition(".")[0] == "modeling"]


def test_one_file_alone_is_the_door_from_geomae_to_modeling() -> None:
    """A command that takes a checkpoint needs the models, under the name that they have where it runs."""
    named = [path for path in GEOMAE if re.search(r"""["'.]modeling["']""", path.read_text(encoding="utf-8"))]
    assert [str(path.relative_to(ROOT)) for path in named] == ["geomae/checkpoints.py"]


def test_modeling_is_flat() -> None:
    folders = [path.name for path in (ROOT / "modeling").iterdir() if path.is_dir() and path.name != "__pycache__"]
    assert not folders, "transformers does not copy sub-folders beside a checkpoint"


@pytest.mark.parametrize("path", MODELING, ids=lambda path: path.name)
def test_transformers_finds_the_same_relative_imports_as_python_does(path: Path) -> None:
    """It copies the files that this expression finds: `from . import x` escapes it, and a docstring can trip it."""
    by_python = {(node.level, node.module) for node in relative_imports(path)}
    assert all(level == 1 and module and "." not in module for level, module in by_python), "only `from .x import y`"
    by_transformers = re.findall(r"^\s*(?:from|import)\s+\.(\S+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(by_transformers) == {module for _, module in by_python}


def test_tests_are_flat() -> None:
    nested = [path for path in (ROOT / "tests").rglob("*.py") if path.parent != ROOT / "tests"]
    assert not nested, "tests/modeling/ would shadow modeling/"


def test_every_package_is_typed_and_listed_in_the_wheel() -> None:
    packages = {
        str(path.parent.relative_to(ROOT)).replace(os.sep, ".") for path in (ROOT / "geomae").rglob("__init__.py")
    }
    with (ROOT / "pyproject.toml").open("rb") as file:
        listed = tomllib.load(file)["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(packages | {"geomae.modeling"})
    assert (ROOT / "geomae" / "py.typed").is_file()
    assert (ROOT / "modeling" / "py.typed").is_file()


def test_what_is_imported_is_declared_and_what_is_declared_is_imported() -> None:
    """`pip install geomae[report]` must bring everything that its code and the scripts import, and nothing else."""
    imported = set().union(*map(top_level, [*GEOMAE, *MODELING, *ROOT.glob("*.py")]))
    imported -= {"", "geomae", "modeling", *sys.stdlib_module_names}
    distributions = {OTHER_NAMES.get(module, module) for module in imported}
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    requirements = project["dependencies"] + project["optional-dependencies"]["report"]
    for extra in ("ray", "retrieval", "geocells", "demo", "dashboards", "onnx"):
        requirements += project["optional-dependencies"][extra]
    declared = {re.split(r"[<>=!~\[; ]", requirement)[0] for requirement in requirements}
    assert distributions <= declared
    assert declared - distributions <= IMPORTED_BY_OTHERS


@pytest.mark.parametrize(
    "path",
    [path for path in GEOMAE + MODELING if path.name == "__init__.py"],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_every_package_lists_its_public_names(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    targets = [ast.unparse(target) for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    assert "__all__" in targets


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_file_that_a_document_names_exists(document: str) -> None:
    named = {name for name in paths_named_in(ROOT / document) if not name.startswith(NOT_IN_THE_CHECKOUT)}
    assert not sorted(name for name in named if not (ROOT / name).exists())


def test_readme_names_every_script_and_every_file_of_modeling() -> None:
    named = set(paths_named_in(ROOT / "README.md"))
    scripts = [path for path in text_files() if path.parent == ROOT and path.suffix == ".py"]
    files = {str(path.relative_to(ROOT)) for path in [*MODELING, *scripts] if path.name != "__init__.py"}
    assert files <= named, f"missing from the tree in README.md: {sorted(files - named)}"


def test_no_file_names_a_path_of_one_machine() -> None:
    """`results/` and generated documents are where such paths slip in, by way of a recorded command."""
    someones = re.compile(r"(?<![\w.:/-])/(?:home|root|Users|mnt|scratch|work\w*|tmp/\w+)/[^\s\"'`)]*")
    found = {
        f"{path.relative_to(ROOT)}: {match}"
        for path in text_files()
        for match in someones.findall(path.read_text(encoding="utf-8"))
    }
    assert not found
