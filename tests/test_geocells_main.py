import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import s2geometry
from PIL import Image
from spheres import draw_photos, haversine_km

from geomae.errors import ConfigError, SourceError
from geomae.geocells import read_geocells
from geomae.geocells.__main__ import main

PHOTOS_DEG, TEST_DEG = draw_photos(1500), draw_photos(200, seed=1)
S2 = ["--max_photos", "200", "50", "--min_photos", "10"]


def write_points(file: Path, points_deg: np.ndarray) -> Path:
    columns = {"latitude": points_deg[:, 0], "longitude": points_deg[:, 1]}
    pa.parquet.write_table(pa.table({"id": [f"photo {row}" for row in range(len(points_deg))], **columns}), file)
    return file


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command that draws no map, which takes seconds, until the patch is undone."""
    monkeypatch.setattr("geomae.geocells.__main__.find_spec", lambda name: None)
    train = write_points(tmp_path / "train.parquet", PHOTOS_DEG)
    return ["build", "--train_coordinates", str(train), "--output_dir", str(tmp_path / "cells")]


def test_build_writes_cells_a_map_and_what_they_cover(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.undo()
    tests = [str(write_points(tmp_path / f"{name}.parquet", TEST_DEG[:n])) for name, n in (("some", 200), ("few", 50))]
    main([*words, *S2, "--test_set", *tests])
    folder, printed = tmp_path / "cells", capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == ["geocells.json", "geocells.parquet", "geocells.png"]
    geocells, record = read_geocells(folder / "geocells.parquet"), json.loads((folder / "geocells.json").read_text())
    assert [each["num_geocells"] for each in record["partitions"]] == geocells.num_geocells
    assert record["options"] == {
        "kind": "s2",
        "max_photos": [200, 50],
        "min_photos": 10,
        "train_coordinates": "train.parquet",
        "swapped": False,
    }
    assert record["command"].startswith("python -m geomae.geocells build --train_coordinates")
    assert {"commit", "versions"} <= record.keys()
    assert "s2geometry" in record["versions"]
    with Image.open(folder / "geocells.png") as drawn:
        assert drawn.size[0] > 800
    assert "1,500 training coordinates" in printed
    assert re.search(r"wrote .*geocells.parquet\nwrote .*geocells.png\nwrote .*geocells.json", printed)

    finest_deg = geocells.partitions[-1].centroids_deg
    for name, n in (("some", 200), ("few", 50)):
        nearest_km = haversine_km(TEST_DEG[:n], finest_deg).min(axis=1)
        ceiling = record["ceilings"][f"{name}.parquet"]
        assert ceiling["mean_km"] == pytest.approx(nearest_km.mean(), rel=1e-6)
        shares = {str(km): np.mean(nearest_km <= km) for km in (25, 200, 750)}
        assert ceiling["accuracy_within_km"] == pytest.approx(shares)
        within = ", ".join(f"{km} km: {100 * share:.1f} %" for km, share in shares.items())
        assert f"{name}.parquet: nearest centroids of {n} photos are off by {nearest_km.mean():,.1f} km" in printed
        assert f"within {within}" in printed


def test_coverage_and_moved_photos_are_those_that_the_library_counts(words: list[str], tmp_path: Path) -> None:
    main([*words, *S2])
    geocells = read_geocells(tmp_path / "cells" / "geocells.parquet")
    record = json.loads((tmp_path / "cells" / "geocells.json").read_text())
    leaves = [s2geometry.S2CellId(s2geometry.S2LatLng.FromDegrees(*point)) for point in PHOTOS_DEG.tolist()]
    assert record["partitions"][-1]["num_dropped"] == 0, "else the file does not name all cells of S2"
    cells = [s2geometry.S2CellId.FromToken(token) for token in geocells.partitions[-1].s2_tokens]
    within = [next((row for row, cell in enumerate(cells) if cell.contains(leaf)), -1) for leaf in leaves]
    nearest = haversine_km(PHOTOS_DEG, geocells.partitions[-1].centroids_deg).argmin(axis=1)
    assert record["partitions"][-1]["coverage"] == pytest.approx(np.mean(np.array(within) >= 0))
    assert record["partitions"][-1]["num_moved"] == sum(
        inside not in (-1, near) for inside, near in zip(within, nearest, strict=True)
    )


def test_build_by_kmeans_makes_as_many_cells_as_asked_for(words: list[str], tmp_path: Path) -> None:
    main([*words, "--kind", "kmeans", "--num_cells", "5", "20", "--seed", "3"])
    assert read_geocells(tmp_path / "cells" / "geocells.parquet").num_geocells == [5, 20]
    record = json.loads((tmp_path / "cells" / "geocells.json").read_text())
    assert record["options"]["seed"] == 3
    assert [each["coverage"] for each in record["partitions"]] == [1.0, 1.0]


def test_columns_can_be_read_the_other_way_round(words: list[str], tmp_path: Path) -> None:
    common = ["--kind", "kmeans", "--num_cells", "4"]
    both = [write_points(tmp_path / "right.parquet", PHOTOS_DEG[PHOTOS_DEG[:, 1].argsort()[400:1000]])]
    points_deg = PHOTOS_DEG[PHOTOS_DEG[:, 1].argsort()[400:1000]]
    both.append(write_points(tmp_path / "turned.parquet", points_deg[:, ::-1]))
    for file, more in zip(both, ([], ["--swap_train_lat_lon", "--swap_lat_lon"]), strict=True):
        where = ["--train_coordinates", str(file), "--test_set", str(file), "--output_dir", str(tmp_path / file.stem)]
        main([*words[:1], *where, *common, *more])
    one, other = (json.loads((tmp_path / file.stem / "geocells.json").read_text()) for file in both)
    assert one["partitions"] == other["partitions"]
    assert one["ceilings"]["right.parquet"] == other["ceilings"]["turned.parquet"]


def test_the_test_sets_of_the_field_go_by_their_names(words: list[str], shared_data: Path, tmp_path: Path) -> None:
    main([*words, *S2, "--test_set", "im2gps", "--test_sets_dir", str(shared_data / "geotags")])
    record = json.loads((tmp_path / "cells" / "geocells.json").read_text())
    assert record["ceilings"]["im2gps_places365.csv"]["num_photos"] == 237


def test_the_same_cells_can_be_built_again_and_others_are_refused(words: list[str], tmp_path: Path) -> None:
    main([*words, *S2])
    first = (tmp_path / "cells" / "geocells.parquet").read_bytes()
    main([*words, *S2])
    assert (tmp_path / "cells" / "geocells.parquet").read_bytes() == first
    with pytest.raises(ConfigError, match=r"holds geocells of max_photos \[200, 50\], and these are of \[200\]:"):
        main([*words, "--max_photos", "200", "--min_photos", "10"])
    with pytest.raises(ConfigError, match="holds geocells of kind s2, and these are of kmeans"):
        main([*words, "--kind", "kmeans"])


def test_a_folder_with_something_else_in_it_is_refused(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "model.safetensors").touch()
    with pytest.raises(ConfigError, match=r"holds something else, such as model.safetensors"):
        main([*words, *S2])


def test_a_record_that_is_none_is_refused(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "geocells.json").write_text("[]")
    with pytest.raises(SourceError, match=r"geocells.json is no record of geocells"):
        main([*words, *S2])


@pytest.mark.parametrize(
    "more, words_of_error",
    [
        (["--num_cells", "5"], "--num_cells is an option of --kind kmeans, and the kind is s2"),
        (["--kind", "kmeans", "--min_photos", "5"], "--min_photos is an option of --kind s2, and the kind is kmeans"),
        (["--kind", "kmeans", "--seed", "-1"], "--seed must be at least 0; got -1"),
        (["--max_photos", "10", "100"], "max_photos must fall"),
        (["--kind", "kmeans", "--num_cells", "9", "5"], "num_cells must rise"),
    ],
)
def test_options_that_cannot_work_are_refused_before_anything_is_read(
    words: list[str], tmp_path: Path, more: list[str], words_of_error: str
) -> None:
    (tmp_path / "train.parquet").unlink()
    with pytest.raises(ConfigError, match=re.escape(words_of_error)):
        main([*words, *more])
    assert not (tmp_path / "cells").exists()


def test_without_the_map_s_libraries_cells_are_built_all_the_same(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([*words, *S2])
    assert "no map: it needs cartopy and matplotlib (pip install 'geomae[report]')" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "cells").iterdir()) == ["geocells.json", "geocells.parquet"]
