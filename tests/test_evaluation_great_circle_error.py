"""The metrics as a module of Hugging Face `evaluate`."""

import re
import shutil
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from transformers import EvalPrediction, Trainer, TrainingArguments

from geomae.errors import ConfigError, CoordinateError, PredictionError
from geomae.evaluation import compute_metrics
from geomae.evaluation import great_circle_error as module
from geomae.geography import draw_uniform, great_circle_km
from modeling import GeoMAEConfig, GeoMAEForGeolocation

ROOT = Path(__file__).resolve().parent.parent
PREDICTED, TRUTH = (draw_uniform(50, np.random.default_rng(seed)) for seed in (0, 1))


@pytest.fixture
def metric(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(module.__file__).parents[2]))
    return evaluate.load(module.__file__)


def flattened(metrics):
    flat = {key: metrics[key] for key in ("num_photos", "mean_km", "median_km", "geoscore")}
    flat |= {f"num_within_{radius}km": count for radius, count in metrics["num_within_km"].items()}
    flat |= {f"accuracy_within_{radius}km": share for radius, share in metrics["accuracy_within_km"].items()}
    return flat | {f"quantile_{share}_km": value for share, value in metrics["quantiles_km"].items()}


def test_the_module_gives_every_number_of_the_function(metric):
    computed = metric.compute(predictions=PREDICTED, references=TRUTH)
    assert computed == flattened(compute_metrics(PREDICTED, TRUTH))
    assert {"num_within_2500km", "accuracy_within_1km", "quantile_0.95_km"} <= computed.keys()


def test_the_module_takes_any_radii_and_refuses_what_cannot_be_one(metric):
    radii = [0.5, 6000]
    computed = metric.compute(predictions=PREDICTED, references=TRUTH, thresholds_km=radii)
    assert computed == flattened(compute_metrics(PREDICTED, TRUTH, thresholds_km=radii))
    with pytest.raises(ConfigError, match=r"thresholds_km must be .* -5 is not one"):
        metric.compute(predictions=PREDICTED, references=TRUTH, thresholds_km=[-5])


def test_a_folder_in_the_layout_of_evaluate_loads_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "great_circle_error").mkdir()
    shutil.copy(module.__file__, tmp_path / "great_circle_error")
    loaded = evaluate.load("./great_circle_error")
    computed = loaded.compute(predictions=PREDICTED, references=TRUTH)
    assert computed == flattened(compute_metrics(PREDICTED, TRUTH))


def test_the_documented_compute_metrics_turns_an_eval_prediction_into_numbers(metric):
    prediction = EvalPrediction(predictions=PREDICTED.astype(np.float32), label_ids=TRUTH.astype(np.float32))
    computed = metric.compute(predictions=prediction.predictions, references=prediction.label_ids)
    assert computed["mean_km"] == pytest.approx(great_circle_km(PREDICTED, TRUTH).mean(), rel=1e-5)


def test_the_example_in_the_documentation_runs(monkeypatch):
    monkeypatch.chdir(ROOT)
    text = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(code, {})


def test_a_trainer_reports_the_metrics_as_the_module_says(metric, tmp_path, tiny_sizes):
    torch.manual_seed(0)
    model = GeoMAEForGeolocation(GeoMAEConfig(**tiny_sizes))
    photos = torch.randint(0, 256, (10, 3, 32, 32), dtype=torch.uint8)
    samples = [
        {"pixel_values": pixels, "coordinates_deg": torch.tensor(point, dtype=torch.float32)}
        for pixels, point in zip(photos, TRUTH, strict=False)
    ]
    trainer = Trainer(
        model,
        TrainingArguments(
            str(tmp_path), label_names=["coordinates_deg"], report_to="none", use_cpu=True, per_device_eval_batch_size=4
        ),
        eval_dataset=samples,
        preprocess_logits_for_metrics=lambda outputs, labels: outputs[0],
        compute_metrics=lambda prediction: metric.compute(
            predictions=prediction.predictions, references=prediction.label_ids
        ),
    )
    reported = trainer.evaluate()
    with torch.no_grad():
        answers = model.eval()(photos).coordinates_deg.double().numpy()
    assert reported["eval_num_photos"] == 10
    assert reported["eval_mean_km"] == pytest.approx(great_circle_km(answers, TRUTH[:10]).mean(), rel=1e-4)
    assert "eval_accuracy_within_200km" in reported


def test_batches_add_up_to_the_whole(metric):
    for start in range(0, 50, 20):
        metric.add_batch(predictions=PREDICTED[start : start + 20], references=TRUTH[start : start + 20])
    assert metric.compute() == metric.compute(predictions=PREDICTED, references=TRUTH)


def test_a_prediction_that_is_not_a_number_fails_here_too(metric):
    with pytest.raises(PredictionError, match="not finite"):
        metric.compute(predictions=[[np.nan, 0.0]], references=[[0.0, 0.0]])


def test_a_truth_off_earth_fails_here_too(metric):
    with pytest.raises(CoordinateError, match="1 of 1 rows of the truths are not on Earth"):
        metric.compute(predictions=[[1.0, 2.0]], references=[[91.0, 2.0]])
