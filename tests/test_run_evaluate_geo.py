"""The script from its arguments to its files, with a checkpoint and with a file of predictions."""

import importlib
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from geomae.errors import ConfigError, CoordinateError, PredictionError, SourceError, TooManyDamagedPhotosError
from geomae.evaluation import __main__ as evaluation_main
from geomae.geography import great_circle_km
from modeling import GeoMAEConfig, GeoMAEForGeolocation, GeoMAEForPreTraining
from run_evaluate_geo import main

ROOT = Path(__file__).resolve().parent.parent
PHOTO_NAMES = [f"{'ab'[number % 2]}/{number}.jpg" for number in range(13)]
TRUTH = np.array([[5.0 * number - 30, 20.0 * number - 120] for number in range(13)])


@pytest.fixture
def test_set(tmp_path):
    lines = [
        f"{name},author {number % 11},{lat},{lon}"
        for number, (name, (lat, lon)) in enumerate(zip(PHOTO_NAMES, TRUTH, strict=True))
    ]
    path = tmp_path / "set.csv"
    path.write_text("\n".join(["IMG_ID,AUTHOR,LAT,LON", *lines, ""]))
    return path


@pytest.fixture
def photos(tmp_path, make_photo):
    for number, name in enumerate(PHOTO_NAMES):
        make_photo(f"photos/{name}", seed=number)
    return tmp_path / "photos"


@pytest.fixture
def checkpoint(tmp_path, tiny_sizes):
    torch.manual_seed(0)
    GeoMAEForGeolocation(GeoMAEConfig(**tiny_sizes)).save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def write_predictions(path, names, degrees):
    lines = [f"{name},{lat},{lon}" for name, (lat, lon) in zip(names, degrees, strict=True)]
    path.write_text("\n".join(["id,latitude,longitude", *lines, ""]))
    return path


def run(tmp_path, *words):
    main([*map(str, words), "--output_dir", str(tmp_path / "out"), "--num_resamples", "100"])
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    return metrics, pa.parquet.read_table(tmp_path / "out" / "predictions.parquet")


def test_a_file_of_predictions_is_judged_without_a_model(tmp_path, test_set, capsys):
    answers = TRUTH + np.array([1.0, 0.0])  # one degree north: 111.19508 km, everywhere
    predictions = write_predictions(tmp_path / "predictions.csv", PHOTO_NAMES[::-1], answers[::-1])
    (tmp_path / "train.csv").write_text("LAT,LON\n0,0\n0,10\n")
    metrics, table = run(
        tmp_path, "--predictions", predictions, "--test_set", test_set, "--train_coordinates", tmp_path / "train.csv"
    )
    assert metrics["num_photos"] == 13
    assert metrics["mean_km"] == pytest.approx(111.19508, abs=1e-4)
    assert metrics["median_km"] == pytest.approx(111.19508, abs=1e-4)
    assert metrics["num_within_km"] == {"1": 0, "25": 0, "200": 13, "750": 13, "2500": 13}
    assert metrics["accuracy_within_km"]["200"] == 1.0
    assert metrics["geoscore"] == pytest.approx(5000 * np.exp(-111.19508 / 1492.7), abs=1e-3)
    assert metrics["bootstrap"]["clustered_by"] == "author"
    assert metrics["test_set"]["name"] == "set.csv"
    assert set(metrics["baselines"]) >= {"geometric_median", "random_guess", "uniform_on_sphere"}
    assert {"versions", "commit", "command", "checkpoint", "missing", "intervals_95", "quantiles_km"} <= metrics.keys()
    names = ["id", "latitude", "longitude", "error_km", "true_latitude", "true_longitude", "author"]
    assert table.column_names == names
    assert table["id"].to_pylist() == PHOTO_NAMES
    printed = capsys.readouterr().out
    assert "geometric_median" in printed
    assert f"wrote {tmp_path / 'out' / 'metrics.json'}" in printed


def test_no_path_of_this_machine_is_recorded(tmp_path, test_set):
    predictions = write_predictions(tmp_path / "predictions.csv", PHOTO_NAMES, TRUTH)
    run(tmp_path, "--predictions", predictions, "--test_set", test_set)
    assert str(tmp_path) not in (tmp_path / "out" / "metrics.json").read_text()


def test_a_predictions_file_that_the_script_wrote_can_be_judged_again(tmp_path, test_set):
    first, table = run(
        tmp_path,
        "--predictions",
        write_predictions(tmp_path / "p.csv", PHOTO_NAMES, TRUTH + 0.5),
        "--test_set",
        test_set,
    )
    pa.parquet.write_table(table, tmp_path / "again.parquet")
    second, _ = run(tmp_path / "elsewhere", "--predictions", tmp_path / "again.parquet", "--test_set", test_set)
    assert first["intervals_95"] is not None
    assert (first["mean_km"], first["intervals_95"]) == (second["mean_km"], second["intervals_95"])


def test_a_yaml_file_says_the_same_as_the_command_line(tmp_path, test_set):
    predictions = write_predictions(tmp_path / "p.csv", PHOTO_NAMES, TRUTH)
    config = tmp_path / "evaluate.yaml"
    config.write_text(f"predictions: {predictions}\ntest_set: {test_set}\nseed: 3\n")
    metrics, _ = run(tmp_path, config)
    assert metrics["bootstrap"] == {"clustered_by": "author", "num_clusters": 11, "num_resamples": 100, "seed": 3}


def test_radii_can_be_asked_for_in_the_file_and_on_the_command_line(tmp_path, test_set):
    predictions = write_predictions(tmp_path / "p.csv", PHOTO_NAMES, TRUTH)
    (tmp_path / "train.csv").write_text("LAT,LON\n0,0\n0,10\n5,5\n")
    (tmp_path / "config.yaml").write_text("thresholds_km: [10, 0.5]\n")
    words = ["--predictions", predictions, "--test_set", test_set, "--train_coordinates", tmp_path / "train.csv"]
    from_file, _ = run(tmp_path, tmp_path / "config.yaml", *words)
    from_words, _ = run(tmp_path, *words, "--thresholds_km", "10", "0.5")
    for metrics in (from_file, from_words):
        assert metrics["num_within_km"] == {"10": 13, "0.5": 13}
        assert [name for name in metrics["baselines"] if "densest" in name] == ["densest_10km", "densest_0.5km"]
        assert list(metrics["baselines"]["random_guess"]["accuracy_within_km"]) == ["10", "0.5"]
    with pytest.raises(ConfigError, match=r"thresholds_km must be different radii .* nan is not one"):
        run(tmp_path, *words, "--thresholds_km", "nan")


def test_shuffled_files_of_predictions_and_of_the_test_set_give_every_number_again(tmp_path, test_set):
    answers = TRUTH + np.array([5.0, -7.0])
    header, *rows = test_set.read_text().splitlines()
    shuffled = tmp_path / "shuffled" / test_set.name
    shuffled.parent.mkdir()
    shuffled.write_text("\n".join([header, *rows[::-1], ""]))
    (tmp_path / "train.csv").write_text("LAT,LON\n0,0\n0,10\n5,5\n")
    judged = []
    for file, step in ((test_set, 1), (shuffled, 3)):
        order = [row * step % 13 for row in range(13)]
        names = [PHOTO_NAMES[row] for row in order]
        predictions = write_predictions(tmp_path / "p.csv", names, answers[order])
        words = ["--predictions", predictions, "--test_set", file, "--train_coordinates", tmp_path / "train.csv"]
        metrics, _ = run(tmp_path, *words)
        judged.append({key: value for key, value in metrics.items() if key != "command"})
    assert judged[0] == judged[1]


def test_numbers_by_group_are_written_and_printed(tmp_path, capsys):
    lines = [
        f"{name},a{number},{lat},{lon},{number % 3}"
        for number, (name, (lat, lon)) in enumerate(zip(PHOTO_NAMES, TRUTH, strict=True))
    ]
    (tmp_path / "set.csv").write_text("\n".join(["IMG_ID,AUTHOR,LAT,LON,S3_Label", *lines, ""]))
    predictions = write_predictions(tmp_path / "p.csv", PHOTO_NAMES, TRUTH)
    metrics, _ = run(tmp_path, "--predictions", predictions, "--test_set", tmp_path / "set.csv")
    assert {group: entry["num_photos"] for group, entry in metrics["by"]["scene"].items()} == {
        "indoor": 5,
        "natural": 4,
        "urban": 4,
    }
    printed = capsys.readouterr().out
    assert "scene indoor (5)" in printed
    assert "continent Africa" in printed


def test_an_unknown_key_names_its_nearest_neighbour(tmp_path):
    with pytest.raises(ConfigError, match=r"unknown key --prediction .*did you mean --predictions"):
        main(["--prediction", "x.csv"])


def test_wrong_predictions_fail_by_their_id_and_write_nothing(tmp_path, test_set):
    for names, message in ((["a/0.jpg", "c/9.jpg"], "c/9.jpg"), (["a/0.jpg", "a/0.jpg"], "a/0.jpg")):
        with pytest.raises(PredictionError, match=message):
            run(
                tmp_path,
                "--predictions",
                write_predictions(tmp_path / "p.csv", names, TRUTH[:2]),
                "--test_set",
                test_set,
            )
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_answers_every_photo_of_a_folder(tmp_path, test_set, photos, checkpoint):
    metrics, table = run(
        tmp_path,
        "--checkpoint",
        checkpoint,
        "--test_set",
        test_set,
        "--photos",
        photos,
        "--per_device_eval_batch_size",
        3,
    )
    assert table["id"].to_pylist() == PHOTO_NAMES
    rows = table.to_pandas()
    expected = great_circle_km(rows[["latitude", "longitude"]], TRUTH)
    assert rows["error_km"].to_numpy() == pytest.approx(expected)
    assert metrics["mean_km"] == pytest.approx(expected.mean())
    assert metrics["checkpoint"] == "checkpoint"
    assert metrics["options"] == {"crop": "center", "bf16": False, "batch_size": 3}
    assert metrics["bootstrap"]["num_clusters"] == 11


def test_answers_are_those_of_the_model_on_the_centre_crop(tmp_path, test_set, photos, checkpoint):
    from geomae.data import center_crop, decode_photo

    _, table = run(tmp_path, "--checkpoint", checkpoint, "--test_set", test_set, "--photos", photos)
    model = GeoMAEForGeolocation.from_pretrained(checkpoint).eval()
    crops = [center_crop(decode_photo((photos / name).read_bytes(), min_short_side=37), 32) for name in PHOTO_NAMES]
    with torch.no_grad():
        answers = model(torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)).coordinates_deg
    assert table.to_pandas()[["latitude", "longitude"]].to_numpy() == pytest.approx(answers.numpy(), abs=1e-3)


def test_a_compiled_model_gives_the_same_answers(tmp_path, test_set, photos, checkpoint, monkeypatch):
    words = ["--checkpoint", checkpoint, "--test_set", test_set, "--photos", photos]
    words += ["--per_device_eval_batch_size", 2]
    _, eager = run(tmp_path / "eager", *words)
    compile_it = torch.nn.Module.compile
    monkeypatch.setattr(  # without inductor, which takes ten times as long as everything else here
        torch.nn.Module, "compile", lambda self: compile_it(self, backend="aot_eager")
    )
    counters = torch._dynamo.utils.counters["stats"]
    before = counters["unique_graphs"]
    _, table = run(tmp_path / "compiled", *words, "--torch_compile", "true")
    assert counters["unique_graphs"] == before + 1
    assert table["latitude"].to_pylist() == pytest.approx(eager["latitude"].to_pylist(), abs=1e-3)


def test_compilation_without_a_compiler_is_refused_in_a_sentence(tmp_path, test_set, photos, checkpoint):
    without_a_compiler = torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)})
    words = ["--checkpoint", checkpoint, "--test_set", test_set, "--photos", photos, "--torch_compile", "true"]
    with (
        without_a_compiler,
        pytest.raises(ConfigError, match=r"no C\+\+ compiler .* CXX, or write torch_compile: false"),
    ):
        run(tmp_path / "compiled", *words)


def test_compilation_of_a_file_of_predictions_is_refused(tmp_path, test_set):
    predictions = write_predictions(tmp_path / "answers.csv", PHOTO_NAMES, TRUTH)
    with pytest.raises(ConfigError, match="torch_compile needs a checkpoint that looks at photos"):
        run(tmp_path, "--predictions", predictions, "--test_set", test_set, "--torch_compile", "true")


def test_a_packed_split_is_judged_like_its_folder(tmp_path, checkpoint):
    from packed_photos import pack

    folder = pack(tmp_path / "packed", train=6, test=9)
    metrics, table = run(tmp_path, "--checkpoint", checkpoint, "--test_set", folder, "--train_coordinates", folder)
    assert len(table) == metrics["num_photos"] == 9
    assert metrics["test_set"]["split"] == "test"
    assert "geometric_median" in metrics["baselines"]


def test_damaged_and_absent_photos_count_as_misses(tmp_path, test_set, photos, checkpoint, caplog):
    (photos / PHOTO_NAMES[2]).write_bytes(b"not a photo")
    (photos / PHOTO_NAMES[5]).unlink()
    words = ["--checkpoint", checkpoint, "--test_set", test_set, "--photos", photos, "--max_damaged_share", 0.5]
    metrics, table = run(tmp_path, *words)
    assert metrics["num_photos"] == len(table) == 13
    assert metrics["missing"] == [PHOTO_NAMES[2], PHOTO_NAMES[5]]
    assert PHOTO_NAMES[2] in caplog.text


def test_any_number_of_absent_photos_are_misses_and_only_damaged_ones_stop_the_run(
    tmp_path, test_set, photos, checkpoint, caplog, capsys
):
    for name in PHOTO_NAMES[2:]:
        (photos / name).unlink()
    words = ["--checkpoint", checkpoint, "--test_set", test_set, "--photos", photos]
    metrics, table = run(tmp_path, *words)
    assert metrics["num_photos"] == len(table) == 13
    assert (metrics["num_absent"], metrics["num_missing"], metrics["missing"]) == (11, 11, PHOTO_NAMES[2:])
    assert metrics["answered"]["num_photos"] == 2
    assert f"11 of the 13 photos that the table names are not in {photos}; the first is {PHOTO_NAMES[2]}" in caplog.text
    assert "(11 are not among the photos)" in capsys.readouterr().out
    (photos / PHOTO_NAMES[0]).write_bytes(b"not a photo")
    with pytest.raises(TooManyDamagedPhotosError, match=r"1 of 2 photos are damaged.*--max_damaged_share"):
        run(tmp_path, *words)


def test_absent_photos_of_an_archive_are_misses_too(tmp_path, test_set, photos, checkpoint):
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars" / "0.tar", "w") as archive:
        for name in PHOTO_NAMES[:3]:
            archive.add(photos / name, name)
    metrics, _ = run(tmp_path, "--checkpoint", checkpoint, "--test_set", test_set, "--photos", tmp_path / "tars")
    assert (metrics["num_absent"], metrics["missing"]) == (10, PHOTO_NAMES[3:])


@pytest.mark.parametrize("left", ["none", "another"])
def test_a_folder_without_one_photo_of_the_list_is_refused_before_the_model_is_loaded(
    tmp_path, test_set, make_photo, left
):
    (tmp_path / "photos").mkdir()
    if left == "another":
        make_photo("photos/another.jpg")
    words = ["--checkpoint", "absent", "--test_set", test_set, "--photos", tmp_path / "photos"]
    with pytest.raises(SourceError, match=r"holds no|none of the 13 photos"):
        run(tmp_path, *words)


def test_bf16_answers_differ_little_and_are_recorded(tmp_path, test_set, photos, checkpoint):
    words = ["--checkpoint", checkpoint, "--test_set", test_set, "--photos", photos]
    full, _ = run(tmp_path, *words)
    half, _ = run(tmp_path, *words, "--bf16")
    assert half["options"]["bf16"] is True
    assert half["mean_km"] == pytest.approx(full["mean_km"], rel=0.02)


def test_swapped_columns_can_be_read_the_other_way_round(tmp_path, test_set, photos, checkpoint):
    test_set.write_text(test_set.read_text().replace("LAT,LON", "LON,LAT"))
    words = ["--checkpoint", checkpoint, "--test_set", test_set, "--photos", photos]
    with pytest.raises(CoordinateError, match="--swap_lat_lon"):
        run(tmp_path, *words)
    _, table = run(tmp_path, *words, "--swap_lat_lon")
    assert table["true_latitude"].to_pylist() == TRUTH[:, 0].tolist()


def test_a_pretraining_checkpoint_is_refused_with_what_to_do(tmp_path, tiny_sizes, test_set, photos):
    GeoMAEForPreTraining(GeoMAEConfig(**tiny_sizes)).save_pretrained(tmp_path / "pretrain")
    with pytest.raises(ConfigError, match="fine-tune it first"):
        run(tmp_path, "--checkpoint", tmp_path / "pretrain", "--test_set", test_set, "--photos", photos)


@pytest.mark.parametrize("has_shards", [True, False])
def test_missing_and_superfluous_photos_are_named_before_the_model_is_loaded(tmp_path, test_set, has_shards):
    from packed_photos import pack

    sources = {"test_set": test_set}
    if has_shards:
        (tmp_path / "photos").mkdir()
        sources = {"test_set": pack(tmp_path / "packed", test=3), "photos": tmp_path / "photos"}
    with pytest.raises(ConfigError, match="--photos"):
        run(tmp_path, "--checkpoint", "absent", *(word for key, path in sources.items() for word in (f"--{key}", path)))


def test_a_test_set_that_cannot_be_judged_is_refused_before_the_model_is_loaded(tmp_path, photos, test_set):
    named_after_another = test_set.rename(tmp_path / "im2gps3k_places365.csv")
    with pytest.raises(SourceError, match="13 photos where im2gps3k has 2,997"):
        run(tmp_path, "--checkpoint", "absent", "--test_set", named_after_another, "--photos", photos)


@pytest.mark.parametrize("option", ["num_repeats", "num_resamples", "num_clusters"])
def test_baselines_without_runs_or_resamples_end_in_one_sentence(tmp_path, test_set, option):
    (tmp_path / "train.csv").write_text("LAT,LON\n0,0\n0,10\n5,5\n")
    words = {"test_set": test_set, "train_coordinates": tmp_path / "train.csv", "output_dir": tmp_path / "out"}
    words[option] = 0
    with pytest.raises(ConfigError, match=f"{option} must be at least"):
        evaluation_main.main(
            ["baselines", *(str(word) for key, value in words.items() for word in (f"--{key}", value))]
        )


def test_judging_a_file_of_predictions_does_not_load_torch(tmp_path, test_set):
    predictions = write_predictions(tmp_path / "p.csv", PHOTO_NAMES, TRUTH)
    words = ["--predictions", str(predictions), "--test_set", str(test_set), "--output_dir", str(tmp_path / "out")]
    program = f"import sys, run_evaluate_geo; run_evaluate_geo.main({words!r}); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_users_mistake_ends_in_one_sentence_and_no_traceback(tmp_path):
    words = [
        sys.executable,
        "run_evaluate_geo.py",
        "--predictions",
        "absent.csv",
        "--test_set",
        "absent.csv",
        "--output_dir",
        "x",
    ]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120, env={**os.environ})
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == "SourceError: there is no file or folder absent.csv"
    assert "Traceback" not in done.stderr


def test_baselines_alone_are_recorded_by_a_command(tmp_path, test_set, capsys):
    (tmp_path / "train.csv").write_text("LAT,LON\n0,0\n0,10\n5,5\n")
    words = {"test_set": test_set, "train_coordinates": tmp_path / "train.csv", "output_dir": tmp_path / "out"}
    words |= {"num_repeats": 2, "num_resamples": 100, "num_clusters": 1}
    options = [word for key, value in words.items() for word in (f"--{key}", str(value))]
    evaluation_main.main(["baselines", *options, "--thresholds_km", "300", "4000"])
    record = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert record["num_photos"] == 13
    assert record["train_coordinates"] == {"name": "train.csv", "num": 3}
    assert record["baselines"]["random_training_photo"]["num_runs"] == 2
    assert list(record["baselines"]["densest_4000km"]["accuracy_within_km"]) == ["300", "4000"]
    one_cluster = (record["baselines"][name]["mean_km"] for name in ("random_guess", "random_guess_by_size"))
    assert len({round(mean_km / 10_000) for mean_km in one_cluster}) == 1
    assert "geometric_median" in capsys.readouterr().out


def test_an_evaluation_can_be_shown_again(tmp_path, test_set, capsys):
    (tmp_path / "train.csv").write_text("LAT,LON\n0,0\n0,10\n5,5\n")
    rows = [f"{name},{lat},{lon}" for name, (lat, lon) in zip(PHOTO_NAMES, TRUTH, strict=True)]
    (tmp_path / "predictions.csv").write_text("\n".join(["id,latitude,longitude", *rows, ""]))
    words = {"predictions": tmp_path / "predictions.csv", "test_set": test_set, "output_dir": tmp_path / "out"}
    words |= {"train_coordinates": tmp_path / "train.csv", "num_resamples": 100}
    main([word for key, value in words.items() for word in (f"--{key}", str(value))])
    printed = capsys.readouterr().out
    evaluation_main.main(["show", str(tmp_path / "out")])
    shown = capsys.readouterr().out
    assert "geometric_median" in shown
    assert shown.strip() in printed


@pytest.mark.parametrize(
    "content", ["{}", '{"names": ["a", "b"], "difference": {}}', '{"mean_km": 3.0, "baselines": {}}']
)
def test_what_is_no_evaluation_is_not_shown(tmp_path, content):
    (tmp_path / "comparison.json").write_text(content)
    with pytest.raises(SourceError, match=r"comparison\.json is not an evaluation: its keys are"):
        evaluation_main.main(["show", str(tmp_path / "comparison.json")])


@pytest.mark.parametrize("script", ["run_pretrain_mae", "run_finetune_geo", "run_evaluate_geo"])
def test_help_lists_every_option(script, capsys):
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(script).main(["--help"])
    assert stopped.value.code == 0
    assert "--output_dir" in capsys.readouterr().out
