"""The thesis's recipes in `configs/` say what the thesis says, and its stand-ins differ only where they must."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from config_files import FINETUNE, PRETRAIN, load, named
from launching import ROOT

from geomae.data.photos import evaluation_short_side
from geomae.training import GeoBaselineArguments, GeoMAEArguments
from modeling import (
    GeoBaselineConfig,
    GeoBaselineForGeolocation,
    GeoMAEConfig,
    GeoMAEForPreTraining,
)

THESIS = {
    "batch": 64,
    "learning_rate": 1e-4,
    "weight_decay": 0.01,
    "gradient_clipping": 0.1,
    "epochs": 20,
    "validation_every_steps": 8_000,
    "regressor_step_epochs": 3,
    "regressor_gamma": 0.1,
    "mae_milestone_epochs": [6, 10, 13, 16, 18, 20],
    "mae_gamma": 0.5,
    "crop_scale": [0.66, 1.0],
    "crop": 224,
    "resize_before_the_centre_crop": 256,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "mp16_photos": 4_720_000,
}
THESIS_FILES = [path for path in PRETRAIN + FINETUNE if path.match("thesis_*_mp16.yaml")]
STAND_IN_FILES = [path for path in PRETRAIN + FINETUNE if path.match("thesis_*_earth.yaml")]
THESIS_REGRESSORS = [path for path in THESIS_FILES if path in FINETUNE]


def thesis_file(name: str) -> tuple[Any, ...]:
    return load(ROOT / f"configs/{name}.yaml")


def test_thesis_has_its_four_files() -> None:
    names = {"pretrain/thesis_mae_mp16", "finetune/thesis_mae_mp16"}
    assert {named(path) for path in THESIS_FILES} == names | {
        "finetune/thesis_vit_mp16",
        "finetune/thesis_resnet_mp16",
    }


@pytest.mark.parametrize("path", THESIS_FILES, ids=named)
def test_thesis_recipe_is_followed(path: Path) -> None:
    data, _, architecture, args = load(path)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (THESIS["batch"], 1)
    assert args.learning_rate == THESIS["learning_rate"]
    assert args.base_learning_rate is None
    assert args.layer_decay is None
    assert args.weight_decay == THESIS["weight_decay"]
    assert args.decays_all_parameters is True
    assert args.max_grad_norm == THESIS["gradient_clipping"]
    assert args.num_train_epochs == THESIS["epochs"]
    assert (args.warmup_steps, args.warmup_epochs) == (0, None)
    assert (args.eval_strategy, args.eval_steps) == ("steps", THESIS["validation_every_steps"])
    assert (args.load_best_model_at_end, args.metric_for_best_model) == (True, "loss")
    assert args.greater_is_better is False
    assert data.data_dirs == ["data/mp16"]
    assert data.validation_dir == "data/yfcc25600"
    assert data.max_validation_photos is None
    assert (data.augment, data.flip, data.crop_scale) == (True, True, THESIS["crop_scale"])
    assert architecture.image_size == THESIS["crop"]
    assert evaluation_short_side(architecture.image_size) == THESIS["resize_before_the_centre_crop"]
    assert architecture.image_mean == THESIS["image_mean"]
    assert architecture.image_std == THESIS["image_std"]
    written = yaml.safe_load(path.read_text())
    assert written["fp16"] is True
    assert "bf16" not in written
    assert written["optim"] == "adamw_torch_fused"
    assert "configs/accelerate/one_gpu.yaml" in path.read_text()


@pytest.mark.parametrize("path", THESIS_REGRESSORS, ids=named)
def test_thesis_regressors_fall_tenfold_every_three_epochs_and_end_in_tanh(path: Path) -> None:
    _, _, architecture, args = load(path)
    assert (args.schedule, args.step_epochs) == ("step", THESIS["regressor_step_epochs"])
    assert args.gamma == THESIS["regressor_gamma"]
    assert architecture.head_type == "tanh"
    assert len(architecture.head_hidden_sizes) == 2  # with the output layer, three fully connected layers
    assert architecture.drop_path_rate == 0.0


def test_thesis_autoencoder_is_the_thesiss() -> None:
    _, start, architecture, args = thesis_file("pretrain/thesis_mae_mp16")
    assert start.init_from is None
    assert (args.schedule, args.gamma) == ("multistep", THESIS["mae_gamma"])
    assert args.milestone_epochs == THESIS["mae_milestone_epochs"]
    encoder = (architecture.hidden_size, architecture.num_hidden_layers, architecture.num_attention_heads)
    assert encoder == (768, 12, 12)
    assert (architecture.intermediate_size, architecture.patch_size) == (3072, 16)
    assert architecture.position_embedding == "learned"
    assert architecture.mask_ratio == 0.75
    assert architecture.decoder_num_hidden_layers == 12 // 3
    assert (architecture.decoder_hidden_size, architecture.decoder_num_attention_heads) == (384, 12)
    assert architecture.decoder_intermediate_size == 3072 // 2
    assert architecture.norm_pix_loss is False
    assert architecture.loss_reduction == "sum"


def test_thesis_autoencoder_has_1_08_times_the_parameters_of_its_vit() -> None:
    """The thesis says 1.3 (`docs/thesis.md`)."""
    with torch.device("meta"):
        autoencoder = GeoMAEForPreTraining(GeoMAEConfig(**vars(thesis_file("pretrain/thesis_mae_mp16")[2])))
        vit = GeoBaselineForGeolocation(GeoBaselineConfig(**vars(thesis_file("finetune/thesis_vit_mp16")[2])))
    assert round(autoencoder.num_parameters() / vit.num_parameters(), 2) == 1.08


def test_thesis_baselines_start_from_nothing() -> None:
    for name, backbone in (("vit", "vit_base_patch16_224"), ("resnet", "resnet152")):
        _, start, architecture, _ = thesis_file(f"finetune/thesis_{name}_mp16")
        assert (start.model_type, start.init_from) == ("geobaseline", None)
        assert architecture == GeoBaselineArguments(backbone=backbone)


def test_thesis_fine_tuning_takes_the_class_token_of_its_own_pretraining() -> None:
    _, start, architecture, _ = thesis_file("finetune/thesis_mae_mp16")
    assert start.model_type == "geomae"
    assert start.init_from == thesis_file("pretrain/thesis_mae_mp16")[3].output_dir
    assert architecture == GeoMAEArguments()  # the defaults are the thesis's


@pytest.mark.parametrize("path", STAND_IN_FILES, ids=named)
def test_thesis_on_the_stand_in_keeps_the_recipe_but_for_size_source_pace_and_precision(path: Path) -> None:
    full, small = (yaml.safe_load(file.read_text()) for file in (full_size_of(path), path))
    sizes = {key for key in full.keys() | small.keys() if key.startswith(("decoder_", "backbone"))}
    sizes |= {
        "image_size",
        "patch_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
    }
    source = {"data_dirs", "validation_dir", "max_validation_photos", "flip", "output_dir", "init_from"}
    # judged by the epoch, which is 469 steps instead of 73,750
    pace = {"learning_rate", "num_train_epochs", "eval_strategy", "eval_steps", "save_strategy", "save_steps"}
    pace |= {"logging_steps", "reconstruction_steps", "prediction_maps"}
    pace |= {"dataloader_num_workers", "per_device_eval_batch_size"}
    precision = {"fp16", "bf16", "optim"}  # fp16 and a fused optimiser need a GPU
    inherited = {"position_embedding"} if "init_from" in small else set()  # of the pretrained encoder
    allowed = sizes | source | pace | precision | inherited
    assert {key: full[key] for key in full.keys() - allowed} == {key: small[key] for key in small.keys() - allowed}


@pytest.mark.parametrize("path", STAND_IN_FILES, ids=named)
def test_thesis_on_the_stand_in_pretrains_twenty_and_fine_tunes_ten_epochs(path: Path) -> None:
    args = load(path)[3]
    assert args.num_train_epochs == (20 if path in PRETRAIN else 10)
    assert args.step_epochs == (None if path in PRETRAIN else THESIS["regressor_step_epochs"])


def full_size_of(path: Path) -> Path:
    return path.with_stem(path.stem.replace("earth", "mp16"))


def test_thesis_schedule_counts_in_steps_of_mp16() -> None:
    args = thesis_file("pretrain/thesis_mae_mp16")[3]
    args.fit_to(THESIS["mp16_photos"])
    assert args.max_steps == 20 * 73_750  # 4.72 million / 64
