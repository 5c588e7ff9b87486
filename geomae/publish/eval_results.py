"""The numbers of `metrics.json` as the Hub reads them: `EvalResult`s, which become a card's `model-index`."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from geomae.evaluation.summary import with_other_answers

__all__ = ["list_eval_results"]

UNITS = {"mean_km": "mean error, km", "median_km": "median error, km", "geoscore": "GeoScore, 0 to 5000"}
GROUPS = ("scene", "continent")  # few enough to be read; metrics/ has the countries
OF_POSTERIORS = {
    "nll": "negative log-likelihood, nats per steradian",
    "mean_expected_km": "mean error that the posterior expects, km",
}


def list_eval_results(evaluations: Sequence[Mapping[str, Any]], *, task: str) -> list[EvalResult]:
    """Every number of the model: of its answer, of its other decodings and ten crops, and of groups of photos.

    Args:
        evaluations: contents of `metrics.json`; baselines, which are no model's numbers, are left out.
        task: the card's `pipeline_tag`.

    Returns:
        One entry for a number: `metric_config` names the answer and the group; `metric_args` has `num_photos` and,
        where there is one, `interval_95`.
    """
    return [
        EvalResult(
            task_type=task,
            task_name="Image geolocation",
            dataset_type=_test_set_id(metrics["test_set"]),
            dataset_name=_test_set_name(metrics["test_set"]),
            dataset_split=metrics["test_set"].get("split"),
            metric_type=key,
            metric_name=name,
            metric_value=value,
            metric_config=answer,
            metric_args=arguments,
        )
        for metrics in evaluations
        for answer, key, name, value, arguments in _list_numbers(dict(metrics))
        if math.isfinite(value)  # YAML would take others, and no reader of the Hub does
    ]


def _test_set_id(test_set: Mapping[str, Any]) -> str:
    """A word that other photos under the same file name do not share."""
    known = test_set.get("known_as")
    digest = str(test_set.get("ids_sha256") or "")[:8]
    word = re.sub(r"[^\w-]+", "-", Path(str(known or test_set["name"])).stem)
    return word if known or not digest else f"{word}-{digest}"


def _test_set_name(test_set: Mapping[str, Any]) -> str:
    known = test_set.get("known_as")
    digest = str(test_set.get("ids_sha256") or "unknown")[:8]
    return str(known or f"{test_set['name']} ({test_set['num_photos']:,} photos, ids {digest})")


def _list_numbers(metrics: dict[str, Any]) -> Iterator[tuple[str, str, str, float, dict[str, Any]]]:
    """Answer, key, name, value and arguments of every number."""
    for answer, row in with_other_answers({"answer": metrics}).items():
        groups = {
            f"{answer}, {kind} {group}": numbers
            for kind in GROUPS
            for group, numbers in row.get("by", {}).get(kind, {}).items()
        }
        for label, numbers in {answer: row, **groups}.items():
            for key, name, value, interval in _numbers_of(numbers):
                yield label, key, name, value, _arguments(numbers["num_photos"], interval)
        posterior = row.get("posterior", {})
        for key, name, value, interval in _numbers_of_posterior(posterior):
            yield answer, key, name, value, _arguments(posterior.get("num_photos", row["num_photos"]), interval)


def _arguments(num_photos: int, interval: Sequence[float] | None) -> dict[str, Any]:
    return {"num_photos": num_photos} | ({} if interval is None else {"interval_95": list(interval)})


def _numbers_of(row: Mapping[str, Any]) -> Iterator[tuple[str, str, float, Sequence[float] | None]]:
    intervals = row.get("intervals_95") or {}
    for key, name in UNITS.items():
        if key in row:
            yield key, name, row[key], intervals.get(key)
    for radius, share in row.get("accuracy_within_km", {}).items():
        interval = intervals.get("accuracy_within_km", {}).get(radius)
        yield f"accuracy_within_{radius}_km", f"share of photos within {radius} km", share, interval
    for quantile, error_km in row.get("quantiles_km", {}).items():
        interval = intervals.get("quantiles_km", {}).get(quantile)
        yield f"quantile_{quantile}_km", f"{float(quantile):.0%} of errors are at most, km", error_km, interval


def _numbers_of_posterior(posterior: Mapping[str, Any]) -> Iterator[tuple[str, str, float, Sequence[float] | None]]:
    intervals = posterior.get("intervals_95") or {}
    for key, name in OF_POSTERIORS.items():
        if key in posterior:
            yield key, name, posterior[key], intervals.get(key)
    for share, held in posterior.get("coverage", {}).items():
        interval = intervals.get("coverage", {}).get(share)
        yield f"coverage_{share}", f"truths within the {float(share):.0%} radius, share", held, interval
