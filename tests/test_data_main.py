import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from geomae.data.__main__ import main
from geomae.data.layout import list_shards
from geomae.data.photos import decode_photo
from geomae.data.shards import read_coordinates

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "world.png"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (64, 128, 3), dtype=np.uint8))
    return path


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "points.csv"
    path.write_text("IMG_ID,LAT,LON\n" + "".join(f"photo-{n},{n},{2 * n}\n" for n in range(60)))
    return path


def ids(folder: Path, split: str) -> list[str]:
    return [str(name) for file in list_shards(folder, split) for name in pq.read_table(file)["id"].to_pylist()]


def test_pack_runs_as_a_module_on_two_processes(tmp_path: Path, make_photo: Callable[..., Path]) -> None:
    for number in range(6):
        make_photo(f"photos/{number}.jpg", seed=number)
    command = [sys.executable, "-m", "geomae.data", "pack", str(tmp_path / "photos"), "--unlabelled"]
    options = ["--output_dir", str(tmp_path / "out"), "--num_processes", "2", "--photos_per_shard", "2"]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "6 photos" in done.stdout
    assert "pack: 100%" in done.stderr
    assert sorted(ids(tmp_path / "out", "train")) == [f"{number}.jpg" for number in range(6)]


def test_packing_photos_waits_for_no_torch() -> None:
    code = "import sys, geomae.data.__main__; sys.exit('torch' in sys.modules or 'datasets' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_earth_cuts_the_splits_that_its_csvs_name(tmp_path: Path, picture: Path, table: Path) -> None:
    out = tmp_path / "out"
    options = ["--num_train", "25", "--image_size", "16", "--num_processes", "1", "--extent_km", "1000", "2000"]
    csv_files = ["--train_csv", str(table), "--test_csv", f"im2gps={table}", str(table)]
    assert main(["earth", "--output_dir", str(out), "--picture", str(picture), *options, *csv_files]) == 0
    splits = json.loads((out / "manifest.json").read_text())["splits"]
    assert {name: entry["num_photos"] for name, entry in splits.items()} == {"train": 25, "test_im2gps": 60, "test": 60}
    assert ids(out, "test_im2gps") == [f"photo-{number}" for number in range(60)]


def test_earth_takes_all_rows_of_a_csv_shorter_than_the_default(tmp_path: Path, picture: Path, table: Path) -> None:
    options = ["--picture", str(picture), "--image_size", "16", "--num_processes", "1", "--train_csv", str(table)]
    assert main(["earth", "--output_dir", str(tmp_path / "out"), *options, "--extent_km", "1000", "2000"]) == 0
    assert sorted(ids(tmp_path / "out", "train")) == sorted(f"photo-{number}" for number in range(60))


def test_earth_cuts_grey_crops_where_asked(tmp_path: Path, picture: Path, table: Path) -> None:
    options = ["--picture", str(picture), "--image_size", "16", "--num_processes", "1", "--train_csv", str(table)]
    options += ["--extent_km", "1000", "2000", "--grey"]
    assert main(["earth", "--output_dir", str(tmp_path / "out"), *options]) == 0
    assert json.loads((tmp_path / "out/manifest.json").read_text())["options"]["grey"] is True
    (file,) = list_shards(tmp_path / "out", "train")
    for image in pq.read_table(file)["image"].to_pylist():
        pixels = decode_photo(image["bytes"], min_short_side=0).astype(int)
        assert np.ptp(pixels, axis=2).max() <= 2  # JPEG keeps colours apart from brightness
        assert np.ptp(pixels) > 10


def test_swap_without_a_csv_is_refused_by_name(
    tmp_path: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["earth", "--output_dir", str(tmp_path / "out"), "--picture", str(picture), "--swap_lat_lon"]) == 2
    assert "--swap_lat_lon swaps two columns of a CSV, but no CSV is named" in capsys.readouterr().err


def test_labelled_photos_are_not_overwritten_by_unlabelled_ones(
    tmp_path: Path, make_photo: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    make_photo("photos/a.jpg")
    (tmp_path / "photos.csv").write_text("id,latitude,longitude\na.jpg,1,2\n")
    command = ["pack", str(tmp_path / "photos"), "--output_dir", str(tmp_path / "out"), "--num_processes", "1"]
    assert main(command) == 0
    assert main([*command, "--unlabelled"]) == 2
    assert "would overwrite" in capsys.readouterr().err
    assert main([*command, "--split_name", "test"]) == 2
    assert "in its split 'train'" in capsys.readouterr().err
    assert read_coordinates(tmp_path / "out", "train").tolist() == [[1.0, 2.0]]


def test_earth_needs_no_download(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("cartopy")
    out = tmp_path / "out"
    counts = ["--num_train", "30", "--num_validation", "20", "--num_test", "10", "--num_processes", "1"]
    assert main(["earth", "--output_dir", str(out), "--shared_data", "none", *counts]) == 0
    assert len(ids(out, "train")) == 30
    assert len(ids(out, "validation")) == 20
    assert len(ids(out, "test")) == 10
    assert "near populated places" in capsys.readouterr().out


def test_earth_uses_the_blue_marble_at_real_coordinates(tmp_path: Path, shared_data: Path) -> None:
    out = tmp_path / "out"
    counts = ["--num_train", "30", "--num_validation", "20", "--image_size", "16", "--num_processes", "1"]
    assert main(["earth", "--output_dir", str(out), "--shared_data", str(shared_data), *counts]) == 0
    assert len(ids(out, "test_im2gps")) == 237
    assert len(ids(out, "test_im2gps3k")) == 2997
    manifest = json.loads((out / "manifest.json").read_text())
    assert "MP-16" in manifest["source"]
    low, high = manifest["options"]["extent_km"]
    assert (low, high) == pytest.approx((300, 1500), rel=0.02)


def test_user_s_error_is_one_message_and_no_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pack", str(tmp_path / "absent"), "--output_dir", str(tmp_path / "out")]) == 2
    assert "SourceError: there is nothing at" in capsys.readouterr().err


def test_split_names_are_checked(
    tmp_path: Path, picture: Path, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--picture", str(picture), "--test_csv", f"Im2GPS={table}"]
    assert main(["earth", "--output_dir", str(tmp_path / "out"), *options]) == 2
    assert "split name 'test_Im2GPS'" in capsys.readouterr().err
