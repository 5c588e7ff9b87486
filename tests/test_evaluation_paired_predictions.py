"""Two files of predictions on exactly the same photos, or a refusal that says what differs."""

import json

import numpy as np
import pyarrow.parquet
import pytest

from geomae.errors import ConfigError, PredictionError, SourceError
from geomae.evaluation import (
    Predictions,
    TestSet,
    compare_errors,
    compare_predictions,
    describe_difference,
    describe_test_set,
    format_comparison,
    judge_predictions,
    write_evaluation,
)
from geomae.evaluation import __main__ as evaluation_main
from geomae.geography import EARTH_RADIUS_KM, draw_uniform, great_circle_km

NUM_PHOTOS = 40
AUTHORS = [f"author {number % 7}" for number in range(NUM_PHOTOS)]


def make_test_set(authors=AUTHORS, shift=0.0):
    truth = draw_uniform(NUM_PHOTOS, np.random.default_rng(0)) * 0.9
    return TestSet("set.csv", [f"{number:02d}.jpg" for number in range(NUM_PHOTOS)], truth + shift, authors)


def answers_of(seed):
    return draw_uniform(NUM_PHOTOS, np.random.default_rng(seed))


def write_csv(path, ids, degrees, header="id,latitude,longitude"):
    rows = [
        f"{name},{latitude!r},{longitude!r}" for name, (latitude, longitude) in zip(ids, degrees.tolist(), strict=True)
    ]
    path.write_text("\n".join([header, *rows, ""]))
    return path


def write_judged(folder, test_set, degrees, rows=slice(None), **how):
    answers = Predictions(test_set.ids[rows], degrees[rows])
    metrics, table = judge_predictions(answers, test_set, num_resamples=100, **how)
    write_evaluation(folder, {**metrics, "test_set": describe_test_set(test_set)}, predictions=table)
    return folder


def expected(test_set, first, second, **options):
    errors = [great_circle_km(degrees, test_set.coordinates_deg) for degrees in (first, second)]
    both = {"num_photos": NUM_PHOTOS, "mean_km": pytest.approx(errors[0].mean() - errors[1].mean())}
    missing = {"num_missing": {"first": 0, "second": 0}, "answered_by_both": both}
    return compare_errors(*errors, test_set.authors, **options) | missing


def test_files_are_matched_by_id_whatever_their_order(tmp_path):
    test_set, first, second = make_test_set(), answers_of(1), answers_of(2)
    one = write_csv(tmp_path / "one.csv", test_set.ids, first)
    order = np.random.default_rng(3).permutation(NUM_PHOTOS)
    other = write_csv(tmp_path / "other.csv", [test_set.ids[row] for row in order], second[order])
    compared = compare_predictions(one, other, test_set, num_resamples=200)
    assert compared == expected(test_set, first, second, num_resamples=200)


def test_two_evaluation_folders_bring_their_truths_and_authors(tmp_path):
    test_set, first, second = make_test_set(), answers_of(1), answers_of(2)
    folders = [write_judged(tmp_path / name, test_set, degrees) for name, degrees in (("a", first), ("b", second))]
    compared = compare_predictions(*folders, num_resamples=200)
    assert compared == expected(test_set, first, second, num_resamples=200)
    assert compared["bootstrap"]["clustered_by"] == "author"
    files = [folder / "predictions.parquet" for folder in folders]
    assert compare_predictions(*files, num_resamples=200) == compared


def test_folders_of_before_there_were_authors_take_them_from_the_test_set_or_do_without(tmp_path):
    nameless, named = make_test_set(authors=None), make_test_set()
    folders = [write_judged(tmp_path / name, nameless, answers_of(ord(name))) for name in "ab"]
    assert "author" not in pyarrow.parquet.read_schema(folders[0] / "predictions.parquet").names
    assert compare_predictions(*folders, num_resamples=200)["bootstrap"]["num_clusters"] == NUM_PHOTOS
    assert compare_predictions(*folders, named, num_resamples=200)["bootstrap"]["num_clusters"] == 7
    one_named = write_judged(tmp_path / "c", named, answers_of(9))
    assert compare_predictions(folders[0], one_named, num_resamples=200)["bootstrap"]["num_clusters"] == 7


def test_a_photo_without_an_answer_is_a_miss_on_its_side(tmp_path):
    test_set = make_test_set()
    perfect = test_set.coordinates_deg
    folders = [
        write_judged(tmp_path / "all", test_set, perfect),
        write_judged(tmp_path / "part", test_set, perfect, rows=slice(0, 30)),
    ]
    compared = compare_predictions(*folders, num_resamples=200)
    assert compared["num_photos"] == NUM_PHOTOS
    assert compared["difference"]["mean_km"] == pytest.approx(-0.25 * np.pi * EARTH_RADIUS_KM)
    assert compared["difference"]["accuracy_within_km"]["1"] == 0.25
    assert compared["num_missing"] == {"first": 0, "second": 10}
    assert compared["answered_by_both"] == {"num_photos": 30, "mean_km": 0.0}
    text = describe_difference(compared, "all", "part")
    assert "0 photos have no answer of all and 10 none of part" in text
    assert "On the 30 photos that both answer, the difference of the means is +0 km" in text


def test_a_photo_that_both_files_leave_out_is_a_miss_of_both(tmp_path):
    test_set, perfect = make_test_set(), make_test_set().coordinates_deg
    files = [write_csv(tmp_path / f"{name}.csv", test_set.ids[:30], perfect[:30]) for name in "ab"]
    compared = compare_predictions(*files, test_set, num_resamples=200)
    assert compared["num_photos"] == NUM_PHOTOS
    assert compared["first"]["mean_km"] == pytest.approx(0.25 * np.pi * EARTH_RADIUS_KM)
    assert compared["wilcoxon"]["num_zero_differences"] == NUM_PHOTOS


def test_files_of_different_photos_are_refused_with_the_first_on_each_side(tmp_path):
    test_set = make_test_set()
    one = write_csv(tmp_path / "one.csv", test_set.ids[:38], answers_of(1)[:38])
    other = write_csv(tmp_path / "other.csv", test_set.ids[3:39], answers_of(2)[3:39])
    with pytest.raises(PredictionError) as refused:
        compare_predictions(one, other, test_set)
    message = str(refused.value)
    assert "3 ids stand only in" in message
    assert "one.csv, the first is 00.jpg" in message
    assert "1 ids stand only in" in message
    assert "other.csv, the first is 38.jpg" in message
    assert "run_evaluate_geo.py" in message


def test_folders_judged_by_different_truths_are_refused_by_id(tmp_path):
    folders = [
        write_judged(tmp_path / name, make_test_set(shift=shift), answers_of(1))
        for name, shift in (("a", 0), ("b", 1e-3))
    ]
    with pytest.raises(SourceError, match=r"truths of 40 photos differ; the first is id 00\.jpg"):
        compare_predictions(*folders)
    with pytest.raises(SourceError, match="truths of 40 photos differ"):
        compare_predictions(folders[0], folders[0], make_test_set(shift=0.1))


def test_a_test_set_of_other_photos_is_refused(tmp_path):
    folder = write_judged(tmp_path / "a", make_test_set(), answers_of(1))
    truth = make_test_set().coordinates_deg[:39]
    with pytest.raises(SourceError, match=r"judged on 40 photos and small\.csv has 39; 39\.jpg is not in small\.csv"):
        compare_predictions(folder, folder, TestSet("small.csv", make_test_set().ids[:39], truth))


def test_files_without_truths_ask_for_the_test_set(tmp_path):
    file = write_csv(tmp_path / "a.csv", make_test_set().ids, answers_of(1))
    with pytest.raises(ConfigError, match=r"a\.csv has true coordinates: give --test_set FILE"):
        compare_predictions(file, file)


def test_a_folder_without_predictions_is_named(tmp_path):
    with pytest.raises(SourceError, match=r"has no predictions\.parquet; expected a folder that run_evaluate_geo"):
        compare_predictions(tmp_path, tmp_path)


def test_the_command_prints_a_sentence_and_writes_the_numbers(tmp_path, capsys):
    test_set = make_test_set()
    near = test_set.coordinates_deg + 0.5
    files = [
        write_csv(tmp_path / f"{name}.csv", test_set.ids, deg) for name, deg in (("near", near), ("far", answers_of(1)))
    ]
    truth = write_csv(tmp_path / "set.csv", test_set.ids, test_set.coordinates_deg, header="IMG_ID,LAT,LON")
    words = ["compare", *map(str, files), "--test_set", str(truth), "--num_resamples", "500", "--seed", "3"]
    evaluation_main.main([*words, "--output_dir", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert "km below that of far.csv (95 % interval [-" in printed
    assert "the interval leaves 0 out: near.csv is better" in printed
    assert "Taking photos for independent: paired t-test t(39)" in printed
    written = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert written["names"] == ["near.csv", "far.csv"]
    assert written["bootstrap"] | {"p": None} == {
        "p": None,
        "clustered_by": "photo",
        "num_clusters": 40,
        "num_resamples": 500,
        "seed": 3,
    }
    assert {"commit", "versions", "command"} <= written.keys()
    assert str(tmp_path) not in json.dumps(written)


def test_the_command_reads_a_packed_split_and_swapped_columns(tmp_path, capsys):
    from packed_photos import pack

    from geomae.evaluation import read_test_set

    folder = pack(tmp_path / "packed", validation=6)
    test_set = read_test_set(folder, split="validation")
    file = write_csv(tmp_path / "a.csv", test_set.ids, test_set.coordinates_deg)
    evaluation_main.main(["compare", str(file), str(file), "--test_set", str(folder), "--split", "validation"])
    swapped = write_csv(tmp_path / "set.csv", test_set.ids, test_set.coordinates_deg, header="id,longitude,latitude")
    evaluation_main.main(["compare", str(file), str(file), "--test_set", str(swapped), "--swap_lat_lon"])
    printed = capsys.readouterr().out
    assert printed.count("have the same mean error") == 2
    assert printed.count("6 photos, every one counted for both") == 2


def test_an_interval_that_holds_zero_names_no_winner_and_one_author_gives_none():
    rng = np.random.default_rng(0)
    error_km = rng.exponential(1500, 30)
    undecided = format_comparison(compare_errors(error_km, rng.permutation(error_km) + 1), "a", "b")
    assert "these photos do not tell which of the two is better" in undecided
    assert "is better on photos" not in undecided
    single = format_comparison(compare_errors(error_km, error_km + 5, ["ann"] * 30), "a", "b")
    assert "5 km below that of b; no interval can be drawn from a single author" in single
    assert "t undefined" in single


def test_radii_are_those_given_or_those_that_both_folders_have_or_the_usual_ones(tmp_path):
    test_set = make_test_set()
    folders = {
        name: write_judged(tmp_path / name, test_set, answers_of(1), thresholds_km=radii)
        for name, radii in {"a": [100, 500, 10], "b": [10, 100], "c": [50]}.items()
    }

    def radii_of(first, second, **given):
        compared = compare_predictions(folders[first], folders[second], num_resamples=100, **given)
        assert list(compared["difference"]["accuracy_within_km"]) == list(compared["first"]["accuracy_within_km"])
        return list(compared["difference"]["accuracy_within_km"])

    assert radii_of("a", "b") == ["100", "10"]
    assert radii_of("a", "c") == ["1", "25", "200", "750", "2500"]
    assert radii_of("a", "b", thresholds_km=[0.5, 30]) == ["0.5", "30"]
    with pytest.raises(ConfigError, match="thresholds_km must be different radii"):
        radii_of("a", "b", thresholds_km=[])


def test_the_command_takes_radii_and_refuses_a_negative_seed(tmp_path, capsys):
    folder = str(write_judged(tmp_path / "a", make_test_set(), answers_of(1)))
    evaluation_main.main(["compare", folder, folder, "--thresholds_km", "30", "0.5", "--num_resamples", "100"])
    printed = capsys.readouterr().out
    assert "within 30 km, %" in printed
    assert "within 200 km" not in printed
    for words in (["compare", folder, folder], ["baselines", "--test_set", "x", "--train_coordinates", "x"]):
        with pytest.raises(ConfigError, match="--seed must be at least 0; got -1"):
            evaluation_main.main([*words, "--output_dir", str(tmp_path / "out"), "--seed", "-1"])


def test_files_that_name_other_authors_are_refused_by_id_unless_a_test_set_names_them(tmp_path):
    few = make_test_set()
    other = make_test_set(authors=[*AUTHORS[:3], *(f"other {number}" for number in range(NUM_PHOTOS - 3))])
    folders = [write_judged(tmp_path / name, named, answers_of(1)) for name, named in (("a", few), ("b", other))]
    for pair in (folders, folders[::-1]):
        with pytest.raises(
            SourceError, match=r"authors of 37 photos differ; the first is id 03\.jpg: .*--test_set FILE"
        ):
            compare_predictions(*pair)
        with pytest.raises(SourceError, match="authors of 37 photos differ"):
            compare_predictions(*pair, make_test_set(authors=None))
        assert compare_predictions(*pair, few, num_resamples=100)["bootstrap"]["num_clusters"] == 7


@pytest.mark.parametrize("place", [0, 1])
def test_a_truth_that_is_no_number_is_refused_on_either_side(tmp_path, place):
    folders = [write_judged(tmp_path / name, make_test_set(), answers_of(1)) for name in "ab"]
    file = folders[place] / "predictions.parquet"
    table = pyarrow.parquet.read_table(file)
    latitudes = [float("nan"), *table["true_latitude"].to_pylist()[1:]]
    column = table.column_names.index("true_latitude")
    pyarrow.parquet.write_table(table.set_column(column, "true_latitude", [latitudes]), file)
    with pytest.raises(SourceError, match=r"truths of 1 photos differ; the first is id 00\.jpg"):
        compare_predictions(*folders)


def constant_difference(num_authors):
    """5 km less on every photo: the interval is [-5, -5] and p the least there is, however few authors there are."""
    error_km = np.linspace(100, 900, 200)
    authors = [str(photo % num_authors) for photo in range(200)]
    return compare_errors(error_km, error_km + 5, authors, num_resamples=1000)


def test_a_few_authors_give_a_caution_and_no_verdict():
    undecided = describe_difference(constant_difference(19), "a", "b")
    assert "95 % interval [-5, -5]" in undecided
    assert "with fewer than 20 authors such intervals are too narrow" in undecided
    assert "is better on" not in undecided
    assert "the interval leaves 0 out: a is better on photos" in describe_difference(constant_difference(20), "a", "b")


def test_the_adjusted_p_decides_where_it_is_given():
    compared = constant_difference(20)
    assert "by Holm, p is 0.049: a is better on photos" in describe_difference(compared, "a", "b", adjusted_p=0.049)
    undecided = describe_difference(compared, "a", "b", adjusted_p=0.05)
    assert "by Holm, p is 0.05: these photos do not tell which of the two is better" in undecided
