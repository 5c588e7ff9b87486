"""Folders of trainings and evaluations, as the scripts leave them, for the tests of what reads them."""

import json

import numpy as np

from geomae.evaluation import (
    THRESHOLDS_KM,
    Predictions,
    TestSet,
    describe_run,
    describe_test_set,
    judge_baselines,
    judge_predictions,
    write_evaluation,
)
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
):
    truth = draw_uniform(40, np.random.default_rng(test_seed))
    ids = [EVIL_ID, *(f"{test_seed}-{number}.jpg" for number in range(39))]
    test_set = TestSet("set.csv", ids, truth, authors, scenes=["urban"] * 30 + ["indoor"] * 10)
    answers = draw_uniform(40, np.random.default_rng(seed)) if answers is None else answers
    how = {"thresholds_km": thresholds_km, "num_resamples": 100}
    metrics, table = judge_predictions(Predictions(ids[:num_answered], answers[:num_answered]), test_set, **how)
    metrics["baselines"], errors = judge_baselines(test_set, answers, num_repeats=2, **how)
    metrics |= {
        "checkpoint": checkpoint,
        "test_set": describe_test_set(test_set),
        **describe_run(["run_evaluate_geo.py"]),
    }
    write_evaluation(folder, metrics, predictions=table, baselines=errors)
    return metrics
