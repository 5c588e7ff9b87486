"""A saved folder is all that anyone needs: it loads in a fresh process without this repository, bitwise the same."""

import functools
import importlib.metadata
import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from geocell_models import save_cell_model
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import pipeline

from geomae.populated_places import write_places
from modeling import (
    GeoBaselineConfig,
    GeoBaselineForGeolocation,
    GeoMAEConfig,
    GeoMAEForGeolocation,
    GeoMAEForPreTraining,
    GeoMAEModel,
)

FORGET_THIS_REPOSITORY = """
import sys
finders = [finder for finder in sys.meta_path if "__editable__" not in getattr(finder, "__module__", "")]
sys.path[:] = [folder for folder in sys.path if folder and folder != {root!r}]

class OnlyWhatTheModelsNeed:
    '''As in an environment with torch, transformers and timm, and what these require.'''

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {missing!r}:
            return None
        return next((spec for finder in finders if (spec := finder.find_spec(name, path, target))), None)

    def find_distributions(self, context):
        return [found for finder in finders if hasattr(finder, "find_distributions")
                for found in finder.find_distributions(context)]

sys.meta_path[:] = [OnlyWhatTheModelsNeed()]
"""

STRANGER = """
import importlib.util, sys, torch, transformers
from safetensors.torch import load_file, save_file

for absent in ("modeling", "geomae", "cv2", "datasets", "accelerate"):
    assert importlib.util.find_spec(absent) is None, f"{absent} can be imported, so this proves nothing"
auto_class, folder, photos, answers = sys.argv[1:]
model = getattr(transformers, auto_class).from_pretrained(folder, trust_remote_code=True).eval()
inputs = load_file(photos)
if auto_class != "AutoModelForPreTraining":
    inputs.pop("noise", None)
with torch.no_grad():
    answer = model(**inputs)
save_file({k: v.contiguous() for k, v in answer.items() if torch.is_tensor(v)}, answers)
model.save_pretrained(answers + "-again")
"""


PIPELINE_STRANGER = """
import importlib.util, json, sys, transformers

for absent in ("modeling", "geomae", "cv2", "datasets", "accelerate"):
    assert importlib.util.find_spec(absent) is None, f"{absent} can be imported, so this proves nothing"
folder, photo = sys.argv[1:]
locate = transformers.pipeline("image-to-coordinates", model=folder, trust_remote_code=True, device="cpu")
processor = transformers.AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
pixels = processor(transformers.image_utils.load_image(photo))["pixel_values"]
print(json.dumps([locate(photo), locate([photo, photo], batch_size=2), pixels.flatten().tolist()]))
"""


@functools.cache
def modules_not_required() -> set[str]:
    """What can be imported here and could not with torch, transformers, timm and what these require alone."""
    required, waiting = set(), ["torch", "transformers", "timm"]
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in required:
            continue
        required.add(name)
        requirements = [Requirement(text) for text in importlib.metadata.requires(name) or []]
        waiting += [each.name for each in requirements if each.marker is None or each.marker.evaluate({"extra": ""})]
    owners = importlib.metadata.packages_distributions()
    return {module for module, names in owners.items() if not {canonicalize_name(name) for name in names} & required}


def run_as_a_stranger(script: str, arguments: list[str], elsewhere: Path) -> str:
    """Standard output of a script in a process that can import neither this repository nor what it needs besides."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    root, missing = str(Path(__file__).parent.parent), modules_not_required()
    done = subprocess.run(
        [sys.executable, "-c", FORGET_THIS_REPOSITORY.format(root=root, missing=missing) + script, *arguments],
        cwd=elsewhere,
        env=environment | {"HF_MODULES_CACHE": str(elsewhere / "modules")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def ask_a_stranger(auto_class: str, folder: Path, inputs: dict[str, torch.Tensor], tmp_path: Path) -> dict[str, Any]:
    """Load `folder` in a process that knows nothing of this repository, and return what the model answers there."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    save_file(inputs, elsewhere / "photos.safetensors")
    answers = elsewhere / "answers.safetensors"
    run_as_a_stranger(
        STRANGER, [auto_class, str(folder), str(elsewhere / "photos.safetensors"), str(answers)], elsewhere
    )
    return load_file(answers)


@pytest.mark.parametrize("task", ["AutoModelForPreTraining", "AutoModel", "AutoModelForImageClassification"])
def test_checkpoint_loads_without_this_repository(tiny_sizes: dict, tmp_path: Path, task: str) -> None:
    classes = {
        "AutoModelForPreTraining": GeoMAEForPreTraining,
        "AutoModel": GeoMAEModel,
        "AutoModelForImageClassification": GeoMAEForGeolocation,
    }
    config = GeoMAEConfig(**tiny_sizes, position_embedding="sincos", head_type="sphere", pooling="mean")
    model = classes[task](config).eval()
    model.save_pretrained(tmp_path / "model")
    inputs = {"pixel_values": torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8), "noise": torch.rand(2, 16)}
    there = ask_a_stranger(task, tmp_path / "model", inputs, tmp_path)
    if task != "AutoModelForPreTraining":
        inputs.pop("noise")
    here = {name: value for name, value in model(**inputs).items() if torch.is_tensor(value)}
    assert here.keys() == there.keys()
    assert all(torch.equal(here[name], there[name]) for name in here)
    again = tmp_path / "elsewhere" / "answers.safetensors-again"
    assert {file.name for file in again.glob("*.py")} == {file.name for file in (tmp_path / "model").glob("*.py")}


@pytest.mark.parametrize(
    "config",
    [
        GeoBaselineConfig(backbone="resnet10t", image_size=32, head_hidden_sizes=[8]),
        GeoBaselineConfig(
            backbone="vit_tiny_patch16_224", backbone_kwargs={"depth": 1}, image_size=32, head_hidden_sizes=[8]
        ),
    ],
    ids=["resnet", "vit"],
)
def test_baseline_checkpoint_loads_without_this_repository(tmp_path: Path, config: GeoBaselineConfig) -> None:
    model = GeoBaselineForGeolocation(config).eval()
    model.save_pretrained(tmp_path / "model")
    inputs = {"pixel_values": torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8), "noise": torch.rand(2, 16)}
    there = ask_a_stranger("AutoModelForImageClassification", tmp_path / "model", inputs, tmp_path)
    assert torch.equal(model(inputs["pixel_values"]).coordinates_deg, there["coordinates_deg"])


ALSO_SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("hybrid", "vmf_mixture")]  # 11 s each


@pytest.mark.parametrize("head_type", ["geocells", *ALSO_SLOW])
def test_checkpoint_with_the_cells_of_mp16_loads_without_this_repository(
    tiny_sizes: dict, tmp_path: Path, head_type: str
) -> None:
    """12,893 cells in three partitions, as ISN has them; their places are weights, so no file lies beside them."""
    counts = [3298, 7202, 12893]
    rng = np.random.default_rng(0)
    config = GeoMAEConfig(**tiny_sizes | {"head_type": head_type, "num_geocells": counts, "temperature": 1.5})
    model = GeoMAEForGeolocation(config).eval()
    model.head.set_geocells(
        [np.stack([rng.uniform(-60, 70, n), rng.uniform(-180, 180, n)], axis=-1) for n in counts],
        [rng.integers(coarser, size=n) for coarser, n in pairwise(counts)],
        rng.uniform(10, 1e5, counts[-1]),
        rng.uniform(1, 300, counts[-1]),
    )
    model.save_pretrained(tmp_path / "model")
    inputs = {
        "pixel_values": torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8),
        "coordinates_deg": torch.tensor([[48.85, 2.35], [-33.9, 18.4]]),
    }
    there = ask_a_stranger("AutoModelForImageClassification", tmp_path / "model", inputs, tmp_path)
    with torch.no_grad():
        here = {name: value for name, value in model(**inputs).items() if torch.is_tensor(value)}
    assert here.keys() == there.keys() >= {"loss", "coordinates_deg", "error_km", "logits"}
    assert all(torch.equal(here[name], there[name]) for name in here)
    again = GeoMAEForGeolocation.from_pretrained(tmp_path / "model").eval()
    for name, tensor in model.head.state_dict().items():
        assert torch.equal(tensor, again.head.state_dict()[name]), name
    assert again.head.temperature == 1.5


def test_pipeline_of_a_checkpoint_needs_neither_this_repository_nor_its_requirements(
    tiny_sizes: dict, tmp_path: Path
) -> None:
    folder = save_cell_model(tmp_path / "model", tiny_sizes)
    write_places(folder)
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.png")
    photo = str(tmp_path / "photo.png")
    one, two, pixels = json.loads(run_as_a_stranger(PIPELINE_STRANGER, [str(folder), photo], tmp_path))
    here = pipeline("image-to-coordinates", model=GeoMAEForGeolocation.from_pretrained(folder), device="cpu")
    assert one == here(photo)
    assert one["nearest_place"]["name"]
    assert two == here([photo, photo], batch_size=2)
    assert pixels == here.image_processor(Image.fromarray(noise))["pixel_values"].flatten().tolist()


@pytest.mark.parametrize("saved", [GeoMAEForPreTraining, GeoMAEModel, GeoMAEForGeolocation])
def test_every_head_is_reachable_from_any_checkpoint(tiny_sizes: dict, tmp_path: Path, saved: type) -> None:
    saved(GeoMAEConfig(**tiny_sizes)).save_pretrained(tmp_path)
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert auto_map == {
        "AutoConfig": "configuration_geomae.GeoMAEConfig",
        "AutoModel": "modeling_geomae.GeoMAEModel",
        "AutoModelForPreTraining": "modeling_geomae.GeoMAEForPreTraining",
        "AutoModelForImageClassification": "modeling_geomae.GeoMAEForGeolocation",
    }
    named = {target.split(".")[0] + ".py" for target in auto_map.values()}
    assert named <= {file.name for file in tmp_path.glob("*.py")}
    for task in (GeoMAEForPreTraining, GeoMAEModel, GeoMAEForGeolocation):
        loaded = task.from_pretrained(tmp_path)
        assert all(torch.isfinite(tensor).all() for tensor in loaded.state_dict().values())


HEADS = {
    "tanh": {},
    "geocells": {"num_geocells": [3, 9]},
    "hybrid": {"num_geocells": [3, 9]},
    "vmf_mixture": {"num_geocells": [9]},
    "free mixture": {"head_type": "vmf_mixture", "num_mixture_components": 5},
}


@pytest.mark.parametrize("name", HEADS)
def test_half_precision_leaves_the_head_as_it_is(tiny_sizes: dict, tmp_path: Path, name: str) -> None:
    saved = GeoMAEForGeolocation(GeoMAEConfig(**{**tiny_sizes, "head_type": name, **HEADS[name]}))
    saved.save_pretrained(tmp_path / "float32")
    saved.bfloat16().save_pretrained(tmp_path / "bfloat16")
    coordinates_deg = torch.tensor([[48.85, 2.35], [-33.9, 18.4]])
    for model in (
        GeoMAEForGeolocation.from_pretrained(tmp_path / "float32", dtype=torch.bfloat16),
        GeoMAEForGeolocation.from_pretrained(tmp_path / "bfloat16"),
    ):
        for key, tensor in saved.head.state_dict().items():
            assert model.head.state_dict()[key].dtype == tensor.dtype, key
            assert torch.equal(model.head.state_dict()[key], tensor), key
        assert {p.dtype for p in model.backbone.parameters()} == {torch.bfloat16}
        assert torch.isfinite(model.eval()(torch.zeros(2, 3, 32, 32), coordinates_deg).loss)


@pytest.mark.parametrize("name", HEADS)
def test_a_head_that_the_checkpoint_lacks_starts_fresh(tiny_sizes: dict, tmp_path: Path, name: str) -> None:
    GeoMAEForPreTraining(GeoMAEConfig(**tiny_sizes)).save_pretrained(tmp_path)
    loaded = GeoMAEForGeolocation.from_pretrained(tmp_path, **{"head_type": name, **HEADS[name]})
    fresh = GeoMAEForGeolocation(GeoMAEConfig(**{**tiny_sizes, "head_type": name, **HEADS[name]}))
    for key, tensor in fresh.head.state_dict().items():
        if not key.startswith("layers."):
            assert torch.equal(loaded.head.state_dict()[key], tensor), key
    assert all(torch.isfinite(tensor).all() for tensor in loaded.head.state_dict().values())


def test_loaded_tensors_are_aligned(tiny_sizes: dict, tmp_path: Path) -> None:
    GeoMAEForGeolocation(GeoMAEConfig(**tiny_sizes)).save_pretrained(tmp_path)
    raw = load_file(tmp_path / "model.safetensors")
    assert any(tensor.data_ptr() % 64 for tensor in raw.values()), "safetensors maps tensors wherever they lie"
    model = GeoMAEForGeolocation.from_pretrained(tmp_path)
    assert not any(tensor.data_ptr() % 64 for tensor in model.state_dict().values())
