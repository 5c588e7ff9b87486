"""What reaches site-packages: one name, both halves of the house, and nothing that hides behind the checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run_python(code: str, *options: str, folder: Path, on_path: Path | None = None) -> str:
    """Run `code` in a fresh interpreter that stands in `folder`, where no checkout is, and return what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(on_path or "")}
    done = subprocess.run(
        [sys.executable, *options, "-c", code], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def pip(*arguments: str | Path, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the wheel is built from, so that building leaves no build/ and no egg-info in the checkout."""
    copy = tmp_path_factory.mktemp("source") / "checkout"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("geomae", "modeling"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", source, "--wheel-dir", folder, "--no-deps", "--no-index", "--no-build-isolation", folder=folder)
    (built,) = folder.glob("geomae-*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the wheel is installed into, as site-packages would be."""
    folder = tmp_path_factory.mktemp("site")
    pip("install", wheel, "--target", folder, "--no-deps", "--no-index", folder=folder)
    return folder


def test_wheel_puts_one_name_into_site_packages(wheel: Path, site: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"geomae"}
    assert sorted(path.name for path in site.iterdir() if not path.name.endswith(".dist-info")) == ["geomae"]


def test_wheel_holds_every_module_and_both_type_markers(wheel: Path) -> None:
    expected = {str(path.relative_to(ROOT)) for path in (ROOT / "geomae").rglob("*.py")}
    expected |= {f"geomae/modeling/{path.name}" for path in (ROOT / "modeling").glob("*.py")}
    expected |= {"geomae/py.typed", "geomae/modeling/py.typed"}
    expected |= {f"geomae/demo/{name}" for name in ("drop.js", "focus.js", "map.js", "page.css", "world.json")}
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("geomae/")}
    assert held == expected


def test_installed_wheel_offers_both_halves_and_no_top_level_modeling(site: Path, tmp_path: Path) -> None:
    code = """
from importlib.util import find_spec
print(find_spec("geomae").origin, find_spec("geomae.modeling").origin, find_spec("modeling"))
"""
    printed = run_python(code, folder=tmp_path, on_path=site)
    assert printed == f"{site / 'geomae' / '__init__.py'} {site / 'geomae' / 'modeling' / '__init__.py'} None"


def test_installed_wheel_saves_a_checkpoint_with_its_code_and_reloads_it_without_trusting_that_code(
    site: Path, tmp_path: Path
) -> None:
    code = """
import torch
from geomae.modeling import GeoMAEConfig, GeoMAEForGeolocation
from transformers import AutoModelForImageClassification
sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32)
decoder = dict(decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2)
model = GeoMAEForGeolocation(GeoMAEConfig(**sizes, **decoder, decoder_intermediate_size=16)).eval()
model.save_pretrained("checkpoint")
loaded = AutoModelForImageClassification.from_pretrained("checkpoint").eval()
photos = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
print(type(loaded).__module__, torch.equal(loaded(photos).coordinates_deg, model(photos).coordinates_deg))
"""
    assert run_python(code, folder=tmp_path, on_path=site) == "geomae.modeling.modeling_geomae True"
    copied = {path.name: path.read_bytes() for path in (tmp_path / "checkpoint").glob("*.py")}
    assert "modeling_geomae.py" in copied
    assert copied == {name: (ROOT / "modeling" / name).read_bytes() for name in copied}


def test_installed_wheel_loads_checkpoints_with_its_own_models(site: Path, tmp_path: Path) -> None:
    code = """
from geomae.checkpoints import load_embedder
from geomae.modeling import GeoMAEConfig, GeoMAEModel
sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32)
GeoMAEModel(GeoMAEConfig(**sizes)).save_pretrained("checkpoint")
print(type(load_embedder("checkpoint")).__module__)
"""
    assert run_python(code, folder=tmp_path, on_path=site) == "geomae.modeling.modeling_geomae"


@pytest.mark.parametrize("mode", ["lenient", "strict"])
def test_editable_install_finds_both_halves_in_the_checkout(source: Path, tmp_path: Path, mode: str) -> None:
    """PEP 660: the editable wheel is unpacked into a site folder whose .pth files are read, as pip does."""
    checkout = tmp_path / "checkout"  # strict mode leaves a link tree there, which the wheel fixture must not see
    shutil.copytree(source, checkout, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    options = {"editable_mode": mode}
    build = f"from setuptools.build_meta import build_editable; build_editable({str(tmp_path)!r}, {options!r})"
    run_python(build, folder=checkout)
    (editable,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(editable) as archive:
        archive.extractall(tmp_path / "site")
    code = f"""
import os, site
from importlib.util import find_spec
site.addsitedir({str(tmp_path / "site")!r})
print(*(os.path.realpath(find_spec(name).origin) for name in ("geomae", "geomae.modeling", "geomae.data")))
"""
    files = ("geomae/__init__.py", "modeling/__init__.py", "geomae/data/__init__.py")
    # -S: an editable install of this very checkout, as `make setup` makes it, would answer first.
    assert run_python(code, "-S", folder=tmp_path) == " ".join(str((checkout / file).resolve()) for file in files)
