"""Two files of predictions for the same photos: read, matched by id, compared, and said in words."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from geomae.bounded_parquet import read_table
from geomae.errors import ConfigError, PredictionError, SourceError
from geomae.evaluation.comparison import compare_errors
from geomae.evaluation.judge import match_predictions, measure_errors
from geomae.evaluation.metrics import THRESHOLDS_KM
from geomae.evaluation.records import read_metrics
from geomae.evaluation.summary import align_columns
from geomae.evaluation.tables import Predictions, TestSet, read_predictions

__all__ = ["compare_predictions", "describe_difference", "format_comparison"]

SAME_PLACE_DEG = 1e-6  # 11 cm: the same truth, written with fewer digits
# With few clusters the percentile bootstrap sees differences where there are none: 2,000 pairs of equally good models
# (normal differences, clusters of one size) had p < 0.05 in 50 % of the cases with 2 clusters, in 20 % with 4, in 11 %
# with 9, in 6.5 % with 20.
MIN_CLUSTERS_OF_A_VERDICT = 20


@dataclass(frozen=True)
class _Answers:
    """What one file says of which photos."""

    name: str
    ids: list[str]
    predicted_deg: NDArray[np.float64]  # (n, 2); NaN where a judged file has no answer
    test_set: TestSet | None  # of a judged file, which has the truths beside its answers
    radii_km: tuple[float, ...] | None  # of the metrics.json beside it


def compare_predictions(
    first: str | Path,
    second: str | Path,
    test_set: TestSet | None = None,
    *,
    thresholds_km: Sequence[float] | None = None,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, Any]:
    """Paired comparison of two files of predictions on exactly the same photos.

    A photo without an answer counts as a miss of 20 015 km, on either side, as it does for the judge.

    Args:
        first: folder of `run_evaluate_geo.py`, its `predictions.parquet`, or a CSV or parquet file with an id,
            latitude and longitude.
        second: the same; a negative difference says that the first is better.
        test_set: truths, and authors to cluster by; what it leaves out is taken from the files that have it.
        thresholds_km: radii in kilometres; where left out, those that the `metrics.json` beside the files have in
            common, or the usual ones.
        num_resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        As `compare_errors`, with `num_missing` on either side, and `answered_by_both`: how many photos, and the
        difference of the means on those alone.

    Raises:
        PredictionError: the files are not of the same photos, or a prediction cannot be judged.
        SourceError: a folder has no predictions, or the truths or the authors differ.
        ConfigError: no test set is given and neither file has truths; or a radius cannot be one.
    """
    answers = [_read_answers(Path(path)) for path in (first, second)]
    _refuse_other_photos(*answers)
    known = [given for given in (test_set, *(each.test_set for each in answers)) if given is not None]
    if not known:
        raise ConfigError(
            f"neither {answers[0].name} nor {answers[1].name} has true coordinates: give --test_set FILE, or compare "
            "two folders of run_evaluate_geo.py"
        )
    for other in known[1:]:
        _refuse_other_truths(known[0], other)
    if test_set is None or not test_set.authors:
        _refuse_other_authors(known)
    author_of = next((_author_of(each) for each in known if each.authors), None)
    authors = None if author_of is None else [author_of[name] for name in known[0].ids]
    (error_km, is_missing), (other_km, is_missing_too) = (_errors_in_order(each, known[0]) for each in answers)
    compared = compare_errors(
        error_km,
        other_km,
        authors,
        thresholds_km=_common_radii(answers) if thresholds_km is None else thresholds_km,
        num_resamples=num_resamples,
        seed=seed,
    )
    both = ~(is_missing | is_missing_too)
    return {
        **compared,
        "num_missing": {"first": int(is_missing.sum()), "second": int(is_missing_too.sum())},
        "answered_by_both": {
            "num_photos": int(both.sum()),
            "mean_km": float((error_km - other_km)[both].mean()) if both.any() else None,
        },
    }


def _author_of(test_set: TestSet) -> dict[str, str]:
    return dict(zip(test_set.ids, test_set.authors or (), strict=True))


def _common_radii(answers: Sequence[_Answers]) -> Sequence[float]:
    """Those of the first that every judged file has too; the usual ones where there are none."""
    judged = [each.radii_km for each in answers if each.radii_km]
    common = [radius for radius in judged[0] if all(radius in radii for radii in judged)] if judged else []
    return common or THRESHOLDS_KM


def _read_answers(path: Path) -> _Answers:
    file = path / "predictions.parquet" if path.is_dir() else path
    if path.is_dir() and not file.is_file():
        raise SourceError(f"{path} has no predictions.parquet; expected a folder that run_evaluate_geo.py wrote")
    if file.suffix.lower() != ".parquet" or not file.is_file() or not _is_judged(file):
        predictions = read_predictions(file)
        return _Answers(str(path), predictions.ids, predictions.coordinates_deg, None, None)
    names = ("latitude", "longitude", "true_latitude", "true_longitude")
    try:
        table = read_table(file)
        ids = table["id"].cast(pa.string()).to_pylist()
        columns = {name: table[name].to_numpy().astype(np.float64) for name in names}
        authors = table["author"].cast(pa.string()).to_pylist() if "author" in table.column_names else None
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as problem:
        raise SourceError(f"{file} cannot be read as judged predictions: {problem}. Judge them anew.") from problem
    if None in ids or len(set(ids)) < len(ids):
        raise SourceError(f"{file} has a row without an id, or an id in two rows: it is no file of an evaluation.")
    truths = np.stack([columns["true_latitude"], columns["true_longitude"]], axis=1)
    predicted_deg = np.stack([columns["latitude"], columns["longitude"]], axis=1)
    return _Answers(str(path), ids, predicted_deg, TestSet(str(path), ids, truths, authors), _read_radii(file.parent))


def _read_radii(folder: Path) -> tuple[float, ...] | None:
    if not (folder / "metrics.json").is_file():
        return None
    return tuple(map(float, read_metrics(folder).get("accuracy_within_km", ())))


def _is_judged(file: Path) -> bool:
    try:
        names = pa.parquet.read_schema(file).names
    except (pa.ArrowException, OSError, UnicodeDecodeError):
        return False  # `read_predictions` says what is wrong with it
    return {"id", "latitude", "longitude", "true_latitude", "true_longitude"} <= set(names)


def _refuse_other_photos(first: _Answers, second: _Answers) -> None:
    only = [sorted(set(one.ids) - set(other.ids)) for one, other in ((first, second), (second, first))]
    if any(only):
        described = "; ".join(
            f"{len(ids):,} ids stand only in {answers.name}, the first is {ids[0]}" if ids else f"none only in {name}"
            for answers, ids, name in zip((first, second), only, (first.name, second.name), strict=True)
        )
        raise PredictionError(
            f"a paired comparison needs the same photos on both sides: {described}.\n"
            "  Judge each file with run_evaluate_geo.py and compare the two folders: there, a photo without an answer "
            "counts as a miss."
        )


def _refuse_other_truths(test_set: TestSet, other: TestSet) -> None:
    place = {name: row for row, name in enumerate(test_set.ids)}
    unknown = [name for name in other.ids if name not in place]
    if unknown or len(other.ids) != len(test_set.ids):
        which = f"; {unknown[0]} is not in {test_set.name}" if unknown else ""
        raise SourceError(
            f"{other.name} was judged on {len(other.ids):,} photos and {test_set.name} has {len(test_set.ids):,}{which}"
            ": only errors on the same photos can be compared"
        )
    truths = test_set.coordinates_deg[[place[name] for name in other.ids]]
    moved = ~(np.abs(truths - other.coordinates_deg).max(axis=1) <= SAME_PLACE_DEG)  # a truth of NaN, too
    if moved.any():
        row = int(np.argmax(moved))
        places = [", ".join(f"{degrees:g}" for degrees in point[row]) for point in (truths, other.coordinates_deg)]
        raise SourceError(
            f"the truths of {int(moved.sum()):,} photos differ; the first is id {other.ids[row]}: {places[0]} in "
            f"{test_set.name}, {places[1]} in {other.name}. Judge both against one test set"
        )


def _refuse_other_authors(known: Sequence[TestSet]) -> None:
    """Which photos are drawn together must not depend on which file comes first."""
    named = [each for each in known if each.authors]
    for other in named[1:]:
        ours, theirs = _author_of(named[0]), _author_of(other)
        differing = [name for name, author in ours.items() if theirs[name] != author]
        if differing:
            name = differing[0]
            raise SourceError(
                f"the authors of {len(differing):,} photos differ; the first is id {name}: {ours[name]} in "
                f"{named[0].name}, {theirs[name]} in {other.name}. Give --test_set FILE, whose authors then count"
            )


def _errors_in_order(answers: _Answers, test_set: TestSet) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Errors `(n,)` in the order of the test set, and where there is no answer."""
    answered = ~np.isnan(answers.predicted_deg[:, 0])
    ids = [name for name, is_there in zip(answers.ids, answered, strict=True) if is_there]
    return measure_errors(match_predictions(Predictions(ids, answers.predicted_deg[answered]), test_set), test_set)


def format_comparison(comparison: dict[str, Any], first: str, second: str) -> str:
    """A comparison as a table with a sentence of what it means.

    Args:
        comparison: what `compare_errors` returned.
        first: what the first model is called.
        second: what the second is called.
    """
    rows = [["", first, second, "difference", "95 % interval"]]
    for key, unit in (("mean_km", "mean, km"), ("median_km", "median, km")):
        rows.append(_row(comparison, (key,), unit))
    for radius in comparison["difference"]["accuracy_within_km"]:
        rows.append(_row(comparison, ("accuracy_within_km", radius), f"within {radius} km, %"))
    rows.append(_row(comparison, ("geoscore",), "GeoScore"))
    return "\n".join(
        [
            f"{comparison['num_photos']:,} photos, every one counted for both; the difference is {first} - {second}.",
            "",
            *align_columns(rows),
            "",
            describe_difference(comparison, first, second),
            _describe_independent_tests(comparison),
        ]
    )


def _row(comparison: dict[str, Any], key: tuple[str, ...], name: str) -> list[str]:
    is_share = key[0] == "accuracy_within_km"

    def look_up(part: str) -> Any:
        value = comparison[part]
        for each in key:
            value = value[each]
        return value

    def shown(value: float, sign: str = "") -> str:
        return f"{100 * value:{sign},.1f}" if is_share else f"{value:{sign},.0f}"

    interval = "none"
    if comparison["intervals_95"] is not None:
        low, high = look_up("intervals_95")
        interval = f"[{shown(low, '+')}, {shown(high, '+')}]"
    return [name, shown(look_up("first")), shown(look_up("second")), shown(look_up("difference"), "+"), interval]


def describe_difference(comparison: dict[str, Any], first: str, second: str, *, adjusted_p: float | None = None) -> str:
    """What the clustered bootstrap says of the mean error, in a sentence or two.

    Args:
        comparison: what `compare_errors` returned.
        first: what the first model is called.
        second: what the second is called.
        adjusted_p: the bootstrap's p, adjusted for the number of comparisons: where it is given, it decides.
    """
    difference, bootstrap = comparison["difference"]["mean_km"], comparison["bootstrap"]
    if difference == 0:
        opening = f"{first} and {second} have the same mean error"
    else:
        opening = f"The mean error of {first} is {abs(difference):,.0f} km {_side(difference)} that of {second}"
    if comparison["intervals_95"] is None:
        return f"{opening}; {bootstrap['reason']}, so nothing can be said of how sure that is."
    low, high = comparison["intervals_95"]["mean_km"]
    drawn = f"{bootstrap['num_resamples']:,} resamples of {bootstrap['num_clusters']:,} {bootstrap['clustered_by']}s"
    verdict = _verdict(comparison, first, second, adjusted_p)
    return (
        f"{opening} (95 % interval [{low:+,.0f}, {high:+,.0f}], p = {_p(bootstrap['p'])}, {drawn}); {verdict}."
        f"{_describe_missing(comparison, first, second)}"
    )


def _describe_missing(comparison: dict[str, Any], first: str, second: str) -> str:
    """What photos without an answer have to do with the difference; nothing where there are none."""
    missing, both = comparison.get("num_missing", {}), comparison.get("answered_by_both", {})
    if not any(missing.values()):
        return ""
    without = (
        f" ATTENTION: {missing['first']:,} photos have no answer of {first} and {missing['second']:,} none of {second}"
    )
    if both["mean_km"] is None:
        return f"{without}: they count as misses of 20,015 km. No photo has an answer of both."
    return (
        f"{without}: they count as misses of 20,015 km. On the {both['num_photos']:,} photos that both answer, the "
        f"difference of the means is {both['mean_km']:+,.0f} km."
    )


def _verdict(comparison: dict[str, Any], first: str, second: str, adjusted_p: float | None) -> str:
    bootstrap, (low, high) = comparison["bootstrap"], comparison["intervals_95"]["mean_km"]
    if bootstrap["num_clusters"] < MIN_CLUSTERS_OF_A_VERDICT:
        return (
            f"with fewer than {MIN_CLUSTERS_OF_A_VERDICT} {bootstrap['clustered_by']}s such intervals are too narrow "
            "and such p too small: these photos do not tell which of the two is better"
        )
    if adjusted_p is None:
        is_sure, why = low > 0 or high < 0, "the interval " + ("leaves 0 out" if low > 0 or high < 0 else "holds 0")
    else:
        is_sure, why = adjusted_p < 0.05, f"adjusted for all comparisons by Holm, p is {_p(adjusted_p)}"
    better = first if comparison["difference"]["mean_km"] < 0 else second
    return f"{why}: " + (
        f"{better} is better on photos such as these"
        if is_sure
        else "these photos do not tell which of the two is better"
    )


def _side(difference: float) -> str:
    return "below" if difference < 0 else "above"


def _describe_independent_tests(comparison: dict[str, Any]) -> str:
    t_test, wilcoxon = comparison["paired_t_test"], comparison["wilcoxon"]
    clusters = comparison["bootstrap"]
    caution = (
        "They are not where one author took several: there, these p-values can be far too small."
        if clusters["clustered_by"] == "author"
        else "Without authors the bootstrap above does the same."
    )
    t = "t undefined" if t_test["t"] is None else f"t({t_test['degrees_of_freedom']}) = {t_test['t']:.2f}"
    statistic = "undefined" if wilcoxon["statistic"] is None else f"{wilcoxon['statistic']:,.0f}"
    return (
        f"Taking photos for independent: paired t-test {t}, p = {_p(t_test['p'])}; Wilcoxon's statistic {statistic}, "
        f"p = {_p(wilcoxon['p'])} ({wilcoxon['num_zero_differences']:,} equal errors left out). {caution}"
    )


def _p(p: float | None) -> str:
    return "undefined" if p is None else f"{p:.2g}"
