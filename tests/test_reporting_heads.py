"""The page of heads: every number is the mean of what was judged, beside its spread, its interval and its tests."""

import json
import statistics

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

pytest.importorskip("cartopy")

from launching import ROOT
from report_folders import make_run

from geomae.errors import SourceError
from geomae.evaluation import (
    Predictions,
    TestSet,
    describe_run,
    describe_test_set,
    judge_answers,
    judge_baselines,
    write_evaluation,
)
from geomae.evaluation.posterior import POSTERIOR_COLUMNS
from geomae.geography import draw_uniform
from geomae.reporting import heads_tables
from geomae.reporting.__main__ import main
from geomae.reporting.plots import reconstruction_grid, save_figure
from geomae.reporting.readme import fill_text

NUM_PHOTOS = 60
HEADS = {"sphere": 30.0, "geocells": 12.0, "retrieval": 20.0}  # with the size of its errors, degrees
MINUTES = {0: 1.5, 1: 2.5}
CALIBRATED = {seed: {"temperature": 1.25 + seed, "spread_scale": 0.5 + seed / 5} for seed in (0, 1)}
RETRIEVAL = "retrieval, on the geocells head's features"


def make_test_set():
    truth = draw_uniform(NUM_PHOTOS, np.random.default_rng(5))
    truth[:, 0] *= 0.5  # away from the poles, so that noise stays on Earth
    authors = [f"author {number % 25}" for number in range(NUM_PHOTOS)]
    return TestSet("data", [f"{number}.jpg" for number in range(NUM_PHOTOS)], truth, authors, "test_im2gps3k")


def make_head(folder, head, seed):
    rng = np.random.default_rng([len(head), seed])
    test_set = make_test_set()

    def answer(scale):
        moved = test_set.coordinates_deg + scale * rng.uniform(-1.0, 1.0, (NUM_PHOTOS, 2))
        return np.clip(moved, (-90.0, -180.0), (90.0, 180.0))

    more = {}
    if head != "sphere":
        decoding = "kernel" if head == "geocells" else "kernel_density"
        decoded_with = {"decoding": decoding} | (CALIBRATED[seed] if head == "geocells" else {})
        posterior = {name: rng.uniform(0.0, 1.0, NUM_PHOTOS) for name in POSTERIOR_COLUMNS}
        posterior["radius_50_km"] *= 2000.0
        more = {"decoded_with": decoded_with, "posterior": posterior, "decodings": {"argmax": answer(2 * HEADS[head])}}
    predictions = Predictions(test_set.ids, answer(HEADS[head]), **more)
    metrics, tables = judge_answers(predictions, test_set, num_resamples=100)
    metrics["baselines"], tables["baselines"] = judge_baselines(
        test_set, draw_uniform(100, rng), num_repeats=2, num_resamples=100
    )
    metrics |= {"test_set": describe_test_set(test_set), **describe_run(["run_evaluate_geo.py"])}
    write_evaluation(folder / "im2gps3k", metrics, **tables)
    if head != "retrieval":
        make_run(folder, [3.0, 2.0], config={"head_type": head})
        state = json.loads((folder / "trainer_state.json").read_text())
        state["log_history"].append({"step": 20, "train_runtime": 60.0 * MINUTES[seed]})
        (folder / "trainer_state.json").write_text(json.dumps(state))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What `make heads` leaves behind, for two seeds, of some of the heads."""
    folder = tmp_path_factory.mktemp("heads")
    for seed in (0, 1):
        for head in HEADS:
            make_head(folder / f"plain/pretrained/seed_{seed}/{head}", head, seed)
    make_head(folder / "ambiguous/pretrained/seed_0/geocells", "geocells", 0)
    photos = np.zeros((2, 3, 8, 8), np.uint8)
    save_figure(reconstruction_grid(photos, photos, photos), folder / "plain/pretrained/posteriors.png")
    return folder


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("page")
    words = ["--seeds", "0", "1", "--measured_on", "a toy", "--output_dir", str(out)]
    assert main(["heads", str(runs), *words]) == 0
    return out


def judged(runs, head, seed, place="plain/pretrained"):
    return json.loads((runs / place / f"seed_{seed}" / head / "im2gps3k" / "metrics.json").read_text())


def numbers_of(page, photos="plain", start="pretrained"):
    return json.loads((page / "metrics.json").read_text())["sections"][photos][start]


def line_of(page, opening):
    found = [line for line in (page / "heads.md").read_text().splitlines() if line.startswith(f"| {opening} |")]
    return [cell.strip() for cell in found[0].strip("| ").split("|")]


def test_pages_have_a_section_for_each_kind_of_photos_and_every_figure(page):
    markdown = (page / "heads.md").read_text()
    for photos in ("Crops in colour", "Small grey crops, which fit many places"):
        assert f"## {photos}: GeoMAE, pretrained" in markdown
    figures = {"error_cdf_1.png", "error_cdf_2.png", "calibration_1.png", "calibration_2.png", "posteriors_1.png"}
    assert {path.name for path in page.iterdir()} == {"metrics.json", "heads.md", "heads.html"} | figures
    assert "stand-in say nothing about photos" in markdown


@pytest.mark.parametrize("head", HEADS)
def test_numbers_are_means_over_the_seeds_with_their_standard_deviation(runs, page, head):
    both = [judged(runs, head, seed) for seed in (0, 1)]
    measured = numbers_of(page)["heads"][head]
    shown = measured["decodings"][measured["headline"]]
    means = [each["mean_km"] for each in both]
    assert shown["num_seeds"] == 2
    assert shown["mean_km"] == pytest.approx(statistics.fmean(means))
    assert shown["spread"]["mean_km"] == pytest.approx(statistics.stdev(means))
    shares = [each["accuracy_within_km"]["2500"] for each in both]
    assert shown["accuracy_within_km"]["2500"] == pytest.approx(statistics.fmean(shares))
    assert shown["first_seed"]["intervals_95"] == both[0]["intervals_95"]


def test_every_decoding_has_its_row_and_the_headline_is_the_first(runs, page):
    measured = numbers_of(page)["heads"]["geocells"]
    assert list(measured["decodings"]) == ["kernel", "argmax"]
    argmax = [judged(runs, "geocells", seed)["decodings"]["argmax"]["median_km"] for seed in (0, 1)]
    assert measured["decodings"]["argmax"]["median_km"] == pytest.approx(statistics.fmean(argmax))
    assert line_of(page, "geocells: argmax")[3].startswith(f"{statistics.fmean(argmax):,.0f} ± ")
    assert list(numbers_of(page)["heads"]["sphere"]["decodings"]) == ["answer"]


def test_row_shows_mean_spread_interval_seeds_and_minutes(runs, page):
    means = [judged(runs, "geocells", seed)["mean_km"] for seed in (0, 1)]
    low, high = judged(runs, "geocells", 0)["intervals_95"]["mean_km"]
    cells = line_of(page, "geocells: kernel")
    shown = f"{statistics.fmean(means):,.0f} ± {statistics.stdev(means):,.0f}"
    assert cells[1:3] == ["2", rf"**{shown}** \[{low:,.0f}, {high:,.0f}\]"]  # the best of its column
    assert cells[-1] == "2.0"
    assert line_of(page, rf"{RETRIEVAL}: kernel\_density")[-1] == "–"  # it has no training of its own


def test_posteriors_have_density_and_coverage_of_both_seeds(runs, page):
    both = [judged(runs, "geocells", seed)["posterior"] for seed in (0, 1)]
    posterior = numbers_of(page)["heads"]["geocells"]["posterior"]
    assert posterior["nll"] == pytest.approx(statistics.fmean(each["nll"] for each in both))
    coverage = statistics.fmean(each["coverage"]["0.5"] for each in both)
    assert posterior["coverage"]["0.5"] == pytest.approx(coverage)
    assert numbers_of(page)["heads"]["sphere"]["posterior"] is None
    table = (page / "heads.md").read_text().partition("### Posteriors")[2]
    cells = next(line for line in table.splitlines() if line.startswith("| geocells |")).strip("| ").split(" | ")
    # the mean and the standard deviation of 1.25 and 2.25, and of 0.5 and 0.7
    assert cells[1:4] == ["kernel", "1.75 ± 0.71", "0.60 ± 0.14"]
    cells_of_retrieval = next(line for line in table.splitlines() if line.startswith(f"| {RETRIEVAL} |"))
    assert cells_of_retrieval.strip("| ").split(" | ")[1:4] == [r"kernel\_density", "–", "–"]
    assert cells[5].startswith(f"{100 * coverage:.1f} ± ")
    assert table.count("| sphere |") == 0


def test_comparisons_are_with_the_sphere_head_of_the_same_seed(runs, page):
    comparisons = numbers_of(page)["comparisons"]
    assert set(comparisons) == {"geocells", "retrieval"}
    for seed in (0, 1):
        folder = runs / f"plain/pretrained/seed_{seed}"
        errors = [pq.read_table(folder / head / "im2gps3k/predictions.parquet") for head in ("retrieval", "sphere")]
        difference = np.subtract(*(table["error_km"].to_numpy() for table in errors)).mean()
        compared = comparisons["retrieval"][f"seed_{seed}"]
        assert compared["mean_km"] == pytest.approx(difference)
        low, high = compared["intervals_95"]["mean_km"]
        assert low < difference < high
    assert numbers_of(page, "ambiguous")["comparisons"] == {}  # no sphere head there


def test_p_values_of_a_table_are_adjusted_for_all_of_its_differences(page):
    compared = [each for seeds in numbers_of(page)["comparisons"].values() for each in seeds.values()]
    assert len(compared) == 4  # two heads, two seeds
    for test in ("bootstrap", "paired_t_test", "wilcoxon"):
        raw = [each[test]["p"] for each in compared]
        # Holm (1979) as a maximum: each p times the number of those that are no smaller, of all up to this one
        expected = [max(min(1.0, sum(q >= p for q in raw) * p) for p in raw if p <= own) for own in raw]
        assert [each["holm"][test] for each in compared] == pytest.approx(expected)
    table = (page / "heads.md").read_text().partition("### Against sphere")[2].partition("##")[0]
    assert "all 4 differences of the table" in table
    rows = [line for line in table.splitlines() if " – sphere |" in line]
    for row, each in zip(rows, compared, strict=True):
        assert f"Holm {each['holm']['bootstrap']:.2g}" in row
        assert f"Holm {each['holm']['paired_t_test']:.2g}" in row


def test_introduction_says_what_calibrated_the_posteriors_and_what_retrieval_costs(page):
    introduction = (page / "heads.md").read_text().partition("## ")[0]
    assert "calibrated on validation photos before it was judged" in introduction
    assert "retrieval's k, sigma, exponent and uniform share were chosen on the same photos" in introduction
    assert "features of the fine-tuned geocells head, and costs that training and the indexing" in introduction


def test_constants_are_the_one_for_the_mean_and_the_one_within_200_km(runs, page):
    densest = judged(runs, "sphere", 0)["baselines"]["densest_200km"]
    cells = line_of(page, "constant: densest 200 km")
    assert cells[2].startswith(f"{densest['mean_km']:,.0f}")
    tables = yaml.safe_load((ROOT / "results/tables.yaml").read_text())
    for name in ("heads", "heads_scratch", "heads_ambiguous"):
        labels = [row["label"] for row in tables[name]["rows"]]
        assert labels[-3:-1] == ["constant: the geometric median", "constant: the densest 200 km"]
        assert not any(label.startswith("best") for label in labels)


def test_labels_say_which_heads_have_one_seed():
    (line,) = [line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith("IN_ONE_SEED :=")]
    tables = yaml.safe_load((ROOT / "results/tables.yaml").read_text())
    labelled = {
        row["under"].split(".")[4]
        for name in ("heads", "heads_scratch", "heads_ambiguous")
        for row in tables[name]["rows"]
        if "one seed" in row["label"]
    }
    assert labelled == set(line.partition(":=")[2].split())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda metrics: metrics.update(decoding="expected_km"), "headline expected_km, .* headline kernel"),
        (lambda metrics: metrics["decodings"].clear(), r"decodings \[\] .* decodings \['argmax'\]"),
        (lambda metrics: metrics["posterior"].pop("temperature"), r"values of \['spread_scale'\]"),
    ],
)
def test_seeds_that_answer_otherwise_are_not_averaged(tmp_path, change, words):
    for seed in (0, 1):
        folder = make_head(tmp_path / f"plain/pretrained/seed_{seed}/geocells", "geocells", seed) / "im2gps3k"
    metrics = json.loads((folder / "metrics.json").read_text())
    change(metrics)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(SourceError, match=words):
        main(["heads", str(tmp_path), "--seeds", "0", "1", "--measured_on", "a toy", "--output_dir", str(tmp_path)])


def test_readme_s_tables_find_their_numbers_on_the_page(runs, page):
    """Of the rows in `results/tables.yaml`, those of heads that stand on this page."""
    tables = yaml.safe_load((ROOT / "results/tables.yaml").read_text())
    definition = tables["heads"]
    made = ("heads.sphere.decodings.answer", "heads.geocells.decodings.kernel", "heads.geocells.decodings.argmax")
    made += ("baselines.geometric_median", "baselines.densest_200km", "baselines.random_guess")
    rows = [row | {"file": "metrics.json"} for row in definition["rows"] if row["under"].endswith(made)]
    assert len(rows) == len(made)
    text = "<!-- results:heads -->\n<!-- /results:heads -->"
    filled = fill_text(text, {"heads": definition | {"rows": rows}}, results=page, page=page / "README.md")
    means = [judged(runs, "sphere", seed)["mean_km"] for seed in (0, 1)]
    assert f"| sphere | {statistics.fmean(means):,.0f} ± {statistics.stdev(means):.3g} |" in filled
    assert "| geocells, kernel |" in filled
    assert "| geocells, argmax |" in filled
    named = {row["under"].split(".")[4] for row in definition["rows"] if ".heads." in row["under"]}
    assert named == set(heads_tables.HEADS)


def test_folder_without_runs_is_refused_by_an_example_of_what_was_looked_for(tmp_path):
    with pytest.raises(SourceError, match="plain/pretrained/seed_0/tanh"):
        main(["heads", str(tmp_path), "--measured_on", "a toy", "--output_dir", str(tmp_path / "out")])


def test_head_without_the_first_seed_is_refused(runs, tmp_path):
    words = ["--seeds", "2", "1", "--measured_on", "a toy", "--output_dir", str(tmp_path / "out")]
    with pytest.raises(SourceError, match="of seed_1, but not of seed_2"):
        main(["heads", str(runs), *words])


def test_trained_head_that_was_not_evaluated_is_named(tmp_path):
    folder = make_run(tmp_path / "plain/pretrained/seed_0/sphere", [1.0])
    with pytest.raises(SourceError, match=str(folder / "im2gps3k")):
        main(["heads", str(tmp_path), "--measured_on", "a toy", "--output_dir", str(tmp_path / "out")])
