"""What is trained, and the Trainers that train it: from ready batches, or from packed photos."""

import contextlib
import io
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from geomae.data.layout import shard_name
from geomae.data.shards import PhotoRow, write_shard
from geomae.training import (
    DataArguments,
    GeolocationTrainer,
    GeoMAETrainingArguments,
    MAETrainer,
    RunRecord,
    StreamingTrainer,
    build_collators,
    build_stream,
)
from loops.interleave import Alternation, BareLoop
from modeling import GeoMAEConfig, GeoMAEForGeolocation, GeoMAEForPreTraining

__all__ = ["CASES", "CONTESTANTS", "SMALL", "Case", "Contestant", "alternate", "pack_photos"]

NUM_READY = 4  # batches that are seen in turn
SMALL = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512}
SMALL |= {"image_size": 64, "patch_size": 8, "decoder_hidden_size": 64, "decoder_num_hidden_layers": 2}
SMALL |= {"decoder_num_attention_heads": 4, "decoder_intermediate_size": 256}


@dataclass(frozen=True)
class Contestant:
    """How Trainer gets its batches, and what it does beside the step."""

    title: str
    reads_photos: bool = False
    max_grad_norm: float = 1.0
    ema_decay: float | None = None


CONTESTANTS = {
    "ready": Contestant("batches ready"),
    "average": Contestant("batches ready, moving average of the weights", ema_decay=0.9999),
    "unclipped": Contestant("batches ready, nothing clipped", max_grad_norm=0.0),
    "pipeline": Contestant("photos from packed shards", reads_photos=True),
}


@dataclass(frozen=True)
class Case:
    """One model; a smaller step makes the same overhead a larger share."""

    key: str
    title: str
    labelled: bool
    sizes: dict[str, Any] = field(default_factory=dict)  # GeoMAE ViT-B/16 where empty
    contestants: tuple[str, ...] = ("ready", "pipeline")
    batch_share: float = 1.0  # of the batch size that is asked for
    times_steps: int = 1  # of the steps that are asked for, so that each takes about as long

    def build(self, device: torch.device) -> PreTrainedModel:
        """Fresh weights, the same every time."""
        torch.manual_seed(0)
        model_class = GeoMAEForGeolocation if self.labelled else GeoMAEForPreTraining
        return model_class(GeoMAEConfig(**self.sizes, head_type="sphere")).to(device)


CASES = [
    Case("vit_base", "GeoMAE ViT-B/16, pretraining", False, contestants=tuple(CONTESTANTS)),
    Case("vit_base_geolocation", "GeoMAE ViT-B/16, fine-tuning", True, batch_share=0.25),
    Case("small", "4 layers of width 128, pretraining", False, SMALL, tuple(CONTESTANTS), times_steps=20),
    Case("small_geolocation", "4 layers of width 128, fine-tuning", True, SMALL, times_steps=20),
]


def pack_photos(files: Sequence[Path], folder: Path) -> None:
    """Two shards of the given JPEGs, at random places."""
    rng = random.Random(0)
    for shard in range(2):
        rows = (
            PhotoRow(file.name, file.read_bytes(), rng.uniform(-80, 80), rng.uniform(-180, 180))
            for file in files[shard::2]
        )
        write_shard(folder / shard_name("train", shard, 2), rows, optional_columns=(), digest="benchmark")


def alternate(
    case: Case, contestant: Contestant, photos: Path, output_dir: Path, options: Any
) -> tuple[Alternation, BareLoop]:
    """Train with the bare loop in between; what both took is in what is returned.

    Args:
        case: the model.
        contestant: how Trainer is used.
        photos: packed folder.
        output_dir: of Trainer.
        options: `device`, `batch_size`, `num_workers`, `rounds`, `steps` and `compile` of the command line.
    """
    steps = options.steps * case.times_steps
    batch_size = max(1, round(options.batch_size * case.batch_share))
    args = GeoMAETrainingArguments(
        output_dir=str(output_dir),
        max_steps=(options.rounds + 1) * steps,
        per_device_train_batch_size=batch_size,
        use_cpu=options.device == "cpu",
        bf16=True,
        optim="adamw_torch_fused",
        torch_compile=options.compile,
        max_grad_norm=contestant.max_grad_norm,
        ema_decay=contestant.ema_decay,
        dataloader_num_workers=options.num_workers if contestant.reads_photos else 0,
        logging_steps=min(steps, 50),
        save_strategy="no",
    )
    device = torch.device(options.device)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        trainer = _build_trainer(case, args, photos, device)
        ready = _make_ready(trainer, device)
        if not contestant.reads_photos:
            trainer.get_train_dataloader = lambda: _ReadyBatches(ready)  # type: ignore[method-assign]  # of this one
        model = case.build(device)
        inputs = [{name: value for name, value in batch.items() if isinstance(value, Tensor)} for batch in ready]
        bare = BareLoop(
            torch.compile(model) if options.compile else model,  # type: ignore[arg-type]  # a module stays one
            inputs,
            max_grad_norm=contestant.max_grad_norm,
        )
        alternation = Alternation(trainer, bare, steps_per_round=steps)
        trainer.add_callback(alternation)
        trainer.train()
    return alternation, bare


def _build_trainer(case: Case, args: GeoMAETrainingArguments, photos: Path, device: torch.device) -> StreamingTrainer:
    """As the training scripts do it."""
    data = DataArguments(data_dirs=[str(photos)], validation_split=None)
    stream = build_stream(data, args, labelled=case.labelled)
    model = case.build(device)
    collator, _ = build_collators(data, image_size=model.config.image_size, labelled=case.labelled)
    trainer_class = GeolocationTrainer if case.labelled else MAETrainer
    trainer = trainer_class(model, args, train_dataset=stream, train_collator=collator)
    trainer.add_callback(RunRecord(trainer, {**vars(data), **args.to_dict()}))
    return trainer


class _ReadyBatches:
    """Endless; each batch is a dict of its own, since Trainer takes it apart."""

    def __init__(self, batches: Sequence[dict[str, Any]]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (dict(batch) for batch in cycle(self._batches))


def _make_ready(trainer: StreamingTrainer, device: torch.device) -> list[dict[str, Any]]:
    """A few batches of Trainer's own photos, in memory that nothing writes over, on the device."""
    return [
        {name: value.clone().to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
        for batch in islice(trainer.get_train_dataloader(), NUM_READY)
    ]
