"""The command from its words to its files and its exit status: on a tiny checkpoint, whole, broken off, and hostile."""

import csv
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from fastkml import KML, validator
from geocell_models import save_cell_model
from geojson_pydantic import FeatureCollection
from launching import ROOT, launch_code
from local_server import FolderHandler, serve
from PIL import Image
from test_data_exif import SOUTH_WEST, photo_with_gps

from geomae.data.shards import only_run
from geomae.evaluation import read_predictions
from geomae.predict.__main__ import main
from modeling import GeoMAEConfig, GeoMAEForGeolocation, GeoMAEForPreTraining, load_geolocator
from run_evaluate_geo import main as evaluate

NUM_PHOTOS = 13
NAMES = [f"{'ab'[number % 2]}/{number:02d}.jpg" for number in range(NUM_PHOTOS)]
SIZES = {
    **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
    **{"image_size": 32, "patch_size": 8, "head_hidden_sizes": [16, 8]},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_cell_model(folder / "cells", SIZES)
    torch.manual_seed(1)
    GeoMAEForGeolocation(GeoMAEConfig(**SIZES, head_type="sphere")).save_pretrained(folder / "point")
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch, models, make_photo):
    """A working folder with `photos/`, `cells` and `point` in it."""
    monkeypatch.chdir(tmp_path)
    for name in ("cells", "point"):
        (tmp_path / name).symlink_to(models / name)
    for number, name in enumerate(NAMES):
        make_photo(f"photos/{name}", seed=number)
    return tmp_path


def run(*words, status=0):
    assert main(["--model", "cells", "--per_device_eval_batch_size", "4", *words]) == status


def read(path):
    return pq.read_table(path).to_pylist()


def in_order(names=NAMES):
    return [f"photos/{name}" for name in sorted(names)]


@pytest.fixture
def counted(monkeypatch):
    """Photos of each forward pass; `stop_at` breaks off before that pass, as Ctrl-C does."""
    forward = GeoMAEForGeolocation.forward
    passes = []

    def counting(self, pixel_values, **rest):
        if len(passes) == counting.stop_at:
            raise KeyboardInterrupt
        passes.append(len(pixel_values))
        return forward(self, pixel_values, **rest)

    counting.stop_at = -1
    monkeypatch.setattr(GeoMAEForGeolocation, "forward", counting)
    return passes, counting


def test_every_photo_has_a_line_in_the_table_on_stdout_and_all_else_is_on_stderr(here, capfd, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)  # narrow where make runs this in a terminal
    run("photos")
    out, err = capfd.readouterr()
    lines = out.splitlines()
    assert lines[0].split()[:3] == ["photo", "latitude", "longitude"]
    assert [line.split()[0] for line in lines[1:]] == in_order()
    assert "13 of 13 photos are answered" in err


def test_answers_are_those_of_the_evaluation_to_the_last_bit(here, capsys):
    lines = [f"{name},{number - 6.0},{20.0 * number - 120}" for number, name in enumerate(sorted(NAMES))]
    (here / "set.csv").write_text("\n".join(["IMG_ID,LAT,LON", *lines, ""]))
    words = ["--checkpoint", "cells", "--test_set", "set.csv", "--photos", "photos", "--num_resamples", "100"]
    evaluate([*words, "--per_device_eval_batch_size", "4", "--output_dir", "judged"])
    run("photos", "--output_file", "places.parquet", "--shard_size", "6")
    columns = ["latitude", "longitude", "radius_50_km", "radius_90_km"]
    expected = pq.read_table("judged/predictions.parquet", columns=columns).to_pylist()
    assert [{name: row[name] for name in columns} for row in read("places.parquet")] == expected
    assert read_predictions("places.parquet").ids == in_order()


def test_the_places_are_the_likeliest_of_the_posterior_and_are_named(here):
    run("photos/a/00.jpg", "--output_file", "one.parquet", "--top_k", "3")
    (row,) = read("one.parquet")
    model = load_geolocator("cells")
    mass = [place["probability"] for place in row["top_places"]]
    assert len(mass) == 3
    assert mass == sorted(mass, reverse=True)
    assert 0 < sum(mass) <= 1
    cells = model.head.cells.finest.double().numpy()
    for place in row["top_places"]:
        latitude, longitude = (math.radians(place[name]) for name in ("latitude", "longitude"))
        point = [math.cos(latitude) * math.cos(longitude), math.cos(latitude) * math.sin(longitude), math.sin(latitude)]
        assert np.linalg.norm(cells - point, axis=1).min() < 1e-6  # a place is a cell's centroid
        assert place["nearest_place"]["distance_km"] > 0
    assert row["radius_50_km"] < row["radius_90_km"]


def test_a_decoding_can_be_chosen_and_a_head_without_a_posterior_refuses_it(here, capsys):
    run("photos", "--output_file", "argmax.parquet", "--decoding", "argmax")
    for row in read("argmax.parquet"):
        best = row["top_places"][0]
        assert (row["latitude"], row["longitude"]) == (best["latitude"], best["longitude"])
    assert main(["photos", "--model", "point", "--decoding", "argmax"]) == 1
    assert "decoding need a posterior" in capsys.readouterr().err


def test_a_head_that_answers_a_point_has_neither_radii_nor_places(here):
    assert main(["photos", "--model", "point", "--output_file", "point.parquet"]) == 0
    rows = read("point.parquet")
    assert {row["radius_90_km"] for row in rows} == {None}
    assert [row["top_places"] for row in rows] == [[]] * NUM_PHOTOS
    assert all(row["nearest_place"]["name"] for row in rows)


def test_bad_photos_are_named_with_their_reasons_and_the_others_answered(here, capsys):
    (here / "photos" / "a" / "00.jpg").write_bytes(b"no photo")
    for name in ("04.jpg", "08.jpg", "02.jpg"):  # a whole batch, with the one above
        (here / "photos" / "a" / name).write_bytes(b"")
    run("photos", "--output_file", "places.csv", "--shard_size", "4", "--dataloader_num_workers", "1")
    bad = [f"a/{number:02d}.jpg" for number in (0, 2, 4, 8)]
    with open("places.csv.bad.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == in_order(bad)
    assert all(row["problem"] for row in rows)
    with open("places.csv", newline="") as file:
        assert [row["id"] for row in csv.DictReader(file)] == in_order(set(NAMES) - set(bad))
    err = capsys.readouterr().err
    assert "no answer for photos/a/00.jpg: cannot be decoded" in err
    assert "9 of 13 photos are answered; wrote places.csv" in err
    make_good = Image.new("RGB", (40, 40))
    for name in bad:
        make_good.save(here / "photos" / name)
    run("@places.csv.bad.csv", "--output_file", "rest.parquet")  # the list of what is bad is a list of photos
    assert [row["id"] for row in read("rest.parquet")] == in_order(bad)


def test_too_many_bad_photos_are_an_error_and_their_parts_are_kept(here, capsys, counted):
    passes, _ = counted
    (here / "photos" / "a" / "00.jpg").write_bytes(b"no photo")
    run("photos", "--output_file", "places.csv", "--max_damaged_share", "0.05", status=1)
    assert "12 of 13 photos are answered, fewer than --max_damaged_share 0.05" in capsys.readouterr().err
    assert not (here / "places.csv").exists()
    assert (here / "places.csv.bad.csv").exists()
    computed = len(passes)
    run("photos", "--output_file", "places.csv", "--max_damaged_share", "0.1")
    assert len(passes) == computed
    assert (here / "places.csv").exists()


def test_when_no_photo_can_be_read_nothing_is_written_and_the_status_says_so(here, capsys):
    (here / "bad.jpg").write_bytes(b"no photo")
    (here / "album").mkdir()
    (here / "album" / "bad.jpg").write_bytes(b"")
    run("bad.jpg", "album", "--output_file", "places.csv", status=1)
    assert "not one of 2 photos can be read" in capsys.readouterr().err
    assert not (here / "places.csv").exists()
    assert not (here / "places.csv.parts").exists()


def test_what_does_not_exist_is_said_before_the_model_is_loaded(here, capsys, monkeypatch):
    monkeypatch.setattr("geomae.checkpoints.load_geolocator", lambda path: pytest.fail("the model was loaded"))
    run("photos", "photos/missing.jpg", status=1)
    assert "SourceError: 1 of the 2 photos and folders" in capsys.readouterr().err
    assert main(["photos", "--model", "nowhere"]) == 1
    assert "nowhere is not a checkpoint: there is no such folder" in capsys.readouterr().err
    assert main(["photos", "--model", "photos"]) == 1
    assert "photos is not a checkpoint: it has no config.json" in capsys.readouterr().err
    (here / "there.csv").touch()
    run("photos", "--output_file", "there.csv", status=1)
    assert "there.csv is there already" in capsys.readouterr().err
    run("photos", "--output_file", "there.csv/places.csv", status=1)
    assert "there.csv/places.csv cannot be written" in capsys.readouterr().err
    for option, message in {"--top_k": "at least 0", "--shard_size": "at least 1"}.items():
        run("photos", option, "-1", status=1)
        assert message in capsys.readouterr().err


def test_a_checkpoint_that_answers_no_coordinates_is_refused(here, capsys):
    GeoMAEForPreTraining(GeoMAEConfig(**SIZES)).save_pretrained(here / "pretrained")
    assert main(["photos", "--model", "pretrained"]) == 1
    assert "fine-tune it first" in capsys.readouterr().err


def test_a_run_that_is_broken_off_goes_on_and_ends_as_an_unbroken_one(here, counted, capsys):
    passes, counting = counted
    words = ["photos", "--format", "geojson", "--shard_size", "4"]
    run(*words, "--output_file", "made/on/the/way/unbroken.geojson")
    assert passes == [4, 4, 4, 1]
    passes.clear()
    counting.stop_at = 2  # the second shard is computed, and its last photos are not there when the third begins
    run(*words, "--output_file", "broken.geojson", status=130)
    assert "the same command goes on" in capsys.readouterr().err
    assert not (here / "broken.geojson").exists()
    finished = len(list((here / "broken.geojson.parts").glob("part-*")))
    assert finished == 2
    counting.stop_at = -1
    passes.clear()
    run(*words, "--output_file", "broken.geojson")
    assert passes == [4, 1]
    assert (here / "broken.geojson").read_bytes() == (here / "made/on/the/way/unbroken.geojson").read_bytes()
    assert not list(here.glob("*.parts"))
    assert not list(here.glob(".*.tmp"))


def test_shards_of_another_size_are_gone_on_with_as_they_were_begun(here, counted):
    passes, counting = counted
    counting.stop_at = 3
    run("photos", "--output_file", "a.parquet", "--shard_size", "8", status=130)
    counting.stop_at = -1
    run("photos", "--output_file", "a.parquet", "--shard_size", "4")
    assert passes == [4, 4, 4, 4, 1]  # the third had begun a shard of eight
    run("photos", "--output_file", "b.parquet")
    assert read("a.parquet") == read("b.parquet")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["--top_k", "2"], "top_k was 5 and is now 2"),
        (["--bf16"], "bf16 was False and is now True"),
        (["--model", "point"], "model was .*; decoding was"),
        (["photos/a/00.jpg"], "num_photos was 13 and is now 14; photos was"),
        (["--per_device_eval_batch_size", "2"], "per_device_eval_batch_size was 4 and is now 2"),
    ],
)
def test_the_parts_of_another_run_are_not_gone_on_with(here, counted, capsys, changes, said, make_photo):
    _, counting = counted
    counting.stop_at = 2
    words = ["photos", "--output_file", "places.csv", "--shard_size", "4"]
    run(*words, status=130)
    counting.stop_at = -1
    if changes[0].startswith("photos"):
        make_photo("photos/more.jpg")
        changes = []
    run(*words, *changes, status=1)
    printed = capsys.readouterr().err
    assert re.search(rf"ConfigError: places\.csv\.parts holds the parts of another run: {said}", printed)


def test_two_runs_into_one_file_at_once_are_refused(here, capsys):
    with only_run(here / "places.csv.parts"):
        run("photos", "--output_file", "places.csv", status=1)
    assert "another run is writing into places.csv.parts" in capsys.readouterr().err


def test_the_true_place_of_a_photo_stands_beside_its_answer(here):
    (here / "known.jpg").write_bytes(photo_with_gps(SOUTH_WEST))
    run("known.jpg", "photos/a/00.jpg", "--compare_exif", "--output_file", "places.parquet")
    known, unknown = read("places.parquet")
    assert known["true_latitude"] == pytest.approx(-(33 + 30 / 60 + 36 / 3600))
    assert known["true_longitude"] == pytest.approx(-70.75)
    first, second = (
        [math.radians(known[f"{kind}{name}"]) for name in ("latitude", "longitude")] for kind in ("", "true_")
    )
    cosine = math.sin(first[0]) * math.sin(second[0])
    cosine += math.cos(first[0]) * math.cos(second[0]) * math.cos(first[1] - second[1])
    assert known["error_km"] == pytest.approx(6371.0088 * math.acos(cosine), rel=1e-6)  # the law of cosines
    assert (unknown["true_latitude"], unknown["error_km"]) == (None, None)


def test_hostile_names_come_back_from_every_format_and_reach_no_terminal(here, capfd):
    shutil.rmtree("photos")
    names = ["<script>alert(1)<", 'a "b", c & d.jpg', "two\nlines.jpg", "\x1b[31mred\x07.jpg", "=cmd|' -C calc'!A0.jpg"]
    os.makedirs("photos")
    for name in names[1:]:
        Image.new("RGB", (40, 40)).save(f"photos/{name}")
    os.makedirs("photos/" + names[0])
    Image.new("RGB", (40, 40)).save(f"photos/{names[0]}/script>.jpg")
    Image.new("RGB", (40, 40)).save("=1+1.jpg")
    Image.new("RGB", (40, 40)).save(os.fsencode("photos/") + b"\xff.jpg", format="JPEG")
    words = ["photos", "=1+1.jpg", "--per_device_eval_batch_size", "4"]
    expected = ["photos/" + name for name in sorted([f"{names[0]}/script>.jpg", *names[1:]])] + ["./=1+1.jpg"]
    for kind in ("geojson", "kml", "csv"):
        run(*words, "--output_file", f"out.{kind}")
    assert [each.id for each in FeatureCollection.model_validate_json((here / "out.geojson").read_text()).features] == (
        expected
    )
    assert validator.validate(file_to_validate=here / "out.kml")
    (document,) = KML.parse(here / "out.kml").features
    assert [each.name for each in document.features] == [
        name.replace("\x1b", "\ufffd").replace("\x07", "\ufffd") for name in expected
    ]
    with open("out.csv", newline="") as file:
        ids = [row["id"] for row in csv.DictReader(file)]
    assert ids == expected
    assert not any(name.startswith(("=", "+", "-", "@")) for name in ids)
    with open("out.csv.bad.csv", newline="") as file:
        assert [row["id"] for row in csv.DictReader(file)] == [r"photos/\udcff.jpg"]
    capfd.readouterr()
    run(*words)
    out, err = capfd.readouterr()
    assert "\x1b" not in out
    assert r"photos/\udcff.jpg: its name is not UTF-8" in err
    assert len(out.splitlines()) == 1 + len(expected)


def test_photos_of_a_server_are_answered_as_the_same_files_are(here):
    with serve(FolderHandler, root=here / "photos") as (address, _):
        run(f"{address}/a/00.jpg", f"{address}/a/gone.jpg", "--output_file", "remote.parquet")
    run("photos/a/00.jpg", "--output_file", "local.parquet")
    (remote,), (local,) = read("remote.parquet"), read("local.parquet")
    assert remote.pop("id") == f"{address}/a/00.jpg"
    assert local.pop("id") == "photos/a/00.jpg"
    assert remote == local
    assert "gone.jpg" in (here / "remote.parquet.bad.csv").read_text()


def test_the_width_of_a_terminal_is_respected(here, capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    run("photos")
    out, _ = capfd.readouterr()
    assert max(map(len, out.splitlines())) <= 80


def test_formats_on_stdout_are_whole_documents(here, capfd):
    run("photos", "--format", "geojson")
    assert len(json.loads(capfd.readouterr().out)["features"]) == NUM_PHOTOS
    run("photos", "--format", "kml")
    assert validator.validate(file_to_validate=io.BytesIO(capfd.readouterr().out.encode()))
    run("photos", "--format", "csv")
    assert len(list(csv.DictReader(io.StringIO(capfd.readouterr().out)))) == NUM_PHOTOS


KILLED = """
import os, signal, sys
from modeling import GeoMAEForGeolocation
from geomae.predict.__main__ import main

forward, passes = GeoMAEForGeolocation.forward, []

def killing(self, *words, **rest):
    if len(passes) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    passes.append(1)
    return forward(self, *words, **rest)

GeoMAEForGeolocation.forward = killing
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_with_what_is_missing(here, counted):
    passes, _ = counted
    run("photos", "--output_file", "unbroken.csv", "--shard_size", "4")
    passes.clear()
    words = ["photos", "--output_file", "killed.csv", "--shard_size", "4"]
    command = [sys.executable, "-c", KILLED, "--model", "cells", "--per_device_eval_batch_size", "4", *words]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=240)
    assert done.returncode == -signal.SIGKILL
    assert len(list((here / "killed.csv.parts").glob("part-*"))) == 2
    run(*words)
    assert passes == [4, 1]
    assert (here / "killed.csv").read_bytes() == (here / "unbroken.csv").read_bytes()


LAUNCHED = "import runpy; runpy.run_module('geomae.predict', run_name='__main__', alter_sys=True)"


@pytest.mark.slow
@pytest.mark.parametrize("has_file", [True, False])
def test_two_processes_answer_each_photo_once_with_the_digits_of_one(here, has_file):
    (here / "photos" / "a" / "02.jpg").write_bytes(b"no photo")
    words = [str(here / "photos"), "--model", str(here / "cells"), "--per_device_eval_batch_size", "4"]
    run(*words, "--output_file", "one.csv")
    if has_file:
        launch_code(LAUNCHED, here, "two_cpu", *words, "--output_file", str(here / "two.csv"), "--shard_size", "4")
        assert (here / "two.csv").read_bytes() == (here / "one.csv").read_bytes()
        assert (here / "two.csv.bad.csv").read_bytes() == (here / "one.csv.bad.csv").read_bytes()
        assert not (here / "two.csv.parts").exists()
    else:
        code = f"import sys; sys.stdout = open({str(here / 'out.txt')!r}, 'a'); {LAUNCHED}"
        launch_code(code, here, "two_cpu", *words, "--format", "csv")
        assert (here / "out.txt").read_bytes() == (here / "one.csv").read_bytes()


def test_a_file_that_is_there_is_not_written_over_because_of_some_parts(here, capsys):
    (here / "mine.csv").write_text("precious")
    (here / "mine.csv.parts").mkdir()
    run("photos", "--model", "cells", "--output_file", "mine.csv", status=1)
    assert "mine.csv is there already" in capsys.readouterr().err
    assert (here / "mine.csv").read_text() == "precious"


def test_a_run_killed_behind_its_last_byte_is_finished(here, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("geomae.predict.parts.AnswerParts.remove", lambda self: None)
        run("photos", "--model", "cells", "--output_file", "out.csv")
    written = (here / "out.csv").read_bytes()
    run("photos", "--model", "cells", "--output_file", "out.csv")
    assert (here / "out.csv").read_bytes() == written
    assert not (here / "out.csv.parts").exists()


def test_damaged_parts_are_computed_again_and_a_damaged_manifest_is_named(here, monkeypatch, capsys, counted):
    words = ("photos", "--model", "cells", "--output_file", "out.csv", "--shard_size", "4")
    with monkeypatch.context() as patched:
        patched.setattr("geomae.predict.parts.AnswerParts.remove", lambda self: None)
        run(*words)
    written = (here / "out.csv").read_bytes()
    part = sorted((here / "out.csv.parts").glob("part-*"))[1]
    part.write_bytes(part.read_bytes()[:50])
    run(*words)
    assert (here / "out.csv").read_bytes() == written
    (here / "out.csv").unlink()
    (here / "out.csv.parts").mkdir()
    (here / "out.csv.parts" / "manifest.json").write_text("{")
    run(*words, status=1)
    assert "manifest.json cannot be read" in capsys.readouterr().err


def test_parts_of_another_run_that_hold_nothing_yet_are_taken_over(here, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(
            "geomae.predict.predicting.predict_missing", lambda *_, **__: (_ for _ in ()).throw(OSError("x"))
        )
        run("photos", "--model", "cells", "--output_file", "out.csv", status=1)
    assert (here / "out.csv.parts" / "manifest.json").is_file()
    run("photos", "--model", "point", "--output_file", "out.csv")
    assert (here / "out.csv").is_file()
