"""Folders of trainings and evaluations, as the scripts leave them, for the tests of what reads them."""

import json

import numpy as np

from geomae.evaluation import (
    THRESHOLDS_KM,
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
from geomae.reporting.plots import reconstruction_grid, save_figure

EVIL_ID = "<b>1</b>|x.jpg"


def make_run(folder, losses, *, checkpoint="", pictures=(), great_circle=False, config=None):
    state = folder / checkpoint / "trainer_state.json"
    state.parent.mkdir(parents=True, exist_ok=True)
    history = [{"step": 10 * (number + 1), "loss": loss} for number, loss in enumerate(losses)]
    if great_circle:
        history += [{"step": entry["step"], "eval_mean_km": 100 * entry["loss"]} for entry in history]
    state.write_text(json.dumps({"log_history": history}))
    if config is not None:
        (folder / "run.json").write_text(json.dumps({"command": "python run_finetune_geo.py", "config": config}))
    photos = np.zeros((2, 3, 8, 8), np.uint8)
    for step in pictures:
        save_figure(
            reconstruction_grid(photos, photos, photos), folder / "pictures" / f"reconstruction_step_{step:06d}.png"
        )
    return folder


def make_evaluation(
    folder,
    num_answered=40,
    seed=1,
    test_seed=9,
    authors=None,
    checkpoint=None,
    answers=None,
    thresholds_km=THRESHOLDS_KM,
    posterior=False,
):
    truth = draw_uniform(40, np.random.default_rng(test_seed))
    ids = [EVIL_ID, *(f"{test_seed}-{number}.jpg" for number in range(39))]
    test_set = TestSet("set.csv", ids, truth, authors, scenes=["urban"] * 30 + ["indoor"] * 10)
    answers = draw_uniform(40, np.random.default_rng(seed)) if answers is None else answers
    how = {"thresholds_km": thresholds_km, "num_resamples": 100}
    of_posterior = make_posterior(num_answered, seed) if posterior else {}
    predictions = Predictions(ids[:num_answered], answers[:num_answered], **of_posterior)
    metrics, tables = judge_answers(predictions, test_set, **how)
    metrics["baselines"], errors = judge_baselines(test_set, answers, num_repeats=2, **how)
    metrics |= {
        "checkpoint": checkpoint,
        "test_set": describe_test_set(test_set),
        **describe_run(["run_evaluate_geo.py"]),
    }
    write_evaluation(folder, metrics, **tables, baselines=errors)
    return metrics


def make_posterior(num_photos, seed):
    rng = np.random.default_rng(seed)
    columns = {name: rng.gamma(2.0, 4000.0, num_photos) for name in POSTERIOR_COLUMNS}
    return {
        "decoded_with": {"decoding": "kernel", "kernel_km": 200.0, "top_k": 5, "temperature": 1.25},
        "decodings": {"argmax": draw_uniform(num_photos, rng)},
        "posterior": columns | {"mass_within_error": rng.random(num_photos)},
    }
