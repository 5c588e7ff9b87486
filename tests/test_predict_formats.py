"""Answers in every format: read back by others, checked against the standards' schemas, under hostile names too."""

import csv
import io
import json
import re

import fastkml
import fastkml.validator
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from geojson_pydantic import FeatureCollection

from geomae.predict.answer_schema import answer_schema
from geomae.predict.formats import FORMATS, format_of, write_answers
from geomae.predict.kml import to_kml
from geomae.predict.printing import printable, shorten_left, text_width

HOSTILE = [
    "<script>alert('x')</script>.jpg",
    'a "quoted", name & more.jpg',
    "two\nlines.jpg",
    "\x1b[2J\x07\x0b\x00\ufffe.jpg",
    "]]>--><!--.jpg",
    "旅行/東京 🗼.jpg",
    r"C:\photos\x.jpg",
    "$[name] {{7*7}} %s.jpg",
]


def answer(name, latitude=48.8566, longitude=2.3522, **changes):
    near = {"name": "Paris <b>", "country": "France & co", "distance_km": 1.25}
    top = [
        {"latitude": latitude, "longitude": longitude, "probability": 0.625, "nearest_place": near},
        {"latitude": -33.4, "longitude": -70.6, "probability": 0.25, "nearest_place": near},
    ]
    radii = {"radius_50_km": 12.3456789, "radius_90_km": 1500.0}
    made = {"id": name, "latitude": latitude, "longitude": longitude, **radii, "top_places": top, "nearest_place": near}
    return made | changes


POINT = {"radius_50_km": None, "radius_90_km": None, "top_places": []}
TRUTH = {"true_latitude": 51.5, "true_longitude": -0.125, "error_km": 343.5}
UNKNOWN = dict.fromkeys(TRUTH)


def write(answers, kind, *, compares=False, width=None):
    schema = answer_schema(compares=compares)
    table = pa.Table.from_pylist([{**each, "problem": None} for each in answers], schema=schema)
    file = io.BytesIO()
    batches = table.drop_columns(["problem"]).to_batches(max_chunksize=2)
    write_answers(batches, kind, file, compares=compares, width=width)
    return file.getvalue()


def parse_kml(data):
    assert fastkml.validator.validate(file_to_validate=io.BytesIO(data))
    return fastkml.KML.parse(io.BytesIO(data)).features[0].features


@pytest.mark.parametrize("missing", ["radius_50_km", "radius_90_km", "top_places", "nearest_place", "all"])
def test_kml_takes_an_answer_that_knows_less(missing):
    given = {key: value for key, value in answer("a.jpg").items() if key != missing}
    given["top_places"] = [{**place, "nearest_place": None} for place in given.get("top_places", [])]
    if missing == "all":
        given = {key: given[key] for key in ("id", "latitude", "longitude")}
    (placemark,) = parse_kml("".join(to_kml([given])).encode())
    lines = placemark.description.split("<br/>") if placemark.description else []
    assert ("near Paris &lt;b&gt;, France &amp; co (1 km away)" in lines) == (missing not in ("nearest_place", "all"))
    assert any("within 12 km by 50 %" in line for line in lines) == (missing not in ("radius_50_km", "all"))
    assert any("within 1,500 km by 90 %" in line for line in lines) == (missing not in ("radius_90_km", "all"))
    assert ("25.0% -33.40, -70.60" in lines) == (missing not in ("top_places", "all"))


def test_geojson_is_valid_and_gives_every_id_back_as_it_was():
    parsed = FeatureCollection.model_validate_json(write(map(answer, HOSTILE), "geojson"))
    assert [feature.id for feature in parsed.features] == HOSTILE


def test_geojson_holds_longitude_before_latitude_and_the_whole_answer():
    data = json.loads(write([answer("a.jpg", 48.85661234, 2.3522)], "geojson"))
    assert data.keys() == {"type", "features"}
    (feature,) = data["features"]
    assert feature["geometry"] == {"type": "Point", "coordinates": [2.3522, 48.85661]}
    expected = answer("a.jpg", 48.85661, 2.3522, radius_50_km=12.34568)
    assert feature["properties"] == {name: value for name, value in expected.items() if name != "id"}


def test_kml_is_valid_and_names_every_photo_without_what_xml_forbids():
    placemarks = parse_kml(write(map(answer, HOSTILE), "kml"))
    expected = [re.sub("[\x00\x07\x0b\x1b\ufffe]", "\ufffd", name) for name in HOSTILE]
    assert [placemark.name for placemark in placemarks] == expected


def test_the_description_of_a_placemark_is_html_in_which_names_are_text():
    (placemark,) = parse_kml(write([answer("<img src=x>.jpg", **TRUTH)], "kml", compares=True))
    assert "near Paris &lt;b&gt;, France &amp; co (1 km away)" in placemark.description
    assert "344 km from the position" in placemark.description
    assert "<img" not in placemark.description


def test_a_placemark_has_its_point_its_circle_and_its_numbers():
    (placemark,) = parse_kml(write([answer("a.jpg", -16.5, 179.5)], "kml"))
    point, *polygons = placemark.geometry.geoms
    assert point.coords == ((179.5, -16.5),)
    assert len(polygons) == 2  # on both sides of the date line
    assert {shape.geom_type for shape in polygons} == {"Polygon"}
    values = {data.name: data.value for data in placemark.extended_data.elements}
    assert values["radius_50_km"] == "12.34568"


def test_csv_is_read_back_field_by_field():
    data = write([answer(name) for name in HOSTILE], "csv").decode()
    rows = list(csv.DictReader(io.StringIO(data, newline="")))
    assert [row["id"] for row in rows] == HOSTILE
    assert data.startswith("id,latitude,longitude,radius_50_km,radius_90_km,nearest_place,")
    assert data.count("\r\n") == len(HOSTILE) + 1  # RFC 4180 ends lines so; the name of two lines has its own end
    assert json.loads(rows[0]["top_places"])[1]["probability"] == 0.25
    assert (rows[0]["radius_50_km"], rows[0]["nearest_country"]) == ("12.34568", "France & co")


def test_parquet_holds_every_digit():
    exact = answer("a.jpg", 0.1 + 0.2, 1 / 3)
    table = pq.read_table(io.BytesIO(write([exact], "parquet")))
    assert table.to_pylist() == [exact]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_head_that_answers_a_point_has_no_radii_and_no_places(kind):
    data = write([answer("a.jpg", **POINT)], kind)
    if kind == "kml":
        (placemark,) = parse_kml(data)
        assert [shape.geom_type for shape in placemark.geometry.geoms] == ["Point"]
    elif kind == "geojson":
        (feature,) = FeatureCollection.model_validate_json(data).features
        assert (feature.properties["radius_90_km"], feature.properties["top_places"]) == (None, [])
    elif kind == "csv":
        (row,) = csv.DictReader(io.StringIO(data.decode()))
        assert (row["radius_50_km"], row["top_places"]) == ("", "[]")
    elif kind == "table":
        assert re.search(r"2\.3522 +- +- +- +Paris", data.decode())
    else:
        assert pq.read_table(io.BytesIO(data)).to_pylist() == [answer("a.jpg", **POINT)]


@pytest.mark.parametrize("kind", FORMATS)
def test_no_answer_at_all_is_a_whole_file_too(kind):
    data = write([], kind)
    if kind == "kml":
        assert parse_kml(data) == []
    elif kind == "geojson":
        assert FeatureCollection.model_validate_json(data).features == []
    elif kind == "parquet":
        assert pq.read_table(io.BytesIO(data)).num_rows == 0
    else:
        assert len(data.decode().splitlines()) == 1


@pytest.mark.parametrize("kind", FORMATS)
def test_true_places_stand_beside_answers_where_they_are_known(kind):
    data = write([answer("a.jpg", **TRUTH), answer("b.jpg", **UNKNOWN)], kind, compares=True)
    if kind == "kml":
        numbers = [{item.name: item.value for item in each.extended_data.elements} for each in parse_kml(data)]
        assert (numbers[0]["error_km"], numbers[1].get("error_km")) == ("343.5", None)
    elif kind == "parquet":
        assert pq.read_table(io.BytesIO(data))["error_km"].to_pylist() == [343.5, None]
    elif kind == "geojson":
        features = FeatureCollection.model_validate_json(data).features
        assert [each.properties["error_km"] for each in features] == [343.5, None]
    elif kind == "csv":
        assert [row["error_km"] for row in csv.DictReader(io.StringIO(data.decode()))] == ["343.5", ""]
    else:
        assert [line.split()[5] for line in data.decode().splitlines()[1:]] == ["344", "-"]


def test_the_lines_of_a_table_are_aligned_and_fit_the_terminal():
    answers = [answer(name) for name in ["short.jpg", "旅" * 60 + "行.jpg", "a/" * 100 + "end.jpg"]]
    for width in (80, 100, 132):
        lines = write(answers, "table", width=width).decode().splitlines()
        assert max(map(text_width, lines)) <= width
        assert len({text_width(line[: line.index("Paris")]) for line in lines[1:]}) == 1
        assert lines[2].startswith("…")
        assert "行.jpg  " in lines[2]
        assert "end.jpg  " in lines[3]
    assert answers[2]["id"] in write(answers, "table").decode()


def test_a_table_gives_no_name_power_over_the_terminal():
    data = write([answer(name) for name in HOSTILE], "table").decode()
    assert len(data.splitlines()) == len(HOSTILE) + 1
    assert all(letter.isprintable() for letter in data.replace("\n", ""))
    assert r"\x1b[2J\x07\x0b\x00\ufffe.jpg" in data


def test_a_table_of_many_answers_is_written_as_they_come():
    def batches():
        for number in range(4):
            served.append(number)
            rows = [{**answer("a.jpg"), "problem": None}] * 600
            yield pa.RecordBatch.from_pylist(rows, schema=answer_schema(compares=False)).drop_columns(["problem"])

    class File(io.BytesIO):
        def write(self, data):
            seen.append(len(served))
            return super().write(data)

    for kind in FORMATS:
        served, seen = [], []
        write_answers(batches(), kind, File(), compares=False)
        assert min(seen) < 4  # the first bytes are out before the last answers are in


def test_a_name_is_shortened_from_its_beginning():
    assert shorten_left("folder/photo.jpg", 12) == "…r/photo.jpg"
    assert shorten_left("photo.jpg", 9) == "photo.jpg"
    assert text_width("東京.jpg") == 8
    assert text_width("e\u0301") == 1
    assert printable("a\udcffb\tc é") == r"a\udcffb\tc é"


def test_a_file_is_written_in_the_format_of_its_suffix():
    names = ["a.csv", "a.geojson", "b.JSON", "out.d/a.kml", "a.parquet", "a.txt", "a", None]
    expected = ["csv", "geojson", "geojson", "kml", "parquet", "table", "table", "table"]
    assert list(map(format_of, names)) == expected
