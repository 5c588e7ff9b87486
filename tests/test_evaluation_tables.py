"""Reading test sets, predictions and training coordinates."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from geomae.errors import CoordinateError, PredictionError, SourceError
from geomae.evaluation import TestSet, read_metrics, read_predictions, read_test_set, read_training_coordinates
from geomae.evaluation.known_test_sets import KNOWN_TEST_SETS

PLACES365 = "IMG_ID,AUTHOR,LAT,LON,S3_Label,S16_Label,S365_Label,Prob_indoor,Prob_natural,Prob_urban\n"


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def pack(folder, split, **columns):
    folder.mkdir(exist_ok=True)
    half = len(columns["latitude"]) // 2
    for shard, rows in enumerate((slice(0, half), slice(half, None))):
        table = pa.table({name: values[rows] for name, values in columns.items()})
        pa.parquet.write_table(table, folder / f"{split}-0000{shard}-of-00002.parquet")
    return folder


def test_places365_columns_are_read_with_their_authors(tmp_path):
    file = write(
        tmp_path / "set.csv", PLACES365 + "a/1.jpg,ann,48.5,2.25,2,1,1,0,0,1\nb@N00.jpg,bob,-33,151,1,1,1,0,1,0\n"
    )
    test_set = read_test_set(file)
    assert (test_set.name, test_set.ids, test_set.authors) == ("set.csv", ["a/1.jpg", "b@N00.jpg"], ["ann", "bob"])
    assert test_set.coordinates_deg.tolist() == [[48.5, 2.25], [-33.0, 151.0]]


def test_scenes_and_countries_are_read_where_the_table_has_them(tmp_path):
    rows = "1.jpg,ann,48.5,2.25,2,1,1,0,0,1\n2.jpg,ann,48.5,2.25,0,1,1,0,0,1\n3.jpg,bob,-33,151,,1,1,0,1,0\n"
    assert read_test_set(write(tmp_path / "set.csv", PLACES365 + rows)).scenes == ["urban", "indoor", "unknown"]
    assert read_test_set(write(tmp_path / "set.csv", PLACES365 + rows)).countries is None
    named = "id,latitude,longitude,scene,country\n1,1,2,natural,Ghana\n2,1,2,natural,\n"
    test_set = read_test_set(write(tmp_path / "named.csv", named))
    assert (test_set.scenes, test_set.countries) == (["natural", "natural"], ["Ghana", "unknown"])


def test_scenes_of_a_packed_folder_may_be_names_or_numbers(tmp_path):
    columns = {"id": ["a", "b"], "latitude": [1.0, 2.0], "longitude": [3.0, 4.0]}
    for scene in (["urban", None], [2, None]):
        test_set = read_test_set(pack(tmp_path, "test", **columns, scene=scene))
        assert test_set.scenes == ["urban", "unknown"]


def test_the_real_lists_have_their_known_scenes(shared_data):
    scenes = Counter(read_test_set(shared_data / "geotags" / "im2gps3k_places365.csv").scenes)
    assert scenes == {"urban": 1607, "natural": 845, "indoor": 545}  # as the thesis counts them


@pytest.mark.parametrize(
    "header", ["id,latitude,longitude", "IMG_FILE,LAT,LON", "image_id,lat,lng", "ID, Latitude, Lon"]
)
def test_columns_are_found_under_the_names_of_the_field(tmp_path, header):
    test_set = read_test_set(write(tmp_path / "set.csv", f"{header}\n7,1.5,2.5\n"))
    assert (test_set.ids, test_set.authors) == (["7"], None)
    assert test_set.coordinates_deg.tolist() == [[1.5, 2.5]]


@pytest.mark.parametrize("header", ["id,file,Latitude,Longitude,user_id", "User_ID,LONG,Lat,photo_id,FILE"])
def test_packing_and_judging_read_the_same_columns_of_a_table(tmp_path, header):
    from geomae.data import read_coordinate_table

    cells = {"id": "7", "photo_id": "7", "file": "a/b.jpg", "user_id": "ann"}
    cells |= {"latitude": "1.5", "lat": "1.5", "longitude": "2.5", "long": "2.5"}
    row = ",".join(cells[name] for name in header.lower().split(","))
    file = write(tmp_path / "set.csv", f"{header}\n{row}\n")
    judged, packed = read_test_set(file), read_coordinate_table(file)
    assert judged.ids == packed.ids == ["a/b.jpg"]
    assert judged.coordinates_deg.tolist() == [[packed.latitude[0], packed.longitude[0]]] == [[1.5, 2.5]]
    assert judged.authors == packed.optional["author"] == ["ann"]


def test_a_byte_order_mark_and_windows_line_ends_are_no_obstacle(tmp_path):
    file = tmp_path / "set.csv"
    file.write_bytes(b"\xef\xbb\xbfid,latitude,longitude\r\nx,1,2\r\n")
    assert read_test_set(file).coordinates_deg.tolist() == [[1.0, 2.0]]


def test_quoted_ids_with_commas_stay_whole(tmp_path):
    assert read_test_set(write(tmp_path / "set.csv", 'id,latitude,longitude\n"a, b.jpg",1,2\n')).ids == ["a, b.jpg"]


def test_ids_that_look_like_numbers_or_nothing_stay_text(tmp_path):
    file = write(tmp_path / "set.csv", "id,latitude,longitude\n007,1,2\nNA,1,2\n1e5,1,2\n")
    assert read_test_set(file).ids == ["007", "NA", "1e5"]


def test_swapped_header_is_explained_and_can_be_read_the_other_way_round(tmp_path):
    file = write(tmp_path / "set.csv", "IMG_ID,LAT,LON\na,139.69,35.68\nb,2.35,48.86\n")
    with pytest.raises(CoordinateError, match=r"(?s)1 of 2 rows of set\.csv .* id a: .*swapped\? Pass --swap_lat_lon"):
        read_test_set(file)
    assert read_test_set(file, swap_lat_lon=True).coordinates_deg.tolist() == [[35.68, 139.69], [48.86, 2.35]]


def test_a_swapped_copy_of_a_real_list_is_found_out(tmp_path, shared_data):
    text = (shared_data / "geotags" / "im2gps3k_places365.csv").read_text()
    file = write(tmp_path / "im2gps3k.csv", text.replace("LAT,LON", "LON,LAT", 1))
    with pytest.raises(CoordinateError, match=r"(?s)1060 of 2997 rows of im2gps3k\.csv.*swapped"):
        read_test_set(file)


def test_an_id_in_two_rows_is_refused(tmp_path):
    file = write(tmp_path / "set.csv", "id,latitude,longitude\na,1,2\nb,1,2\na,3,4\n")
    with pytest.raises(SourceError, match="the first is id a"):
        read_test_set(file)
    with pytest.raises(PredictionError, match="the first is id a"):
        read_predictions(file)


def test_a_row_without_an_id_is_refused_by_its_row(tmp_path):
    with pytest.raises(SourceError, match="the first is row 3"):
        read_test_set(write(tmp_path / "set.csv", "id,latitude,longitude\na,1,2\n,3,4\n"))


def test_a_row_without_coordinates_is_refused_by_its_id(tmp_path):
    with pytest.raises(CoordinateError, match="id b: latitude=nan"):
        read_test_set(write(tmp_path / "set.csv", "id,latitude,longitude\na,1,2\nb,,4\n"))


def test_a_word_in_place_of_a_number_is_refused_by_its_row(tmp_path):
    file = write(tmp_path / "set.csv", "id,latitude,longitude\na,1,2\nb,north,4\n")
    with pytest.raises(CoordinateError, match=r"row 3 of .*latitude='north'"):
        read_test_set(file)


def test_a_missing_column_is_named_with_those_that_are_there(tmp_path):
    with pytest.raises(SourceError, match=r"no column for the longitude; its columns are id, latitude, elevation"):
        read_test_set(write(tmp_path / "set.csv", "id,latitude,elevation\na,1,2\n"))


def test_a_missing_file_and_a_wrong_suffix_are_named(tmp_path):
    with pytest.raises(SourceError, match=r"no file or folder .*absent\.csv"):
        read_test_set(tmp_path / "absent.csv")
    with pytest.raises(PredictionError, match=r"must end in \.csv or \.parquet"):
        read_predictions(write(tmp_path / "predictions.txt", "id,latitude,longitude\n"))


def test_a_file_of_only_a_header_is_refused(tmp_path):
    with pytest.raises(SourceError, match="no rows"):
        read_test_set(write(tmp_path / "set.csv", "id,latitude,longitude\n"))


def test_a_torn_csv_is_named(tmp_path):
    with pytest.raises(SourceError, match=r"set\.csv cannot be read as a table"):
        read_test_set(write(tmp_path / "set.csv", "id,latitude,longitude\na,1,2\nb,3\n"))


def test_a_broken_parquet_file_is_named(tmp_path):
    (tmp_path / "p.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(PredictionError, match=r"p\.parquet cannot be read as a table.*\n.*whole parquet file"):
        read_predictions(tmp_path / "p.parquet")


@pytest.mark.parametrize("text", ["id,latitude,longitude,städte\na,1,2,x\n", "id,latitude,longitude\nälg,1,2\n"])
def test_a_csv_in_latin_1_is_named_with_what_converts_it(tmp_path, text):
    (tmp_path / "set.csv").write_text(text, encoding="latin-1")
    with pytest.raises(SourceError, match=r"set\.csv cannot be read as a table.*\n.*iconv -f latin1 -t utf-8"):
        read_test_set(tmp_path / "set.csv")


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())])
def test_coordinates_kept_as_text_of_any_kind_are_read(tmp_path, kind):
    table = {"id": ["a", "b"], "latitude": pa.array(["1.5", "-2"], kind), "longitude": [3.0, 4.0]}
    pa.parquet.write_table(pa.table(table), tmp_path / "set.parquet")
    assert read_test_set(tmp_path / "set.parquet").coordinates_deg.tolist() == [[1.5, 3.0], [-2.0, 4.0]]
    for text, message in {"north": r"row 3 of .*latitude='north'", "": "id b: latitude=nan"}.items():
        table["latitude"] = pa.array(["1.5", text], kind)
        pa.parquet.write_table(pa.table(table), tmp_path / "set.parquet")
        with pytest.raises(CoordinateError, match=message):  # Arrow's own error names neither row nor id
            read_test_set(tmp_path / "set.parquet")


def test_coordinates_that_are_no_numbers_at_all_are_refused(tmp_path):
    table = {"id": ["a"], "latitude": [[1.0]], "longitude": [2.0]}
    pa.parquet.write_table(pa.table(table), tmp_path / "set.parquet")
    with pytest.raises(SourceError, match="cannot be read as a table"):
        read_test_set(tmp_path / "set.parquet")


def test_a_folder_in_place_of_a_file_of_predictions_is_refused(tmp_path):
    with pytest.raises(PredictionError, match=r"is a folder; expected a file that ends in \.csv or \.parquet"):
        read_predictions(tmp_path)


def test_predictions_that_are_not_finite_or_not_on_earth_are_refused_by_id(tmp_path):
    with pytest.raises(PredictionError, match="id b, which is not finite"):
        read_predictions(write(tmp_path / "p.csv", "id,latitude,longitude\na,1,2\nb,nan,4\n"))
    with pytest.raises(PredictionError, match="id a, which is not finite"):
        read_predictions(write(tmp_path / "p.csv", "id,latitude,longitude\na,inf,2\n"))
    with pytest.raises(PredictionError, match="id b, which is not on Earth"):
        read_predictions(write(tmp_path / "p.csv", "id,latitude,longitude\na,1,2\nb,3,181\n"))


def test_predictions_from_parquet_equal_those_from_csv(tmp_path):
    pa.parquet.write_table(
        pa.table({"id": [7, 8], "latitude": pa.array([1.5, 2.5], pa.float32()), "longitude": [3.0, 4.0], "x": [0, 0]}),
        tmp_path / "p.parquet",
    )
    from_parquet = read_predictions(tmp_path / "p.parquet")
    from_csv = read_predictions(write(tmp_path / "p.csv", "id,latitude,longitude\n7,1.5,3\n8,2.5,4\n"))
    assert from_parquet.ids == from_csv.ids == ["7", "8"]
    assert from_parquet.coordinates_deg.tolist() == from_csv.coordinates_deg.tolist()


def test_a_packed_folder_is_read_split_by_split_over_its_shards(tmp_path):
    folder = pack(tmp_path / "data", "test", id=list("abcd"), latitude=[1.0, 2.0, 3.0, 4.0], longitude=[5.0] * 4)
    pack(folder, "train", id=list("ef"), latitude=[9.0, 8.0], longitude=[7.0, 6.0])
    test_set = read_test_set(folder, split="test")
    assert (test_set.ids, test_set.split, test_set.name) == (list("abcd"), "test", "data")
    assert read_training_coordinates(folder).tolist() == [[9.0, 7.0], [8.0, 6.0]]
    with pytest.raises(SourceError, match=r"no split 'validation' .*; it holds the splits test, train"):
        read_test_set(folder, split="validation")


def test_a_missing_shard_is_refused_instead_of_judging_fewer_photos(tmp_path):
    columns = {"id": list("abcd"), "latitude": [1.0, 2.0, 3.0, 4.0], "longitude": [5.0] * 4}
    folder = pack(tmp_path / "data", "test", **columns)
    pack(folder, "train", **columns)
    for split in ("test", "train"):
        (folder / f"{split}-00001-of-00002.parquet").unlink()
    with pytest.raises(SourceError, match="holds 1 shards of 'test' where their names promise 2"):
        read_test_set(folder, split="test")
    with pytest.raises(SourceError, match="holds 1 shards of 'train' where their names promise 2"):
        read_training_coordinates(folder)


def test_a_split_without_labels_says_that_it_needs_a_labelled_pack(tmp_path):
    folder = pack(tmp_path / "data", "test", id=list("ab"), latitude=pa.nulls(2), longitude=pa.nulls(2))
    with pytest.raises(SourceError, match=r"split 'test' of data has no coordinates.*labelled pack"):
        read_test_set(folder)


def test_a_part_of_a_known_test_set_is_refused_under_its_name(tmp_path, shared_data):
    rows = (shared_data / "geotags" / "im2gps3k_places365.csv").read_text().splitlines(keepends=True)
    part = write(tmp_path / "im2gps3k_places365.csv", "".join(rows[:-7]))
    with pytest.raises(SourceError, match=r"(?s)2,990 photos where im2gps3k has 2,997.*rename the file"):
        read_test_set(part)
    assert len(read_test_set(part.rename(tmp_path / "part_of_im2gps3k.csv")).ids) == 2990


def test_other_photos_are_refused_under_the_name_of_a_known_test_set():
    columns = {"id": [str(row) for row in range(237)], "latitude": [0.0] * 237, "longitude": [0.0] * 237}
    with pytest.raises(
        SourceError, match=r"test_im2gps is named after the test set im2gps.*the digest .* 718327c8eb88"
    ):
        TestSet.from_columns("data", columns, split="test_im2gps")
    for name in ("im2gps4k.csv", "im2gpsother.csv", "my_im2gps.csv"):
        assert len(TestSet.from_columns(name, columns).ids) == 237


def test_a_packed_split_of_a_known_test_set_is_that_set(shared_data):
    whole = read_test_set(shared_data / "geotags" / "im2gps_places365.csv")
    latitude, longitude = whole.coordinates_deg.T
    columns = {"id": whole.ids[::-1], "latitude": latitude[::-1], "longitude": longitude[::-1]}
    assert len(TestSet.from_columns("data", columns, split="test_im2gps").ids) == 237


def test_a_photo_of_an_unknown_author_is_a_cluster_of_its_own():
    columns = {"id": ["a", "ann", "c", "d"], "latitude": [0.0] * 4, "longitude": [0.0] * 4}
    authors = TestSet.from_columns("set", {**columns, "author": ["ann", None, "ann", " "]}).authors
    assert authors == ["ann", "unknown author of ann", "ann", "unknown author of d"]


def test_an_author_column_without_authors_is_no_author_column():
    columns = {"id": ["a", "b"], "latitude": [0.0] * 2, "longitude": [0.0] * 2, "author": [None, ""]}
    assert TestSet.from_columns("set", columns).authors is None


def test_the_digest_of_ids_does_not_depend_on_their_order():
    sets = [TestSet("x", ids, np.zeros((2, 2))).ids_sha256 for ids in (["a", "b"], ["b", "a"], ["a", "c"])]
    assert sets[0] == sets[1] != sets[2]


def test_training_coordinates_need_no_ids_and_skip_unlabelled_photos(tmp_path):
    assert read_training_coordinates(write(tmp_path / "t.csv", "LAT,LON\n1,2\n")).tolist() == [[1.0, 2.0]]
    folder = pack(tmp_path / "data", "train", latitude=[1.0, None, 3.0, None], longitude=[2.0, None, 4.0, None])
    assert read_training_coordinates(folder).tolist() == [[1.0, 2.0], [3.0, 4.0]]
    pack(folder, "train", latitude=pa.nulls(2, pa.float64()), longitude=pa.nulls(2, pa.float64()))
    with pytest.raises(SourceError, match="no row with coordinates"):
        read_training_coordinates(folder)


def test_swapped_training_coordinates_name_their_own_switch(tmp_path):
    file = write(tmp_path / "t.csv", "LAT,LON\n139.69,35.68\n")
    with pytest.raises(CoordinateError, match=r"(?s)the first is row 2: latitude=139\.69.*--swap_train_lat_lon"):
        read_training_coordinates(file)
    assert read_training_coordinates(file, swap_lat_lon=True).tolist() == [[35.68, 139.69]]


def test_the_real_lists_have_their_known_sizes(shared_data):
    sizes = {"im2gps": (237, 233), "im2gps3k": (2997, 198), "yfcc25600": (25600, 13018)}
    for name, (num_photos, num_authors) in sizes.items():
        test_set = read_test_set(shared_data / "geotags" / f"{name}_places365.csv")
        assert (len(test_set.ids), len(set(test_set.authors))) == (num_photos, num_authors), name


def test_the_digests_of_the_known_test_sets_are_those_of_the_recorded_results():
    for name, known in KNOWN_TEST_SETS.items():
        recorded = read_metrics(Path(__file__).resolve().parent.parent / "results" / "baselines" / name)["test_set"]
        assert (known.num_photos, known.ids_sha256) == (recorded["num_photos"], recorded["ids_sha256"]), name


@pytest.mark.parametrize(
    ("written", "scene"),
    [
        *(("0", "indoor"), ("1", "natural"), ("2", "urban"), ("0.0", "indoor"), ("1.0", "natural"), ("2.0", "urban")),
        *(("3", "unknown"), ("-1", "unknown"), ("0.5", "unknown"), ("nan", "unknown"), ("beach", "beach")),
    ],
)
def test_scenes_are_the_names_of_places365s_numbers_also_as_pandas_writes_them(tmp_path, written, scene):
    file = tmp_path / "set.csv"
    file.write_text(f"IMG_ID,LAT,LON,S3_Label\na.jpg,1,2,{written}\nb.jpg,1,2,\n")
    assert read_test_set(file).scenes == [scene, "unknown"]
