"""One method trained several times: the mean over the seeds, their spread, and what made each."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from geomae.reporting.page import Cell
from geomae.reporting.records import TrainingRecord
from geomae.reporting.results_section import number_cell

__all__ = ["describe_training", "difference_cells", "over_seeds", "seeds_cell", "shown_p", "t_cell"]

MADE_BY = ("command", "commit", "versions", "hardware", "started")


def over_seeds(numbers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean over seeds of every number, and its standard deviation (n - 1) as `spread` where there are several.

    Args:
        numbers: one for each seed, at least one; all with the same keys, which hold numbers or more of the same.

    Returns:
        `num_seeds`, the means under the keys, and `spread` with the same keys.
    """
    means = {"num_seeds": len(numbers), **_each(np.mean, numbers)}
    return means | ({"spread": _each(lambda values: np.std(values, ddof=1), numbers)} if len(numbers) > 1 else {})


def _each(statistic: Any, numbers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        key: _each(statistic, [each[key] for each in numbers])
        if isinstance(value, Mapping)
        else float(statistic([each[key] for each in numbers]))
        for key, value in numbers[0].items()
    }


def seeds_cell(over: Mapping[str, Any], first: Mapping[str, Any], key: Sequence[str], *, is_best: bool = False) -> Cell:
    """The mean over seeds, after ± their standard deviation, and in small print the interval of the first seed.

    Args:
        over: of `over_seeds`.
        first: metrics of the first seed, with `intervals_95`.
        key: where the number is in both, as for `number_cell`.
        is_best: of its column.
    """
    spread = number_cell(over, key, is_best=is_best)
    return Cell(f"{spread.text} {spread.note}".strip(), number_cell(first, key).note, spread.is_best)


def describe_training(record: TrainingRecord) -> dict[str, Any]:
    """What made a run: its command, commit, versions, hardware and time of start; None what was not recorded."""
    return {key: record.run.get(key) for key in MADE_BY}


def difference_cells(
    compared: Mapping[str, Any], adjusted: Mapping[str, float | None] | None = None
) -> list[str | Cell]:
    """A difference of mean errors with its interval, the bootstrap's p, and the t-test for independent photos.

    Args:
        compared: `mean_km`, `intervals_95`, `bootstrap` and `paired_t_test`, as `compare_predictions` measures them.
        adjusted: `bootstrap` and `paired_t_test`: the p adjusted by Holm, where the table is of several.
    """
    interval, p = "no interval", compared["bootstrap"]["p"]
    if compared["intervals_95"] is not None:
        interval = "[{:+,.0f}, {:+,.0f}]".format(*compared["intervals_95"]["mean_km"])
    shown = "–" if p is None else shown_p(p, compared["bootstrap"]["num_resamples"])
    t_test = t_cell(compared["paired_t_test"])
    cells: list[str | Cell] = [Cell(f"{compared['mean_km']:+,.0f}", interval), shown, t_test]
    if adjusted is None:
        return cells
    holm = {test: "" if q is None else f"Holm {q:.2g}" for test, q in adjusted.items()}
    t_note = ", ".join(filter(None, (t_test.note, holm["paired_t_test"])))
    return [cells[0], Cell(shown, holm["bootstrap"]), Cell(t_test.text, t_note)]


def t_cell(test: Mapping[str, Any]) -> Cell:
    """Of a paired t-test; `equal` where all differences are."""
    return Cell("–", "equal") if test["t"] is None else Cell(f"{test['t']:+.2f}", f"p {test['p']:.2g}")


def shown_p(p: float, num_resamples: int) -> str:
    """The p of a bootstrap; that many resamples cannot tell smaller ones apart."""
    smallest = 2.0 / (num_resamples + 1)
    return f"{'≤ ' if p <= smallest else ''}{p:.2g}"
