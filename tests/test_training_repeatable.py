"""The same seed gives the same run, bit for bit, and `run.json` says what the order of its photos depends on."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from packed_photos import mae_trainer, pack, record_ids, training_arguments

import run_finetune_geo
import run_pretrain_mae

MAINS = {"pretrain": run_pretrain_mae.main, "finetune": run_finetune_geo.main}
NUM_TRAINING = 40


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("photos"), train=NUM_TRAINING, validation=8)


def run(main: Callable[[Sequence[str]], None], kind: str, photos: Path, folder: Path, seed: int) -> list[float]:
    words = [f"configs/{kind}/smoke.yaml", "--data_dirs", str(photos), "--output_dir", str(folder)]
    words += ["--seed", str(seed), "--peak_tflops", "1", "--use_cpu", "true", "--eval_strategy", "no"]
    words += ["--load_best_model_at_end", "false", "--reconstruction_steps", "0", "--dataloader_num_workers", "1"]
    main(words)
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry[name] for entry in history if "loss" in entry for name in ("loss", "grad_norm")]


@pytest.mark.slow
@pytest.mark.parametrize("kind", MAINS)
def test_same_seed_repeats_losses_and_weights_bitwise_and_another_does_not(
    photos: Path, tmp_path: Path, kind: str
) -> None:
    first, second, other = (
        run(MAINS[kind], kind, photos, tmp_path / name, seed) for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert len(first) == 8
    assert first == second
    assert not set(first) & set(other)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "abc"]
    assert weights[0] == weights[1] != weights[2]
    orders = [json.loads((tmp_path / name / "run.json").read_text())["training"]["photo_order"] for name in "abc"]
    assert orders[0] == orders[1]
    assert orders[0]["digest"] != orders[2]["digest"]


def trained(photos: Path, folder: Path, **changes: Any) -> tuple[list[str], str]:
    torch.manual_seed(0)
    shuffle_buffer = changes.pop("shuffle_buffer", 16)
    options: dict[str, Any] = {"max_steps": 8, "per_device_train_batch_size": 5, **changes}
    trainer = mae_trainer(photos, training_arguments(folder, **options), shuffle_buffer=shuffle_buffer)
    ids = record_ids(trainer)
    trainer.train()
    return ids, str(trainer.progress.describe_photo_order()["digest"])


def test_one_reader_and_none_and_other_batches_give_one_order_and_one_digest(photos: Path, tmp_path: Path) -> None:
    ids, digest = trained(photos, tmp_path)
    assert sorted(ids) == sorted(f"train-{shard}-{number}" for shard in (0, 1) for number in range(20))
    assert trained(photos, tmp_path, dataloader_num_workers=1) == (ids, digest)
    assert trained(photos, tmp_path, max_steps=5, per_device_train_batch_size=8) == (ids, digest)


def test_what_changes_the_order_changes_the_digest(photos: Path, tmp_path: Path) -> None:
    others = pack(tmp_path / "others", train=NUM_TRAINING, validation=8, digest="other")
    runs = [trained(photos, tmp_path / "run", **changes) for changes in ({}, {"seed": 1}, {"shuffle_buffer": 8})]
    runs.append(trained(photos, tmp_path / "run", dataloader_num_workers=2))
    runs.append(trained(others, tmp_path / "run"))
    assert len({digest for _, digest in runs}) == len(runs)
    assert len({tuple(ids) for ids, _ in runs[:4]}) == 4
    assert {frozenset(ids) for ids, _ in runs[:4]} == {frozenset(runs[0][0])}


def test_resumed_run_keeps_the_digest_with_other_readers(photos: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"per_device_train_batch_size": 5, "save_strategy": "steps", "save_steps": 2}
    first = mae_trainer(photos, training_arguments(tmp_path, max_steps=2, dataloader_num_workers=2, **options))
    first.train()
    resumed = mae_trainer(photos, training_arguments(tmp_path, max_steps=4, **options))
    resumed.train(resume_from_checkpoint="true")
    before, after = (trainer.progress.describe_photo_order() for trainer in (first, resumed))
    assert before["digest"] == after["digest"]
    assert (before["num_lanes"], after["num_lanes"], after["num_workers"]) == (2, 2, 0)
