"""Checkpoints that are there whole or not at all: written aside, synced to the disk, listed, and only then named."""

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from transformers import PreTrainedModel, Trainer, TrainerState

from geomae.checksums import find_damage, write_checksums
from geomae.documents import parse_json, read_text
from geomae.errors import CheckpointError, ConfigError
from geomae.files import sync_file, sync_folder, write_whole
from geomae.training.arguments import GeoMAETrainingArguments
from geomae.training.publishing import PublishingTrainer
from geomae.training.run_folder import (
    STAGING_FOLDER,
    STATE_FILE,
    find_checkpoint,
    remove_checkpoints,
    set_aside_damaged,
)

__all__ = ["SavingTrainer", "refuse_full_disk"]

logger = logging.getLogger(__name__)

# As many numbers for each parameter, by a part of the optimizer's name.
STATES_OF_OPTIMIZER = {"adam": 2, "lamb": 2, "lion": 1, "sgd": 1}


class SavingTrainer(PublishingTrainer):
    """A trainer whose checkpoints and whose model have their names only when all of their files are on the disk.

    transformers writes a checkpoint in place, file by file; and with several processes its last file,
    `trainer_state.json`, may be there before other processes have written theirs.
    """

    args: GeoMAETrainingArguments
    model: PreTrainedModel
    is_staging = False
    """Whether transformers is writing a checkpoint, and is to do it aside."""

    @property
    def folder(self) -> Path:
        """Of the run."""
        return Path(str(self.args.output_dir))

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return str(Path(folder) / STAGING_FOLDER) if self.is_staging else folder  # spelt as `_save_checkpoint` does

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        """With the best checkpoint where it is now: a run that goes on may have moved, or be spelt otherwise."""
        begun: tuple[int, int] = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        if resume_from_checkpoint is not None:
            self._find_best(resume_from_checkpoint)
        return begun

    def _find_best(self, checkpoint: str) -> None:
        """Beside the checkpoint that the run goes on from, or else where its state says; a lost one is forgotten."""
        recorded = TrainerState.load_from_json(str(Path(checkpoint) / STATE_FILE)).best_model_checkpoint
        if recorded is None:
            return
        beside = Path(checkpoint).parent / Path(recorded).name
        best = beside if beside.is_dir() else Path(recorded)
        if best.resolve().parent == self.folder.resolve():
            best = self.folder / best.name
        damage = find_damage(best)
        self.state.best_model_checkpoint = str(best) if damage is None else None
        if damage is not None:  # of what comes now, something is to be the best
            logger.warning("%s, the best checkpoint so far, is left out: %s", best, damage)
            self.state.best_metric = self.state.best_global_step = None

    def _load_best_model(self) -> None:
        """Where it was damaged meanwhile, the last model stays, and the log says so."""
        best = str(self.state.best_model_checkpoint)
        if (damage := find_damage(Path(best))) is not None:
            logger.warning("%s, the best checkpoint, is left out: %s. The last model is kept", best, damage)
            self.state.best_model_checkpoint = None
            return
        super()._load_best_model()

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Every process comes here, whoever decided to save.

        Raises:
            CheckpointError: it could not be written; those before it are as they were.
        """
        self._before_saving()
        staging = self.folder / STAGING_FOLDER
        name = f"checkpoint-{self.state.global_step}"
        with explained(name, self):
            if self.args.should_save:
                shutil.rmtree(staging, ignore_errors=True)  # of a run that was killed
            self.accelerator.wait_for_everyone()
            self.is_staging = True
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self.is_staging = False
            self.accelerator.wait_for_everyone()
            final = str(staging.parent / name)
            if self.state.best_model_checkpoint == str(staging / name):
                self.state.best_model_checkpoint = final
            if self.args.should_save:
                self.state.save_to_json(str(staging / name / STATE_FILE))
                write_checksums(staging / name)
                sync_folder(staging / name)
                replace_folder(staging / name, Path(final))
                limit, kept = self.args.save_total_limit, {final, self.state.best_model_checkpoint}
                remove_checkpoints(str(self.folder), limit, latest=self.state.global_step, kept=kept)
                shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def _finalize_training(self, trial: Any, num_train_samples: int, start_time: float) -> Any:
        """Keep the newest checkpoint, which transformers removes where the limit is 1 and another is the best.

        A run that is killed before its model is saved, or started again, would then train from that one once more.
        """
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(trial, num_train_samples, start_time)
        finally:
            self.args.save_total_limit = limit

    def _before_saving(self) -> None:
        """Bring together what the checkpoint says; in every process."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save; a run's last model appears whole, at the top of its folder.

        Raises:
            CheckpointError: it could not be written.
        """
        final = Path(output_dir or self.folder)
        if self.is_staging:
            super().save_model(output_dir, _internal_call)
            return
        staging = final / STAGING_FOLDER
        with explained("the model", self):
            if self.args.should_save:
                shutil.rmtree(staging, ignore_errors=True)
            self.accelerator.wait_for_everyone()
            super().save_model(str(staging), _internal_call)
            if self.args.should_save:
                sync_folder(staging)
                for path in sorted(staging.iterdir()):
                    os.replace(path, final / path.name)
                sync_file(final)
                shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def save_state(self) -> None:
        """The log of the run, whole."""
        if self.args.should_save:
            with explained(STATE_FILE, self):
                staged = self.folder / STAGING_FOLDER / STATE_FILE
                staged.parent.mkdir(parents=True, exist_ok=True)
                self.state.save_to_json(str(staged))
                sync_file(staged)
                os.replace(staged, self.folder / STATE_FILE)
                shutil.rmtree(staged.parent, ignore_errors=True)

    def save_metrics(self, split: str, metrics: dict[str, float], combined: bool = True) -> None:
        """`eval_results.json` and the like, whole; of `all_results.json`, what can be read stays.

        transformers writes in place, and a file that was cut off would end every later run before its model is saved.
        """
        if self.is_world_process_zero():
            found = {f"{split}_results.json": metrics}
            if combined:
                found["all_results.json"] = _read_results(self.folder / "all_results.json") | metrics
            with explained("the metrics", self):
                for name, content in found.items():
                    write_whole(self.folder / name, json.dumps(content, indent=4, sort_keys=True) + "\n")

    def choose_checkpoint(self, resume_from: str | bool | None) -> str | None:
        """What `find_checkpoint` finds; the main process reads the files, and all go on from the same.

        Raises:
            ConfigError: as `find_checkpoint`.
        """
        found: list[Any] = [None, None]
        if self.args.process_index == 0:
            try:
                found[0] = find_checkpoint(resume_from, str(self.folder))
                if found[0] is not None and Path(found[0]).resolve().parent == self.folder.resolve():
                    set_aside_damaged(str(self.folder), found[0])
            except ConfigError as error:
                found[1] = str(error)
        if self.args.world_size > 1:
            broadcast_object_list(found)
        if found[1] is not None:
            raise ConfigError(found[1])
        return found[0]


def _read_results(path: Path) -> dict[str, float]:
    try:
        return dict(parse_json(read_text(path)))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as problem:
        logger.warning("%s cannot be read (%s) and is written anew", path, problem)
        return {}


@contextmanager
def explained(what: str, trainer: Trainer) -> Iterator[None]:
    """Make what the disk refuses a sentence, and leave nothing half-written."""
    folder = str(trainer.args.output_dir)
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:  # torch.save and safetensors hide the OSError
        if isinstance(error, RuntimeError) and not re.search("PytorchStreamWriter|unexpected pos", str(error)):
            raise
        free = shutil.disk_usage(folder).free
        if trainer.args.should_save:
            shutil.rmtree(Path(folder) / STAGING_FOLDER, ignore_errors=True)
        is_hidden = isinstance(error, RuntimeError)  # torch's says "unexpected pos 576 vs 534"
        reason = "the disk took a part of a file only" if is_hidden else str(error).strip() or type(error).__name__
        raise CheckpointError(
            f"{what} could not be written to {folder}: {reason} ({free / 2**20:,.0f} MiB were free). What was saved "
            "before is as it was: free space, then go on with --resume_from_checkpoint true"
        ) from error


def replace_folder(made: Path, final: Path) -> None:
    """Give a folder its name, in the place of a folder that has it."""
    earlier = made.with_name(f"earlier-{final.name}")
    if final.exists():
        os.replace(final, earlier)
    os.replace(made, final)
    sync_file(final.parent)


def refuse_full_disk(trainer: Trainer) -> None:
    """Before the first step: there is room for a checkpoint, and a word where there is none for all that are kept.

    Raises:
        ConfigError: not even one fits.
    """
    args = trainer.args
    if args.save_strategy == "no" or not args.should_save:
        return
    output_dir, model = Path(str(args.output_dir)), cast(PreTrainedModel, trainer.model)
    output_dir.mkdir(parents=True, exist_ok=True)
    sizes = [(weight.numel() * weight.element_size(), weight.requires_grad) for weight in model.parameters()]
    of_optimizer = [count for name, count in STATES_OF_OPTIMIZER.items() if name in str(args.optim).lower()]
    trained = sum(size for size, is_trained in sizes if is_trained)
    needed = sum(size for size, _ in sizes) + trained * max(of_optimizer, default=0)
    free = shutil.disk_usage(output_dir).free
    one = f"a checkpoint takes about {needed / 2**20:,.0f} MiB, and {args.output_dir} has {free / 2**20:,.0f} MiB left"
    if free < needed:
        raise ConfigError(f"{one}: free space, or choose another output_dir")
    if free < needed * ((args.save_total_limit or 0) + 1):
        logger.warning("%s: too little for save_total_limit %s and the one being written", one, args.save_total_limit)
