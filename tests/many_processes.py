"""Trainers of tiny models that see the same photos, masked alike, however these are dealt to processes."""

import sys
from pathlib import Path
from typing import Any

import torch
from packed_photos import TINY, training_arguments

from geomae.data.collate import PhotoCollator
from geomae.data.layout import list_shards
from geomae.data.stream import PhotoStream
from geomae.training import GeolocationTrainer, MAETrainer, StreamingTrainer
from modeling import GeoMAEConfig, GeoMAEForGeolocation, GeoMAEForPreTraining

KINDS = ("pretrain", "finetune")


def build_trainer(kind: str, photos: Path, output_dir: Path, **changes: Any) -> StreamingTrainer:
    """A trainer on this process's photos; every photo brings the noise that masks it, and nothing else is random."""
    architecture = {name: changes.pop(name) for name in ("loss_reduction",) if name in changes}
    settings = {"per_device_train_batch_size": 4, "max_grad_norm": 0.5, "base_learning_rate": 0.032, **changes}
    args = training_arguments(output_dir, **settings)  # 1e-3 for the 8 photos that every step has in all
    stream = PhotoStream(
        list_shards(photos, "train"),
        seed=args.seed,
        batch_size=args.per_device_train_batch_size,
        rank=args.process_index,
        world_size=args.world_size,
        window_samples=16,
    )
    torch.manual_seed(0)
    config = GeoMAEConfig(**{**TINY, "head_type": "sphere", **architecture})
    if kind == "pretrain":
        collator = PhotoCollator(16, augment=False, labelled=False, num_patches=config.num_patches)  # noise by id
        return MAETrainer(GeoMAEForPreTraining(config), args, train_dataset=stream, train_collator=collator)
    return GeolocationTrainer(
        GeoMAEForGeolocation(config), args, train_dataset=stream, train_collator=PhotoCollator(16, augment=True)
    )


def train_and_save(kind: str, photos: Path, output_dir: Path, **changes: Any) -> tuple[list[float], Any]:
    """Losses and gradient norms of every step, and the weights in the end."""
    trainer = build_trainer(kind, photos, output_dir, **changes)
    trainer.train()
    assert trainer.args.world_size == 1 or trainer.model_wrapped.gradient_as_bucket_view  # a gradient is held once
    trainer.save_model()
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    logged = [entry[name] for name in ("loss", "grad_norm") for entry in history]
    if trainer.is_world_process_zero():
        torch.save(logged, Path(output_dir) / "logged.pt")
    return logged, trainer.model.state_dict()


if __name__ == "__main__":
    for kind in KINDS:
        train_and_save(kind, Path(sys.argv[1]), Path(sys.argv[2]) / kind, dataloader_num_workers=1)
