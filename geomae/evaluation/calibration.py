"""`python -m geomae.evaluation calibrate`: two numbers that make a posterior as sure of itself as it may be.

The temperature says how sure it is of its places, the scale of the spread how near to them photos are.
Source: Guo, Pleiss, Sun and Weinberger (2017), "On calibration of modern neural networks", for temperature scaling.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from geomae.checkpoints import load_geolocator
from geomae.checksums import refresh_checksums
from geomae.data import PhotoCollator
from geomae.errors import ConfigError, PredictionError
from geomae.evaluation.bootstrap import MIN_RESAMPLES
from geomae.evaluation.known_test_sets import ALSO_VALIDATION, KNOWN_TEST_SETS
from geomae.evaluation.photos_to_judge import load_photos_to_judge
from geomae.evaluation.posterior import summarise_posterior
from geomae.evaluation.posterior_head import measure_posterior, posterior_head
from geomae.evaluation.predict import PhotoDataset, collect_rows, is_main_process
from geomae.evaluation.records import describe_run, describe_test_set
from geomae.evaluation.summary import align_columns
from geomae.files import write_whole
from geomae.geography import great_circle_km

__all__ = [
    "CalibrationArguments",
    "calibrate",
    "fit_calibration",
    "format_calibration",
    "measure_calibration",
    "write_calibration",
]

LARGEST_LOGITS_BYTES = 4 * 2**30
CALIBRATED = ("temperature", "spread_scale")
LOG_RANGE = (math.log(1 / 20), math.log(20))
LOGITS_AT_ONCE = 2**22  # of photos that are measured together: 16 MB, and several times that on the way


@dataclass(frozen=True)
class CalibrationArguments:
    """What `calibrate` is told; names and meanings are those of `run_evaluate_geo.py`."""

    checkpoint: str
    validation: str
    split: str = "validation"
    photos: str | None = None
    swap_lat_lon: bool = False
    max_photos: int | None = None
    per_device_eval_batch_size: int = 64
    dataloader_num_workers: int = 0
    bf16: bool = False
    max_damaged_share: float = 0.1
    num_resamples: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot work, and test sets: whoever tunes on one has nothing left to judge by."""
        if self.validation in KNOWN_TEST_SETS:
            raise _cheating(self.validation)
        if not Path(self.validation).exists():
            raise ConfigError(f"there is no file or folder {self.validation}, which --validation names")
        if self.photos is None and Path(self.validation).is_dir() and self.split.startswith("test"):
            raise _cheating(f"the split {self.split} of {self.validation}")
        if self.photos is None and Path(self.validation).is_dir() and self.split == "train":
            raise ConfigError(
                f"the split train of {self.validation} is what models are trained on, and surer of than of anything "
                "else: calibrate on other photos, such as --split validation"
            )
        if self.per_device_eval_batch_size < 1 or self.dataloader_num_workers < 0:
            raise ConfigError(
                "--per_device_eval_batch_size must be at least 1 and --dataloader_num_workers at least 0; got "
                f"{self.per_device_eval_batch_size} and {self.dataloader_num_workers}"
            )
        if self.num_resamples < MIN_RESAMPLES or self.seed < 0:
            raise ConfigError(
                f"--num_resamples must be at least {MIN_RESAMPLES} and --seed at least 0; got {self.num_resamples} and "
                f"{self.seed}"
            )
        if self.max_photos is not None and self.max_photos < 1:
            raise ConfigError(f"--max_photos must be at least 1; got {self.max_photos}")

    @property
    def test_set(self) -> str:
        """Where the photos are, as `load_photos_to_judge` calls it."""
        return self.validation


def calibrate(arguments: CalibrationArguments, words: Sequence[str]) -> dict[str, Any] | None:
    """Fit a checkpoint's temperature and scale of spread on validation photos, and write them there.

    Args:
        arguments: what to fit on.
        words: the command line, for the record.

    Returns:
        What `calibration.json` then holds; None on processes other than the main one, which write nothing.

    Raises:
        ConfigError: the checkpoint has no posterior, the photos are a test set, there are too many of them, or there is
            no best temperature.
    """
    model = load_geolocator(arguments.checkpoint)
    head = posterior_head(model)
    if head is None:
        raise ConfigError(
            f"{arguments.checkpoint} has no posterior: its head, {model.config.head_type}, answers with a point, and "
            "there is nothing to calibrate. Heads of the types geocells, hybrid and vmf_mixture have one"
        )
    photos, validation, _ = load_photos_to_judge(arguments)
    described = describe_test_set(validation)
    if described["known_as"] not in (None, ALSO_VALIDATION):
        raise _cheating(f"{validation.name}, whose photos are those of {described['known_as']},")
    photos = choose_photos(photos, arguments.max_photos, arguments.seed)
    ids, logits, truth_deg = collect_logits(model, photos, arguments)
    if not is_main_process():
        return None
    clusters = dict(zip(validation.ids, validation.clusters, strict=True))
    measure = partial(
        measure_calibration,
        *(head, logits, truth_deg, [clusters[name] for name in ids]),
        num_resamples=arguments.num_resamples,
        seed=arguments.seed,
    )
    before = {**_calibration_of(head), **measure()}
    fitted = fit_calibration(head, logits, truth_deg)
    for name, value in fitted.items():
        setattr(head, name, value)
    record = {
        **fitted,
        "num_photos": len(ids),
        "before": before,
        "after": {**fitted, **measure()},
        "validation_set": described,
        **describe_run(["-m", "geomae.evaluation", *words]),
    }
    write_calibration(arguments.checkpoint, record)
    return record


def choose_photos(photos: Any, max_photos: int | None, seed: int) -> Any:
    """At most `max_photos` of them, drawn at random and kept in their order."""
    if max_photos is None or max_photos >= len(photos):
        return photos
    return photos.select(np.sort(np.random.default_rng(seed).permutation(len(photos))[:max_photos]))


def collect_logits(
    model: Any, photos: PhotoDataset, arguments: CalibrationArguments
) -> tuple[list[str], Tensor, Tensor]:
    """Ids, logits `(n, num_outputs)` and truths `(n, 2)` degrees, float32 in main memory.

    Raises:
        ConfigError: the logits would take more than `LARGEST_LOGITS_BYTES`, which the first batch tells.
    """

    def answer(batch: dict[str, Any]) -> dict[str, Tensor]:
        logits = model.head.to_logits(model.embed(batch["pixel_values"]))
        _refuse_too_many(len(photos), logits.shape[1])
        return {"logits": logits.cpu(), "truth_deg": batch["coordinates_deg"]}

    rows = collect_rows(
        answer,
        model,
        photos,
        PhotoCollator(model.config.image_size, augment=False),
        batch_size=arguments.per_device_eval_batch_size,
        num_workers=arguments.dataloader_num_workers,
        bf16=arguments.bf16,
        max_damaged_share=arguments.max_damaged_share,
        description="Collecting logits",
    )
    if not rows.ids:
        raise ConfigError(f"not one photo of {arguments.validation} can be decoded; the log names each with its reason")
    logits = torch.from_numpy(rows.columns["logits"])
    broken = ~logits.isfinite().all(dim=1)
    if broken.any():
        raise PredictionError(
            f"the logits of {int(broken.sum())} of {len(rows.ids)} photos are not finite; the first is id "
            f"{rows.ids[int(broken.int().argmax())]}. The model is broken there: train it again"
        )
    return rows.ids, logits, torch.from_numpy(rows.columns["truth_deg"])


def fit_calibration(head: Any, logits: Tensor, truth_deg: Tensor) -> dict[str, float]:
    """The temperature and the scale of the spread with the least mean negative log-likelihood.

    Args:
        head: has a posterior; its own values are where the search starts, and stay what they are.
        logits: `(n, num_outputs)`.
        truth_deg: `(n, 2)` degrees.

    Returns:
        `temperature`, and `spread_scale` where the head has one.

    Raises:
        ConfigError: the likelihood still rises at an end of the temperature's range from 1/20 to 20.
    """
    own = _calibration_of(head)

    def mean_nll(log_values: NDArray[np.float64]) -> float:
        for name, value in zip(own, np.exp(log_values), strict=True):
            setattr(head, name, float(value))
        nll = _in_parts(head, lambda *part: {"nll": -head.log_density(*part)}, logits, truth_deg)["nll"]
        return float(nll.mean())

    try:
        start = np.log(list(own.values()))
        first_steps = np.where(start > 0, -0.3, 0.3)  # towards 1, so that the simplex is within the range
        found = minimize(
            mean_nll,
            start,
            method="Nelder-Mead",
            bounds=[LOG_RANGE] * len(own),
            options={"xatol": 1e-3, "fatol": 1e-5, "initial_simplex": np.vstack([start, start + np.diag(first_steps)])},
        )
    finally:
        for name, value in own.items():
            setattr(head, name, value)
    fitted = {name: float(math.exp(value)) for name, value in zip(own, found.x, strict=True)}
    if min(abs(found.x[0] - end) for end in LOG_RANGE) < 0.01:
        raise ConfigError(
            f"the best temperature is not between 1/20 and 20 (at {fitted['temperature']:.3g} the NLL is "
            f"{found.fun:.3f}): the logits say nothing of these photos, or all of it. Is the model trained, and are "
            "these its photos?"
        )
    return fitted


def _calibration_of(head: Any) -> dict[str, float]:
    return {name: getattr(head, name) for name in CALIBRATED if hasattr(head, name)}


def measure_calibration(
    head: Any, logits: Tensor, truth_deg: Tensor, clusters: Sequence[object], **resampling: int
) -> dict[str, Any]:
    """`summarise_posterior` of logits, decoded in the head's way at its present temperature.

    Args:
        head: has a posterior.
        logits: `(n, num_outputs)`.
        truth_deg: `(n, 2)` degrees.
        clusters: n labels of photos that are drawn together.
        resampling: `num_resamples` and `seed` of the bootstrap.
    """

    def measure(logits: Tensor, truth_deg: Tensor) -> dict[str, Tensor]:
        answer_deg = head.decode(logits, [head.decoding])[head.decoding]
        return {"answer_deg": answer_deg, **measure_posterior(head, logits, answer_deg, truth_deg)}

    columns = _in_parts(head, measure, logits, truth_deg)
    error_km = great_circle_km(columns.pop("answer_deg"), truth_deg.double().numpy())
    return summarise_posterior(columns, error_km, clusters, **resampling)


def write_calibration(checkpoint: str | Path, record: dict[str, Any]) -> None:
    """Put those of `CALIBRATED` that the record has into a checkpoint's `config.json`; the record is beside it.

    Each file is whole at any time, and the configuration, which decides, is the last to change.
    """
    config_file = Path(checkpoint) / "config.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    config |= {name: record[name] for name in CALIBRATED if name in record}
    write_whole(Path(checkpoint) / "calibration.json", json.dumps(record, indent=2, allow_nan=False) + "\n")
    write_whole(config_file, json.dumps(config, indent=2, sort_keys=True) + "\n")
    refresh_checksums(Path(checkpoint), ["calibration.json", "config.json"])


def format_calibration(record: dict[str, Any]) -> str:
    """Before and after, in a table and a sentence."""
    names = [name for name in CALIBRATED if name in record]
    rows = [
        [
            "",
            *(name.replace("_", " ") for name in names),
            "NLL",
            *(f"within {float(q):.0%} radius" for q in record["before"]["coverage"]),
        ]
    ]
    rows[0] += ["expected km", "mean km"]
    for when in ("before", "after"):
        numbers = record[when]
        shares = [f"{share:.1%}" for share in numbers["coverage"].values()]
        km = [f"{numbers[name]:,.0f}" for name in ("mean_expected_km", "mean_error_km")]
        rows.append([when, *(f"{numbers[name]:.3f}" for name in names), f"{numbers['nll']:.3f}", *shares, *km])
    factor = record["temperature"] / record["before"]["temperature"]
    sureness = "about right" if 0.98 < factor < 1.02 else "too sure" if factor > 1 else "too unsure"
    return "\n".join(
        [*align_columns(rows), "", f"On {record['num_photos']:,} photos the posterior was {sureness} of its places."]
    )


def _in_parts(
    head: Any, compute: Callable[[Tensor, Tensor], dict[str, Tensor]], logits: Tensor, truth_deg: Tensor
) -> dict[str, NDArray[np.float64]]:
    """Columns of all photos, computed on the head's device in stretches that fit there."""
    device = next(head.parameters()).device
    stretch = max(1, LOGITS_AT_ONCE // logits.shape[1])
    with torch.inference_mode():
        parts = [
            compute(*(each.to(device) for each in part))
            for part in zip(logits.split(stretch), truth_deg.split(stretch), strict=True)
        ]
        return {name: torch.cat([part[name] for part in parts]).cpu().double().numpy() for name in parts[0]}


def _refuse_too_many(num_photos: int, num_outputs: int) -> None:
    affordable = LARGEST_LOGITS_BYTES // (4 * num_outputs)
    if num_photos > affordable:
        raise ConfigError(
            f"the logits of {num_photos:,} photos, {num_outputs:,} each, take {4e-9 * num_photos * num_outputs:.1f} GB "
            f"of memory, and one number can be fitted to far fewer: pass --max_photos {min(20_000, affordable)}"
        )


def _cheating(what: str) -> ConfigError:
    return ConfigError(
        f"{what} is a test set: a temperature fitted on it would make the numbers on it look better than they are. "
        "Calibrate on photos that the model was neither trained on nor will be judged by, such as --split validation"
    )
