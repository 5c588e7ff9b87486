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
from geomae.errors import ConfigError
from geomae.evaluation import __main__ as evaluation_main
from geomae.evaluation import calibration
from geomae.evaluation.calibration import fit_temperature, format_calibration, measure_calibration
from modeling import GeoMAEConfig, GeoMAEForGeolocation, load_geolocator
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
    found = fit_temperature(head, *draw(sharpness=sharpness))
    assert found == pytest.approx(sharpness, rel=0.03)  # 5,000 photos tell it to 1 %
    assert head.temperature == 7.0


def test_the_temperature_is_that_of_a_search_over_a_grid_in_float64():
    logits, truths = draw(300, sharpness=1.7)
    latitude, longitude = truths.double().numpy().T
    rows = ((np.sin(np.radians(latitude)) + 1) * 6).astype(int) * 24 + ((longitude + 180) // 15).astype(int)
    grid = np.exp(np.linspace(np.log(0.5), np.log(5), 800))
    nll = [-log_softmax(logits.double().numpy() / t, axis=1)[np.arange(300), rows].mean() for t in grid]
    assert fit_temperature(BoxHead(), logits, truths) == pytest.approx(grid[np.argmin(nll)], rel=0.005)


def test_calibrating_mends_the_density_and_the_coverage():
    logits, truths = draw(3000, sharpness=3.0)
    head, authors = BoxHead(), list(range(3000))
    before = measure_calibration(head, logits, truths, authors, num_resamples=100)
    head.temperature = fit_temperature(head, logits, truths)
    after = measure_calibration(head, logits, truths, authors, num_resamples=100)
    assert after["nll"] < before["nll"] - 0.5
    assert before["coverage"]["0.5"] < 0.4 < 0.45 < after["coverage"]["0.5"] < 0.58
    assert before["coverage"]["0.9"] < 0.8 < 0.87 < after["coverage"]["0.9"] < 0.95


def test_logits_that_say_nothing_are_refused():
    logits, truths = draw(500)
    with pytest.raises(ConfigError, match=r"not between 1/20 and 20 .* Is the model trained"):
        fit_temperature(BoxHead(), logits[torch.randperm(500)] * 50, truths)


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
        rows.append(f"{number}.jpg,author {number},{latitude},{longitude}")
    (tmp_path / "validation.csv").write_text("\n".join(["IMG_ID,AUTHOR,LAT,LON", *rows, ""]))
    return ["--validation", str(tmp_path / "validation.csv"), "--photos", str(tmp_path / "photos")]


def calibrate(checkpoint, *words):
    evaluation_main.main(["calibrate", "--checkpoint", str(checkpoint), "--num_resamples", "100", *words])
    return json.loads((checkpoint / "calibration.json").read_text())


def test_the_temperature_is_written_into_the_checkpoint_and_used_from_there(tmp_path, validation, checkpoint, capsys):
    old = json.loads((checkpoint / "config.json").read_text())
    record = calibrate(checkpoint, *validation)
    new = json.loads((checkpoint / "config.json").read_text())
    assert {**new, "temperature": 1.0} == old
    assert new["temperature"] == record["temperature"] == record["after"]["temperature"] > 1.5
    assert load_geolocator(checkpoint).head.temperature == record["temperature"]
    assert record["before"]["temperature"] == 1.0
    assert record["after"]["nll"] < record["before"]["nll"]
    assert record["num_photos"] == 12
    assert record["validation_set"]["name"] == "validation.csv"
    assert str(tmp_path) not in json.dumps(record)
    printed = capsys.readouterr().out
    assert "12 photos the posterior was too sure of itself" in printed
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
    monkeypatch.setattr(calibration, "fit_temperature", lambda *arguments: 1.7)  # of one photo there is no best one
    record = calibrate(checkpoint, "--validation", str(source), "--photos", str(tmp_path / "few"))
    assert record["validation_set"]["known_as"] == "yfcc25600"
    assert record["num_photos"] == 1
    assert json.loads((checkpoint / "config.json").read_text())["temperature"] == 1.7


def test_what_cannot_be_calibrated_is_refused(tmp_path, validation, tiny_sizes):
    GeoMAEForGeolocation(GeoMAEConfig(**tiny_sizes)).save_pretrained(tmp_path / "tanh")
    with pytest.raises(ConfigError, match=r"tanh has no posterior: its head, tanh, answers with a point"):
        calibrate(tmp_path / "tanh", *validation)
    with pytest.raises(ConfigError, match=r"no config\.json"):
        calibrate(tmp_path / "nowhere", *validation)
    with pytest.raises(ConfigError, match=r"no file or folder absent\.csv, which --validation names"):
        calibrate(tmp_path / "tanh", "--validation", "absent.csv")
    with pytest.raises(ConfigError, match="--max_photos must be at least 1; got 0"):
        calibrate(tmp_path / "tanh", *validation, "--max_photos", "0")
    assert not (tmp_path / "tanh" / "calibration.json").exists()
