"""A posterior measured: density, radii and expected errors by formulas of their own, coverage of what is calibrated."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fake_posterior import NUM_BOXES, BoxHead, BoxModel, box_centres
from launching import run_twice_beside_itself
from test_evaluation_predict import Averages, collate, photos

from geomae.errors import ConfigError, PredictionError
from geomae.evaluation import Predictions, TestSet, bootstrap_means, judge_answers, judge_predictions
from geomae.evaluation.posterior import CALIBRATION_SHARES, POSTERIOR_COLUMNS, summarise_posterior
from geomae.evaluation.posterior_head import measure_posterior, override_decoding
from geomae.evaluation.predict import predict_coordinates
from geomae.geography import draw_uniform, great_circle_km

ROOT = Path(__file__).resolve().parent.parent


def collate_with_truths(samples):
    batch = collate(samples)
    numbers = torch.tensor([int(name.split()[1]) for name in batch["ids"]])
    truths = torch.stack([7 * numbers % 160 - 80.0, 31 * numbers % 350 - 175.0], dim=1)
    return {**batch, "coordinates_deg": truths}


def collate_ten_crops_with_truths(samples):
    batch = collate_with_truths(samples)
    return {**batch, "pixel_values": torch.cat([batch["pixel_values"] + crop for crop in range(10)])}


@pytest.mark.parametrize(("batch_size", "num_batches"), [(4, 3), (11, 1)])
def test_all_decodings_come_from_one_pass(batch_size, num_batches):
    model = BoxModel()
    predictions = predict_coordinates(model, photos(11), collate_with_truths, batch_size=batch_size)
    assert model.num_calls == num_batches
    assert list(predictions.decodings) == ["kernel", "expected_km", "mean_in_top_k"]
    assert list(predictions.posterior) == list(POSTERIOR_COLUMNS)
    assert predictions.decoded_with == {"decoding": "argmax", "kernel_km": 200.0, "top_k": 5, "temperature": 1.0}
    answers = [predictions.coordinates_deg, *predictions.decodings.values()]
    assert len({str(each.tolist()) for each in answers}) == 4
    assert all(each.shape == (11, 2) and each.dtype == np.float64 for each in answers)


def test_only_the_decodings_asked_for_are_given_and_the_own_one_stays_the_headline():
    model = BoxModel()
    model.head.decoding = "kernel"
    predictions = predict_coordinates(
        model, photos(5), collate_with_truths, batch_size=2, decodings=["kernel", "expected_km"]
    )
    assert list(predictions.decodings) == ["expected_km"]
    every = predict_coordinates(BoxModel(), photos(5), collate_with_truths, batch_size=2)
    assert predictions.coordinates_deg.tolist() == every.decodings["kernel"].tolist()


def test_decodings_of_a_head_that_answers_a_point_are_refused():
    model = Averages()
    model.config = SimpleNamespace(head_type="sphere")
    with pytest.raises(ConfigError, match=r"decodings need a posterior, .* type sphere .* leave them out"):
        predict_coordinates(model, photos(3), collate, batch_size=2, decodings=["kernel"])
    with pytest.raises(ConfigError, match="top_k, temperature need a posterior"):
        override_decoding(model, kernel_km=None, top_k=3, temperature=2.0)
    override_decoding(model, kernel_km=None, top_k=None, temperature=None)


def test_options_of_the_checkpoint_can_be_overridden_one_by_one():
    model = BoxModel()
    override_decoding(model, kernel_km=50.0, top_k=None, temperature=2.0)
    assert (model.head.kernel_km, model.head.top_k, model.head.temperature) == (50.0, 5, 2.0)


def test_numbers_of_a_photo_are_those_of_float64_formulas():
    """The mass by numpy, its distances by the formula of `geomae.geography`, radii by sorting photo by photo."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (40, NUM_BOXES))
    answers, truths = draw_uniform(40, rng), draw_uniform(40, rng)
    measured = measure_posterior(
        BoxHead(temperature=1.5), *(torch.from_numpy(each).float() for each in (logits, answers, truths))
    )
    mass = np.exp(logits / 1.5)
    mass /= mass.sum(axis=1, keepdims=True)
    for row in range(40):
        distance_km = great_circle_km(answers[row], box_centres())
        order = np.argsort(distance_km)
        held = np.cumsum(mass[row][order])
        error_km = great_circle_km(answers[row], truths[row])
        sine, column = np.sin(np.radians(truths[row, 0])), int((truths[row, 1] + 180) // 15)
        box = int((sine + 1) // (1 / 6)) * 24 + column
        expected = {
            "nll": -np.log(mass[row, box] * NUM_BOXES / (4 * np.pi)),
            "radius_50_km": distance_km[order][np.searchsorted(held, 0.5)],
            "radius_90_km": distance_km[order][np.searchsorted(held, 0.9)],
            "expected_km": (mass[row] * distance_km).sum(),
            "mass_within_error": mass[row][distance_km <= error_km].sum(),
        }
        for name, value in expected.items():
            assert float(measured[name][row]) == pytest.approx(value, rel=1e-4, abs=1e-5), name


def judge_drawn(sharpness=1.0, num_photos=4000):
    """Truths drawn from posteriors that are handed in `sharpness` times as sure of themselves."""
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 1.0, (num_photos, NUM_BOXES))
    mass = np.exp(logits)
    boxes = [rng.choice(NUM_BOXES, p=row / row.sum()) for row in mass]
    truths = box_centres()[boxes] + rng.normal(0, 1e-3, (num_photos, 2))
    head = BoxHead()
    shown = torch.from_numpy(sharpness * logits).float()
    answers = head.decode(shown, ["argmax"])["argmax"]
    columns = {
        name: each.double().numpy()
        for name, each in measure_posterior(head, shown, answers, torch.from_numpy(truths).float()).items()
    }
    return columns, great_circle_km(answers.double().numpy(), truths)


def test_radii_of_a_calibrated_posterior_hold_what_they_say():
    columns, error_km = judge_drawn()
    summary = summarise_posterior(columns, error_km, range(len(error_km)), num_resamples=500)
    step = (
        0.03  # a box near the answer holds up to so much mass, all at one distance; twice the sampling error is 0.016
    )
    for q, share in summary["calibration"].items():
        assert share == pytest.approx(float(q), abs=step)
    for q, share in summary["coverage"].items():
        assert share == pytest.approx(float(q), abs=step)
    assert summary["mean_expected_km"] == pytest.approx(summary["mean_error_km"], rel=0.03)
    low, high = summary["intervals_95"]["mean_error_km"]
    assert low < summary["mean_expected_km"] < high


def test_radii_of_an_overconfident_posterior_hold_less_and_its_density_is_worse():
    calibrated, sure = (summarise_posterior(*judge_drawn(factor), range(4000)) for factor in (1.0, 3.0))
    assert sure["coverage"]["0.5"] < 0.4
    assert sure["coverage"]["0.9"] < 0.8
    assert sure["nll"] > calibrated["nll"] + 0.3
    assert sure["mean_expected_km"] < 0.9 * sure["mean_error_km"]


def make_predictions(num_photos, num_answered, seed=0):
    rng = np.random.default_rng(seed)
    test_set = TestSet(
        "set.csv",
        [f"{number}.jpg" for number in range(num_photos)],
        draw_uniform(num_photos, rng),
        [f"author {number % 30}" for number in range(num_photos)],
    )
    answers = draw_uniform(num_answered, rng)
    posterior = {name: rng.gamma(2.0, 2000.0, num_answered) for name in POSTERIOR_COLUMNS}
    posterior["mass_within_error"] = rng.random(num_answered)
    predictions = Predictions(
        test_set.ids[:num_answered],
        answers,
        decoded_with={"decoding": "kernel", "kernel_km": 200.0, "top_k": 5, "temperature": 1.25},
        decodings={"argmax": draw_uniform(num_answered, rng)},
        posterior=posterior,
    )
    return predictions, test_set


def test_photos_without_an_answer_are_within_no_radius_and_leave_the_density_alone():
    predictions, test_set = make_predictions(100, 80)
    posterior = judge_answers(predictions, test_set, num_resamples=100)[0]["posterior"]
    error_km = great_circle_km(predictions.coordinates_deg, test_set.coordinates_deg[:80])
    assert posterior["num_photos"] == 80
    assert posterior["nll"] == pytest.approx(predictions.posterior["nll"].mean())
    assert posterior["mean_error_km"] == pytest.approx(error_km.mean())
    assert posterior["mean_expected_km"] == pytest.approx(predictions.posterior["expected_km"].mean())
    for q, name in (("0.5", "radius_50_km"), ("0.9", "radius_90_km")):
        assert posterior["coverage"][q] == (error_km <= predictions.posterior[name]).sum() / 100
    shares = [(predictions.posterior["mass_within_error"] < q).sum() / 100 for q in CALIBRATION_SHARES]
    assert list(posterior["calibration"].values()) == shares


def test_every_decoding_is_judged_like_the_headline_and_has_a_file():
    predictions, test_set = make_predictions(100, 80)
    metrics, tables = judge_answers(predictions, test_set, num_resamples=100)
    other = Predictions(predictions.ids, predictions.decodings["argmax"])
    assert metrics["decoding"] == "kernel"
    assert metrics["decodings"] == {"argmax": judge_predictions(other, test_set, num_resamples=100)[0]}
    assert metrics["posterior"]["temperature"] == 1.25
    assert list(tables) == ["predictions", "predictions_argmax"]
    plain = judge_predictions(predictions, test_set, num_resamples=100)[1]
    assert tables["predictions"].column_names == [*plain.column_names, *POSTERIOR_COLUMNS]
    assert tables["predictions_argmax"].column_names == plain.column_names
    assert tables["predictions"]["nll"].to_pylist() == [*predictions.posterior["nll"].tolist(), *[None] * 20]


def test_numbers_are_the_same_in_whatever_order_the_photos_are():
    predictions, test_set = make_predictions(100, 80)
    order = np.random.default_rng(1).permutation(80)
    shuffled = Predictions(
        [predictions.ids[row] for row in order],
        predictions.coordinates_deg[order],
        decoded_with=predictions.decoded_with,
        posterior={name: column[order] for name, column in predictions.posterior.items()},
    )
    backwards = TestSet("set.csv", test_set.ids[::-1], test_set.coordinates_deg[::-1], test_set.authors[::-1])
    first = judge_answers(predictions, test_set, num_resamples=100)[0]["posterior"]
    assert first["intervals_95"] is not None
    assert judge_answers(shuffled, backwards, num_resamples=100)[0]["posterior"] == first


def test_a_posterior_that_is_no_number_is_refused_by_the_photo():
    predictions, test_set = make_predictions(20, 20)
    predictions.posterior["nll"][7] = np.inf
    with pytest.raises(PredictionError, match=r"nll is not a finite number for 1 of 20 photos; the first is id 7\.jpg"):
        judge_answers(predictions, test_set)


def test_few_authors_give_no_intervals():
    predictions, test_set = make_predictions(20, 20)
    few = TestSet(test_set.name, test_set.ids, test_set.coordinates_deg, ["ann", "bob"] * 10)
    assert judge_answers(predictions, few)[0]["posterior"]["intervals_95"] is None


def test_intervals_of_means_agree_with_a_loop_over_resampled_authors():
    rng = np.random.default_rng(5)
    clusters = rng.integers(0, 40, 500)
    columns = {"nll": rng.normal(3, 1, 500) + clusters / 20, "within": rng.random(500) < 0.3}
    intervals = bootstrap_means(columns, clusters, num_resamples=4000)
    members = [np.flatnonzero(clusters == each) for each in range(40)]
    drawn = [np.concatenate([members[each] for each in rng.integers(0, 40, 40)]) for _ in range(4000)]
    for name, column in columns.items():
        expected = np.quantile([column[rows].mean() for rows in drawn], [0.025, 0.975])
        assert intervals[name] == pytest.approx(expected, abs=0.15 * (expected[1] - expected[0]))


def test_a_share_that_is_always_zero_or_one_has_the_exact_interval():
    columns = {"none": np.zeros(60, dtype=bool), "all": np.ones(60, dtype=bool)}
    intervals = bootstrap_means(columns, np.arange(60) % 20)
    assert intervals["none"] == pytest.approx([0.0, 1 - 0.025 ** (1 / 20)])  # Clopper and Pearson's, of 20 authors
    assert intervals["all"] == pytest.approx([0.025 ** (1 / 20), 1.0])
    assert bootstrap_means(columns, np.arange(60) % 9) is None


def test_ten_crops_are_decoded_from_their_mean_logits_in_every_way():
    model = BoxModel()
    predictions = predict_coordinates(model, photos(7), collate_ten_crops_with_truths, batch_size=3)
    central = predict_coordinates(BoxModel(), photos(7), collate_with_truths, batch_size=3)
    assert model.num_calls == 3 * 10
    assert predictions.posterior["nll"].tolist() == central.posterior["nll"].tolist()
    combined = predictions.ten_crop
    assert list(combined.decodings) == list(predictions.decodings)
    batch = collate_ten_crops_with_truths(list(photos(7)))
    logits = torch.stack([model(crops).logits for crops in batch["pixel_values"].split(7)]).mean(dim=0)
    for name, answers in {"argmax": combined.coordinates_deg, **combined.decodings}.items():
        assert answers == pytest.approx(model.head.decode(logits, [name])[name].numpy())
    density = model.head.log_density(logits, batch["coordinates_deg"]).numpy()
    assert combined.posterior["nll"] == pytest.approx(-density, rel=1e-4)


def describe_thirteen_posteriors():
    predictions = predict_coordinates(BoxModel(), photos(13, damaged=[5]), collate_ten_crops_with_truths, batch_size=3)
    both = [predictions, predictions.ten_crop]
    columns = [{**each.decodings, **each.posterior, "": each.coordinates_deg} for each in both]
    return str([{name: column.tolist() for name, column in each.items()} for each in columns])


ONE_OF_TWO = """
import os
from pathlib import Path

from test_evaluation_posterior import describe_thirteen_posteriors

Path(f"rank_{os.environ['RANK']}.txt").write_text(describe_thirteen_posteriors())
"""


@pytest.mark.slow
def test_two_processes_give_the_digits_of_one(tmp_path):
    run_twice_beside_itself(ONE_OF_TWO, tmp_path, num_threads=torch.get_num_threads())
    assert {path.read_text() for path in tmp_path.glob("rank_*.txt")} == {describe_thirteen_posteriors()}
    assert len(list(tmp_path.glob("rank_*.txt"))) == 2
