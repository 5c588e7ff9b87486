"""What a command line may name: each photo once, in order, under the path that was given; what is missing is said."""

import io
import os
import tarfile
import zipfile

import pytest
from local_server import FolderHandler, serve
from packed_photos import pack

from geomae.data.reading import PhotoReader
from geomae.errors import SourceError
from geomae.predict import list_photos


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ids(*words, **options):
    return list_photos(words, **options).column("id")


def test_photos_and_folders_come_in_the_order_of_the_words_and_folders_from_end_to_end(here, make_photo):
    for name in ("z.jpg", "album/b.png", "album/deep/er/a.jpg", "album/c.webp", "album/notes.txt", "album/.hidden.jpg"):
        make_photo(name) if not name.endswith("txt") else (here / name).write_text("no photo")
    expected = ["z.jpg", "album/b.png", "album/c.webp", "album/deep/er/a.jpg"]
    assert ids("z.jpg", "album") == ids("z.jpg", "album/") == expected
    assert ids(f"{here}/album/b.png", "./z.jpg") == [f"{here}/album/b.png", "./z.jpg"]


def test_the_bytes_of_each_photo_are_those_of_its_path(here, make_photo):
    for number, name in enumerate(("one.jpg", "album/two.jpg")):
        make_photo(name, seed=number)
    with tarfile.open("album.tar", "w") as archive:
        archive.add("album/two.jpg", "inside/two.jpg")
    with zipfile.ZipFile("album.zip", "w") as archive:
        archive.write("one.jpg")
    index = list_photos(["one.jpg", "album", "album.tar", "album.zip"])
    assert index.column("id") == ["one.jpg", "album/two.jpg", "album.tar/inside/two.jpg", "album.zip/one.jpg"]
    one, two = (here / "one.jpg").read_bytes(), (here / "album" / "two.jpg").read_bytes()
    assert PhotoReader(index.root).read_all(index.table.to_pylist()) == [one, two, two, one]


def test_a_packed_folder_is_read_by_its_split(here):
    pack(here / "packed", train=4, test=2)
    assert ids("packed", split="test") == ["packed/test-0-0", "packed/test-1-0"]
    assert len(ids("packed")) == 4


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.txt", "a.jpg\n\n  b c.jpg \r\nalbum\n"),
        ("list.csv", '﻿file,latitude\r\na.jpg,1\r\n"  b c.jpg ",2\r\nalbum,3\r\n'),
    ],
)
def test_a_list_names_photos_and_folders_a_line(here, make_photo, name, content):
    for photo in ("a.jpg", "  b c.jpg ", "album/d.jpg"):
        make_photo("made.jpg").rename(here / photo) if "/" not in photo else make_photo(photo)
    (here / name).write_bytes(content.encode())
    assert ids(f"@{name}") == ["a.jpg", "  b c.jpg ", "album/d.jpg"]


def test_a_photo_that_is_named_twice_is_answered_once_and_said(here, make_photo, caplog):
    make_photo("album/a.jpg")
    make_photo("album/b.jpg")
    assert ids("album/b.jpg", "album", "album/a.jpg") == ["album/b.jpg", "album/a.jpg"]
    assert "2 photos are named more than once" in caplog.text


def test_what_does_not_exist_is_counted_and_named_before_anything_else(here, make_photo):
    make_photo("a.jpg")
    with pytest.raises(SourceError, match=r"3 of the 4 .*do not exist.*b\.jpg, album/c\.jpg, nowhere/"):
        ids("b.jpg", "album/c.jpg", "a.jpg", "nowhere/")
    with pytest.raises(SourceError, match=r"the list missing\.txt cannot be read"):
        ids("@missing.txt")


def test_folders_and_lists_without_photos_are_refused(here):
    (here / "empty").mkdir()
    (here / "list.txt").write_text("\n")
    (here / "list.csv").write_text("colour\nred\n")
    with pytest.raises(SourceError, match="empty holds no files"):
        ids("empty")
    with pytest.raises(SourceError, match="no photo is left"):
        ids("@list.txt")
    with pytest.raises(SourceError, match=r"list\.csv names no photos: its columns are colour"):
        ids("@list.csv")


@pytest.mark.parametrize("name", ["=1+1.jpg", "+1.jpg", "-1.jpg", "\tx.jpg"])
def test_a_name_that_a_spreadsheet_would_compute_leads_to_the_same_file_by_another_path(here, make_photo, name):
    photo = make_photo(name)
    index = list_photos([name])
    assert index.column("id") == [f"./{name}"]
    assert PhotoReader(index.root).read(index.table.to_pylist()[0]) == photo.read_bytes()


def test_a_name_that_is_no_text_is_left_out_by_name(here, make_photo):
    make_photo("album/good.jpg")
    os.rename(make_photo("album/bad.jpg"), os.fsencode(here) + b"/album/\xff.jpg")
    index = list_photos(["album", os.fsdecode(b"album/\xff.jpg")])
    assert index.column("id") == ["album/good.jpg"]
    assert [photo.to_json() for photo in index.bad.listed] == [
        {"file": r"album/\udcff.jpg", "reason": "its name is not UTF-8: rename it"}
    ] * 2


def test_a_broken_archive_is_counted_beside_the_photos_of_the_others(here, make_photo):
    make_photo("a.jpg")
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.add("a.jpg", "first.jpg")
        archive.add("a.jpg", "second.jpg")
    (here / "cut.tar").write_bytes(content.getvalue()[: content.tell() // 3])
    index = list_photos(["a.jpg", "cut.tar"])
    assert index.column("id")[0] == "a.jpg"
    assert index.bad.listed[0].file.startswith("cut.tar")


def test_photos_and_folders_of_a_server_are_read_by_their_address(here, make_photo):
    for number, name in enumerate(("served/one.jpg", "served/more/two three.jpg")):
        make_photo(name, seed=number)
    with serve(FolderHandler, root=here / "served") as (address, _):
        index = list_photos([f"{address}/one.jpg", f"{address}/more/"])
        assert index.column("id") == [f"{address}/one.jpg", f"{address}/more/two three.jpg"]
        expected = [(here / "served" / name).read_bytes() for name in ("one.jpg", "more/two three.jpg")]
        assert PhotoReader(index.root).read_all(index.table.to_pylist()) == expected


def test_the_digest_of_a_list_changes_with_its_photos(here, make_photo):
    make_photo("a.jpg")
    before = list_photos(["a.jpg"]).digest()
    assert list_photos(["a.jpg"]).digest() == before
    make_photo("a.jpg", width=128)
    assert list_photos(["a.jpg"]).digest() != before


def test_list_with_a_long_field_is_read_and_one_without_an_end_is_refused(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"a photo")
    table = tmp_path / "answers.csv"
    table.write_text(f"id,top_places\n{tmp_path / 'photo.jpg'},{'x' * 200_000}\n")
    assert len(list_photos([f"@{table}"])) == 1
    table.write_text(f'id,top_places\n{tmp_path / "photo.jpg"},"{"x" * 2**25}\n')
    with pytest.raises(SourceError, match=r"answers\.csv is no CSV that can be read: field larger"):
        list_photos([f"@{table}"])


def test_folder_of_photos_stays_one_beside_a_larger_archive(tmp_path, caplog):
    (tmp_path / "photos").mkdir()
    for name in ("a.jpg", "b.jfif"):
        (tmp_path / "photos" / name).write_bytes(b"a photo")
    with zipfile.ZipFile(tmp_path / "photos" / "backup.zip", "w") as archive:
        archive.writestr("old.jpg", b"x" * 100_000)
    index = list_photos([str(tmp_path / "photos")])
    assert sorted(index.column("id")) == [f"{tmp_path}/photos/a.jpg", f"{tmp_path}/photos/b.jfif"]
    assert caplog.text.count("1 archives or tables among the photos") == 1
    assert len(list_photos([str(tmp_path / "photos"), str(tmp_path / "photos" / "backup.zip")])) == 3
