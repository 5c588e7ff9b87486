"""Every YAML loads, builds its model and trains when shrunk, or judges; the thesis's say what the thesis says."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from launching import ROOT
from packed_photos import TINY, pack

import run_evaluate_geo
import run_finetune_geo
import run_pretrain_mae
from geomae.data.augmentation import PixelAugmentation
from geomae.data.photos import evaluation_short_side
from geomae.data.shards import read_coordinates
from geomae.evaluation import KNOWN_TEST_SETS, EvaluationArguments
from geomae.geocells import build_geocells, draft_by_kmeans, write_geocells
from geomae.training import (
    DataArguments,
    FinetuneArguments,
    GeoBaselineArguments,
    GeoMAEArguments,
    GeoMAETrainingArguments,
    PretrainArguments,
    given_keys,
    inherit_encoder,
    parse_config,
)
from modeling import (
    GeoBaselineConfig,
    GeoBaselineForGeolocation,
    GeoMAEConfig,
    GeoMAEForGeolocation,
    GeoMAEForPreTraining,
)

PRETRAIN = sorted((ROOT / "configs/pretrain").glob("*.yaml"))
FINETUNE = sorted((ROOT / "configs/finetune").glob("*.yaml"))
EVALUATE = sorted((ROOT / "configs/evaluate").glob("*.yaml"))
ACCELERATE = sorted((ROOT / "configs/accelerate").glob("*.yaml"))
# The machine that runs the tests has no GPU; what a file asks of one is checked as text.
NUM_GEOCELLS = [2, 4, 8]
ON_A_CPU = ["--fp16", "false", "--torch_compile", "false", "--optim", "adamw_torch"]


def named(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def load(path: Path, *words: str) -> tuple[Any, ...]:
    if path in PRETRAIN:
        classes = (DataArguments, PretrainArguments, GeoMAEArguments, GeoMAETrainingArguments)
    else:
        classes = (DataArguments, FinetuneArguments, run_finetune_geo.ARCHITECTURES, GeoMAETrainingArguments)
    return parse_config(classes, [str(path), *ON_A_CPU, *words])


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("photos"), train=12, validation=4)


@pytest.fixture(scope="module")
def geocells(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three nested partitions, as the files ask for, of the photos that they are shrunk to."""
    points = read_coordinates(photos, "train")
    built = build_geocells(points, draft_by_kmeans(points, num_cells=NUM_GEOCELLS, seed=0))
    return write_geocells(tmp_path_factory.mktemp("geocells") / "geocells.parquet", built.geocells)


@pytest.mark.parametrize("path", PRETRAIN + FINETUNE, ids=named)
def test_model_is_built_on_the_meta_device(path: Path) -> None:
    _, start, architecture, _ = load(path)
    if getattr(start, "geocells", None):
        architecture.num_geocells = NUM_GEOCELLS
    if path in PRETRAIN:
        config_class, model_class = GeoMAEConfig, GeoMAEForPreTraining
    else:
        config_class, model_class = run_finetune_geo.MODELS[start.model_type]
    with torch.device("meta"):
        model = model_class(config_class(**vars(architecture)))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert model.num_parameters() > 1000


@pytest.mark.parametrize("path", PRETRAIN + FINETUNE, ids=named)
def test_file_trains_for_two_steps_when_shrunk(path: Path, photos: Path, geocells: Path, tmp_path: Path) -> None:
    train_shrunk(path, photos, geocells, tmp_path, ON_A_CPU)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["finetune/thesis_mae_mp16", "finetune/geomae_vit_base_mp16"])
def test_file_trains_in_its_own_precision_and_compiled_on_a_gpu(
    name: str, photos: Path, geocells: Path, tmp_path: Path
) -> None:
    path = ROOT / f"configs/{name}.yaml"
    train_shrunk(path, photos, geocells, tmp_path, [])
    written, ran = yaml.safe_load(path.read_text()), json.loads((tmp_path / "run/run.json").read_text())["config"]
    for key in ("fp16", "bf16", "torch_compile", "optim"):
        assert ran[key] == written.get(key, ran[key]), key
    losses = [e["loss"] for e in json.loads((tmp_path / "run/trainer_state.json").read_text())["log_history"][:2]]
    assert all(0 < loss < float("inf") for loss in losses)


def train_shrunk(path: Path, photos: Path, geocells: Path, tmp_path: Path, hardware: list[str]) -> None:
    start = load(path)[1]
    shrunk: dict[str, Any] = {"data_dirs": str(photos), "validation_dir": "null", "output_dir": str(tmp_path / "run")}
    shrunk |= {"max_steps": 2, "per_device_train_batch_size": 4, "dataloader_num_workers": 0, "warmup_steps": 1}
    shrunk |= {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    shrunk |= {"logging_steps": 1, "init_from": "null", "prediction_maps": "false", "disable_tqdm": "true"}
    if getattr(start, "model_type", "geomae") == "geobaseline":
        is_resnet = "resnet" in path.stem
        shrunk |= {"backbone": "resnet10t" if is_resnet else "vit_tiny_patch16_224", "image_size": 32}
    else:
        shrunk |= TINY
    shrunk |= {"geocells": str(geocells)} if getattr(start, "geocells", None) else {}
    words = [word for key, value in shrunk.items() for word in (f"--{key}", *_words(value))]
    script = run_pretrain_mae if path in PRETRAIN else run_finetune_geo
    script.main([str(path), *hardware, *words])
    assert (tmp_path / "run/model.safetensors").is_file()
    assert (tmp_path / "run/checkpoint-2").is_dir()


def _words(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


@pytest.mark.parametrize("path", EVALUATE, ids=named)
def test_evaluation_is_one_of_a_checkpoint_into_a_folder_of_its_own(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # what the file names is looked for, and made here
    written = yaml.safe_load(path.read_text())
    if (name := written["test_set"]) in KNOWN_TEST_SETS:
        assert path.stem == name
        Path("data", name, "photos").mkdir(parents=True)
        Path("data", name, f"{name}_places365.csv").write_text("IMG_ID,LAT,LON\n")
    else:
        pack(Path(written["test_set"]), **{written["split"]: 4})
    (arguments,) = parse_config([EvaluationArguments], [str(path)])
    assert arguments.checkpoint.startswith("outputs/")
    assert arguments.output_dir.startswith("outputs/")
    others = [yaml.safe_load(other.read_text())["output_dir"] for other in EVALUATE if other != path]
    assert arguments.output_dir not in [*others, arguments.checkpoint]


def test_smoke_judges_what_fine_tuning_wrote(photos: Path, tmp_path: Path) -> None:
    GeoMAEForGeolocation(GeoMAEConfig(**TINY)).save_pretrained(tmp_path / "model")
    words = ["--checkpoint", str(tmp_path / "model"), "--test_set", str(photos), "--train_coordinates", str(photos)]
    run_evaluate_geo.main([str(ROOT / "configs/evaluate/smoke.yaml"), *words, "--output_dir", str(tmp_path / "out")])
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["num_photos"] == 4


@pytest.mark.parametrize("path", PRETRAIN + FINETUNE + EVALUATE, ids=named)
def test_header_states_command_hardware_time_and_expectation(path: Path) -> None:
    header = path.read_text().split("\n\n")[0]
    assert all(line.startswith("#") for line in header.splitlines())
    script = {"pretrain": "run_pretrain_mae.py", "finetune": "run_finetune_geo.py"}.get(path.parent.name)
    script = script or "run_evaluate_geo.py"
    assert f"{script} {path.relative_to(ROOT)}" in header
    for word in ("hardware:", "time:", "expected:"):
        assert word in header
    for file in re.findall(r"configs/[\w./-]+", header):
        assert (ROOT / file.rstrip(".")).is_file(), file


@pytest.mark.parametrize("path", PRETRAIN + FINETUNE, ids=named)
def test_results_go_to_a_folder_of_their_own(path: Path) -> None:
    folder = load(path)[3].output_dir
    assert folder.startswith("outputs/")
    others = [load(other)[3].output_dir for other in PRETRAIN + FINETUNE if other != path]
    assert folder not in others


@pytest.mark.parametrize("path", FINETUNE, ids=named)
def test_weights_to_start_from_are_what_another_file_makes(path: Path) -> None:
    start = load(path)[1]
    if start.init_from is not None:
        assert start.init_from in [load(other)[3].output_dir for other in PRETRAIN]


# ---- the thesis, as THESIS.md states it

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


# ---- the recipe that works


def test_modern_pretraining_is_the_recipe_of_mae() -> None:
    _, _, architecture, args = load(ROOT / "configs/pretrain/mae_vit_base_mp16.yaml")
    assert architecture.norm_pix_loss is True
    assert args.base_learning_rate == 1.5e-4
    assert (args.adam_beta1, args.adam_beta2, args.weight_decay) == (0.9, 0.95, 0.05)
    assert (args.schedule, args.bf16) == ("cosine", True)
    assert args.warmup_epochs / args.num_train_epochs == 40 / 800
    assert 8 * args.per_device_train_batch_size == 4096


def test_modern_fine_tuning_is_the_recipe_of_mae() -> None:
    _, _, architecture, args = load(ROOT / "configs/finetune/mae_vit_base_mp16.yaml")
    assert (architecture.pooling, architecture.drop_path_rate) == ("mean", 0.1)
    assert 0.65 <= args.layer_decay <= 0.75
    assert args.bf16 is True
    assert 8 * args.per_device_train_batch_size == 1024


def test_modern_geocells_have_the_three_partitions_and_the_whole_recipe() -> None:
    data, start, architecture, args = load(ROOT / "configs/finetune/geomae_vit_base_mp16.yaml")
    assert (architecture.head_type, start.geocells) == ("geocells", "outputs/geocells/mp16/geocells.parquet")
    assert bool(architecture.label_smoothing) != bool(architecture.haversine_smoothing_km)
    assert (architecture.pooling, architecture.drop_path_rate, args.layer_decay) == ("mean", 0.1, 0.65)
    assert args.ema_decay is not None
    assert data.pixel_augmentation != PixelAugmentation()
    assert data.data_dirs == ["data/mp16"]  # alone
    pretraining = load(ROOT / "configs/pretrain/geomae_vit_base_mp16.yaml")
    assert pretraining[1].init_from == "facebook/vit-mae-base"
    assert pretraining[2].position_embedding == "sincos"
    assert 8 * args.per_device_train_batch_size == 1024


@pytest.mark.parametrize(
    "path", [ROOT / f"configs/{kind}/geomae_vit_base_mp16.yaml" for kind in ("pretrain", "finetune")]
)
def test_hours_and_memory_of_the_header_follow_from_work_and_peak(path: Path) -> None:
    _, _, architecture, args = load(path)
    is_pretraining = path in PRETRAIN
    model_class = GeoMAEForPreTraining if is_pretraining else GeoMAEForGeolocation
    cells = {} if is_pretraining else {"num_geocells": [3298, 7202, 12893]}  # ISN's, as the header says
    with torch.device("meta"):
        model = model_class(GeoMAEConfig(**vars(architecture) | cells))
    header = " ".join(path.read_text().split("\n\n")[0].replace("#", "").split())
    photos, flops = args.num_train_epochs * 4.72e6, model.flops_per_photo()
    assert f"{args.num_train_epochs:.0f} epochs x 4.72 million = {photos / 1e6:.1f} million photos" in header
    assert f"{flops / 1e9:.1f} GFLOP a photo" in header
    (written,) = re.findall(r"time: ([\d.]+) hours on 8 A100, ([\d.]+) hours on 1 H200 \(computed\)", header)
    for hours, peak in zip(written, (8 * 312e12, 790e12), strict=True):  # the chips' peaks: PITFALLS, at half of which
        assert float(hours) == pytest.approx(photos * flops / (peak / 2) / 3600, rel=0.07)
    assert f"{model.num_parameters() / 1e6:.0f} million parameters" in header
    states = 16 if is_pretraining else 20
    assert f"{model.num_parameters() * states / 1e9:.1f} GB; activations" in header


def test_comparison_on_the_earth_has_the_same_network_and_budget(tmp_path: Path) -> None:
    _, _, pretrained, _ = load(ROOT / "configs/pretrain/earth.yaml")
    GeoMAEConfig(**vars(pretrained)).save_pretrained(tmp_path)
    tuned_file = ROOT / "configs/finetune/earth_mae.yaml"
    data, start, tuned, tuning = load(tuned_file)
    tuned = inherit_encoder(tuned, str(tmp_path), given=given_keys([str(tuned_file)]))
    scratch_data, scratch_start, scratch, from_scratch = load(ROOT / "configs/finetune/earth_scratch.yaml")
    assert vars(scratch) == vars(tuned)
    assert scratch_data == data
    assert (scratch_start.model_type, scratch_start.init_from) == (start.model_type, None)
    # No layer decay from fresh weights: there is nothing to preserve. run_name follows from output_dir.
    differing = ("layer_decay", "output_dir", "run_name")
    values, scratch_values = (
        {key: value for key, value in args.to_dict().items() if key not in differing} for args in (tuning, from_scratch)
    )
    assert scratch_values == values
    assert from_scratch.layer_decay is None


# ---- accelerate


@pytest.mark.parametrize("path", ACCELERATE, ids=named)
def test_accelerate_reads_the_file_and_leaves_precision_to_the_run(path: Path) -> None:
    config = load_config_from_file(str(path))
    assert config.mixed_precision == "no"
    assert config.num_processes == {"one_gpu": 1, "eight_a100": 8, "two_cpu": 2}[path.stem]
