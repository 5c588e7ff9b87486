"""Photos that two lists have in common, under whatever names: by the number that Flickr gave them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from geomae.evaluation import (
    TestSet,
    describe_test_set,
    flickr_number,
    read_test_set,
    read_training_ids,
    shared_photos,
)
from geomae.evaluation.flickr import flickr_numbers, photos_in_training
from geomae.evaluation.known_test_sets import KNOWN_TEST_SETS, SHARED_PHOTOS

FORMS = {
    "1000269685_e60e9cdfb4_1125_78841376@N00.jpg": 1000269685,
    "Ankara_00003_601190107_9f05b2251e_1292_8504005@N07.jpg": 601190107,
    "im2gps3ktest/1000269685_e60e9cdfb4_1125_78841376@N00": 1000269685,
    "45/77/3228511372.jpg": 3228511372,
    "45_77_3228511372.jpg": 3228511372,
    "mp16_data/45_77_3228511372.jpg": 3228511372,
    r"data\f6\1d\7150388201.JPEG": 7150388201,
}
OTHERS = ["17.jpg", "test/3228511372.jpg", "IMG_2024_07.jpg", "train-00001", "2019/07/IMG_1.jpg", "", "45/77/abc.jpg"]


@pytest.fixture(scope="module")
def lists(shared_data: Path) -> dict[str, list[str]]:
    return {name: read_test_set(shared_data / "geotags" / f"{name}_places365.csv").ids for name in KNOWN_TEST_SETS}


@pytest.mark.parametrize(("photo_id", "number"), FORMS.items())
def test_the_number_is_read_from_every_form_of_the_field(photo_id: str, number: int) -> None:
    assert flickr_number(photo_id) == number


@pytest.mark.parametrize("photo_id", OTHERS)
def test_names_that_only_hold_digits_are_nobodys_number(photo_id: str) -> None:
    assert flickr_number(photo_id) is None


def test_many_ids_at_once_have_the_numbers_that_each_has() -> None:
    ids = [*FORMS, *OTHERS]
    expected = [*FORMS.values(), *[-1] * len(OTHERS)]
    assert flickr_numbers(ids).tolist() == expected
    assert flickr_numbers(pa.chunked_array([ids[:3], ids[3:]])).tolist() == expected
    assert flickr_numbers([]).tolist() == []


def test_every_photo_of_the_real_lists_has_a_number_of_its_own(lists: dict[str, list[str]]) -> None:
    for name, ids in lists.items():
        numbers = flickr_numbers(ids)
        assert numbers.min() > 0, name
        assert len(np.unique(numbers)) == len(ids), name
        assert [flickr_number(photo_id) for photo_id in ids] == numbers.tolist(), name


def test_im2gps_and_im2gps3k_share_six_photos_and_yfcc25600_shares_none(lists: dict[str, list[str]]) -> None:
    """The six of THESIS.md; three of them are called otherwise in Im2GPS."""
    in_im2gps = shared_photos(lists["im2gps"], lists["im2gps3k"])
    in_im2gps3k = shared_photos(lists["im2gps3k"], lists["im2gps"])
    assert len(in_im2gps) == len(in_im2gps3k) == 6
    assert len(set(in_im2gps) & set(in_im2gps3k)) == 3
    for other in ("im2gps", "im2gps3k"):
        assert shared_photos(lists["yfcc25600"], lists[other]) == []


def test_the_numbers_in_the_code_are_those_of_the_real_lists(lists: dict[str, list[str]]) -> None:
    for name, ids in lists.items():
        for other, other_ids in lists.items():
            if name != other:
                numbers = sorted(flickr_numbers(shared_photos(ids, other_ids)).tolist())
                assert numbers == sorted(SHARED_PHOTOS.get(frozenset((name, other)), ())), (name, other)


def test_the_record_names_the_photos_that_a_known_set_shares_with_the_others(lists: dict[str, list[str]]) -> None:
    for name, ids in lists.items():
        described = describe_test_set(TestSet("any.csv", ids, np.zeros((len(ids), 2))))
        expected = {other: shared_photos(ids, lists[other]) for other in lists if other != name}
        assert described["known_as"] == name
        assert described["shared_with"] == expected


def test_test_photos_among_the_training_photos_are_found_under_other_names(tmp_path: Path) -> None:
    ids = ["Ankara_00003_601190107_9f05b2251e_1292_8504005@N07.jpg", "1_aaaaaaaaaa_2_3@N00.jpg", "5_bbbbbbbbbb_2_3@N00"]
    (tmp_path / "train.csv").write_text("IMG_ID,LAT,LON\n45/77/5.jpg,1,2\n0a/0b/601190107.jpg,3,4\n00/00/9.jpg,5,6\n")
    training_ids = read_training_ids(tmp_path / "train.csv")
    described = describe_test_set(TestSet("set.csv", ids, np.zeros((3, 2))), training_ids)
    assert (described["num_in_training"], described["in_training"]) == (2, [ids[0], ids[2]])


def test_ids_of_a_packed_folder_are_read_over_all_of_its_shards(tmp_path: Path) -> None:
    from packed_photos import pack

    assert read_training_ids(pack(tmp_path, train=4)).to_pylist() == [
        "train-0-0",
        "train-0-1",
        "train-1-0",
        "train-1-1",
    ]


def test_without_numbers_nobody_can_tell_and_the_record_says_so(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("LAT,LON\n1,2\n")
    assert read_training_ids(tmp_path / "train.csv") is None
    test_set = TestSet("set.csv", ["45/77/5.jpg"], np.zeros((1, 2)))
    for described in (describe_test_set(test_set), describe_test_set(test_set, pa.chunked_array([["train-1"]]))):
        assert (described["num_in_training"], described["in_training"]) == (None, None)
    assert photos_in_training(["mine.jpg"], ["45/77/5.jpg"]) is None
    assert photos_in_training(["45/77/5.jpg"], ["45/77/6.jpg"]) == []
