"""The moving average of the weights: it lags, it is what is judged and saved, and a resumed run repeats it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packed_photos import geolocation_trainer, mae_trainer, pack, training_arguments
from safetensors.torch import load_file
from timm.utils import ModelEmaV3
from torch import nn
from transformers import TrainerCallback, TrainerState

from geomae.errors import ConfigError
from geomae.training import ReconstructionPanels, pick_panel
from geomae.training.averaging import WeightAverage
from modeling import GeoBaselineConfig, GeoBaselineForGeolocation, load_geolocator


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("photos"), train=40, validation=13)


def take_steps(model: nn.Module, average: WeightAverage, num_steps: int, change: float) -> None:
    """Add `change` to every weight, step by step."""
    for step in range(1, num_steps + 1):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += change
        average.on_step_end(None, TrainerState(global_step=step), None)  # type: ignore[arg-type]


def test_average_lags_behind_weights_that_move_one_way_by_the_sum_of_a_geometric_series() -> None:
    model, decay, change, num_steps = nn.Linear(3, 2).double(), 0.9, 0.25, 12
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    average = WeightAverage(model, decay=decay)
    take_steps(model, average, num_steps, change)
    # w_n - a_n = d (w_(n-1) - a_(n-1)) + d c, and w_1 = a_1: the lag is c (d + ... + d^(n-1))
    lag = change * decay * (1 - decay ** (num_steps - 1)) / (1 - decay)
    assert lag > 5 * change  # the other way round it would be a tenth of a step
    for name, tensor in average.state_dict().items():
        torch.testing.assert_close(tensor, start[name] + num_steps * change - lag)


@pytest.mark.parametrize("power", [1.0, 0.75])
def test_warm_up_keeps_little_at_first_and_ema_decay_in_the_end(power: float) -> None:
    model, decay, num_steps = nn.Linear(1, 1, bias=False).double(), 0.8, 15
    torch.nn.init.zeros_(model.weight)
    average = WeightAverage(model, decay=decay, warmup_power=power)
    take_steps(model, average, num_steps, 1.0)
    expected = 0.0
    for step in range(1, num_steps + 1):
        kept = min(decay, 1 - step**-power)
        expected = kept * expected + (1 - kept) * step
    assert average.state_dict()["weight"].item() == pytest.approx(expected, rel=1e-12)
    if power == 1.0:  # so far the plain mean of the weights: 1, 1.5, 2, ...
        young, early = nn.Linear(1, 1, bias=False).double(), 5
        torch.nn.init.zeros_(young.weight)
        plain = WeightAverage(young, decay=decay, warmup_power=power)
        take_steps(young, plain, early, 1.0)
        assert plain.state_dict()["weight"].item() == pytest.approx(np.mean(np.arange(1, early + 1)))


def test_statistics_of_batch_norm_are_averaged_and_its_count_is_the_models() -> None:
    model = nn.BatchNorm1d(2).double()
    average = WeightAverage(model, decay=0.5)
    means = []
    for step in (1, 2):
        model(torch.randn(8, 2, dtype=torch.float64) + step)
        means.append(model.running_mean.clone())
        average.on_step_end(None, TrainerState(global_step=step), None)  # type: ignore[arg-type]
    torch.testing.assert_close(average.state_dict()["running_mean"], (means[0] + means[1]) / 2)
    assert average.state_dict()["num_batches_tracked"] == 2


@pytest.mark.parametrize("power", [None, 0.75])
def test_average_is_timms_to_the_bit_without_its_dictionaries_in_every_step(
    power: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    average = WeightAverage(model, decay=0.9, warmup_power=power)
    timms = ModelEmaV3(model, decay=0.9, use_warmup=power is not None, warmup_power=power or 1.0)
    for step in range(1, 6):
        model(torch.randn(8, 3)).square().sum().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.01 * parameter.grad
        timms.update(model, step=step)
        with monkeypatch.context() as patch:
            patch.setattr(nn.Module, "state_dict", lambda *_, **__: pytest.fail("a dictionary in a step"))
            average.on_step_end(None, TrainerState(global_step=step), None)  # type: ignore[arg-type]
    for name, tensor in timms.module.state_dict().items():
        assert torch.equal(tensor, average.state_dict()[name]), name


def test_average_follows_a_model_that_was_moved_before_training_began() -> None:
    model = nn.BatchNorm1d(2)
    average = WeightAverage(model, decay=0.5)
    for module in (model, average._average.module):  # as onto a device: every buffer is another tensor now
        module.double()
    average.on_train_begin(None, TrainerState(), None)  # type: ignore[arg-type]
    model(torch.randn(8, 2, dtype=torch.float64))
    average.on_step_end(None, TrainerState(global_step=1), None)  # type: ignore[arg-type]
    assert all(torch.equal(tensor, average.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_weights_come_back_to_the_bit_also_after_an_error() -> None:
    model = nn.Linear(3, 2)
    average = WeightAverage(model, decay=0.9)
    take_steps(model, average, 3, 0.1)
    trained = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    averaged = {name: tensor.clone() for name, tensor in average.state_dict().items()}

    def fail_inside() -> None:
        with average.inside_the_model():
            assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in averaged.items())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_inside()
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in trained.items())
    assert all(torch.equal(average.state_dict()[name], tensor) for name, tensor in averaged.items())


class Diary(TrainerCallback):
    """Keeps the weights after every step."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.weights: list[dict[str, torch.Tensor]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.weights.append({name: tensor.clone() for name, tensor in self.model.state_dict().items()})


SAVING: dict[str, Any] = {"ema_decay": 0.9, "ema_warmup_power": None, "save_strategy": "steps", "save_steps": 3}


def test_checkpoint_and_finished_model_are_the_average_of_the_weights_that_were_trained(
    photos: Path, tmp_path: Path
) -> None:
    trainer = geolocation_trainer(photos, training_arguments(tmp_path, max_steps=6, **SAVING))
    diary = Diary(trainer.model)
    trainer.add_callback(diary)
    trainer.train()
    trainer.save_model()
    expected = {name: weights.double() for name, weights in diary.weights[0].items()}
    saved = {}
    for step, weights in enumerate(diary.weights[1:], start=2):
        expected = {name: 0.9 * expected[name] + 0.1 * weights[name].double() for name in expected}
        saved[step] = expected
    for folder, step in (("checkpoint-3", 3), ("checkpoint-6", 6), (".", 6)):
        found = load_file(tmp_path / folder / "model.safetensors")
        for name, tensor in found.items():
            torch.testing.assert_close(tensor.double(), saved[step][name], rtol=1e-5, atol=1e-6)
    for name, tensor in trainer.model.state_dict().items():
        torch.testing.assert_close(tensor.double(), saved[6][name], rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(trainer.model.state_dict()[name], tensor) for name, tensor in diary.weights[-1].items())


def test_average_does_not_change_the_weights_that_are_trained(photos: Path, tmp_path: Path) -> None:
    diaries = []
    judging: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 2}
    for options in ({}, {**SAVING, **judging}):
        torch.manual_seed(0)
        trainer = mae_trainer(photos, training_arguments(tmp_path, max_steps=6, **options))
        diaries.append(Diary(trainer.model))
        trainer.add_callback(diaries[-1])
        trainer.train()
    for plain, averaged in zip(diaries[0].weights, diaries[1].weights, strict=True):
        assert all(torch.equal(plain[name], averaged[name]) for name in plain)


@pytest.mark.parametrize("kind", ["geomae", "resnet"])
def test_resumed_run_repeats_weights_and_average_of_the_unbroken_one_bitwise(
    photos: Path, tmp_path: Path, kind: str
) -> None:
    options = {**SAVING, "ema_warmup_power": 0.75, "eval_strategy": "steps", "eval_steps": 2, "max_steps": 7}

    def trainer() -> Any:
        made = geolocation_trainer(photos, training_arguments(tmp_path, **options))
        if kind == "geomae":
            return made
        sizes = {"backbone": "resnet10t", "image_size": 16, "head_hidden_sizes": [8], "head_type": "sphere"}
        args, collator = training_arguments(tmp_path, **options), made.train_collator
        model = GeoBaselineForGeolocation(GeoBaselineConfig(**sizes))
        data = {"train_dataset": made.stream, "train_collator": collator, "eval_dataset": made.eval_dataset}
        return type(made)(model, args, **data, eval_collator=made.eval_collator)

    unbroken = trainer()
    diary = Diary(unbroken.model)
    unbroken.add_callback(diary)
    unbroken.train()
    torch.manual_seed(1)
    resumed = trainer()
    rest = Diary(resumed.model)
    resumed.add_callback(rest)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    for expected, found in zip(diary.weights[3:], rest.weights, strict=True):
        assert all(torch.equal(expected[name], found[name]) for name in expected)
    for name, tensor in unbroken.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
    judged = [[e["eval_loss"] for e in t.state.log_history if "eval_loss" in e] for t in (unbroken, resumed)]
    assert judged[0] == judged[1]


def test_best_model_is_chosen_and_kept_by_the_averaged_weights(photos: Path, tmp_path: Path) -> None:
    options = {**SAVING, "eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "learning_rate": 0.05}
    options |= {"load_best_model_at_end": True, "metric_for_best_model": "mean_km", "max_steps": 5}
    trainer = geolocation_trainer(photos, training_arguments(tmp_path, **options))
    trainer.train()
    means = {entry["step"]: entry["eval_mean_km"] for entry in trainer.state.log_history if "eval_mean_km" in entry}
    best = min(means, key=lambda step: means[step])
    assert trainer.evaluate()["eval_mean_km"] == pytest.approx(means[best])
    reloaded = geolocation_trainer(photos, training_arguments(tmp_path / "other"))
    for step, mean_km in means.items():  # what was judged in training is what lies in the checkpoint
        reloaded.model.load_state_dict(load_geolocator(tmp_path / f"checkpoint-{step}").state_dict())
        assert reloaded.evaluate()["eval_mean_km"] == pytest.approx(mean_km)


def test_finished_run_that_is_resumed_keeps_its_averaged_model(photos: Path, tmp_path: Path) -> None:
    trainer = mae_trainer(photos, training_arguments(tmp_path, max_steps=3, **SAVING))
    trainer.train()
    again = mae_trainer(photos, training_arguments(tmp_path, max_steps=3, **SAVING))
    again.train(resume_from_checkpoint="last")
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name


def test_average_can_be_switched_on_and_off_when_a_run_is_resumed(photos: Path, tmp_path: Path) -> None:
    without = {name: value for name, value in SAVING.items() if not name.startswith("ema")}
    unbroken = mae_trainer(photos, training_arguments(tmp_path / "plain", max_steps=6, **without))
    unbroken.train()
    torch.manual_seed(0)
    mae_trainer(photos, training_arguments(tmp_path / "ema", max_steps=3, **SAVING)).train()
    off = mae_trainer(photos, training_arguments(tmp_path / "ema", max_steps=6, **without))
    start = load_file(tmp_path / "ema/checkpoint-3/trained_weights.safetensors")
    diary = Diary(off.model)
    off.add_callback(diary)
    off.train(resume_from_checkpoint="last")
    assert any(not torch.equal(start[name], tensor) for name, tensor in diary.weights[0].items())
    on = mae_trainer(photos, training_arguments(tmp_path / "plain", max_steps=6, **SAVING))
    on_diary = Diary(on.model)
    on.add_callback(on_diary)
    on.train(resume_from_checkpoint=str(tmp_path / "plain/checkpoint-3"))
    before = load_file(tmp_path / "plain/checkpoint-3/model.safetensors")
    expected = before
    for weights in on_diary.weights:  # the average begins with the weights that were trained so far
        expected = {name: torch.lerp(expected[name], weights[name], 0.1) for name in expected}
    for name, tensor in on.model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name])
        torch.testing.assert_close(on_diary.weights[-1][name], unbroken.model.state_dict()[name], rtol=0, atol=0)


def test_reconstructions_are_drawn_with_the_averaged_weights(photos: Path, tmp_path: Path) -> None:
    trainer = mae_trainer(photos, training_arguments(tmp_path, max_steps=2, **SAVING))
    panel = pick_panel(trainer.eval_dataset, trainer.eval_collator, num_photos=2)
    assert panel is not None
    trainer.add_callback(ReconstructionPanels(trainer, panel, every_steps=2))
    seen, reconstruct = [], trainer.model.reconstruct
    key = "decoder.mask_token"

    def watch(**inputs: Any) -> Any:
        seen.append(trainer.model.state_dict()[key].clone())
        return reconstruct(**inputs)

    trainer.model.reconstruct = watch
    trainer.train()
    assert torch.equal(seen[-1], trainer.model.state_dict()[key])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ema_decay": 1.0}, "ema_decay is 1.0; it must lie between 0 and 1"),
        ({"ema_decay": 0.0}, "ema_decay is 0.0"),
        ({"ema_warmup_power": 0.0}, "ema_warmup_power is 0.0; it must be above 0 and at most 1"),
        ({"ema_warmup_power": 1.5}, "ema_warmup_power is 1.5"),
    ],
)
def test_impossible_averages_are_refused(tmp_path: Path, options: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        training_arguments(tmp_path, **options)
