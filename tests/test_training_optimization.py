"""Parameter groups cover every parameter once; schedules are those of torch and of the thesis; resumed optimizers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from packed_photos import TINY, mae_trainer, pack, training_arguments
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, MultiStepLR, StepLR

from geomae.errors import ConfigError
from geomae.training import GeoMAETrainingArguments, build_parameter_groups, build_schedule, learning_rate_factor
from modeling import (
    GeoBaselineConfig,
    GeoBaselineForGeolocation,
    GeoMAEConfig,
    GeoMAEForGeolocation,
    GeoMAEForPreTraining,
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("photos"), train=40, validation=2)


def tiny_model(kind: str) -> Any:
    if kind == "pretraining":
        return GeoMAEForPreTraining(GeoMAEConfig(**TINY))
    if kind == "geolocation":
        return GeoMAEForGeolocation(GeoMAEConfig(**TINY))
    return GeoBaselineForGeolocation(GeoBaselineConfig(backbone=kind, image_size=32, head_hidden_sizes=[8]))


@pytest.mark.parametrize("kind", ["pretraining", "geolocation", "resnet10t", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("layer_decay", [None, 0.5])
def test_every_trainable_parameter_is_in_exactly_one_group(kind: str, layer_decay: float | None) -> None:
    model = tiny_model(kind)
    groups = build_parameter_groups(model, learning_rate=1.0, weight_decay=0.1, layer_decay=layer_decay)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    trainable = [id(parameter) for parameter in model.parameters() if parameter.requires_grad]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == set(trainable)


def settings_by_name(model: nn.Module, **options: Any) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of every trainable parameter."""
    groups = build_parameter_groups(model, learning_rate=1.0, weight_decay=0.1, **options)
    found = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    return {name: found[id(p)] for name, p in model.named_parameters() if id(p) in found}


def test_vectors_positions_and_tokens_do_not_decay() -> None:
    settings = settings_by_name(tiny_model("pretraining"))
    undecayed = {name for name, (_, decay) in settings.items() if decay == 0}
    assert {
        "geomae.encoder.pos_embed",
        "geomae.encoder.cls_token",
        "decoder.pos_embed",
        "decoder.mask_token",
    } <= undecayed
    for name in settings:
        is_vector = name.endswith((".bias", "norm.weight", "norm1.weight", "norm2.weight"))
        is_position_or_token = name.endswith(("pos_embed", "_token"))
        assert (name in undecayed) == (is_vector or is_position_or_token), name


def test_everything_decays_where_the_thesis_is_followed() -> None:
    settings = settings_by_name(tiny_model("pretraining"), decays_all_parameters=True)
    assert {decay for _, decay in settings.values()} == {0.1}


def test_layer_decay_halves_the_rate_from_layer_to_layer_below_the_head() -> None:
    settings = settings_by_name(tiny_model("geolocation"), layer_decay=0.5)
    rates = {name: rate for name, (rate, _) in settings.items()}
    assert {rate for name, rate in rates.items() if name.startswith("head.")} == {1.0}
    assert rates["geomae.encoder.norm.weight"] == 0.5
    assert {rate for name, rate in rates.items() if ".blocks.1." in name} == {0.5}
    assert {rate for name, rate in rates.items() if ".blocks.0." in name} == {0.25}
    for name in ("patch_embed.proj.weight", "pos_embed", "cls_token"):
        assert rates[f"geomae.encoder.{name}"] == 0.125


def test_first_group_is_logged_and_has_the_top_rate() -> None:
    groups = build_parameter_groups(tiny_model("geolocation"), learning_rate=1.0, weight_decay=0.1, layer_decay=0.5)
    assert (groups[0]["lr"], groups[0]["weight_decay"]) == (1.0, 0.1)


def test_layer_decay_of_a_model_without_backbone_is_refused() -> None:
    with pytest.raises(ConfigError, match="Linear has no backbone"):
        build_parameter_groups(nn.Linear(2, 2), learning_rate=1.0, weight_decay=0.1, layer_decay=0.5)


def rates_of(scheduler: Any, optimizer: torch.optim.Optimizer, num_steps: int) -> list[list[float]]:
    rates = []
    for _ in range(num_steps):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return rates


def two_groups() -> torch.optim.Optimizer:
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    return torch.optim.SGD([{"params": [parameters[0]], "lr": 1e-4}, {"params": [parameters[1]], "lr": 3e-5}])


def fitted(num_photos: int, **settings: Any) -> GeoMAETrainingArguments:
    args = GeoMAETrainingArguments(output_dir="outputs/test", per_device_train_batch_size=10, **settings)
    args.fit_to(num_photos)
    return args


def test_step_schedule_of_the_thesis_is_torchs_step_lr() -> None:
    args = fitted(50, schedule="step", step_epochs=3, gamma=0.1, num_train_epochs=10)
    ours, theirs = two_groups(), two_groups()
    rates = rates_of(build_schedule(ours, args, args.max_steps), ours, args.max_steps)
    expected = rates_of(StepLR(theirs, step_size=3 * 5, gamma=0.1), theirs, args.max_steps)
    torch.testing.assert_close(torch.tensor(rates), torch.tensor(expected))


def test_multistep_schedule_of_the_thesis_is_torchs_multi_step_lr() -> None:
    epochs = [6, 10, 13, 16, 18, 20]
    args = fitted(50, schedule="multistep", milestone_epochs=epochs, gamma=0.5, num_train_epochs=21)
    ours, theirs = two_groups(), two_groups()
    rates = rates_of(build_schedule(ours, args, args.max_steps), ours, args.max_steps)
    expected = rates_of(MultiStepLR(theirs, [epoch * 5 for epoch in epochs], gamma=0.5), theirs, args.max_steps)
    torch.testing.assert_close(torch.tensor(rates), torch.tensor(expected))


def test_falls_do_not_drift_where_an_epoch_is_no_whole_number_of_steps() -> None:
    factor = learning_rate_factor("step", max_steps=1000, step_size=7.4, gamma=0.5)
    falls = [step for step in range(1, 100) if factor(step) < factor(step - 1)]
    assert falls == [round(7.4 * number) for number in range(1, 14)]


def test_cosine_is_torchs_and_ends_at_the_smallest_rate() -> None:
    args = fitted(50, schedule="cosine", max_steps=40, learning_rate=1e-4, min_learning_rate=1e-5)
    ours, theirs = two_groups(), two_groups()
    rates = rates_of(build_schedule(ours, args, 40), ours, 41)
    expected = rates_of(CosineAnnealingLR(theirs, T_max=40, eta_min=1e-5), theirs, 41)
    torch.testing.assert_close(torch.tensor(rates)[:, 0], torch.tensor(expected)[:, 0])
    assert rates[-1] == pytest.approx([1e-5, 3e-6])  # every layer ends at the same share of its rate


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "step", "multistep"])
def test_warm_up_is_linear_from_zero_to_the_top(schedule: str) -> None:
    factor = learning_rate_factor(schedule, max_steps=100, warmup_steps=10, step_size=50, milestones=[50])
    assert [factor(step) for step in range(11)] == pytest.approx([step / 10 for step in range(11)])


def test_schedules_never_rise_after_the_warm_up_nor_fall_below_zero() -> None:
    for schedule in ("constant", "linear", "cosine", "step", "multistep"):
        factor = learning_rate_factor(schedule, max_steps=100, warmup_steps=10, step_size=20, milestones=[30, 70])
        values = [factor(step) for step in range(10, 120)]
        assert values == sorted(values, reverse=True)
        assert values[-1] >= 0


def test_schedule_resumes_exactly() -> None:
    args = fitted(50, schedule="cosine", max_steps=20, warmup_steps=3)
    unbroken, resumed = two_groups(), two_groups()
    first = build_schedule(unbroken, args, 20)
    rates_of(first, unbroken, 8)
    second = build_schedule(resumed, args, 20)
    assert isinstance(second, LambdaLR)
    resumed.load_state_dict(unbroken.state_dict())
    second.load_state_dict(first.state_dict())
    assert rates_of(second, resumed, 12) == rates_of(first, unbroken, 12)


@pytest.mark.parametrize(("saved", "resumed"), [(True, None), (None, True)], ids=["fused_before", "fused_now"])
def test_resumed_run_takes_the_implementation_of_its_own_optim(
    photos: Path, tmp_path: Path, saved: bool | None, resumed: bool | None
) -> None:
    optims = {True: "adamw_torch_fused", None: "adamw_torch"}
    mae_trainer(photos, training_arguments(tmp_path, save_strategy="steps", save_steps=4, optim=optims[saved])).train()
    other = mae_trainer(photos, training_arguments(tmp_path, max_steps=5, optim=optims[resumed]))
    other.train(resume_from_checkpoint="true")
    assert {group["fused"] for group in other.optimizer.param_groups} == {resumed}
    assert {float(state["step"]) for state in other.optimizer.state.values()} == {5.0}


def test_checkpoint_of_another_optimizer_is_refused(photos: Path, tmp_path: Path) -> None:
    mae_trainer(photos, training_arguments(tmp_path, save_strategy="steps", save_steps=4)).train()
    other = mae_trainer(photos, training_arguments(tmp_path, max_steps=5, optim="sgd"))
    with pytest.raises(ConfigError, match=r"another optimizer than SGD .* no .*momentum.* optim of that .*--init_from"):
        other.train(resume_from_checkpoint="true")
