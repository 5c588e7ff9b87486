"""Which parameters learn how fast, which decay, and how the learning rate changes over a run."""

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from timm.optim import param_groups_layer_decay
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel

from geomae.errors import ConfigError

__all__ = [
    "build_optimizer",
    "build_parameter_groups",
    "build_schedule",
    "learning_rate_factor",
    "set_hyperparameters",
]

# Names that end so are positions and learned tokens: vectors in the shape of matrices, which decay must not touch.
NEVER_DECAYED = ("pos_embed", "position_embedding", "position_embeddings", "_token")

HYPERPARAMETERS = ("initial_lr", "weight_decay", "betas", "eps")  # what a user sets
IMPLEMENTATION = ("fused", "foreach", "capturable", "differentiable")  # how a step is computed, not what


def build_parameter_groups(
    model: PreTrainedModel,
    *,
    learning_rate: float,
    weight_decay: float,
    layer_decay: float | None = None,
    decays_all_parameters: bool = False,
) -> list[dict[str, Any]]:
    """Sort the trainable parameters into groups of one learning rate and one weight decay.

    Args:
        model: with `layer_decay`, its `.backbone` is a timm module.
        learning_rate: of everything outside the backbone; without `layer_decay`, of the backbone as well.
        weight_decay: of matrices and kernels; vectors, positions and tokens have none.
        layer_decay: factor from the head to the backbone's top layer, and from each layer to the one below it; None
            or 1: one rate for all.
        decays_all_parameters: decay vectors, positions and tokens as well.

    Returns:
        Groups for a torch optimizer, each with `params`, `lr`, `weight_decay`; every trainable parameter is in
        exactly one.

    Raises:
        ConfigError: `layer_decay` is set for a model without `.backbone`.
    """
    scales = _layer_scales(model, layer_decay)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = decays_all_parameters or (parameter.ndim > 1 and not name.endswith(NEVER_DECAYED))
        scale = scales.get(id(parameter), 1.0)
        key = (scale, weight_decay if decays else 0.0)
        group = groups.setdefault(key, {"params": [], "lr": learning_rate * scale, "weight_decay": key[1]})
        group["params"].append(parameter)
    # The Trainer logs the first group's rate: let that be the head's.
    return [groups[key] for key in sorted(groups, key=lambda key: (-key[0], -key[1]))]


def _layer_scales(model: nn.Module, layer_decay: float | None) -> dict[int, float]:
    """Learning rate factor by parameter identity, from timm's own assignment of parameters to layers."""
    if layer_decay is None or layer_decay == 1.0:
        return {}
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, nn.Module):
        raise ConfigError(f"layer_decay is {layer_decay}, but a {type(model).__name__} has no backbone to apply it to")
    groups = param_groups_layer_decay(backbone, layer_decay=layer_decay)
    # timm counts from its own top layer; the head stands one layer above it, as in MAE's and BEiT's fine-tuning.
    return {id(parameter): layer_decay * group["lr_scale"] for group in groups for parameter in group["params"]}


def build_optimizer(
    model: PreTrainedModel, args: Any, optimizer_class: type[Optimizer], options: Mapping[str, Any]
) -> Optimizer:
    """An optimizer over `build_parameter_groups`; a state that it loads does not change how it computes a step.

    Args:
        model: whose parameters are trained.
        args: `GeoMAETrainingArguments`.
        optimizer_class: what `args.optim` names.
        options: keyword arguments of that class.
    """
    groups = build_parameter_groups(
        model,
        learning_rate=args.learning_rate,
        weight_decay=args.weight_decay,
        layer_decay=args.layer_decay,
        decays_all_parameters=args.decays_all_parameters,
    )
    optimizer: Optimizer = optimizer_class(groups, **options)
    optimizer.register_load_state_dict_pre_hook(_keep_implementation)
    return optimizer


def _keep_implementation(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any] | None:
    """How a step is computed, fused or not, is not the checkpoint's: torch would take that from the state as well.

    Before the state is loaded, since torch puts the count of steps on the device or leaves it on the CPU by it.
    """
    groups, saved = optimizer.param_groups, state["param_groups"]
    if len(groups) != len(saved):
        return None  # torch refuses it
    pairs = zip(groups, saved, strict=True)
    kept = [old | {name: group[name] for name in IMPLEMENTATION if name in group} for group, old in pairs]
    return state | {"param_groups": kept}


def learning_rate_factor(
    schedule: str,
    *,
    max_steps: int,
    warmup_steps: int = 0,
    min_factor: float = 0.0,
    step_size: float = 1.0,
    milestones: Sequence[float] = (),
    gamma: float = 0.1,
) -> Callable[[int], float]:
    """The learning rate at an optimiser step as a share of the highest one: a pure function, so resuming is exact.

    Args:
        schedule: `constant`, `linear`, `cosine`, `step` or `multistep`; each follows a linear warm-up from 0.
        max_steps: where `linear` and `cosine` reach `min_factor`.
        warmup_steps: steps of the warm-up; `step` and `multistep` count from the start of the run all the same.
        min_factor: end of `linear` and `cosine`.
        step_size: steps between two falls of `step`; need not be whole.
        milestones: steps after which `multistep` falls, rising.
        gamma: factor of each fall.
    """
    rounded = [round(milestone) for milestone in milestones]

    def factor(step: int) -> float:
        if step < warmup_steps:
            return step / warmup_steps
        progress = min(1.0, (step - warmup_steps) / max(1, max_steps - warmup_steps))
        if schedule == "linear":
            return min_factor + (1 - min_factor) * (1 - progress)
        if schedule == "cosine":
            return min_factor + (1 - min_factor) * (1 + math.cos(math.pi * progress)) / 2
        if schedule == "step":
            # The k-th fall comes at round(k x step_size): truncating would let it drift by a step over many epochs.
            return float(gamma ** math.floor((step + 0.5) / step_size))
        if schedule == "multistep":
            return float(gamma ** bisect.bisect_right(rounded, step))
        return 1.0

    return factor


def build_schedule(optimizer: Optimizer, args: Any, num_training_steps: int) -> LambdaLR:
    """The schedule of `GeoMAETrainingArguments`, after `fit_to`, stepped once per optimiser step.

    Source: StepLR and MultiStepLR are the thesis's (2024); warm-up and cosine are those of He et al. (2021).
    """
    factor = learning_rate_factor(
        args.schedule,
        max_steps=num_training_steps,
        warmup_steps=args.get_warmup_steps(num_training_steps),
        min_factor=args.min_learning_rate / args.learning_rate,
        step_size=(args.step_epochs or 1.0) * args.steps_per_epoch,
        milestones=[epoch * args.steps_per_epoch for epoch in args.milestone_epochs or ()],
        gamma=args.gamma,
    )
    return LambdaLR(optimizer, factor)


def set_hyperparameters(optimizer: Optimizer, schedule: LambdaLR, groups: Sequence[Mapping[str, Any]]) -> None:
    """Give a restored optimizer the hyperparameters of other groups, at the step where its schedule stands.

    Args:
        optimizer: as restored from a checkpoint.
        schedule: of the same optimizer, restored as well.
        groups: as many, with `initial_lr`, the highest learning rate, and `weight_decay`; `betas` and `eps` where the
            optimizer has them. What an optimizer counts in its groups stays.

    Raises:
        ConfigError: the checkpoint is another optimizer's, whose groups lack what this one needs.
    """
    missing = sorted(groups[0].keys() - optimizer.param_groups[0].keys())
    if missing:
        name = type(getattr(optimizer, "optimizer", optimizer)).__name__  # accelerate's holds torch's
        raise ConfigError(
            f"another optimizer than {name} saved the checkpoint: it knows no {', '.join(missing)}. Resume with the "
            "optim of that run, or start from its weights with --init_from"
        )
    schedule.base_lrs = [group["initial_lr"] for group in groups]
    for restored, group, factor in zip(optimizer.param_groups, groups, schedule.lr_lambdas, strict=True):
        restored.update({name: group[name] for name in HYPERPARAMETERS if name in group})
        restored["lr"] = group["initial_lr"] * factor(schedule.last_epoch)
    schedule._last_lr = [group["lr"] for group in optimizer.param_groups]
