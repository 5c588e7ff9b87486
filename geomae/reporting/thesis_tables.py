"""Tables 5.1 to 5.5 of the thesis: what it published, what is measured here, and what still needs MP-16.

`THESIS_TABLES` says which models stand in which table; the thesis's fact sheet gives the numbers but not their table's
number, so the numbering follows the order in which it reports them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from geomae.documents import parse_yaml, read_text
from geomae.errors import SourceError
from geomae.reporting.page import Cell, Table
from geomae.reporting.results_section import number_cell

__all__ = ["MODELS", "TEST_SETS", "Row", "model_rows", "read_published", "thesis_tables"]

TEST_SETS = {"im2gps": "Im2GPS", "im2gps3k": "Im2GPS3k"}
MODELS = {
    "resnet_full": "ResNet regressor",
    "vit_full": "ViT regressor",
    "mae_full": "MAE, pretrained and fine-tuned",
    "mae_half": "MAE, pretrained on the first half, fine-tuned on the last",
    "vit_half": "ViT regressor, last half",
    "resnet_half": "ResNet regressor, last half",
}
BASELINES = {
    "random_guess": "random guess by clusters",
    "geometric_median": "constant: geometric median",
    "densest_200km": "constant: densest 200 km",
}
RADII = ("200", "750", "2500")  # those that the thesis reports
FULL, HALF = ("resnet_full", "vit_full", "mae_full"), ("mae_half", "vit_half", "resnet_half")
MEAN = (("mean_km",),)
SHARES = tuple(("accuracy_within_km", radius) for radius in RADII)


@dataclass(frozen=True)
class Row:
    """One line of a table: who, where its numbers come from, and the numbers on each test set."""

    label: str
    origin: str
    numbers: Mapping[str, Mapping[str, Any]]  # test set -> metrics; empty: not measured


def read_published(path: str | Path) -> dict[str, Any]:
    """Published numbers (`results/published.yaml`), each share with its interval where the number of photos is known.

    The interval of a share is Wilson's, from the published share and the number of distinct photos behind it, as if
    photos were independent; of a published mean there is none.

    Raises:
        SourceError: the file is missing or is no such table.

    Source: Wilson (1927), "Probable inference, the law of succession, and statistical inference".
    """
    try:
        published = parse_yaml(read_text(path))
        for work in published.values():
            for test_sets in work["rows"].values():
                for numbers in test_sets.values():
                    shares = numbers["accuracy_within_km"]
                    numbers["intervals_95"] = {
                        "accuracy_within_km": {r: _wilson(share, numbers["num_photos"]) for r, share in shares.items()}
                    }
    except (OSError, ValueError, AttributeError, KeyError, TypeError, OverflowError) as problem:
        raise SourceError(
            f"{path} is not a table of published numbers ({problem!r}); give --published results/published.yaml of "
            "the repository"
        ) from problem
    return dict(published)


def model_rows(
    name: str, published: Mapping[str, Any], measured: Mapping[str, Any], *, measured_on: str, needs_mp16: bool
) -> list[Row]:
    """The lines of one model: the thesis's, ours, and the one that needs MP-16 where ours is of a stand-in.

    Args:
        name: a key of `MODELS`.
        published: of `read_published`.
        measured: model -> test set -> metrics.
        measured_on: what ours was trained and tested on, in a few words.
        needs_mp16: ours is of a stand-in.
    """
    rows = [
        Row(MODELS[name], "published, the thesis", published["thesis"]["rows"][name]),
        Row(MODELS[name], "measured here, " + ("stand-in" if needs_mp16 else measured_on), measured[name]),
    ]
    if needs_mp16:
        rows.append(Row(MODELS[name], "needs MP-16: make thesis ON=mp16", {}))
    return rows


def thesis_tables(
    published: Mapping[str, Any],
    measured: Mapping[str, Any],
    baselines: Mapping[str, Any],
    *,
    measured_on: str,
    needs_mp16: bool,
) -> list[Table]:
    """The five tables, in order.

    Args:
        published: of `read_published`.
        measured: model -> test set -> metrics, for each of `MODELS`.
        baselines: test set -> baseline -> metrics, of answers that saw no photo.
        measured_on: as for `model_rows`.
        needs_mp16: as for `model_rows`.
    """
    guesses = [Row(BASELINES["random_guess"], "published, the thesis", published["thesis"]["rows"]["random_guess"])]
    guesses += [
        Row(label, "measured here, real coordinates", {test_set: baselines[test_set][name] for test_set in TEST_SETS})
        for name, label in BASELINES.items()
    ]
    planet = [Row("PlaNet, classification", "published", published["planet"]["rows"]["planet"])]

    def rows_of(models: Sequence[str]) -> list[Row]:
        return [
            row
            for name in models
            for row in model_rows(name, published, measured, measured_on=measured_on, needs_mp16=needs_mp16)
        ]

    full, half = rows_of(FULL), rows_of(HALF)
    plans = [
        ("Table 5.1: mean error in km, trained on the full set", [*guesses, *full], tuple(TEST_SETS), MEAN),
        ("Table 5.2: accuracy on Im2GPS3k, % of photos", [*guesses, *full, *planet], ("im2gps3k",), SHARES),
        ("Table 5.3: accuracy on Im2GPS, % of photos", [*guesses, *full, *planet], ("im2gps",), SHARES),
        ("Table 5.4: half and half, accuracy on Im2GPS3k, % of photos", [*guesses, *half], ("im2gps3k",), SHARES),
        ("Table 5.5: half and half, accuracy on Im2GPS, % of photos", [*guesses, *half], ("im2gps",), SHARES),
    ]
    return [_table(caption, rows, test_sets, keys) for caption, rows, test_sets, keys in plans]


def _table(caption: str, rows: Sequence[Row], test_sets: Sequence[str], keys: Sequence[Sequence[str]]) -> Table:
    columns = [(test_set, key) for test_set in test_sets for key in keys]
    header = ["", "where from", *(_title(test_set, key) for test_set, key in columns)]
    cells: list[list[str | Cell]] = [
        [row.label, row.origin, *(_cell(row.numbers.get(test_set), key) for test_set, key in columns)] for row in rows
    ]
    return Table(header, cells, caption)


def _title(test_set: str, key: Sequence[str]) -> str:
    return f"≤ {key[1]} km, %" if key[0] == "accuracy_within_km" else f"{TEST_SETS[test_set]}, km"


def _cell(numbers: Mapping[str, Any] | None, key: Sequence[str]) -> Cell:
    """A number with its interval, or its spread over runs, and the number of photos behind it."""
    if numbers is None or key[0] not in numbers:
        return Cell("–", "unmeasured" if numbers is None else "not published")
    cell = number_cell(numbers, key)
    return Cell(cell.text, f"{cell.note}, n {numbers['num_photos']:,}")


def _wilson(share: float, num_photos: int) -> list[float]:
    interval = binomtest(round(share * num_photos), num_photos).proportion_ci(method="wilson")
    return [float(interval.low), float(interval.high)]
