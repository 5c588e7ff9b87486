"""What `docs/performance.md` says is what the benchmarks have written."""

from launching import ROOT

from geomae.reporting.readme import fill_file

PAGE = ROOT / "docs/performance.md"


def test_page_shows_the_results_that_are_there() -> None:
    is_stale = fill_file(PAGE, ROOT / "results/tables.yaml", writes=False)
    assert not is_stale, "run python -m geomae.reporting fill docs/performance.md"


def test_every_result_that_the_page_names_exists() -> None:
    named = {word.strip("`().,") for word in PAGE.read_text().split() if "results/benchmarks/" in word}
    files = {
        word.split("(")[-1].removeprefix("../")
        for word in named
        if "h200" not in word and "$" not in word and word.endswith((".md", ".png"))
    }
    assert files
    assert all((ROOT / name).is_file() for name in files), files
