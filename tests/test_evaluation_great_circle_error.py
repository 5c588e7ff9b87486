"""The metrics as a module of Hugging Face `evaluate`."""

from pathlib import Path

import evaluate
import numpy as np
import pytest

from geomae.errors import PredictionError
from geomae.evaluation import compute_metrics
from geomae.evaluation import great_circle_error as module
from geomae.geography import draw_uniform

PREDICTED, TRUTH = (draw_uniform(50, np.random.default_rng(seed)) for seed in (0, 1))


@pytest.fixture
def metric(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(module.__file__).parents[2]))
    return evaluate.load(module.__file__)


def test_the_module_gives_the_numbers_of_the_function(metric):
    expected = compute_metrics(PREDICTED, TRUTH)
    computed = metric.compute(predictions=PREDICTED, references=TRUTH)
    assert {key: computed[key] for key in ("num_photos", "mean_km", "median_km", "geoscore")} == {
        key: expected[key] for key in ("num_photos", "mean_km", "median_km", "geoscore")
    }
    assert computed["accuracy_within_2500km"] == expected["accuracy_within_km"]["2500"]


def test_batches_add_up_to_the_whole(metric):
    for start in range(0, 50, 20):
        metric.add_batch(predictions=PREDICTED[start : start + 20], references=TRUTH[start : start + 20])
    assert metric.compute() == metric.compute(predictions=PREDICTED, references=TRUTH)


def test_a_prediction_that_is_not_a_number_fails_here_too(metric):
    with pytest.raises(PredictionError, match="not finite"):
        metric.compute(predictions=[[np.nan, 0.0]], references=[[0.0, 0.0]])
