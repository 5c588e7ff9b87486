"""Numbers with one home: Markdown is filled from the results, and a stale page is found."""

import json
from pathlib import Path

import pytest
import yaml

from geomae.errors import ConfigError, SourceError
from geomae.reporting.__main__ import main

METRICS = {
    "num_photos": 2997,
    "mean_km": 3044.4,
    "median_km": 812.0,
    "accuracy_within_km": {"200": 0.1234},
    "intervals_95": {"mean_km": [2800.1, 3300.9], "accuracy_within_km": {"200": [0.1, 0.15]}},
    "baselines": {"random_guess": {"mean_km": 8907.0, "median_km": 9000.0, "spread": {"mean_km": 287.0}}},
}
TABLES = {
    "headline": {
        "columns": ["num_photos", "mean_km", "accuracy_within_km.200"],
        "rows": [
            {"label": "GeoMAE", "file": "run/metrics.json"},
            {"label": "PlaNet, published", "published": {"accuracy_within_km": {"200": 0.343}}},
        ],
    },
    "guess": {
        "columns": ["mean_km"],
        "rows": [{"label": "guess", "file": "run/metrics.json", "under": "baselines.random_guess"}],
    },
    "gain": {"value": "mean_km", "file": "run/metrics.json"},
    "picture": {"figure": "run/map.png", "caption": "Where"},
}


@pytest.fixture
def page(tmp_path):
    (tmp_path / "results" / "run").mkdir(parents=True)
    (tmp_path / "results" / "run" / "metrics.json").write_text(json.dumps(METRICS))
    (tmp_path / "results" / "run" / "map.png").write_bytes(b"")
    (tmp_path / "results" / "tables.yaml").write_text(yaml.safe_dump(TABLES))
    return tmp_path / "README.md"


def fill(page, *options):
    return main(["fill", str(page), "--tables", str(page.parent / "results" / "tables.yaml"), *options])


def test_a_table_shows_numbers_with_intervals_beside_published_ones(page):
    page.write_text("before\n<!-- results:headline -->\nold\n<!-- /results:headline -->\nafter\n")
    assert fill(page) == 0
    assert page.read_text() == (
        "before\n<!-- results:headline -->\n"
        "| | photos | mean, km | ≤ 200 km, % |\n"
        "|---|---:|---:|---:|\n"
        "| GeoMAE | 2,997 | 3,044 [2,800, 3,301] | 12.3 [10.0, 15.0] |\n"
        "| PlaNet, published | – | – | 34.3 |\n"
        "<!-- /results:headline -->\nafter\n"
    )


def test_a_number_without_an_interval_says_so_and_a_count_needs_none(page):
    file = page.parent / "results" / "run" / "metrics.json"
    file.write_text(json.dumps({**METRICS, "intervals_95": None}))
    page.write_text("<!-- results:headline -->\n<!-- /results:headline -->\n")
    fill(page)
    assert "| GeoMAE | 2,997 | 3,044 (no interval) | 12.3 (no interval) |" in page.read_text()


def test_a_row_can_stand_under_a_key_of_the_results(page):
    page.write_text("<!-- results:guess -->\n<!-- /results:guess -->\n")
    fill(page)
    assert "| guess | 8,907 ± 287 |" in page.read_text()


def test_a_number_can_stand_in_the_running_text(page):
    page.write_text("Mean <!-- results:gain --><!-- /results:gain --> km.")
    fill(page)
    assert page.read_text() == "Mean <!-- results:gain -->3,044 [2,800, 3,301]<!-- /results:gain --> km."


def test_a_picture_is_linked_from_where_the_page_is(page):
    (page.parent / "docs").mkdir()
    docs = page.parent / "docs" / "page.md"
    docs.write_text("<!-- results:picture -->\n<!-- /results:picture -->\n")
    main(["fill", str(docs), "--tables", str(page.parent / "results" / "tables.yaml")])
    assert "![Where](../results/run/map.png)" in docs.read_text()


def test_full_disk_leaves_the_page_as_it_was(page, full_disk):
    page.write_text("<!-- results:headline -->\nold\n<!-- /results:headline -->\n" + "text\n" * 1000)
    before = page.read_text()
    with full_disk(2000), pytest.raises(OSError, match="too large"):
        fill(page)
    assert page.read_text() == before
    assert sorted(path.name for path in page.parent.iterdir()) == ["README.md", "results"]


def test_check_finds_a_stale_page_and_leaves_it_alone(page, capsys):
    text = "<!-- results:gain -->3,000<!-- /results:gain -->"
    page.write_text(text)
    assert fill(page, "--check") == 1
    assert "README.md is stale: run python -m geomae.reporting fill" in capsys.readouterr().out
    assert page.read_text() == text
    assert fill(page) == 0
    assert fill(page, "--check") == 0
    assert capsys.readouterr().out.startswith("filled ")


def test_filling_twice_changes_nothing(page):
    page.write_text("".join(f"<!-- results:{name} -->\n<!-- /results:{name} -->\n" for name in TABLES))
    fill(page)
    once = page.read_text()
    fill(page)
    assert page.read_text() == once


def test_an_unknown_name_names_its_nearest_neighbour(page):
    page.write_text("<!-- results:headlin -->\n<!-- /results:headlin -->")
    with pytest.raises(ConfigError, match="results:headlin, which no table defines; did you mean headline"):
        fill(page)


def test_an_unclosed_marker_is_refused_instead_of_swallowing_the_page(page):
    page.write_text("<!-- results:gain -->\ntext that must stay\n")
    with pytest.raises(ConfigError, match="is not followed by <!-- /results:gain -->"):
        fill(page)


def test_an_unclosed_marker_before_a_closed_one_of_its_name_does_not_swallow_the_text_between(page):
    text = "<!-- results:gain -->\ntext that must stay\n<!-- results:gain -->1<!-- /results:gain -->\n"
    page.write_text(text)
    with pytest.raises(ConfigError, match="<!-- results:gain --> is not followed by <!-- /results:gain -->"):
        fill(page)
    assert page.read_text() == text


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"value": "mean_miles"}, SourceError, "has no mean_miles"),
        ({"file": "run/absent.json"}, SourceError, "cannot read the results"),
        ({"value": None, "figure": "run/absent.png"}, SourceError, "does not exist"),
        ({"value": None}, ConfigError, "must define columns and rows, or value and file, or figure"),
    ],
)
def test_what_is_not_there_is_named(page, change, error, message):
    definition = {key: value for key, value in {**TABLES["gain"], **change}.items() if value is not None}
    (page.parent / "results" / "tables.yaml").write_text(yaml.safe_dump({"gain": definition}))
    page.write_text("<!-- results:gain --><!-- /results:gain -->")
    with pytest.raises(error, match=message):
        fill(page)


def test_columns_have_the_titles_that_a_table_gives_them(page):
    tables = page.parent / "results" / "tables.yaml"
    definition = {**TABLES["headline"], "titles": {"mean_km": "mean error, km"}}
    tables.write_text(yaml.safe_dump({"headline": definition}))
    page.write_text("<!-- results:headline -->\n<!-- /results:headline -->\n")
    main(["fill", str(page), "--tables", str(tables)])
    assert "| | photos | mean error, km | ≤ 200 km, % |" in page.read_text()


def test_every_marked_page_of_this_repository_is_up_to_date():
    root = Path(__file__).resolve().parent.parent
    tables = root / "results" / "tables.yaml"
    candidates = [page for folder in ("", "docs", "model_cards") for page in sorted((root / folder).glob("*.md"))]
    pages = [page for page in candidates if "<!-- results:" in page.read_text(encoding="utf-8")]
    assert {"README.md", "geomae_earth.md"} <= {page.name for page in pages}
    assert main(["fill", *map(str, pages), "--tables", str(tables), "--check"]) == 0
