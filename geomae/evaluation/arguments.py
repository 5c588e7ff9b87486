"""What `run_evaluate_geo.py` can be told, in a YAML file or on the command line."""

import difflib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from geomae.errors import ConfigError, SourceError
from geomae.evaluation.bootstrap import MIN_RESAMPLES
from geomae.evaluation.known_test_sets import KNOWN_TEST_SETS, find_known_list, find_known_photos
from geomae.evaluation.metrics import THRESHOLDS_KM, check_thresholds
from geomae.evaluation.posterior import DECODINGS
from geomae.evaluation.records import refuse_other_evaluation, refuse_unwritable, shown_path
from geomae.tracking import TRACKERS, refuse_bad_tags, refuse_missing_trackers

__all__ = ["EvaluationArguments", "JudgingArguments", "check_loading"]


def check_loading(batch_size: int, num_workers: int, max_damaged_share: float) -> None:
    """Refuses what photos cannot be loaded with: ConfigError names the option."""
    if batch_size < 1 or num_workers < 0:
        raise ConfigError(
            "per_device_eval_batch_size must be at least 1 and dataloader_num_workers at least 0; got "
            f"{batch_size} and {num_workers}"
        )
    if not 0.0 <= max_damaged_share <= 1.0:
        raise ConfigError(f"max_damaged_share is a share from 0 to 1; got {max_damaged_share}")


@dataclass
class JudgingArguments:
    """What an evaluation is told wherever its answers come from: the checkpoint, the test set, how it is judged."""

    by_retrieval: ClassVar[bool] = False  # whether similar photos answer

    test_set: str | None = field(
        default=None,
        metadata={
            "help": f"What to judge by: {', '.join(KNOWN_TEST_SETS)}; a packed folder (see split); or a CSV or parquet "
            "file with an id, latitude and longitude. An author column makes the intervals clustered by author."
        },
    )
    test_sets_dir: str = field(
        default="data",
        metadata={
            "help": "Where a test set given by its name lies: NAME/NAME_places365.csv, and its photos in NAME/photos."
        },
    )
    output_dir: str | None = field(
        default=None,
        metadata={"help": "Folder for predictions.parquet, baselines.parquet and metrics.json; it is created."},
    )
    checkpoint: str | None = field(
        default=None, metadata={"help": "Folder of the model that is judged, or that compares photos."}
    )
    split: str = field(
        default="test", metadata={"help": "Which split of a packed folder is the test set; files have none."}
    )
    photos: str | None = field(
        default=None,
        metadata={
            "help": "Folder of the photos: needed where test_set is a CSV file and checkpoint is given; ids are paths "
            "in it. For a test set given by its name, the one beside its list."
        },
    )
    train_coordinates: str | None = field(
        default=None,
        metadata={
            "help": "Training coordinates that the constants and random guesses are fitted on: a packed folder (its "
            "train split) or a file with latitude and longitude. Without them only the uniform guess is compared."
        },
    )
    swap_lat_lon: bool = field(
        default=False, metadata={"help": "Read the test set's latitude column as longitude and the other way round."}
    )
    swap_train_lat_lon: bool = field(default=False, metadata={"help": "The same for the columns of train_coordinates."})
    per_device_eval_batch_size: int = field(
        default=64,
        metadata={"help": "Photos in a forward pass. The same size gives the same digits on any number of devices."},
    )
    dataloader_num_workers: int = field(
        default=0, metadata={"help": "Processes that decode photos, for each device; 0 decodes between forward passes."}
    )
    bf16: bool = field(
        default=False, metadata={"help": "Run the backbone in bfloat16; heads and distances stay in full precision."}
    )
    max_damaged_share: float = field(
        default=0.1,
        metadata={
            "help": "Share of the photos that are there, 0 to 1, that may be damaged before the run stops; these "
            "count as misses, and so does any number of absent ones, which only the list names."
        },
    )
    thresholds_km: list[float] = field(
        default_factory=lambda: list(THRESHOLDS_KM),
        metadata={
            "help": "Radii in km within which photos are counted, an error equal to a radius as within it; the "
            "densest-point constants are fitted for the same radii."
        },
    )
    num_resamples: int = field(
        default=2000, metadata={"help": "Resamples behind the intervals, at least 100; 10000 takes seconds."}
    )
    report_to: list[str] = field(
        default_factory=lambda: ["none"],
        metadata={
            "help": "wandb, trackio, tensorboard, or several: record numbers, answers, map and error distribution as a "
            "run there (docs/wandb.md)."
        },
    )
    run_name: str | None = field(
        default=None, metadata={"help": "What trackers call the run; null: output_dir below outputs/, in one word."}
    )
    run_group: str | None = field(
        default=None,
        metadata={
            "help": "What W&B groups the run under; null: the group of the checkpoint's training, else the first "
            "folder of output_dir below outputs/."
        },
    )
    run_tags: list[str] = field(default_factory=list, metadata={"help": "Tags of the run in W&B."})
    seed: int = field(default=0, metadata={"help": "Seed of the resamples and of the random baselines, at least 0."})

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        for name in ("test_set", "output_dir"):
            if not getattr(self, name):
                raise ConfigError(f"{name} is missing: give --{name} PATH, or a line `{name}: PATH` in the YAML file")
        self._check_answers()
        check_loading(self.per_device_eval_batch_size, self.dataloader_num_workers, self.max_damaged_share)
        check_thresholds(self.thresholds_km)
        if self.num_resamples < MIN_RESAMPLES:
            raise ConfigError(
                f"num_resamples must be at least {MIN_RESAMPLES} for a 95 % interval; got {self.num_resamples}"
            )
        refuse_bad_tags(self.run_tags)
        self._check_trackers()
        if self.seed < 0:
            raise ConfigError(f"seed must be at least 0; got {self.seed}")
        self._find_by_name()
        refuse_unwritable(str(self.output_dir))
        refuse_other_evaluation(
            str(self.output_dir),
            judged=self.checkpoint or getattr(self, "predictions", None),
            test_set=str(self.test_set),
            by_retrieval=self.by_retrieval,
        )
        if self.checkpoint:
            self._check_photos(Path(str(self.test_set)))

    def describe(self) -> dict[str, Any]:
        """What `metrics.json` says of it: what was judged, and how the model looked at the photos."""
        described: dict[str, Any] = {
            name: shown_path(path) if (path := getattr(self, name, None)) else None
            for name in ("checkpoint", "predictions", "train_coordinates")
        }
        if self.checkpoint:
            described["options"] = {"crop": "center", "bf16": self.bf16, "batch_size": self.per_device_eval_batch_size}
        return described

    def _check_answers(self) -> None:
        """Refuse what cannot answer; each way of answering has its own options."""

    def _find_by_name(self) -> None:
        """Put paths in the place of a known test set's name."""
        named = str(self.test_set)
        self.test_set = find_known_list(named, self.test_sets_dir)
        if self.checkpoint and not self.photos and self.test_set != named:
            self.photos = find_known_photos(named, self.test_sets_dir)

    def _check_trackers(self) -> None:
        unknown = [name for name in self.report_to if name not in ("none", *TRACKERS)]
        if unknown or ("none" in self.report_to and len(self.report_to) > 1):
            raise ConfigError(
                f"report_to is {' '.join(self.report_to)}; it must be none, or one or more of {', '.join(TRACKERS)}"
            )
        refuse_missing_trackers(self.report_to, draws=True)

    @property
    def naming(self) -> dict[str, Any]:
        """What a tracker calls the run, and what it is an evaluation of."""
        named = {"name": self.run_name, "group": self.run_group, "tags": self.run_tags}
        return {"checkpoint": self.checkpoint, **named}

    def _check_photos(self, test_set: Path) -> None:
        """A model needs photos: inside a packed folder, beside the one CSV in their folder, or below `photos`."""
        if not test_set.exists():
            raise ConfigError(f"there is no file or folder {test_set}, which test_set names")
        if self.photos and test_set.is_dir():
            raise ConfigError(
                f"test_set {test_set} is a folder and photos is given too: leave out --photos where the folder holds "
                "the photos, or give the CSV file of the photos as --test_set"
            )
        if self.photos and (test_set.suffix.lower() != ".csv" or not Path(self.photos).is_dir()):
            raise ConfigError(
                f"--photos must be a folder, and --test_set the CSV file that names photos in it; got {self.photos} "
                f"and {test_set}"
            )
        if not self.photos and not (test_set.is_dir() and _holds_photos(test_set)):
            kind = "a folder with neither packed shards nor one CSV" if test_set.is_dir() else "a file"
            raise ConfigError(
                f"test_set {test_set} is {kind}, and a checkpoint needs photos to look at: give their CSV file as "
                "--test_set and their folder as --photos, or a packed folder as --test_set"
            )


@dataclass
class EvaluationArguments(JudgingArguments):
    """One evaluation: predictions, from a checkpoint or a file, against one test set."""

    predictions: str | None = field(
        default=None,
        metadata={"help": "CSV or parquet file with id, latitude, longitude. Give this or checkpoint."},
    )
    torch_compile: bool = field(
        default=False,
        metadata={
            "help": "Compile the model: the first batch waits for that, up to a minute, and the others are faster; "
            "full batches only."
        },
    )
    ten_crop: bool = field(
        default=False,
        metadata={
            "help": "Beside the central crop, which stays the headline, judge the combined answer of ten crops of each "
            "photo (centre, corners, mirror images): ten times the work; a row of its own, and "
            "predictions_ten_crop.parquet."
        },
    )
    decodings: list[str] | None = field(
        default=None,
        metadata={
            "help": f"Of a head with a posterior: which of {', '.join(DECODINGS)} to judge beside the checkpoint's own "
            "decoding, which stays the headline, in the same pass; null: all. predictions_<decoding>.parquet each."
        },
    )
    kernel_km: float | None = field(
        default=None, metadata={"help": "Width of the decoding kernel, km; null: the checkpoint's."}
    )
    top_k: int | None = field(
        default=None, metadata={"help": "Places that mean_in_top_k averages; null: the checkpoint's."}
    )
    temperature: float | None = field(
        default=None,
        metadata={
            "help": "Divides the logits; null: the checkpoint's, which `python -m geomae.evaluation calibrate` fits."
        },
    )
    spread_scale: float | None = field(
        default=None,
        metadata={"help": "Multiplies how far mass is spread around its place; null: the checkpoint's, fitted too."},
    )

    def _check_answers(self) -> None:
        if bool(self.checkpoint) == bool(self.predictions):
            given = "both" if self.checkpoint else "neither"
            raise ConfigError(f"give either checkpoint or predictions; {given} of them was given")
        if self.predictions and self.photos:
            raise ConfigError(
                "photos belong to a checkpoint; predictions are judged without them: leave one of both out"
            )
        for name in ("ten_crop", "torch_compile"):
            if self.predictions and getattr(self, name):
                raise ConfigError(f"{name} needs a checkpoint that looks at photos; predictions are judged as they are")
        self._check_decoding()

    @property
    def decoding_options(self) -> dict[str, float | None]:
        """What is read off the posterior otherwise than the checkpoint says; None: as it says."""
        return {name: getattr(self, name) for name in ("kernel_km", "top_k", "temperature", "spread_scale")}

    def _check_decoding(self) -> None:
        """A posterior belongs to a checkpoint; whether its head has one is known when it is loaded."""
        options = self.decoding_options
        given = [name for name, value in {"decodings": self.decodings, **options}.items() if value is not None]
        if self.predictions and given:
            raise ConfigError(f"{', '.join(given)} need a checkpoint that has a posterior; predictions are as they are")
        for name in self.decodings or ():
            if name not in DECODINGS:
                close = difflib.get_close_matches(name, DECODINGS, n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise ConfigError(f"decodings holds {name!r}, which is none of {', '.join(DECODINGS)}{hint}")
        for name, value in options.items():
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name} must be a number above 0; got {value}")


def _holds_photos(folder: Path) -> bool:
    from geomae.data.listing import detect_kind, find_table, list_source  # pandas: a file of predictions does without

    try:
        listing = list_source(str(folder))
        if find_table(listing, str(folder)) is not None:
            return True
        return detect_kind(listing, str(folder)) in ("packed", "parquet", "webdataset")  # with their own coordinates
    except SourceError:
        return False
