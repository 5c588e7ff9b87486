"""Tables that set heads beside each other: accuracy, posteriors, and paired tests against one of them."""

from collections.abc import Mapping, Sequence
from typing import Any

from geomae.reporting.page import Cell, Table
from geomae.reporting.results_section import CALIBRATED, baseline_name, common_radii, number_cell
from geomae.reporting.seeds import difference_cells, seeds_cell

__all__ = ["HEADS", "POINT", "STARTS", "accuracy_table", "comparison_table", "head_name", "posterior_table"]

HEADS = {
    "tanh": "tanh (the thesis)",
    "sphere": "sphere",
    "geocells": "geocells",
    "geocells_label_smoothing": "geocells, label smoothing",
    "geocells_haversine_smoothing": "geocells, haversine smoothing",
    "geocells_hierarchy": "geocells, three partitions",
    "hybrid": "hybrid: cell and offset",
    "vmf_mixture": "vMF mixture at the cells",
    "vmf_mixture_free": "vMF mixture, free",
    "retrieval": "retrieval, on the geocells head's features",
}
POINT = "answer"  # what the one answer of a head without a posterior is called, among the decodings of the others
STARTS = {"pretrained": "GeoMAE, pretrained", "scratch": "from scratch"}
BASELINES = ("geometric_median", "densest_200km", "random_guess")
ERRORS = ("mean_km", "median_km")  # of these the least is the best, of the other columns the greatest
SHARES = ("0.5", "0.9")  # of the mass within the two radii whose coverage is shown


def head_name(head: str) -> str:
    """A head's key in words."""
    return HEADS.get(head, head)


def accuracy_table(heads: Mapping[str, Mapping[str, Any]], baselines: Mapping[str, Mapping[str, Any]]) -> Table:
    """One row for each decoding of each head, above answers that saw no photo; the best mean of a column is marked.

    Args:
        heads: head -> `num_seeds`, `minutes` and `decodings`: name -> numbers of `over_seeds` with those of `seed_0`.
        baselines: of the test set.
    """
    rows = [
        (head, decoding, numbers) for head, entry in heads.items() for decoding, numbers in entry["decodings"].items()
    ]
    shown_baselines = {name: baselines[name] for name in BASELINES if name in baselines}  # 200 km may be no radius
    radii = common_radii([*(numbers for *_, numbers in rows), *shown_baselines.values()])
    keys: list[tuple[str, ...]] = [(name,) for name in ERRORS]
    keys += [*(("accuracy_within_km", radius) for radius in radii), ("geoscore",)]
    best = [(min if key[0] in ERRORS else max)(_look_up(numbers, key) for *_, numbers in rows) for key in keys]
    cells: list[list[str | Cell]] = []
    for head, decoding, numbers in rows:
        shown = [
            seeds_cell(numbers, numbers["first_seed"], key, is_best=_look_up(numbers, key) == top)
            for key, top in zip(keys, best, strict=True)
        ]
        is_headline = decoding == heads[head]["headline"]
        minutes = "–" if heads[head]["minutes"] is None else f"{heads[head]['minutes']:.1f}"
        cells.append(
            [
                f"{head_name(head)}{'' if decoding == POINT else f': {decoding}'}",
                str(heads[head]["num_seeds"]) if is_headline else "",
                *shown,
                minutes if is_headline else "",
            ]
        )
    for name, numbers in shown_baselines.items():
        cells.append([baseline_name(name), "", *(number_cell(numbers, key) for key in keys), ""])
    header = ["", "seeds", "mean, km", "median, km", *(f"≤ {radius} km, %" for radius in radii), "GeoScore"]
    return Table([*header, "training, min"], cells)


def _look_up(numbers: Mapping[str, Any], key: Sequence[str]) -> float:
    value: Any = numbers
    for part in key:
        value = value[part]
    return float(value)


def posterior_table(heads: Mapping[str, Mapping[str, Any]]) -> Table:
    """What the posteriors are worth: the truth's density, the coverage of two radii, the error that they expect.

    Args:
        heads: head -> `headline`, `calibrated`: of `over_seeds` what was fitted, and `posterior`: numbers of
            `over_seeds` with those of `first_seed`. Heads without a posterior are left out.
    """
    radii = [f"within the {100 * float(share):.0f} % radius, %" for share in SHARES]
    header = ["", "around", *CALIBRATED.values(), "NLL, nats/sr", *radii, "expected error, km", "mean error, km"]
    rows: list[list[str | Cell]] = []
    for head, entry in heads.items():
        posterior = entry["posterior"]
        if posterior is None:
            continue
        cells = [_posterior_cell(posterior, ("nll",), "{:.2f}")]
        cells += [_posterior_cell(posterior, ("coverage", share), "{:.1f}", 100.0) for share in SHARES]
        cells += [_posterior_cell(posterior, (name,), "{:,.0f}") for name in ("mean_expected_km", "mean_error_km")]
        fitted = [_over_seeds_text(entry["calibrated"], (name,), "{:.2f}") for name in CALIBRATED]
        rows.append([head_name(head), entry["headline"], *fitted, *cells])
    return Table(header, rows)


def _over_seeds_text(over: Mapping[str, Any], key: Sequence[str], pattern: str, times: float = 1.0) -> str:
    if key[0] not in over:
        return "–"
    text = pattern.format(times * _look_up(over, key))
    return text + (" ± " + pattern.format(times * _look_up(over["spread"], key)) if "spread" in over else "")


def _posterior_cell(posterior: Mapping[str, Any], key: Sequence[str], pattern: str, times: float = 1.0) -> Cell:
    text = _over_seeds_text(posterior, key, pattern, times)
    intervals: Any = posterior["first_seed"]["intervals_95"]
    if intervals is None:
        return Cell(text, "no interval")
    for part in key:
        intervals = intervals[part]
    return Cell(text, "[{}, {}]".format(*(pattern.format(times * end) for end in intervals)))


def comparison_table(comparisons: Mapping[str, Mapping[str, Mapping[str, Any]]], reference: str) -> Table:
    """Every head minus the reference, seed by seed: difference of means, its interval by author, and its tests.

    Args:
        comparisons: head -> seed -> of the difference `mean_km`, `intervals_95`, `bootstrap`, `paired_t_test`, `holm`.
        reference: the head that the others are compared with.
    """
    rows: list[list[str | Cell]] = []
    for head, seeds in comparisons.items():
        for seed, compared in seeds.items():
            pair = f"{head_name(head)} – {head_name(reference)}"
            rows.append([pair, seed.removeprefix("seed_"), *difference_cells(compared, compared["holm"])])
    return Table(["first minus second", "seed", "mean, km", "p, bootstrap", "t, photos as if independent"], rows)
