"""FSDP2 gives what DDP gives, and leaves checkpoints that anyone can load; what cannot work is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from launching import launch_code
from packed_photos import mae_trainer, pack, training_arguments
from safetensors.torch import load_file

from geomae.errors import ConfigError
from geomae.training.sharding import refuse_other_sharding, set_up_sharding
from modeling import GeoMAEForGeolocation, GeoMAEForPreTraining

# Each script with DDP, with FSDP, and with FSDP again from the middle, on the same two processes. Accelerate shards on
# GPUs alone and turns to DDP in silence on CPUs, though torch shards there as well: the class below makes it.
ON_TWO_PROCESSES = """
import importlib, os, sys
from pathlib import Path

from accelerate.state import AcceleratorState, DistributedType
from geomae.training import StreamingTrainer

init, step = AcceleratorState.__init__, StreamingTrainer.training_step

def init_on_a_cpu(self, *args, fsdp_plugin=None, **options):
    init(self, *args, fsdp_plugin=fsdp_plugin, **options)
    if fsdp_plugin is not None:  # as for GPUs
        if self._mixed_precision != "no":
            fsdp_plugin.set_mixed_precision(self._mixed_precision)
        self.fsdp_plugin = fsdp_plugin
    if self.__dict__.get("fsdp_plugin") is not None:
        self.distributed_type = DistributedType.FSDP

def step_with_a_record(self, model, inputs, *rest):
    kinds = {type(parameter).__name__ for parameter in model.parameters()}
    (Path(self.args.output_dir) / "kinds.txt").write_text(" ".join(kinds))
    return step(self, model, inputs, *rest)

StreamingTrainer.training_step = step_with_a_record
AcceleratorState.__init__ = init_on_a_cpu
data, folder = sys.argv[1:]
for script, kind, options in (
    ("run_pretrain_mae", "pretrain", ["--position_embedding", "sincos"]),
    ("run_finetune_geo", "finetune", ["--bf16", "--gradient_checkpointing", "--prediction_maps", "false"]),
):
    argv = [f"configs/{kind}/smoke.yaml", "--data_dirs", data, "--peak_tflops", "1", "--disable_tqdm", *options]
    argv += ["--gradient_accumulation_steps", "2", "--per_device_train_batch_size", "4"]
    for run, resume in (("ddp", []), ("fsdp", []), ("resumed", [f"{folder}/{kind}/fsdp/checkpoint-2"])):
        AcceleratorState._reset_state()
        os.environ["ACCELERATE_USE_FSDP"] = str(run != "ddp").lower()
        words = ["--resume_from_checkpoint", *resume] if resume else []
        importlib.import_module(script).main([*argv, "--output_dir", f"{folder}/{kind}/{run}", *words])
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    photos = pack(tmp_path_factory.mktemp("photos"), train=64, validation=13)
    folder = tmp_path_factory.mktemp("runs")
    launch_code(ON_TWO_PROCESSES, folder, "eight_gpu_fsdp", str(photos), str(folder))
    return folder


def logged(run: Path) -> list[dict[str, float]]:
    """What was logged and does not depend on the clock."""
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    names = ("loss", "grad_norm", "eval_loss", "eval_mean_km")
    return [known for entry in history if (known := {name: entry[name] for name in names if name in entry})]


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_shards_give_the_losses_gradients_and_weights_of_whole_models(runs: Path, kind: str) -> None:
    whole, sharded = runs / kind / "ddp", runs / kind / "fsdp"
    assert (whole / "kinds.txt").read_text() == "Parameter"
    assert (sharded / "kinds.txt").read_text() == "DTensor"
    assert len(logged(whole)) >= 6
    for expected, entry in zip(logged(whole), logged(sharded), strict=True):
        assert entry == pytest.approx(expected, rel=1e-5)
    # Adam makes a step of the full size of the rounding error of a gradient that is 0: 4 steps of 1e-3 at most
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(
        load_file(sharded / "model.safetensors"), load_file(whole / "model.safetensors"), **close
    )


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_sharded_run_resumes_in_the_middle(runs: Path, kind: str) -> None:
    expected, resumed = (logged(runs / kind / run) for run in ("fsdp", "resumed"))
    assert resumed == expected[-len(resumed) :]
    weights, other = (load_file(runs / kind / run / "model.safetensors") for run in ("fsdp", "resumed"))
    assert all(torch.equal(weights[name], other[name]) for name in weights)


@pytest.mark.parametrize("kind, model_class", [("pretrain", GeoMAEForPreTraining), ("finetune", GeoMAEForGeolocation)])
def test_checkpoint_of_shards_is_like_any_other(runs: Path, kind: str, model_class: Any) -> None:
    whole, sharded = runs / kind / "ddp", runs / kind / "fsdp"
    assert {path.name for path in sharded.glob("*.py")} == {path.name for path in whole.glob("*.py")}
    assert (sharded / "config.json").read_text() == (whole / "config.json").read_text()
    loaded = model_class.from_pretrained(sharded / "checkpoint-4")
    saved = load_file(sharded / "checkpoint-4/model.safetensors")
    torch.testing.assert_close(dict(loaded.state_dict()), saved, rtol=0, atol=0)
    records = [json.loads((runs / kind / run / "run.json").read_text())["training"] for run in ("ddp", "fsdp")]
    assert records[0]["flops_per_photo"] == records[1]["flops_per_photo"]
    pictures = [sorted(path.name for path in (run / "pictures").glob("*")) for run in (whole, sharded)]
    assert pictures[0] == pictures[1]


@pytest.mark.parametrize(
    "plugin, arguments, message",
    [
        ({"fsdp_version": 1}, {}, "only 2 is supported"),
        ({"state_dict_type": "SHARDED_STATE_DICT"}, {}, "write fsdp_state_dict_type: FULL_STATE_DICT"),
        ({}, {"ema_decay": 0.99}, "write ema_decay: null, or launch with DDP"),
        ({}, {"torch_compile": True}, "write torch_compile: false, or launch with DDP"),
    ],
    ids=["version", "state_dict", "average", "compilation"],
)
def test_what_cannot_be_sharded_is_refused(
    tmp_path: Path, plugin: dict[str, Any], arguments: dict[str, Any], message: str
) -> None:
    shipped = {"fsdp_version": 2, "state_dict_type": "FULL_STATE_DICT"}
    known = FullyShardedDataParallelPlugin(**{**shipped, **plugin})
    with pytest.raises(ConfigError, match=message):
        set_up_sharding(known, training_arguments(tmp_path, **arguments))


def test_checkpoint_of_another_launch_is_refused(tmp_path: Path) -> None:
    photos = pack(tmp_path / "photos", train=16, validation=4)
    mae_trainer(photos, training_arguments(tmp_path / "run", max_steps=1, save_strategy="steps", save_steps=1)).train()
    checkpoint = str(tmp_path / "run/checkpoint-1")
    with pytest.raises(ConfigError, match="was saved without FSDP and this run is with FSDP"):
        refuse_other_sharding(checkpoint, is_sharded=True)
    Path(checkpoint, "pytorch_model_fsdp.bin").touch()
    again = mae_trainer(photos, training_arguments(tmp_path / "run", max_steps=2))
    with pytest.raises(ConfigError, match="was saved with FSDP and this run is without FSDP: launch it as before"):
        again.train(resume_from_checkpoint="true")
