"""How every evaluation ends, wherever its answers come from: judged beside baselines, written, printed, logged."""

from typing import Any

from numpy.typing import NDArray

from geomae.evaluation.arguments import JudgingArguments
from geomae.evaluation.baselines import judge_baselines
from geomae.evaluation.judge import judge_answers
from geomae.evaluation.records import write_evaluation
from geomae.evaluation.summary import format_summary
from geomae.evaluation.tables import Predictions, TestSet, read_training_coordinates

__all__ = ["judge_and_write", "read_baseline_coordinates"]


def read_baseline_coordinates(arguments: JudgingArguments) -> NDArray[Any] | None:
    """The coordinates that constants and random guesses are fitted on; None where `train_coordinates` is not given."""
    if not arguments.train_coordinates:
        return None
    return read_training_coordinates(arguments.train_coordinates, swap_lat_lon=arguments.swap_train_lat_lon)


def judge_and_write(
    arguments: JudgingArguments,
    predictions: Predictions,
    test_set: TestSet,
    training_deg: NDArray[Any] | None,
    described: dict[str, Any],
    *,
    label: str,
) -> None:
    """Judge, compare with the baselines, write `output_dir`, print, and record where `report_to` says.

    Args:
        arguments: of the evaluation.
        predictions: its answers.
        test_set: what they are judged by.
        training_deg: of `read_baseline_coordinates`.
        described: what else `metrics.json` says, beside `arguments.describe()`; `test_set` at least.
        label: what the printed table calls the answers.
    """
    how: dict[str, Any] = {name: getattr(arguments, name) for name in ("thresholds_km", "num_resamples", "seed")}
    metrics, tables = judge_answers(predictions, test_set, **how)
    metrics["baselines"], tables["baselines"] = judge_baselines(test_set, training_deg, **how)
    metrics |= {**arguments.describe(), **described}
    written = write_evaluation(str(arguments.output_dir), metrics, **tables)
    print(format_summary(metrics, label=label))
    print("\n".join(["", *(f"wrote {path}" for path in written)]))
    if arguments.report_to != ["none"]:
        from geomae.reporting.trackers import report_evaluation  # matplotlib and cartopy, for its pictures

        report_evaluation(str(arguments.output_dir), arguments.report_to, **arguments.naming)
