"""Photos that are left out: counted by reason, listed, and too many of them refused."""

import pytest

from geomae.data.damage import MAX_BAD_LISTED, BadPhoto, BadTally
from geomae.errors import TooManyDamagedPhotosError


def test_tally_counts_everything_and_lists_the_first_by_name() -> None:
    tally = BadTally()
    tally.add("a.jpg", "300 bytes: a dead photo", kind="fewer than 5,121 bytes")
    tally.add_all([f"{n}.jpg" for n in range(5000)], "no row names it")
    tally.add("z.jpg", "cut off")
    assert len(tally) == 5002
    assert dict(tally.counts) == {"fewer than 5,121 bytes": 1, "no row names it": 5000, "cut off": 1}
    assert len(tally.listed) == MAX_BAD_LISTED
    assert tally.listed[0] == BadPhoto("a.jpg", "300 bytes: a dead photo")
    assert tally.describe() == "5,000 x no row names it; 1 x fewer than 5,121 bytes; 1 x cut off"


def test_nothing_left_out_is_an_empty_tally() -> None:
    tally = BadTally()
    tally.add_all([], "no reason")
    assert len(tally) == 0
    assert not tally.counts
    tally.refuse_above(0.0, 0, "nothing")


@pytest.mark.parametrize(("allowed", "refused"), [(0.0, True), (0.199, True), (0.2, False), (1.0, False)])
def test_run_stops_above_the_allowed_share_and_not_at_it(allowed: float, refused: bool) -> None:
    tally = BadTally.of([BadPhoto("a.jpg", "cut off"), BadPhoto("b.jpg", "dead")])
    if not refused:
        tally.refuse_above(allowed, 10, "MP-16")
        return
    message = r"2 of 10 photos cannot be used \(MP-16\), .* the first is a\.jpg: cut off\. .*1 x cut off; 1 x dead.*"
    with pytest.raises(TooManyDamagedPhotosError, match=f"{message}--max_bad_fraction"):
        tally.refuse_above(allowed, 10, "MP-16")


def test_tallies_add_up() -> None:
    both = BadTally.of([BadPhoto("a", "dead")]) + BadTally.of([BadPhoto("b", "dead"), BadPhoto("c", "cut off")])
    assert dict(both.counts) == {"dead": 2, "cut off": 1}
    assert {photo.file for photo in both.listed} == {"a", "b", "c"}


def test_tally_survives_json() -> None:
    tally = BadTally.of([BadPhoto("ä.jpg", "dead")])
    tally.add("b.jpg", "9 bytes", kind="small")
    assert BadTally.from_json(tally.to_json()) == tally
