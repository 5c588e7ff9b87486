"""What runs and their numbers are called where they are compared."""

import pytest

from geomae.errors import ConfigError
from geomae.evaluation import EvaluationArguments, summarise_errors
from geomae.tracking import flat_metrics, refuse_bad_tags, run_group_of, run_name_of


@pytest.mark.parametrize(
    ("output_dir", "name", "group"),
    [
        ("outputs/earth/finetune_mae", "earth-finetune_mae", "earth"),
        ("outputs/mae_mp16", "mae_mp16", "mae_mp16"),
        ("outputs/mae_mp16/im2gps3k/", "mae_mp16-im2gps3k", "mae_mp16"),
        ("results/earth/mae_im2gps", "results-earth-mae_im2gps", "results"),
        ("/somewhere/else/run", "run", "run"),
    ],
)
def test_name_and_group_follow_from_the_folder_and_name_no_path_of_this_machine(output_dir, name, group):
    assert (run_name_of(output_dir), run_group_of(output_dir)) == (name, group)


def test_a_training_and_its_evaluation_in_sub_folders_of_one_experiment_share_a_group():
    assert run_group_of("outputs/demo/finetune") == run_group_of("outputs/demo/evaluate")
    assert run_group_of("outputs/mae_mp16") == run_group_of("outputs/mae_mp16/im2gps3k")


@pytest.mark.parametrize("tag", ["", "  ", "a,b", "x" * 65])
def test_a_tag_that_wandb_would_not_take_is_refused(tag):
    refuse_bad_tags(["half", "seed 0", "x" * 64])
    with pytest.raises(ConfigError, match="1 to 64 letters and no comma"):
        refuse_bad_tags(["half", tag])
    with pytest.raises(ConfigError, match="no comma"):
        EvaluationArguments(test_set="set.csv", output_dir="out", predictions="p.csv", run_tags=[tag])


def test_metrics_have_one_flat_name_each():
    flat = flat_metrics(summarise_errors([100.0, 300.0], thresholds_km=[200, 0.5]))
    assert list(flat) == ["mean_km", "median_km", "geoscore", "accuracy_within_200km", "accuracy_within_0.5km"]
    assert (flat["mean_km"], flat["accuracy_within_200km"], flat["accuracy_within_0.5km"]) == (200.0, 0.5, 0.0)
