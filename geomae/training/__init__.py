"""Arguments, trainers, optimisation, callbacks: configuration and photos in, a checkpoint folder out.

Names are imported when they are first used: judging a file of predictions reads its configuration without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from geomae.training.arguments import (
        DataArguments,
        FinetuneArguments,
        GeoBaselineArguments,
        GeoMAEArguments,
        GeoMAETrainingArguments,
        PretrainArguments,
        Variants,
        given_keys,
        parse_config,
    )
    from geomae.training.callbacks import PredictionMaps, ReconstructionPanels, RunRecord
    from geomae.training.ending import run_to_its_end
    from geomae.training.head_cells import give_geocells, read_head_geocells
    from geomae.training.optimization import build_parameter_groups, build_schedule, learning_rate_factor
    from geomae.training.profiling import StepProfiler
    from geomae.training.run_folder import claim_output_dir, empty_output_dir, find_checkpoint
    from geomae.training.run_lock import release_output_dir
    from geomae.training.setup import (
        build_collators,
        build_stream,
        inherit_encoder,
        load_validation,
        pick_panel,
        refuse_training_photos,
        refuse_what_the_model_refuses,
    )
    from geomae.training.streaming import StreamingTrainer
    from geomae.training.trainers import GeolocationTrainer, MAETrainer

__all__ = [
    "DataArguments",
    "FinetuneArguments",
    "GeoBaselineArguments",
    "GeoMAEArguments",
    "GeoMAETrainingArguments",
    "GeolocationTrainer",
    "MAETrainer",
    "PredictionMaps",
    "PretrainArguments",
    "ReconstructionPanels",
    "RunRecord",
    "StepProfiler",
    "StreamingTrainer",
    "Variants",
    "build_collators",
    "build_parameter_groups",
    "build_schedule",
    "build_stream",
    "claim_output_dir",
    "empty_output_dir",
    "find_checkpoint",
    "give_geocells",
    "given_keys",
    "inherit_encoder",
    "learning_rate_factor",
    "load_validation",
    "parse_config",
    "pick_panel",
    "read_head_geocells",
    "refuse_training_photos",
    "refuse_what_the_model_refuses",
    "release_output_dir",
    "run_to_its_end",
]

_HOME = {
    "arguments": (
        "DataArguments",
        "FinetuneArguments",
        "GeoBaselineArguments",
        "GeoMAEArguments",
        "GeoMAETrainingArguments",
        "PretrainArguments",
        "Variants",
        "given_keys",
        "parse_config",
    ),
    "callbacks": (
        "PredictionMaps",
        "ReconstructionPanels",
        "RunRecord",
    ),
    "ending": ("run_to_its_end",),
    "head_cells": ("give_geocells", "read_head_geocells"),
    "optimization": (
        "build_parameter_groups",
        "build_schedule",
        "learning_rate_factor",
    ),
    "profiling": ("StepProfiler",),
    "run_folder": (
        "claim_output_dir",
        "empty_output_dir",
        "find_checkpoint",
    ),
    "run_lock": ("release_output_dir",),
    "setup": (
        "build_collators",
        "build_stream",
        "inherit_encoder",
        "load_validation",
        "pick_panel",
        "refuse_training_photos",
        "refuse_what_the_model_refuses",
    ),
    "streaming": ("StreamingTrainer",),
    "trainers": (
        "GeolocationTrainer",
        "MAETrainer",
    ),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
