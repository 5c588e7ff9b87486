"""The field's test sets by their names: found where they lie, explained where they do not, and never in part."""

from pathlib import Path

import pytest

from geomae.data import load_photos
from geomae.errors import ConfigError, CoordinateError, SourceError
from geomae.evaluation import EvaluationArguments, TestSet, describe_test_set, read_test_set
from geomae.evaluation import __main__ as evaluation_main
from geomae.evaluation.known_test_sets import KNOWN_TEST_SETS, find_known_list, find_known_photos

NAMES = tuple(KNOWN_TEST_SETS)


def real_list(shared_data: Path, name: str) -> str:
    return (shared_data / "geotags" / f"{name}_places365.csv").read_text()


@pytest.mark.parametrize("place", ["im2gps3k/im2gps3k_places365.csv", "im2gps3k_places365.csv"])
def test_a_list_is_found_in_a_folder_of_its_own_or_among_others(tmp_path: Path, place: str) -> None:
    (tmp_path / "im2gps3k").mkdir()
    (tmp_path / place).touch()
    assert find_known_list("im2gps3k", tmp_path) == str(tmp_path / place)


def test_a_bare_name_is_the_known_set_whatever_lies_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("im2gps").mkdir()
    with pytest.raises(SourceError, match=r"neither data/im2gps/im2gps_places365\.csv .*The folder .* is \./im2gps\."):
        find_known_list("im2gps", "data")
    Path("data").mkdir()
    Path("data/im2gps_places365.csv").touch()
    assert find_known_list("im2gps", "data") == "data/im2gps_places365.csv"
    assert find_known_list("./im2gps", "data") == "./im2gps"


def test_a_name_is_found_from_inside_the_folder_of_the_test_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data/im2gps/photos").mkdir(parents=True)
    (tmp_path / "data/im2gps/im2gps_places365.csv").touch()
    monkeypatch.chdir(tmp_path / "data")
    assert find_known_list("im2gps", "data") == "im2gps/im2gps_places365.csv"
    assert find_known_photos("im2gps", "data") == "im2gps/photos"


def test_a_part_is_refused_under_the_name_of_its_packed_folder_though_its_split_is_called_test(tmp_path: Path) -> None:
    from packed_photos import pack

    folder = pack(tmp_path / "im2gps3k", test=9)
    with pytest.raises(
        SourceError, match=r"im2gps3k is named after .*, but it holds 9 photos where im2gps3k has 2,997"
    ):
        read_test_set(folder)
    with pytest.raises(SourceError, match="im2gps3k is named after"):
        TestSet.from_columns("im2gps3k", load_photos(folder, "test"), split="test")
    folder.rename(tmp_path / "nine")
    assert read_test_set(tmp_path / "nine").name == "nine"


def test_a_folder_with_one_list_and_photos_is_refused_in_part_under_the_name_of_a_known_set(
    tmp_path: Path, make_photo
) -> None:
    make_photo("im2gps/0.jpg")
    (tmp_path / "im2gps" / "list.csv").write_text("id,latitude,longitude\n0.jpg,1,2\n")
    photos = load_photos(tmp_path / "im2gps", "test")
    with pytest.raises(SourceError, match="it holds 1 photos where im2gps has 237"):
        TestSet.from_columns("im2gps", photos, split="test")


@pytest.mark.parametrize("spelled", ["im2gps-3k.csv", "Im2GPS_3k_places365.csv", "test_im2gps 3k.csv"])
def test_a_known_name_may_be_spelled_with_separators(tmp_path: Path, shared_data: Path, spelled: str) -> None:
    file = tmp_path / spelled
    file.write_text(real_list(shared_data, "im2gps3k"))
    assert describe_test_set(read_test_set(file))["known_as"] == "im2gps3k"
    file.write_text(real_list(shared_data, "im2gps"))
    with pytest.raises(SourceError, match="named after the test set im2gps3k, but its 237 photos are those of im2gps"):
        read_test_set(file)


def test_other_names_are_paths(tmp_path: Path) -> None:
    assert find_known_list("my/set.csv", tmp_path) == "my/set.csv"


@pytest.mark.parametrize("name", NAMES)
def test_a_list_that_is_not_there_is_explained_by_its_source_its_place_and_the_next_command(name: str) -> None:
    with pytest.raises(SourceError) as problem:
        find_known_list(name, "somewhere")
    message = str(problem.value)
    assert f"neither somewhere/{name}/{name}_places365.csv nor somewhere/{name}_places365.csv" in message
    assert f"The list of its {KNOWN_TEST_SETS[name].num_photos:,} photos" in message
    assert (
        f"curl -fL --create-dirs -o somewhere/{name}/{name}_places365.csv https://raw.githubusercontent.com/" in message
    )
    assert f"in somewhere/{name}/photos: " in message
    assert f"run_evaluate_geo.py configs/evaluate/{name}.yaml --checkpoint" in message
    config = Path(__file__).resolve().parent.parent / f"configs/evaluate/{name}.yaml"
    assert f"test_set: {name}\n" in config.read_text()


def test_the_three_files_without_a_label_are_announced() -> None:
    with pytest.raises(SourceError, match=r"im2gps3ktest\.zip .*3,000 files, of which 2,997 have labels"):
        find_known_photos("im2gps3k", "somewhere")


def test_a_name_becomes_the_paths_of_list_and_photos(tmp_path: Path) -> None:
    (tmp_path / "im2gps" / "photos").mkdir(parents=True)
    file = tmp_path / "im2gps" / "im2gps_places365.csv"
    file.touch()
    given = {"test_set": "im2gps", "test_sets_dir": str(tmp_path), "output_dir": "out"}
    arguments = EvaluationArguments(**given, checkpoint="outputs/run")
    assert (arguments.test_set, arguments.photos) == (str(file), str(tmp_path / "im2gps" / "photos"))
    (tmp_path / "mine").mkdir()
    mine = EvaluationArguments(**given, checkpoint="outputs/run", photos=str(tmp_path / "mine"))
    assert mine.photos == str(tmp_path / "mine")
    judged = EvaluationArguments(**given, predictions="p.csv")
    assert (judged.test_set, judged.photos) == (str(file), None)


def test_photos_of_a_named_set_are_missed_before_the_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "im2gps_places365.csv").touch()
    with pytest.raises(SourceError, match=r"no folder .*im2gps/photos\.\n(.|\n)*gps_query_imgs\.zip"):
        EvaluationArguments(test_set="im2gps", test_sets_dir=str(tmp_path), output_dir="out", checkpoint="outputs/run")


def test_baselines_take_a_test_set_by_its_name(tmp_path: Path, shared_data: Path) -> None:
    words = ["--test_set", "im2gps", "--test_sets_dir", str(shared_data / "geotags"), "--num_repeats", "2"]
    words += ["--train_coordinates", str(shared_data / "geotags" / "mp16_coordinates_100k.csv")]
    evaluation_main.main(["baselines", *words, "--num_resamples", "100", "--output_dir", str(tmp_path / "out")])
    assert '"known_as": "im2gps"' in (tmp_path / "out" / "metrics.json").read_text()


def test_a_comparison_takes_a_test_set_by_its_name(
    tmp_path: Path, shared_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = read_test_set(shared_data / "geotags" / "im2gps_places365.csv").ids
    files = []
    for latitude in (10, 20):
        files.append(tmp_path / f"{latitude}.csv")
        files[-1].write_text("\n".join(["id,latitude,longitude", *(f"{name},{latitude},0" for name in ids)]))
    words = ["compare", *map(str, files), "--num_resamples", "100", "--test_set", "im2gps"]
    evaluation_main.main([*words, "--test_sets_dir", str(shared_data / "geotags")])
    assert "237 photos, every one counted for both" in capsys.readouterr().out
    with pytest.raises(SourceError, match="the list of the test set im2gps is neither"):
        evaluation_main.main([*words, "--test_sets_dir", str(tmp_path)])


@pytest.mark.parametrize("name", NAMES)
def test_a_list_with_one_photo_replaced_is_refused_under_its_name(tmp_path: Path, shared_data: Path, name: str) -> None:
    header, first, *rest = real_list(shared_data, name).splitlines(keepends=True)
    file = tmp_path / f"{name}_places365.csv"
    file.write_text("".join([header, "1_" + first, *rest]))
    with pytest.raises(SourceError, match=rf"of its {KNOWN_TEST_SETS[name].num_photos:,} ids some differ"):
        read_test_set(file)


@pytest.mark.parametrize("name", NAMES)
def test_a_truncated_list_is_refused_under_its_name(tmp_path: Path, shared_data: Path, name: str) -> None:
    rows = real_list(shared_data, name).splitlines(keepends=True)
    file = tmp_path / f"{name}_places365.csv"
    file.write_text("".join(rows[:-1]))
    whole = KNOWN_TEST_SETS[name].num_photos
    with pytest.raises(SourceError, match=f"it holds {whole - 1:,} photos where {name} has {whole:,}"):
        read_test_set(file)


def test_a_list_under_the_name_of_another_is_recognised(tmp_path: Path, shared_data: Path) -> None:
    file = tmp_path / "im2gps3k_places365.csv"
    file.write_text(real_list(shared_data, "im2gps"))
    with pytest.raises(SourceError, match="named after the test set im2gps3k, but its 237 photos are those of im2gps"):
        read_test_set(file)


@pytest.mark.parametrize("name", NAMES)
def test_a_list_under_a_name_of_its_own_is_still_known(tmp_path: Path, shared_data: Path, name: str) -> None:
    header, *rows = real_list(shared_data, name).splitlines(keepends=True)
    file = tmp_path / "mine.csv"
    file.write_text("".join([header, *rows[::-1]]))
    assert describe_test_set(read_test_set(file))["known_as"] == name
    file.write_text("".join([header, *rows[1:]]))
    assert describe_test_set(read_test_set(file))["known_as"] is None


@pytest.mark.parametrize("name", NAMES)
def test_a_swapped_header_is_found_out_though_most_rows_stay_on_earth(
    tmp_path: Path, shared_data: Path, make_photo, name: str
) -> None:
    """Only longitudes beyond 90 degrees tell: every other row is a place either way."""
    text = real_list(shared_data, name)
    file = tmp_path / f"{name}_places365.csv"
    file.write_text(text.replace("LAT,LON", "LON,LAT", 1))
    rows = [line.split(",") for line in text.splitlines()[1:]]
    num_off_earth = sum(abs(float(row[3])) > 90 for row in rows)
    assert 0 < num_off_earth < len(rows) / 2
    explained = rf"(?s){num_off_earth} of {len(rows)} rows of .*{name}_places365\.csv.*swapped\? Pass --swap_lat_lon"
    with pytest.raises(CoordinateError, match=explained):
        read_test_set(file)
    make_photo(f"photos/{rows[0][0]}")
    with pytest.raises(CoordinateError, match=explained):
        load_photos(tmp_path / "photos", "test", csv_file=file)
    read = read_test_set(file, swap_lat_lon=True)
    assert read.coordinates_deg[0].tolist() == [float(rows[0][2]), float(rows[0][3])]


def test_the_right_header_read_the_other_way_round_is_found_out_too(shared_data: Path) -> None:
    file = shared_data / "geotags" / "im2gps3k_places365.csv"
    with pytest.raises(CoordinateError, match=r"1060 of 2997 rows .*\n.*leave it out if it is there"):
        read_test_set(file, swap_lat_lon=True)


def test_files_that_the_list_does_not_name_are_counted_and_the_first_is_named(
    tmp_path: Path, make_photo, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(5):
        make_photo(f"photos/{number}.jpg", seed=number)
    table = tmp_path / "set.csv"
    table.write_text("id,latitude,longitude\n4.jpg,1,2\n2.jpg,1,2\n0.jpg,1,2\n7.jpg,1,2\n")
    for _ in range(2):  # the second time from the index that the first one has kept
        caplog.clear()
        dataset = load_photos(tmp_path / "photos", "test", csv_file=table)
        assert "2 photos of" in caplog.text
        assert "2 x no row of the table names it; the first is 1.jpg" in caplog.text
    assert TestSet.from_columns("set.csv", dataset).ids == ["4.jpg", "2.jpg", "0.jpg", "7.jpg"]


def test_a_name_in_a_yaml_file_that_is_not_there_says_so_in_one_sentence(tmp_path: Path) -> None:
    from geomae.training import parse_config

    words = [
        "--test_set",
        "im2gps3k",
        "--test_sets_dir",
        str(tmp_path),
        "--predictions",
        "p.csv",
        "--output_dir",
        "out",
    ]
    with pytest.raises(ConfigError, match="the list of the test set im2gps3k is neither"):
        parse_config((EvaluationArguments,), words)
