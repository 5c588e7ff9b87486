"""The thesis's tables and figures: published numbers beside measured ones, each with its n and its interval."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

pytest.importorskip("cartopy")

from matplotlib.figure import Figure

from geomae.errors import SourceError
from geomae.evaluation import (
    Predictions,
    TestSet,
    describe_run,
    describe_test_set,
    judge_baselines,
    judge_predictions,
    write_evaluation,
)
from geomae.geography import draw_uniform
from geomae.reporting.__main__ import main
from geomae.reporting.page import Cell
from geomae.reporting.plots import reconstruction_grid, save_figure
from geomae.reporting.records import read_training
from geomae.reporting.thesis_figures import _losses_per_photo
from geomae.reporting.thesis_tables import MODELS, TEST_SETS, read_published, thesis_tables

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = ROOT / "results" / "published.yaml"
NUM_PHOTOS = {"im2gps": 70, "im2gps3k": 100}


def make_test_set(name):
    truth = draw_uniform(NUM_PHOTOS[name], np.random.default_rng(len(name)))
    ids = [f"{name}-{number}.jpg" for number in range(len(truth))]
    return TestSet("data", ids, truth, [f"author {number % 20}" for number in range(len(truth))], f"test_{name}")


def make_training(folder, *, with_pictures=False):
    scale = sum(folder.name.encode())  # so that no two kinds of runs have the same curves
    history = [{"step": 10 * n, "epoch": 0.5 * n, "loss": scale / n, "eval_loss": 2 * scale / n} for n in (1, 2, 3)]
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    run = {
        "command": f"run {folder.name}",
        "commit": "c0ffee",
        "config": {"loss_reduction": "sum", "image_size": 8, "backbone": "tiny", "backbone_kwargs": {"depth": 2}},
        "training": {"total_batch_size": 64},
    }
    (folder / "run.json").write_text(json.dumps(run))
    if with_pictures:
        photos = np.zeros((2, 3, 8, 8), np.uint8)
        save_figure(reconstruction_grid(photos, photos, photos), folder / "pictures/reconstruction_step_000030.png")


def make_evaluation(folder, name, seed):
    test_set = make_test_set(name)
    answers = draw_uniform(len(test_set.ids), np.random.default_rng(seed))
    metrics, table = judge_predictions(Predictions(test_set.ids, answers), test_set, num_resamples=100)
    metrics |= {"test_set": describe_test_set(test_set), **describe_run(["run_evaluate_geo.py"])}
    write_evaluation(folder, metrics, predictions=table)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """What `make thesis` leaves behind, for two seeds, and the baselines."""
    folder = tmp_path_factory.mktemp("thesis")
    for seed in (0, 1):
        runs = folder / "runs" / f"seed_{seed}"
        for name in ("pretrain_full", "pretrain_half"):
            make_training(runs / name, with_pictures=True)
        for number, name in enumerate(MODELS):
            make_training(runs / name)
            for test_set in TEST_SETS:
                make_evaluation(runs / name / test_set, test_set, 10 * seed + number)
    for name in TEST_SETS:
        training = draw_uniform(200, np.random.default_rng(7))
        results, _ = judge_baselines(make_test_set(name), training, num_repeats=2, num_resamples=100)
        write_evaluation(folder / "baselines" / name, {"baselines": results})
    (folder / "train.csv").write_text("id,latitude,longitude\n" + "".join(f"{n},{n % 80},{n}\n" for n in range(100)))
    return folder


@pytest.fixture
def without_figures(monkeypatch):
    """They take most of the time, and are looked at in two tests."""
    monkeypatch.setattr("geomae.reporting.thesis.draw_thesis_figures", lambda *given: [])


def thesis(folders, output_dir, *words, runs=None, seeds=("0", "1")):
    options = {
        "train_coordinates": folders / "train.csv",
        "measured_on": "a toy",
        "baselines": folders / "baselines",
        "published": PUBLISHED,
        "output_dir": output_dir,
    }
    given = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    return main(["thesis", str(runs or folders / "runs"), "--seeds", *seeds, *given, *words])


def test_pages_have_five_tables_the_paired_test_and_every_figure(folders, tmp_path):
    assert thesis(folders, tmp_path / "out", "--stand_in") == 0
    written = {path.name for path in (tmp_path / "out").iterdir()}
    figures = {"figure_1_1_training_coordinates", "figure_1_2_im2gps", "figure_1_2_im2gps3k", "figure_4_2_clusters"}
    figures |= {"figure_5_1_pretraining_loss", "figure_5_2_reconstructions"}
    figures |= {"figure_5_3_full_set_loss", "figure_5_4_half_set_loss"}
    assert written == {"metrics.json", "thesis.md", "thesis.html"} | {f"{name}.png" for name in figures}
    markdown = (tmp_path / "out" / "thesis.md").read_text()
    for number in range(1, 6):
        assert f"Table 5.{number}:" in markdown
    assert "ResNet regressor: tiny (depth 2), 8 px" in markdown
    assert "the figures show seed 0" in markdown
    assert "needs MP-16: make thesis ON=mp16" in markdown
    assert "stand-in say nothing about photos" in markdown
    assert "t, 64 photos | t, 128 rows" in markdown


def test_on_mp16_no_row_waits_for_mp16(without_figures, folders, tmp_path):
    thesis(folders, tmp_path / "out")
    markdown = (tmp_path / "out" / "thesis.md").read_text()
    assert "needs MP-16" not in markdown
    assert "stand-in say nothing" not in markdown


def test_recorded_numbers_are_those_of_the_evaluations(without_figures, folders, tmp_path):
    thesis(folders, tmp_path / "out", "--stand_in")
    numbers = json.loads((tmp_path / "out" / "metrics.json").read_text())
    judged = json.loads((folders / "runs/seed_0/vit_half/im2gps3k/metrics.json").read_text())
    second = json.loads((folders / "runs/seed_1/vit_half/im2gps3k/metrics.json").read_text())
    kept = numbers["models"]["vit_half"]["im2gps3k"]
    assert {key: judged[key] for key in kept} == kept
    over_seeds = numbers["seeds"]["vit_half"]["im2gps3k"]
    assert over_seeds["by_seed_km"] == [judged["mean_km"], second["mean_km"]]
    assert over_seeds["mean_km"] == pytest.approx((judged["mean_km"] + second["mean_km"]) / 2)
    deviation = abs(judged["mean_km"] - second["mean_km"]) / math.sqrt(2.0)  # of two values, n - 1
    assert over_seeds["spread"]["mean_km"] == pytest.approx(deviation)
    assert numbers["trainings"]["seed_1"]["pretrain_half"]["commit"] == "c0ffee"
    comparisons = numbers["comparisons"]
    assert len(comparisons) == 4
    assert all(list(seeds) == ["seed_0", "seed_1"] for seeds in comparisons.values())
    first = comparisons["vit_half_minus_mae_half"]["seed_0"]
    other = json.loads((folders / "runs/seed_0/mae_half/im2gps3k/metrics.json").read_text())
    assert first["mean_km"] == pytest.approx(judged["mean_km"] - other["mean_km"])
    low, high = first["intervals_95"]["mean_km"]
    assert low < first["mean_km"] < high
    assert (first["as_the_thesis_tested"]["num_photos"], first["as_the_thesis_tested"]["num_rows"]) == (64, 128)


def test_every_cell_has_an_interval_or_says_why_not_and_its_n(without_figures, folders, tmp_path):
    thesis(folders, tmp_path / "out", "--stand_in")
    models = json.loads((tmp_path / "out" / "metrics.json").read_text())["models"]
    baselines = {
        name: json.loads((folders / "baselines" / name / "metrics.json").read_text())["baselines"] for name in TEST_SETS
    }
    tables = thesis_tables(read_published(PUBLISHED), models, baselines, measured_on="a toy", needs_mp16=True)
    cells = [cell for table in tables for row in table.rows for cell in row if isinstance(cell, Cell)]
    assert len(cells) > 100
    for cell in cells:
        if cell.text == "–":
            assert cell.note in ("unmeasured", "not published")
        else:
            beside, n = cell.note.split(", n ")
            assert int(n.replace(",", "")) in (64, 384, 237, 2997, *NUM_PHOTOS.values())
            assert beside == "no interval" or beside[0] in "[±"
    without = [cell.text for cell in cells if cell.note.startswith("no interval")]
    means = [9017.88, 8975.40, 5669.71, 5451.12, 5651.33, 5215.02, 5582.45, 5277.12]
    assert without == [f"{mean:,.0f}" for mean in means]  # published means, and nothing else


# THESIS.md, its two tables: mean km; within 200 / 750 / 2500 km, %
MEANS = {
    "random_guess": (9017.88, 8975.40),
    "resnet_full": (5669.71, 5451.12),
    "vit_full": (5651.33, 5215.02),
    "mae_full": (5582.45, 5277.12),
}
SHARES = {
    "random_guess": ((2.1, 4.6, 8.9), (1.2, 3.9, 9.6)),
    "resnet_full": ((1.6, 7.8, 34.4), (1.1, 11.4, 31.0)),
    "vit_full": ((4.7, 7.8, 35.9), (2.1, 13.8, 33.9)),
    "mae_full": ((3.1, 7.8, 34.4), (0.7, 12.2, 34.9)),
    "mae_half": ((3.1, 7.8, 37.5), (2.3, 11.2, 33.2)),
    "vit_half": ((0.0, 6.3, 34.4), (1.8, 11.9, 32.7)),
    "resnet_half": ((1.5, 4.6, 37.5), (2.4, 11.7, 32.0)),
    "planet": ((37.6, 53.6, 71.3), (34.3, 48.4, 64.6)),
}


@pytest.mark.parametrize("name", SHARES)
def test_published_numbers_are_those_of_the_thesis(name):
    published = read_published(PUBLISHED)
    rows = {**published["thesis"]["rows"], **published["planet"]["rows"]}[name]
    for place, test_set in enumerate(TEST_SETS):
        shares = rows[test_set]["accuracy_within_km"]
        assert [100.0 * shares[radius] for radius in ("200", "750", "2500")] == pytest.approx(SHARES[name][place])
        assert rows[test_set].get("mean_km") == (MEANS[name][place] if name in MEANS else None)


def test_published_shares_have_wilsons_intervals():
    published = read_published(PUBLISHED)
    vit = published["thesis"]["rows"]["vit_full"]["im2gps"]
    share, n, z = 3 / 64, 64, 1.959963984540054  # 4.7 % of 64 photos
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    assert vit["intervals_95"]["accuracy_within_km"]["200"] == pytest.approx([centre - half, centre + half])
    for name in MODELS:  # every share on Im2GPS is a number of photos out of 64, to the digit that was printed
        for printed in published["thesis"]["rows"][name]["im2gps"]["accuracy_within_km"].values():
            assert min(abs(printed - count / 64) for count in range(65)) < 0.0012
    assert published["thesis"]["t_test"]["t"] == -4.386


def test_paired_table_says_of_each_pair_what_was_measured(without_figures, folders, tmp_path):
    thesis(folders, tmp_path / "out", "--stand_in")
    numbers = json.loads((tmp_path / "out" / "metrics.json").read_text())["comparisons"]["vit_full_minus_mae_full"]
    markdown = (tmp_path / "out" / "thesis.md").read_text()
    line = next(row for row in markdown.splitlines() if row.startswith("| ViT regressor – MAE, full set | 1 |"))
    measured, claims = numbers["seed_1"], numbers["seed_1"]["as_the_thesis_tested"]
    t_values = [measured["paired_t_test"]["t"], claims["without"]["t"], claims["with_repeats"]["t"]]
    shown = [float(cell.replace("≤", "").split()[0].replace(",", "")) for cell in line.strip("| ").split("|")[2:]]
    assert shown[0] == round(measured["mean_km"])
    assert shown[1] == pytest.approx(measured["bootstrap"]["p"], rel=0.1)
    assert shown[2:] == [round(t, 2) for t in t_values]


def test_curves_of_each_figure_are_of_its_own_runs(folders, tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        "geomae.reporting.thesis_figures.loss_curves",
        lambda histories, metrics, **words: drawn.update({words["title"]: histories}) or Figure(),
    )
    thesis(folders, tmp_path / "out")
    half = drawn["Regressors on the half set: mean great-circle error"]
    read = {name: read_training(folders / "runs/seed_0" / name).history for name in MODELS}
    assert half == {"MAE": read["mae_half"], "ViT regressor": read["vit_half"], "ResNet regressor": read["resnet_half"]}
    full = drawn["Regressors on the full set: mean great-circle error"]
    assert full == {"MAE": read["mae_full"], "ViT regressor": read["vit_full"], "ResNet regressor": read["resnet_full"]}


def test_rows_in_another_order_change_nothing(without_figures, folders, tmp_path):
    """Both models' errors are matched by id before the thesis's repeats are made."""
    thesis(folders, tmp_path / "first", seeds=["0"])
    runs = tmp_path / "runs"
    shutil.copytree(folders / "runs" / "seed_0", runs / "seed_0")
    file = runs / "seed_0/mae_full/im2gps3k/predictions.parquet"
    table = pq.read_table(file)
    pq.write_table(table.take(np.random.default_rng(0).permutation(len(table))), file)
    thesis(folders, tmp_path / "second", runs=runs, seeds=["0"])
    first, second = (
        json.loads((tmp_path / name / "metrics.json").read_text())["comparisons"]["vit_full_minus_mae_full"]["seed_0"]
        for name in ("first", "second")
    )
    assert second["as_the_thesis_tested"] == first["as_the_thesis_tested"]


def test_models_that_answer_alike_are_compared_without_a_test(folders, tmp_path):
    runs = tmp_path / "runs"
    shutil.copytree(folders / "runs" / "seed_0", runs / "seed_0")
    shutil.rmtree(runs / "seed_0/mae_full/im2gps3k")
    shutil.copytree(runs / "seed_0/vit_full/im2gps3k", runs / "seed_0/mae_full/im2gps3k")
    (runs / "seed_0/pretrain_half/run.json").unlink()
    thesis(folders, tmp_path / "out", runs=runs, seeds=["0"])
    markdown = (tmp_path / "out" / "thesis.md").read_text()
    assert "| ViT regressor – MAE, full set | 0 | +0 \\[+0, +0\\] | 1 | – equal | – equal | – equal |" in markdown


def test_missing_runs_and_tables_are_named(folders, tmp_path):
    with pytest.raises(SourceError, match="seed_7"):
        thesis(folders, tmp_path / "out", seeds=["0", "7"])
    bad = tmp_path / "published.yaml"
    bad.write_text(yaml.safe_dump({"thesis": {"rows": {"vit_full": {"im2gps": {"num_photos": 64}}}}}))
    with pytest.raises(SourceError, match=r"accuracy_within_km.*give --published results/published.yaml"):
        read_published(bad)


def test_pretraining_losses_are_per_photo(folders):
    record = read_training(folders / "runs" / "seed_0" / "pretrain_full")
    per_photo = _losses_per_photo(record)
    assert [entry["loss"] for entry in per_photo] == [entry["loss"] / 64 for entry in record.history]
    assert [entry["eval_loss"] for entry in per_photo] == [entry["eval_loss"] for entry in record.history]
