"""Every YAML loads, builds its model and trains when shrunk, or judges; the thesis's say what the thesis says."""

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from config_files import FINETUNE, ON_A_CPU, PRETRAIN, load, named
from launching import ROOT
from packed_photos import TINY, pack

import run_evaluate_geo
import run_finetune_geo
import run_pretrain_mae
from geomae.data.augmentation import PixelAugmentation
from geomae.data.shards import read_coordinates
from geomae.evaluation import KNOWN_TEST_SETS, EvaluationArguments
from geomae.geocells import build_geocells, draft_by_kmeans, write_geocells
from geomae.training import (
    given_keys,
    inherit_encoder,
    parse_config,
)
from modeling import (
    GeoMAEConfig,
    GeoMAEForGeolocation,
    GeoMAEForPreTraining,
)

EVALUATE = sorted((ROOT / "configs/evaluate").glob("*.yaml"))
ACCELERATE = sorted((ROOT / "configs/accelerate").glob("*.yaml"))
NUM_GEOCELLS = [2, 4, 8]
ENCODERS = {  # width, depth, heads, width of the MLP, patch
    "tiny": (192, 12, 3, 768, 16),
    "small": (384, 12, 6, 1536, 16),
    "base": (768, 12, 12, 3072, 16),
    "large": (1024, 24, 16, 4096, 16),
    "huge": (1280, 32, 16, 5120, 14),
}
WITH_COMPUTED_HEADERS = [path for path in PRETRAIN + FINETUNE if "a photo at an assumed half" in path.read_text()]


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


@pytest.mark.parametrize("size", [size for size in ENCODERS if size != "base"])
def test_other_sizes_are_the_published_ones_with_the_recipe_of_the_base(size: str) -> None:
    """Dosovitskiy et al. (2020), table 1, and Touvron et al. (2021), table 1; decoders of L and H: MAE's own."""
    fields = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "patch_size")
    loaded = {
        (kind, name): load(ROOT / f"configs/{kind}/mae_vit_{name}_mp16.yaml")
        for kind in ("pretrain", "finetune")
        for name in ("base", size)
    }
    for kind in ("pretrain", "finetune"):
        architecture, args = loaded[kind, size][2:]
        assert tuple(getattr(architecture, field) for field in fields) == ENCODERS[size]
        assert (
            8 * args.per_device_train_batch_size * args.gradient_accumulation_steps
            == {
                "pretrain": 4096,
                "finetune": 1024,
            }[kind]
        )
    sizes = {field for field in vars(loaded["pretrain", size][2]) if field.startswith("decoder") or field in fields}
    others, base = (
        {key: value for key, value in vars(loaded["pretrain", name][2]).items() if key not in sizes}
        for name in (size, "base")
    )
    assert others == base
    recipe = ("base_learning_rate", "num_train_epochs", "warmup_epochs", "weight_decay", "adam_beta2", "schedule")
    for key in recipe:
        assert getattr(loaded["pretrain", size][3], key) == getattr(loaded["pretrain", "base"][3], key), key
    architecture = loaded["pretrain", size][2]
    decoder = (architecture.decoder_num_hidden_layers, architecture.decoder_hidden_size)
    width, depth = ENCODERS[size][:2]
    assert decoder == ((8, 512) if size in ("large", "huge") else (depth // 3, width // 2))


@pytest.mark.parametrize(
    "size, layer_decay, drop_path", [("tiny", 0.85, 0), ("small", 0.75, 0), ("large", 0.75, 0.2), ("huge", 0.75, 0.3)]
)
def test_other_sizes_are_fine_tuned_as_published(size: str, layer_decay: float, drop_path: float) -> None:
    """MAE's FINETUNE.md for L and H; MAE-Lite's finetuning_exp.py and SMALL.md for Ti and S."""
    _, _, architecture, args = load(ROOT / f"configs/finetune/mae_vit_{size}_mp16.yaml")
    assert (args.base_learning_rate, args.layer_decay, architecture.drop_path_rate) == (1e-3, layer_decay, drop_path)


@pytest.mark.parametrize("path", WITH_COMPUTED_HEADERS, ids=named)
def test_hours_and_memory_of_the_header_follow_from_work_and_peak(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, architecture, args = load(path)
    is_pretraining = path in PRETRAIN
    model_class = GeoMAEForPreTraining if is_pretraining else GeoMAEForGeolocation
    cells = {"num_geocells": [3298, 7202, 12893]} if architecture.head_type == "geocells" else {}  # ISN's

    def build() -> GeoMAEForPreTraining | GeoMAEForGeolocation:
        with torch.device("meta"):
            return model_class(GeoMAEConfig(**vars(architecture) | cells)).train()

    header = " ".join(path.read_text().split("\n\n")[0].replace("#", "").split())
    photos, flops = args.num_train_epochs * 4.72e6, build().flops_per_photo()
    assert f"{args.num_train_epochs:.0f} epochs x 4.72 million = {photos / 1e6:.1f} million photos" in header
    assert f"{flops / 1e9:.1f} GFLOP a photo" in header
    (written,) = re.findall(r"time: ([\d.]+) hours on 8 A100, ([\d.]+) hours on 1 H200 \(computed\)", header)
    for hours, peak in zip(written, (8 * 312e12, 790e12), strict=True):  # the chips' peaks: PITFALLS, at half of which
        assert float(hours) == pytest.approx(photos * flops / (peak / 2) / 3600, rel=0.03)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    simulation = importlib.import_module("sizing.simulation")
    with simulation.fused_attention():
        step = simulation.simulate_step(build(), args.per_device_train_batch_size)
    assert f"{step.peak / 1e9:.1f} GB at the peak of a step of {args.per_device_train_batch_size} photos" in header
    if "hardware: 8 A100 of" in header:
        (card_gb,) = re.findall(r"hardware: 8 A100 of (\d+) GB", header)
        buckets_of_ddp = 4 * build().num_parameters()  # there in the forward pass too
        assert step.peak + buckets_of_ddp < 0.9 * int(card_gb) * 1e9


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


NUM_PROCESSES = {
    "one_gpu": 1,
    "eight_a100": 8,
    "eight_h200": 8,
    "eight_gpu_fsdp": 8,
    "four_nodes_of_eight": 32,
    "two_cpu": 2,
}


@pytest.mark.parametrize("path", ACCELERATE, ids=named)
def test_accelerate_reads_the_file_and_leaves_precision_to_the_run(path: Path) -> None:
    config = load_config_from_file(str(path))  # refuses keys that it does not know
    assert config.mixed_precision == "no"
    assert config.num_processes == NUM_PROCESSES[path.stem]
    known = {action.dest for action in launch_command_parser()._actions}
    assert {*config.fsdp_config} <= known, "inside fsdp_config accelerate passes over what it does not know"


def header_command(path: Path, **places: str) -> list[str]:
    """Words of the command in a file's header behind `accelerate launch`, with words in capitals replaced."""
    header = [line.removeprefix("#").strip() for line in path.read_text().splitlines() if line.startswith("#")]
    (start,) = (number for number, line in enumerate(header) if line.startswith("accelerate launch"))
    end = next(number for number, line in enumerate(header) if number >= start and not line.endswith("\\"))
    return [places.get(word, word) for word in " ".join(header[start : end + 1]).replace("\\ ", "").split()[2:]]


@pytest.mark.parametrize("path", ACCELERATE, ids=named)
def test_header_of_a_launch_shows_a_command_that_accelerate_takes(path: Path) -> None:
    args = launch_command_parser().parse_args(header_command(path, R="0"))
    assert args.config_file == str(path.relative_to(ROOT))
    assert args.training_script == "run_pretrain_mae.py"


def test_four_nodes_meet_at_the_address_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = header_command(ROOT / "configs/accelerate/four_nodes_of_eight.yaml", R="3", FIRST_NODE="first-node")
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    prepare_multi_gpu_env(args)
    assert (args.nnodes, args.nproc_per_node, args.rdzv_backend, args.max_restarts) == ("4", "8", "c10d", 3)
    assert args.rdzv_endpoint == "first-node:29500"
    assert args.training_script_args[-2:] == ["--resume_from_checkpoint", "last"]
