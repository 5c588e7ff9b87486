"""What every test shares: no network, one thread, fixed seeds, caches that vanish, and photos made on the spot.

Imports nothing heavy: `pytest --collect-only tests/test_layout.py` must not wait for torch.
"""

import os
import random
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent

# Set before any test module imports torch, datasets, wandb or trackio: they read these once, when they are imported.
_caches = Path(tempfile.mkdtemp(prefix="geomae-tests-"))
os.environ.update(
    {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(_caches / "huggingface"),
        "HF_DATASETS_CACHE": str(_caches / "datasets"),
        "GEOMAE_CACHE": str(_caches / "geomae"),
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(_caches),
        "WANDB_SILENT": "true",
        "TRACKIO_DIR": str(_caches / "trackio"),
        "MPLBACKEND": "Agg",
    }
)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two xdist workers on two cores: more threads only wait for each other


def pytest_unconfigure() -> None:
    """Remove this process's caches."""
    shutil.rmtree(_caches, ignore_errors=True)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip `gpu` tests where there is no CUDA device; torch is imported for them alone."""
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Refuse every connection that leaves this machine, at once and by name, instead of waiting for it to time out."""
    connect = socket.socket.connect

    def connect_locally(self: socket.socket, address: Any) -> None:
        host = address[0] if self.family in (socket.AF_INET, socket.AF_INET6) else "localhost"
        if host not in ("localhost", "127.0.0.1", "::1"):
            raise OSError(f"a test tried to reach {address}: tests make their own data and use no network")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect_locally)
        yield


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Seed Python and NumPy, and torch where a test module has imported it."""
    random.seed(0)
    np.random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real photos and coordinates: `GEOMAE_SHARED_DATA`, or `../shared/data` beside the checkout."""
    folder = Path(os.environ.get("GEOMAE_SHARED_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set GEOMAE_SHARED_DATA to the folder that holds geotags/ and photos/")
    return folder


@pytest.fixture
def make_photo(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a smooth random JPEG of `width` x `height` pixels below `tmp_path` and returns its path.

    The picture is a pure function of `seed`; `orientation` is an EXIF orientation from 1 to 8.
    """

    def write(
        name: str = "photo.jpg",
        *,
        width: int = 96,
        height: int = 64,
        seed: int = 0,
        quality: int = 90,
        orientation: int | None = None,
    ) -> Path:
        from PIL import Image

        coarse = np.random.default_rng(seed).integers(0, 256, size=(4, 6, 3), dtype=np.uint8)
        photo = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        exif = Image.Exif()
        if orientation is not None:
            exif[0x0112] = orientation
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        photo.save(path, quality=quality, exif=exif)
        return path

    return write


@pytest.fixture
def full_disk() -> Callable[[int], AbstractContextManager[None]]:
    """A context in which no file can become larger than so many bytes: a disk that is full."""
    import resource  # not on Windows

    @contextmanager
    def filled(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return filled


@pytest.fixture
def tiny_sizes() -> dict[str, Any]:
    """Sizes of a GeoMAE that runs in milliseconds: 32-pixel photos, 16 patches, 4 of them visible."""
    return {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "image_size": 32,
        "patch_size": 8,
        "decoder_hidden_size": 16,
        "decoder_num_hidden_layers": 2,
        "decoder_num_attention_heads": 4,
        "decoder_intermediate_size": 32,
        "head_hidden_sizes": [16, 8],
    }


@pytest.fixture(scope="module")
def upload_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where Gradio would put what is uploaded to the demo page."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("uploads")
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        yield folder


@pytest.fixture(scope="module")
def geolocator(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny model of cells for the demo page; torch is imported for its tests alone."""
    from geocell_models import save_cell_model
    from packed_photos import TINY

    from geomae.demo import Geolocator

    return Geolocator(save_cell_model(tmp_path_factory.mktemp("cells"), TINY))
