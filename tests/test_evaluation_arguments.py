"""What run_evaluate_geo.py can be told."""

import pytest

from geomae.errors import ConfigError
from geomae.evaluation import EvaluationArguments

GIVEN = {"test_set": "set.csv", "output_dir": "out", "predictions": "p.csv"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_set": None}, "test_set is missing: give --test_set PATH"),
        ({"output_dir": ""}, "output_dir is missing"),
        ({"predictions": None}, "either checkpoint or predictions; neither"),
        ({"checkpoint": "outputs/run"}, "either checkpoint or predictions; both"),
        ({"per_device_eval_batch_size": 0}, "per_device_eval_batch_size must be at least 1"),
        ({"dataloader_num_workers": -1}, "dataloader_num_workers at least 0"),
        ({"max_damaged_share": 10}, "a share from 0 to 1; got 10"),
        ({"num_resamples": 10}, "at least 100 for a 95 % interval; got 10"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(change, message):
    EvaluationArguments(**GIVEN)
    with pytest.raises(ConfigError, match=message):
        EvaluationArguments(**{**GIVEN, **change})
