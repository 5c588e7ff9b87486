"""Predictions in, numbers with intervals out, beside answers that never saw a photo.

`geomae.evaluation.predict` needs torch and is imported by its full name; everything listed here does without.
"""

from geomae.evaluation.arguments import EvaluationArguments
from geomae.evaluation.baselines import describe_baselines, judge_baselines
from geomae.evaluation.bootstrap import bootstrap_intervals, bootstrap_means, draw_cluster_counts, resampled_metrics
from geomae.evaluation.comparison import compare_errors, holm_adjusted
from geomae.evaluation.flickr import flickr_number, shared_photos
from geomae.evaluation.judge import (
    judge_answers,
    judge_errors,
    judge_groups,
    judge_predictions,
    match_predictions,
)
from geomae.evaluation.known_test_sets import KNOWN_TEST_SETS, find_known_list
from geomae.evaluation.metrics import THRESHOLDS_KM, compute_metrics, geoscores, summarise_errors
from geomae.evaluation.paired_predictions import compare_predictions, describe_difference, format_comparison
from geomae.evaluation.posterior import DECODINGS, summarise_posterior
from geomae.evaluation.records import (
    describe_run,
    describe_test_set,
    read_metrics,
    refuse_unwritable,
    shown_path,
    write_evaluation,
)
from geomae.evaluation.summary import best_constant, format_summary, format_table
from geomae.evaluation.tables import (
    Predictions,
    TestSet,
    read_predictions,
    read_test_set,
    read_training_coordinates,
    read_training_ids,
)
from geomae.evaluation.verdict import judge_and_write, read_baseline_coordinates

__all__ = [
    "DECODINGS",
    "KNOWN_TEST_SETS",
    "THRESHOLDS_KM",
    "EvaluationArguments",
    "Predictions",
    "TestSet",
    "best_constant",
    "bootstrap_intervals",
    "bootstrap_means",
    "compare_errors",
    "compare_predictions",
    "compute_metrics",
    "describe_baselines",
    "describe_difference",
    "describe_run",
    "describe_test_set",
    "draw_cluster_counts",
    "find_known_list",
    "flickr_number",
    "format_comparison",
    "format_summary",
    "format_table",
    "geoscores",
    "holm_adjusted",
    "judge_baselines",
    "judge_and_write",
    "judge_answers",
    "judge_errors",
    "judge_groups",
    "judge_predictions",
    "match_predictions",
    "read_baseline_coordinates",
    "read_metrics",
    "read_predictions",
    "read_test_set",
    "read_training_coordinates",
    "read_training_ids",
    "refuse_unwritable",
    "resampled_metrics",
    "shared_photos",
    "shown_path",
    "summarise_errors",
    "summarise_posterior",
    "write_evaluation",
]
