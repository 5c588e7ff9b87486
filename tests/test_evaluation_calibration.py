"""Temperature scaling: what it finds, what it writes, and what it refuses to be fitted on."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_posterior import NUM_BOXES, BoxHead, draw_boxes
from geocell_models import save_cell_model
from scipy.special import log_softmax

from geomae.data import center_crop, decode_photo
from geomae.errors import ConfigError, PredictionError
from geomae.evaluation import __main__ as evaluation_main
from geomae.evaluation import calibration
from geomae.evaluation.calibration import fit_calibration, format_calibration, measure_calibration
from modeling import GeolocationHeadConfig, GeoMAEConfig, GeoMAEForGeolocation, build_head, load_geolocator, to_degrees
from modeling.geocell_tensors import evenly_spread
from run_evaluate_geo import main as evaluate_main

ROOT = Path(__file__).resolve().parent.parent


def draw(num_photos=5000, sharpness=1.0):
    """Logits `sharpness` times as sure as the posteriors that the truths are drawn from."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2.0, (num_photos, NUM_BOXES))
    truths = draw_boxes(np.exp(log_softmax(logits, axis=1)), rng)
    return torch.from_numpy(sharpness * logits).float(), torch.from_numpy(truths).float()


@pytest.mark.parametrize("sharpness", [1.0, 2.5, 0.5])
def test_the_temperature_undoes_what_the_logits_were_multiplied_by(sharpness):
    head = BoxHead(temperature=7.0)
    found = fit_calibration(head, *draw(sharpness=sharpness))
    assert found.keys() == {"temperature"}  # boxes have no spread around a place
    assert found["temperature"] == pytest.approx(sharpness, rel=0.03)  # 5,000 photos tell it to 1 %
    assert head.temperature == 7.0


def test_the_temperature_is_that_of_a_search_over_a_grid_in_float64():
    logits, truths = draw(300, sharpness=1.7)
    latitude, longitude = truths.double().numpy().T
    rows = ((np.sin(np.radians(latitude)) + 1) * 6).astype(int) * 24 + ((longitude + 180) // 15).astype(int)
    grid = np.exp(np.linspace(np.log(0.5), np.log(5), 800))
    nll = [-log_softmax(logits.double().numpy() / t, axis=1)[np.arange(300), rows].mean() for t in grid]
    assert fit_calibration(BoxHead(), logits, truths)["temperature"] == pytest.approx(grid[np.argmin(nll)], rel=0.005)


def test_calibrating_mends_the_density_and_the_coverage():
    logits, truths = draw(3000, sharpness=3.0)
    head, authors = BoxHead(), list(range(3000))
    before = measure_calibration(head, logits, truths, authors, num_resamples=100)
    head.temperature = fit_calibration(head, logits, truths)["temperature"]
    after = measure_calibration(head, logits, truths, authors, num_resamples=100)
    assert after["nll"] < before["nll"] - 0.5
    assert before["coverage"]["0.5"] < 0.4 < 0.45 < after["coverage"]["0.5"] < 0.58
    assert before["coverage"]["0.9"] < 0.8 < 0.87 < after["coverage"]["0.9"] < 0.95


def test_the_scale_of_the_spread_is_found_on_photos_drawn_around_their_places():
    """Of cells 1,500 km and more apart, photos lie a third as far from their places as the cells' spread says."""
    rng, cells = np.random.default_rng(0), to_degrees(evenly_spread(60)).double().numpy()
    head = build_head(4, GeolocationHeadConfig(head_type="geocells", num_geocells=[60])).eval()
    head.set_geocells([cells], [], np.full(60, 8.5e6), np.full(60, 300.0))
    logits = rng.normal(0, 2.0, (4000, 60))
    rows = [rng.choice(60, p=p) for p in np.exp(log_softmax(logits, axis=1))]
    north, east = rng.normal(0, 100 / np.sqrt(2) / 111.195, (2, 4000))
    latitude = cells[rows, 0] + north
    truths = np.stack([latitude, cells[rows, 1] + east / np.cos(np.radians(latitude))], axis=1)
    found = fit_calibration(head, torch.from_numpy(2.0 * logits).float(), torch.from_numpy(truths).float())
    assert found["temperature"] == pytest.approx(2.0, rel=0.05)
    assert found["spread_scale"] == pytest.approx(1 / 3, rel=0.05)
    assert (head.temperature, head.spread_scale) == (1.0, 1.0)


def test_logits_that_are_no_numbers_are_refused_by_the_photos_name(validation, checkpoint, monkeypatch):
    collect = calibration.collect_rows

    def break_one(*arguments, **options):
        rows = collect(*arguments, **options)
        rows.columns["logits"][3] = np.nan
        return rows

    monkeypatch.setattr(calibration, "collect_rows", break_one)
    with pytest.raises(PredictionError, match=r"1 of 12 photos are not finite; the first is id 3\.jpg"):
        calibrate(checkpoint, *validation)
    assert not (checkpoint / "calibration.json").exists()


def test_logits_that_say_nothing_are_refused():
    logits, truths = draw(500)
    with pytest.raises(ConfigError, match=r"not between 1/20 and 20 .* Is the model trained"):
        fit_calibration(BoxHead(), logits[torch.randperm(500)] * 50, truths)


@pytest.fixture
def checkpoint(tmp_path, tiny_sizes):
    return save_cell_model(tmp_path / "checkpoint", tiny_sizes)


@pytest.fixture
def validation(tmp_path, make_photo, checkpoint):
    """Twelve photos by as many authors, of whose cells the model is far too sure: it likes the wrong one most in 8."""
    model = load_geolocator(checkpoint)
    rows = []
    for number in range(12):
        photo = decode_photo(make_photo(f"photos/{number}.jpg", seed=number).read_bytes(), min_short_side=37)
        with torch.no_grad():
            output = model(torch.from_numpy(center_crop(photo, 32)).permute(2, 0, 1)[None])
            log_mass, places_deg = model.head.place_log_probabilities(output.logits)
        latitude, longitude = places_deg[0, log_mass[0].argsort(descending=True)[number % 3]].tolist()
        latitude += 20 * np.sin(number)  # photos stand around their places
        rows.append(f"{number}.jpg,author {number},{np.clip(latitude, -90, 90)},{longitude}")
    (tmp_path / "validation.csv").write_text("\n".join(["IMG_ID,AUTHOR,LAT,LON", *rows, ""]))
    return ["--validation", str(tmp_path / "validation.csv"), "--photos", str(tmp_path / "photos")]


def calibrate(checkpoint, *words):
    evaluation_main.main(["calibrate", "--checkpoint", str(checkpoint), "--num_resamples", "100", *words])
    return json.loads((checkpoint / "calibration.json").read_text())


def test_the_temperature_is_written_into_the_checkpoint_and_used_from_there(tmp_path, validation, checkpoint, capsys):
    old = json.loads((checkpoint / "config.json").read_text())
    record = calibrate(checkpoint, *validation)
    new = json.loads((checkpoint / "config.json").read_text())
    assert {**new, "temperature": 1.0, "spread_scale": 1.0} == old
    assert new["spread_scale"] == record["spread_scale"] != 1.0
    assert new["temperature"] == record["temperature"] == record["after"]["temperature"] > 1.1
    assert load_geolocator(checkpoint).head.temperature == record["temperature"]
    assert record["before"]["temperature"] == 1.0
    assert record["after"]["nll"] < record["before"]["nll"]
    assert record["num_photos"] == 12
    assert record["validation_set"]["name"] == "validation.csv"
    assert str(tmp_path) not in json.dumps(record)
    printed = capsys.readouterr().out
    assert "12 photos the posterior was too sure of its places" in printed
    assert f"{record['after']['nll']:.3f}" in printed
    test_set = ["--test_set", *validation[1:]]
    evaluate_main(["--checkpoint", str(checkpoint), *test_set, "--output_dir", str(tmp_path / "out")])
    judged = json.loads((tmp_path / "out" / "metrics.json").read_text())["posterior"]
    assert judged["temperature"] == record["temperature"]
    for name in ("nll", "coverage", "mean_expected_km"):
        assert judged[name] == pytest.approx(record["after"][name], rel=1e-4)
    again = calibrate(checkpoint, *validation)
    assert again["temperature"] == pytest.approx(record["temperature"], rel=1e-3)
    assert "about right" in format_calibration(again)


@pytest.mark.slow
def test_a_process_of_its_own_calibrates_as_this_one_does(validation, checkpoint):
    command = [sys.executable, "-m", "geomae.evaluation", "calibrate", "--checkpoint", str(checkpoint), *validation]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    written = json.loads((checkpoint / "config.json").read_text())["temperature"]
    assert written == pytest.approx(calibrate(checkpoint, *validation)["temperature"], rel=1e-3)


def test_photos_can_be_drawn(validation, checkpoint):
    few = calibrate(checkpoint, *validation, "--max_photos", "6", "--seed", "1")
    assert few["num_photos"] == 6
    assert few["before"]["intervals_95"] is None  # six authors


def test_too_many_logits_are_refused_with_a_number_that_fits(validation, checkpoint, monkeypatch):
    monkeypatch.setattr(calibration, "LARGEST_LOGITS_BYTES", 48 * 4 * 5)  # of 8 and 40 cells, five photos
    with pytest.raises(ConfigError, match=r"12 photos, 48 each, take .* pass --max_photos 5"):
        calibrate(checkpoint, *validation)
    assert not (checkpoint / "calibration.json").exists()


def test_test_sets_are_refused_by_name_by_split_and_by_their_photos(tmp_path, validation, checkpoint, shared_data):
    with pytest.raises(ConfigError, match=r"im2gps3k is a test set: .* look better than they are"):
        calibrate(checkpoint, "--validation", "im2gps3k")
    (tmp_path / "packed").mkdir()
    with pytest.raises(ConfigError, match=r"the split test_im2gps3k of .*packed is a test set"):
        calibrate(checkpoint, "--validation", str(tmp_path / "packed"), "--split", "test_im2gps3k")
    source = next(shared_data.rglob("im2gps_places365.csv"))
    shutil.copy(source, tmp_path / "innocent.csv")
    name = source.read_text().splitlines()[1].split(",")[0]
    (tmp_path / "few" / name).parent.mkdir(parents=True)
    shutil.copy(tmp_path / "photos" / "0.jpg", tmp_path / "few" / name)
    with pytest.raises(ConfigError, match=r"innocent\.csv, whose photos are those of im2gps, is a test set"):
        calibrate(checkpoint, "--validation", str(tmp_path / "innocent.csv"), "--photos", str(tmp_path / "few"))


def test_yfcc25600_may_be_the_validation_set_as_in_the_thesis(
    tmp_path, validation, checkpoint, shared_data, monkeypatch
):
    source = next(shared_data.rglob("yfcc25600_places365.csv"))
    name = source.read_text().splitlines()[1].split(",")[0]
    (tmp_path / "few" / name).parent.mkdir(parents=True)
    shutil.copy(tmp_path / "photos" / "0.jpg", tmp_path / "few" / name)
    monkeypatch.setattr(
        calibration, "fit_calibration", lambda *arguments: {"temperature": 1.7}
    )  # one photo has no best
    record = calibrate(checkpoint, "--validation", str(source), "--photos", str(tmp_path / "few"))
    assert record["validation_set"]["known_as"] == "yfcc25600"
    assert record["num_photos"] == 1
    assert json.loads((checkpoint / "config.json").read_text())["temperature"] == 1.7


def test_what_cannot_be_calibrated_is_refused(tmp_path, validation, tiny_sizes):
    GeoMAEForGeolocation(GeoMAEConfig(**tiny_sizes)).save_pretrained(tmp_path / "tanh")
    with pytest.raises(ConfigError, match=r"tanh has no posterior: its head, tanh, answers with a point"):
        calibrate(tmp_path / "tanh", *validation)
    with pytest.raises(ConfigError, match=r"there is no such folder"):
        calibrate(tmp_path / "nowhere", *validation)
    with pytest.raises(ConfigError, match=r"no file or folder absent\.csv, which --validation names"):
        calibrate(tmp_path / "tanh", "--validation", "absent.csv")
    for option, value, message in (
        ("--per_device_eval_batch_size", "0", "must be at least 1 and --dataloader_num_workers at least 0"),
        ("--dataloader_num_workers", "-1", "must be at least 1 and --dataloader_num_workers at least 0"),
        ("--num_resamples", "5", "--num_resamples must be at least 100"),
    ):
        with pytest.raises(ConfigError, match=message):
            calibrate(tmp_path / "tanh", *validation, option, value)
    (tmp_path / "packed").mkdir()
    with pytest.raises(ConfigError, match=r"split train of .*packed is what models are trained on"):
        calibrate(tmp_path / "tanh", "--validation", str(tmp_path / "packed"), "--split", "train")
    with pytest.raises(ConfigError, match="--max_photos must be at least 1; got 0"):
        calibrate(tmp_path / "tanh", *validation, "--max_photos", "0")
    assert not (tmp_path / "tanh" / "calibration.json").exists()
