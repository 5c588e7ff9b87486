"""`gradient_checkpointing: true` recomputes activations instead of keeping them, and changes nothing else."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from config_files import ON_A_CPU
from launching import ROOT, run_twice_beside_itself
from packed_photos import TINY, pack, training_arguments
from torch import Tensor, nn
from transformers import PreTrainedModel

import run_finetune_geo
import run_pretrain_mae
from geomae.errors import ConfigError
from modeling import (
    GeoBaselineConfig,
    GeoBaselineForGeolocation,
    GeoMAEConfig,
    GeoMAEForGeolocation,
    GeoMAEForPreTraining,
)

RANDOM_DEPTH = TINY | {"drop_path_rate": 0.5, "hidden_dropout_prob": 0.1, "num_hidden_layers": 3}
SMALL_VIT = {"backbone": "vit_tiny_patch16_224", "image_size": 32, "drop_path_rate": 0.3, "head_hidden_sizes": [8]}
SMALL_RESNET = {"backbone": "resnet10t", "image_size": 32, "head_hidden_sizes": [8]}
MODELS = {
    "pretraining": lambda: GeoMAEForPreTraining(GeoMAEConfig(**RANDOM_DEPTH)),
    "fine-tuning": lambda: GeoMAEForGeolocation(GeoMAEConfig(**RANDOM_DEPTH)),
    "vit": lambda: GeoBaselineForGeolocation(GeoBaselineConfig(**SMALL_VIT)),
    "resnet": lambda: GeoBaselineForGeolocation(GeoBaselineConfig(**SMALL_RESNET)),
}


def built(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return MODELS[name]().train()


def batch_for(model: PreTrainedModel, num_photos: int = 4) -> dict[str, Tensor]:
    drawn = torch.Generator().manual_seed(1)
    size = model.config.image_size
    photos = torch.randint(0, 256, (num_photos, 3, size, size), dtype=torch.uint8, generator=drawn)
    has_head = hasattr(model, "head")
    return {"pixel_values": photos} | (
        {"coordinates_deg": torch.rand(num_photos, 2, generator=drawn)} if has_head else {}
    )


@contextmanager
def counting_saved_bytes(model: nn.Module) -> Iterator[list[int]]:
    """The bytes that the forward pass inside leaves for the backward pass, weights apart."""
    storages = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage
        return tensor

    total: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield total
    total.append(sum(storage.nbytes() for storage in storages.values()))


def step(model: PreTrainedModel, forward: Any = None) -> tuple[float, dict[str, Tensor], int]:
    """Loss, gradients and saved bytes of one step that draws the same random numbers each time."""
    model.zero_grad()
    torch.manual_seed(2)
    with counting_saved_bytes(model) as saved:
        loss = (forward or model)(**batch_for(model)).loss
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return loss.item(), gradients, saved[0]


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients_are_the_same_and_less_is_kept(name: str) -> None:
    model = built(name)
    loss, gradients, saved = step(model)
    model.gradient_checkpointing_enable()
    loss_again, gradients_again, saved_again = step(model)
    assert loss_again == loss
    assert gradients_again.keys() == gradients.keys()
    assert all(torch.equal(gradients_again[key], gradients[key]) for key in gradients)  # drop path repeats its draws
    assert saved_again < 0.8 * saved


@pytest.mark.parametrize("name", ["pretraining", "fine-tuning", pytest.param("vit", marks=pytest.mark.slow)])
def test_compiled_models_take_it_too(name: str) -> None:
    torch.compiler.reset()
    model = built(name)
    for module in model.modules():  # the compiled graph draws random numbers of its own
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    noise = {"noise": torch.rand(4, model.config.num_patches)} if name == "pretraining" else {}
    loss, gradients, _ = step(model, lambda **inputs: model(**inputs, **noise))
    compiled = torch.compile(model, backend="aot_eager_decomp_partition", fullgraph=True)
    _, _, saved = step(model, lambda **inputs: compiled(**inputs, **noise))
    model.gradient_checkpointing_enable()
    torch.compiler.reset()
    loss_again, gradients_again, saved_again = step(model, lambda **inputs: compiled(**inputs, **noise))
    assert loss_again == pytest.approx(loss, rel=1e-5)
    largest = max(gradient.norm() for gradient in gradients.values())
    assert all((gradients_again[key] - gradients[key]).norm() < 1e-5 * largest for key in gradients)
    assert saved_again < 0.8 * saved


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("photos"), train=16, validation=4)


@pytest.mark.parametrize("kind", ["pretrain", "finetune", "baseline"])
def test_both_scripts_train_alike_with_it(
    kind: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = run_pretrain_mae if kind == "pretrain" else run_finetune_geo
    recomputed = []
    checkpoint = torch.utils.checkpoint.checkpoint

    def record(*args: Any, **kwargs: Any) -> Any:
        recomputed.append(kwargs["use_reentrant"])
        return checkpoint(*args, **kwargs)

    monkeypatch.setattr(torch.utils.checkpoint, "checkpoint", record)  # timm's door
    monkeypatch.setattr("transformers.modeling_utils.checkpoint", record)  # transformers'
    file = {"pretrain": "pretrain/smoke", "finetune": "finetune/smoke", "baseline": "finetune/vit_base_mp16"}[kind]
    words = [str(ROOT / f"configs/{file}.yaml"), *ON_A_CPU, "--data_dirs", str(photos), "--validation_split", "null"]
    words += ["--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false", "--disable_tqdm"]
    words += ["--max_steps", "3", "--logging_steps", "1", "--per_device_train_batch_size", "4"]
    words += ["--dataloader_num_workers", "0", "--warmup_steps", "1"]
    if kind == "baseline":
        words += ["--backbone", "vit_tiny_patch16_224", "--image_size", "32"]
    else:
        listed = {key: value if isinstance(value, list) else [value] for key, value in TINY.items()}
        words += [word for key, values in listed.items() for word in (f"--{key}", *map(str, values))]
    losses = {}
    for switch in ("false", "true"):
        folder = tmp_path / switch
        script.main([*words, "--gradient_checkpointing", switch, "--output_dir", str(folder)])
        history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
        losses[switch] = [entry["loss"] for entry in history if "loss" in entry]
        assert bool(recomputed) == (switch == "true")
    assert set(recomputed) == {False}
    assert len(losses["true"]) == 3
    assert losses["true"] == losses["false"]


ON_TWO_PROCESSES = """
import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from test_gradient_checkpointing import MODELS, batch_for

dist.init_process_group("gloo")
for name in ("pretraining", "fine-tuning", "vit"):
    found = []
    for is_checkpointed in (False, True):
        torch.manual_seed(0)
        model = MODELS[name]().train()
        if is_checkpointed:
            model.gradient_checkpointing_enable()
        wrapped = DistributedDataParallel(model)
        for _ in range(2):
            torch.manual_seed(dist.get_rank())
            wrapped(**batch_for(model)).loss.backward()
        found.append([p.grad for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(plain, again) for plain, again in zip(*found, strict=True)), name
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_gradients_are_the_same_under_ddp(tmp_path: Path) -> None:
    run_twice_beside_itself(ON_TWO_PROCESSES, tmp_path, num_threads=1)


@pytest.mark.parametrize("key", ["gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"])
def test_options_that_only_some_models_would_heed_are_refused(key: str, tmp_path: Path) -> None:
    if not hasattr(training_arguments(tmp_path), key):
        pytest.skip(f"this transformers does not know {key}")
    with pytest.raises(ConfigError, match=rf"{key} is .*every_n_layers.*every block is recomputed"):
        training_arguments(tmp_path, **{key: {"every_n_layers": 2}})


@pytest.mark.parametrize("backbone", ["vgg11", "dla34"])
def test_a_backbone_that_cannot_recompute_says_so_by_name(backbone: str) -> None:
    model = GeoBaselineForGeolocation(GeoBaselineConfig(backbone=backbone, head_hidden_sizes=[8]))
    with pytest.raises(ValueError, match=rf"{backbone} cannot recompute.*gradient_checkpointing: false"):
        model.gradient_checkpointing_enable()
    model.gradient_checkpointing_disable()  # what is off stays off without a word
