# ruff: noqa: RUF009 (`option` calls `dataclasses.field`)
"""Every key of a YAML file: data, architecture and training, with its meaning, unit and consequence.

The architecture's fields repeat those of `modeling`'s configs, defaults included, so that `--help` lists them and a
misspelt one is refused; a test holds the two together.
"""

import math
import os
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal, TypeVar

import torch
from accelerate.utils import DynamoBackend
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from geomae.compilation import refuse_missing_compiler
from geomae.errors import ConfigError
from geomae.provenance import shown_config
from geomae.tracking import (
    refuse_bad_tags,
    refuse_missing_trackers,
    refuse_unready_wandb,
    run_group_of,
    run_name_of,
)
from geomae.training.config_file import Variants, given_keys, option, parse_config
from geomae.training.data_arguments import DataArguments

__all__ = [
    "DataArguments",
    "FinetuneArguments",
    "GeoBaselineArguments",
    "GeoMAEArguments",
    "GeoMAETrainingArguments",
    "PretrainArguments",
    "Variants",
    "given_keys",
    "parse_config",
]

SCHEDULES = ("constant", "linear", "cosine", "step", "multistep")

# Keys of transformers that change nothing here, or harm: the loaders, the parameter groups, the schedule and the
# evaluation are our own. Each with what to do instead.
_OWN_LOADER = "photos come from a stream of our own; choose dataloader_num_workers, dataloader_prefetch_factor"
_OWN_ORDER = "the order of the photos is the stream's; choose shuffle_buffer, seed or data_seed"
_OWN_EVALUATION = "every evaluation judges each photo once, in the precision of training, and keeps a row of each"
_OWN_SCRIPT = "the script always trains, and evaluates as eval_strategy says"
_EVERY_BLOCK = "with gradient_checkpointing every block is recomputed, without re-entering autograd"
_OWN_LOSS = "the loss is the model's own"
NOT_USED = {
    "lr_scheduler_type": f"write schedule: one of {', '.join(SCHEDULES)}",
    "lr_scheduler_kwargs": "write step_epochs, milestone_epochs, gamma or min_learning_rate",
    "optim_target_modules": "parameters are grouped by layer_decay and decays_all_parameters",
    "ignore_data_skip": "a resumed stream jumps to its place, and skipping batches would leave photos out",
    "remove_unused_columns": "the collator needs columns that the model does not take",
    "dataloader_drop_last": "every training batch is full",
    "dataloader_persistent_workers": _OWN_LOADER,
    "dataloader_in_order": "only batches in their order can be resumed",
    "train_sampling_strategy": _OWN_ORDER,
    "length_column_name": _OWN_ORDER,
    "auto_find_batch_size": "choose per_device_train_batch_size and gradient_accumulation_steps",
    "restore_callback_states_from_checkpoint": "what a run counts is restored without it",
    "prediction_loss_only": _OWN_EVALUATION,
    "eval_accumulation_steps": _OWN_EVALUATION,
    "eval_do_concat_batches": _OWN_EVALUATION,
    "eval_use_gather_object": _OWN_EVALUATION,
    "include_for_metrics": _OWN_EVALUATION,
    "batch_eval_metrics": _OWN_EVALUATION,
    "bf16_full_eval": _OWN_EVALUATION,
    "fp16_full_eval": _OWN_EVALUATION,
    "label_names": _OWN_LOSS,
    "label_smoothing_factor": _OWN_LOSS,
    "gradient_checkpointing_kwargs": _EVERY_BLOCK,
    "activation_checkpointing_kwargs": _EVERY_BLOCK,
    "neftune_noise_alpha": "it is for embeddings of words",
    "use_liger_kernel": "it is for language models",
    "do_train": _OWN_SCRIPT,
    "do_eval": _OWN_SCRIPT,
    "do_predict": "run_evaluate_geo.py judges a checkpoint",
}

BASE_BATCH_SIZE = 256  # `base_learning_rate` is per 256 photos, as in He et al. (2021), appendix A.1


@dataclass
class PretrainArguments:
    """What a pretraining run starts from."""

    init_from: str | None = option(
        None, "Encoder weights to start from: a GeoMAE folder, timm or public MAE weights; null: fresh."
    )


@dataclass
class FinetuneArguments:
    """What is fine-tuned, and what it starts from."""

    model_type: Literal["geomae", "geobaseline"] = option("geomae", "geomae, or geobaseline: any timm backbone.")
    init_from: str | None = option(
        None,
        "Weights to start from: a GeoMAE folder, timm or public MAE weights; null: fresh. Encoder sizes that are not "
        "given are taken from a GeoMAE folder.",
    )
    geocells: str | None = option(
        None, "Cells for a head that has some: geocells.parquet of `python -m geomae.geocells build`."
    )


@dataclass
class HeadArguments:
    """The geolocation head of any architecture; defaults are the thesis's."""

    head_type: str = option(
        "tanh", "tanh (the thesis) and sphere answer a point; geocells, hybrid and vmf_mixture a posterior."
    )
    head_hidden_sizes: list[int] = option([512, 256], "Widths of the head's hidden layers.")
    head_dropout_prob: float = option(0.0, "Dropout of the head's hidden units.")
    num_geocells: list[int] = option([], "Cells of each partition, coarse to fine; `geocells: PATH` sets it.")
    label_smoothing: float = option(0.0, "geocells, hybrid: share of the target spread evenly over all cells.")
    haversine_smoothing_km: float = option(
        0.0, "geocells, hybrid: targets fall off as exp(-km / this) beyond the nearest cell, PIGEON has 65; 0: off."
    )
    regression_weight_per_km: float = option(0.005, "hybrid: nats of the loss for a km of error within the true cell.")
    num_mixture_components: int = option(
        0, "vmf_mixture: components whose places are predicted; 0: one anchored at each of the finest geocells."
    )
    num_scenes: int = option(0, "Kinds of scenes learned beside the place: 3 (S3), 16 (S16); 0: none.")
    scene_experts: bool = option(False, "geocells: a classifier for each scene, weighed by the scene's probability.")
    scene_loss_weight: float = option(0.5, "Weight of the scene's cross-entropy; point heads count 1000 km for a nat.")
    decoding: str = option(
        "kernel", "How a posterior becomes the answer: argmax, kernel, expected_km or mean_in_top_k."
    )
    kernel_km: float = option(200.0, "kernel: mass counts as exp(-km / kernel_km) around the answer.")
    top_k: int = option(5, "mean_in_top_k: so many of the likeliest places are averaged.")
    temperature: float = option(1.0, "Divides the logits of a posterior when it answers; fitted after training.")
    spread_scale: float = option(1.0, "Multiplies how far mass is spread around its place; fitted with temperature.")


@dataclass
class GeoMAEArguments(HeadArguments):
    """The architecture of GeoMAE; defaults are the thesis's."""

    hidden_size: int = option(768, "Width of the encoder's tokens.")
    num_hidden_layers: int = option(12, "Transformer blocks of the encoder.")
    num_attention_heads: int = option(12, "Attention heads of each encoder block.")
    intermediate_size: int = option(3072, "Hidden width of each encoder block's MLP.")
    qkv_bias: bool = option(True, "Whether queries, keys and values have a bias.")
    layer_norm_eps: float = option(1e-6, "Added to the variance in every LayerNorm.")
    initializer_range: float = option(0.02, "Standard deviation of fresh tokens and learned positions.")
    image_size: int = option(224, "Side of the square photos, pixels; a multiple of patch_size.")
    patch_size: int = option(16, "Side of a patch, pixels.")
    num_channels: int = option(3, "Colour channels.")
    image_mean: list[float] = option([0.485, 0.456, 0.406], "Per channel, subtracted from photos scaled to 0..1.")
    image_std: list[float] = option([0.229, 0.224, 0.225], "Per channel, divides what image_mean leaves.")
    position_embedding: str = option("learned", "learned, or sincos: fixed sines and cosines.")
    hidden_dropout_prob: float = option(0.0, "Dropout of the encoder's tokens and MLPs.")
    attention_probs_dropout_prob: float = option(0.0, "Dropout of the encoder's attention weights.")
    drop_path_rate: float = option(0.0, "Stochastic depth: the last encoder block's drop rate.")
    pooling: str = option("cls", "What stands for the photo: cls, the class token, or mean, of the patch tokens.")
    mask_ratio: float = option(0.75, "Share of the patches hidden from the encoder in pretraining.")
    norm_pix_loss: bool = option(False, "Predict pixels normalised within each patch.")
    loss_reduction: str = option(
        "mean",
        "mean over masked patches and batch, or sum over both (the thesis): a sum is one device's, of one batch; "
        "accumulated batches and processes are averaged.",
    )
    decoder_hidden_size: int = option(384, "Width of the decoder's tokens.")
    decoder_num_hidden_layers: int = option(4, "Transformer blocks of the decoder.")
    decoder_num_attention_heads: int = option(12, "Attention heads of each decoder block.")
    decoder_intermediate_size: int = option(1536, "Hidden width of each decoder block's MLP.")


@dataclass
class GeoBaselineArguments(HeadArguments):
    """The architecture of a baseline: a timm backbone under a geolocation head; defaults are the thesis's ResNet."""

    backbone: str = option("resnet152", "Name of a timm model: resnet152, vit_base_patch16_224, ...")
    backbone_kwargs: dict[str, Any] = option({}, "Passed to timm.create_model as they are.")
    image_size: int = option(224, "Side of the square photos, pixels.")
    num_channels: int = option(3, "Colour channels.")
    image_mean: list[float] = option([0.485, 0.456, 0.406], "Per channel, subtracted from photos scaled to 0..1.")
    image_std: list[float] = option([0.229, 0.224, 0.225], "Per channel, divides what image_mean leaves.")
    drop_path_rate: float = option(0.0, "Stochastic depth of the backbone, where it knows it.")


Architecture = TypeVar("Architecture", GeoMAEArguments, GeoBaselineArguments)


@dataclass
class GeoMAETrainingArguments(TrainingArguments):
    """transformers' `TrainingArguments` with defaults for streams, schedules in epochs, and our safeguards.

    Raises:
        ConfigError: a schedule lacks its epochs, or a value is out of its range.
    """

    exclusive_keys = (
        ("learning_rate", "base_learning_rate"),
        ("warmup_steps", "warmup_epochs"),
        ("max_steps", "num_train_epochs"),
        ("schedule", "lr_scheduler_type"),
    )

    output_dir: str = option("", "Folder of the run: checkpoints, logs, pictures, run.json; usually outputs/NAME.")

    learning_rate: float = option(1e-4, "Highest learning rate, at any batch size.")
    base_learning_rate: float | None = option(None, "Instead: the rate per 256 photos; x total batch / 256.")
    layer_decay: float | None = option(None, "Learning rate factor from the head to the top layer, and layer by layer.")
    decays_all_parameters: bool = option(False, "Weight decay on biases, norms, positions and tokens too (the thesis).")

    schedule: str = option("cosine", f"Learning rate over time: {', '.join(SCHEDULES)}.")
    warmup_epochs: float | None = option(None, "Linear warm-up from 0, epochs; warmup_steps counts steps instead.")
    min_learning_rate: float = option(0.0, "Where linear and cosine end; scaled like the rest by layer_decay.")
    step_epochs: float | None = option(None, "schedule step: multiply the rate by gamma every so many epochs.")
    milestone_epochs: list[float] | None = option(None, "schedule multistep: multiply by gamma after these epochs.")
    gamma: float = option(0.1, "Factor of the schedules step and multistep.")

    ema_decay: float | None = option(
        None, "Judge and save a moving average of the weights, of which each step keeps this share; null: the weights."
    )
    ema_warmup_power: float | None = option(
        0.75,
        "Step t keeps at most 1 - t^-power of the average, so that its start is forgotten; null: ema_decay at once.",
    )

    run_name: str | None = option(None, "What trackers call the run; null: output_dir below outputs/, in one word.")
    run_group: str | None = option(
        None, "What W&B groups the run under; null: WANDB_RUN_GROUP, or the first folder of output_dir below outputs/."
    )
    project: str = option("geomae", "What trackio files the run under; W&B reads WANDB_PROJECT, or takes geomae.")
    run_tags: list[str] = option([], "Tags of the run in W&B, such as [half, seed_0]; none: those of WANDB_TAGS.")

    max_bad_fraction: float = option(0.01, "Stop when more than this share of the photos cannot be decoded.")
    overwrite_output_dir: bool = option(False, "Remove an earlier run from output_dir instead of refusing to start.")
    reconstruction_steps: int = option(0, "Draw reconstructions of validation photos every so many steps; 0: never.")
    prediction_maps: bool = option(True, "Draw truths and answers of each evaluation on a world map.")
    num_reconstructions: int = option(6, "Photos on each picture of reconstructions.")
    profile: bool = option(False, "Record a few steps in profile/ once the run is warm: a trace, and where time goes.")
    peak_tflops: float | None = option(None, "Peak of one device, TFLOP/s, for mfu; null: by its name, or measured.")

    remove_unused_columns: bool = option(False, "Ours: the collator takes undecoded columns, the model takes tensors.")
    ignore_data_skip: bool = option(True, "Ours: a resumed stream jumps to its place; nothing is read twice.")
    logging_nan_inf_filter: bool = option(False, "Ours: a non-finite loss stops the run; the filter syncs each step.")
    logging_steps: float = option(50, "Log every so many steps; below 1: share of the run.")
    tf32: bool | None = option(
        False, "Ours: with torch_compile transformers turns TF32 on, which rounds the head's float32 to 10 bits."
    )
    ddp_find_unused_parameters: bool | None = option(False, "Ours: every parameter takes part in every step.")
    accelerator_config: dict[str, Any] | str | None = option(
        {"dispatch_batches": False, "non_blocking": True}, "Each process reads its own photos."
    )
    dataloader_num_workers: int = option(2, "Readers per process; each decodes whole batches.")
    save_total_limit: int | None = option(
        2, "Checkpoints kept, the best one among them; never fewer than the best and the newest."
    )
    resume_from_checkpoint: str | None = option(
        None, "A checkpoint folder; true: the newest in output_dir; last: the same, or a fresh start without one."
    )

    def __post_init__(self) -> None:
        if not self.output_dir:
            raise ConfigError("output_dir is missing: name the run's folder, such as outputs/my_run")
        if str(self.resume_from_checkpoint).lower() in ("true", "false", "last"):  # Python's True is no folder
            self.resume_from_checkpoint = str(self.resume_from_checkpoint).lower()
        if not torch.cuda.is_available():
            self.use_cpu = self.use_cpu or not torch.backends.mps.is_available()
            self.dataloader_pin_memory = False
            if isinstance(self.accelerator_config, dict):
                self.accelerator_config = {**self.accelerator_config, "non_blocking": False}
        if self.greater_is_better is None and (self.metric_for_best_model or "").endswith("_km"):
            self.greater_is_better = False
        self.run_name = self.run_name or run_name_of(self.output_dir)
        self.run_group = self.run_group or os.environ.get("WANDB_RUN_GROUP") or run_group_of(self.output_dir)
        refuse_bad_tags(self.run_tags)
        refuse_missing_trackers(self.report_to)
        self._check_not_used()
        self._check_backend()
        self._check_ranges()
        super().__post_init__()
        accelerator_config: Any = self.accelerator_config  # by now an AcceleratorConfig
        if accelerator_config.dispatch_batches or accelerator_config.split_batches:
            raise ConfigError(f"dispatch_batches and split_batches of accelerator_config are not used: {_OWN_LOADER}")
        if "wandb" in (self.report_to or ()) and self.process_index == 0:
            refuse_unready_wandb()
        if self.trackio_static_space_id is None:
            self.trackio_static_space_id = False  # with push_to_hub, transformers would copy trackio's records unasked
        # Without a launcher transformers would use nn.DataParallel, which splits batches behind the stream's back.
        self._n_gpu = min(self._n_gpu, 1)
        self.num_photos = 0
        self.steps_are_given = self.max_steps > 0
        if self.enable_jit_checkpoint and self.world_size > 1:
            raise ConfigError(
                "enable_jit_checkpoint is true, but each process notices the signal at a step of its own, and they "
                "would wait for each other: save by save_steps instead"
            )

    def to_dict(self) -> dict[str, Any]:
        """Every key as records and trackers may show it: `shown_config` of transformers' own."""
        return shown_config(super().to_dict())

    def _check_not_used(self) -> None:
        for known in fields(self):
            default = known.default if known.default_factory is MISSING else known.default_factory()
            value = getattr(self, known.name)
            if known.name in NOT_USED and value != default:
                raise ConfigError(
                    f"{known.name} is {value}, but it is not used here: {NOT_USED[known.name]}; leave it at {default}"
                )

    def _check_backend(self) -> None:
        if not (self.torch_compile or self.torch_compile_backend or self.torch_compile_mode):
            return
        known = {backend.value.lower() for backend in DynamoBackend}
        backends = [name for name in torch._dynamo.list_backends(exclude_tags=()) if name in known]
        if self.torch_compile_backend and self.torch_compile_backend.lower() not in backends:
            raise ConfigError(
                f"torch_compile_backend is {self.torch_compile_backend!r}; here there are {', '.join(backends)}"
            )
        modes = list(torch._inductor.list_mode_options())
        if self.torch_compile_mode and self.torch_compile_mode not in modes:
            raise ConfigError(f"torch_compile_mode is {self.torch_compile_mode!r}; torch knows {', '.join(modes)}")
        if (self.torch_compile_backend or "inductor").lower() == "inductor":
            refuse_missing_compiler()

    def _check_ranges(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ConfigError(f"schedule is {self.schedule!r}; it must be one of {', '.join(SCHEDULES)}")
        if self.fp16 and (self.use_cpu or not torch.cuda.is_available()):
            raise ConfigError(
                "fp16 is true, but without a CUDA device nothing scales its gradients, and they vanish: "
                "write bf16: true, or --fp16 false"
            )
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ConfigError(f"ema_decay is {self.ema_decay}; it must lie between 0 and 1, such as 0.9999, or be null")
        if self.ema_warmup_power is not None and not 0 < self.ema_warmup_power <= 1:
            raise ConfigError(f"ema_warmup_power is {self.ema_warmup_power}; it must be above 0 and at most 1, or null")
        if self.schedule == "step" and not (self.step_epochs and self.step_epochs > 0):
            raise ConfigError(f"schedule: step needs step_epochs above 0, such as 3; it is {self.step_epochs}")
        milestones = self.milestone_epochs or []
        if self.schedule == "multistep" and (not milestones or sorted(milestones) != milestones):
            raise ConfigError(f"schedule: multistep needs rising milestone_epochs, such as [6, 10]; got {milestones}")
        if self.warmup_epochs is not None and self.warmup_steps:
            raise ConfigError("warmup_epochs and warmup_steps are both set; keep one of them")
        for name in ("learning_rate", "base_learning_rate", "num_train_epochs"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} is {value}; it must be above 0")
        ranges: dict[str, tuple[float, float]] = {"layer_decay": (0, 1), "max_bad_fraction": (0, 1), "gamma": (0, 1)}
        ranges |= dict.fromkeys(("warmup_epochs", "min_learning_rate", "weight_decay"), (0, math.inf))
        for name, (lowest, highest) in ranges.items():
            value = getattr(self, name)
            if value is not None and not lowest <= value <= highest:
                raise ConfigError(f"{name} is {value}; it must lie between {lowest} and {highest}")
        if self.base_learning_rate is None:
            self._check_min_learning_rate()

    def _check_min_learning_rate(self) -> None:
        if self.min_learning_rate > self.learning_rate:
            raise ConfigError(
                f"min_learning_rate is {self.min_learning_rate}, above the highest learning rate, {self.learning_rate}"
            )

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the token: every checkpoint has a `training_args.bin`, and checkpoints are passed on."""
        return self.__dict__ | {"hub_token": None}

    @property
    def device(self) -> torch.device:
        """The device of this process; transformers 5.17 restores an optimizer to `cpu:0`, which torch does not know."""
        device: torch.device = super().device
        return torch.device("cpu") if device.type == "cpu" else device

    @property
    def stream_seed(self) -> int:
        """Seed of the order and the augmentation of the photos."""
        return self.seed if self.data_seed is None else self.data_seed

    @property
    def total_batch_size(self) -> int:
        """Photos of one optimiser step over all processes."""
        return self.train_batch_size * self.gradient_accumulation_steps * self.world_size

    @property
    def steps_per_epoch(self) -> float:
        """Optimiser steps in which `num_photos` photos are seen; not whole, since the stream never pauses."""
        return self.num_photos / self.total_batch_size

    def fit_to(self, num_photos: int) -> None:
        """Turn everything said in epochs into steps, and `base_learning_rate` into `learning_rate`.

        Args:
            num_photos: photos of one epoch, over all processes.

        Raises:
            ConfigError: there are no photos, or min_learning_rate is above the learning rate.
        """
        if num_photos < 1:
            raise ConfigError("the training data has no photos")
        self.num_photos = num_photos
        if not self.steps_are_given:
            self.max_steps = max(1, round(self.num_train_epochs * self.steps_per_epoch))
        if self.base_learning_rate is not None:
            self.learning_rate = self.base_learning_rate * self.total_batch_size / BASE_BATCH_SIZE
            self._check_min_learning_rate()
        if self.warmup_epochs is not None:
            self.warmup_steps = round(self.warmup_epochs * self.steps_per_epoch)
        epoch_steps = max(1, round(self.steps_per_epoch))
        if self.logging_strategy == IntervalStrategy.EPOCH:
            self.logging_strategy, self.logging_steps = IntervalStrategy.STEPS, epoch_steps
        if self.eval_strategy == IntervalStrategy.EPOCH:
            self.eval_strategy, self.eval_steps = IntervalStrategy.STEPS, epoch_steps
        if self.save_strategy == SaveStrategy.EPOCH:
            self.save_strategy, self.save_steps = SaveStrategy.STEPS, epoch_steps
