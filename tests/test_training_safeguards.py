"""Losses that are no numbers and photos that are no photos stop a run, with a message that helps."""

import json
from pathlib import Path

import pytest
import torch

from geomae.errors import NonFiniteLossError, TooManyDamagedPhotosError
from geomae.training.safeguards import DamageCounter, LossGuard, _Watched


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_guard_refuses_what_is_no_number_and_names_what_a_user_needs(value: float) -> None:
    guard = LossGuard()
    guard.last_checkpoint = "outputs/run/checkpoint-10"
    guard.add(torch.tensor(1.0), what="loss", step=11, ids=["a"])
    with pytest.raises(NonFiniteLossError) as caught:
        guard.add(torch.tensor(value), what="loss", step=12, ids=[f"photo{number}" for number in range(20)])
    message = str(caught.value)
    for words in (f"loss of step 12 is {value}", "photo0, photo1", "and 12 more", "outputs/run/checkpoint-10"):
        assert words in message


def test_guard_leaves_all_ids_in_a_file_that_the_message_names(tmp_path: Path) -> None:
    guard = LossGuard(str(tmp_path), process_index=3)
    ids = [f"photo{number}" for number in range(20)]
    path = tmp_path / "not_finite_step_12_process_3.json"
    with pytest.raises(NonFiniteLossError, match=rf"and 12 more \(all are in {path}\)\. No checkpoint"):
        guard.add(torch.tensor(torch.nan), what="loss", step=12, ids=ids)
    assert json.loads(path.read_text()) == {"step": 12, "what": "loss", "value": "nan", "ids": ids}


def test_guard_speaks_where_the_disk_is_full_as_well() -> None:
    with pytest.raises(
        NonFiniteLossError, match=r"a \(/absent/.*json could not be written: No such file or directory\)"
    ):
        LossGuard("/absent").add(torch.tensor(torch.nan), what="loss", step=1, ids=["a"])


def test_guard_says_when_there_is_nothing_to_go_back_to() -> None:
    with pytest.raises(NonFiniteLossError, match="No checkpoint was saved: start again"):
        LossGuard().add(torch.tensor(torch.nan), what="loss", step=1, ids=[])


class Arriving:
    """A CUDA event as the guard uses it: the value arrives at the second query, or when waited for."""

    def __init__(self) -> None:
        self.num_queries = 0

    def query(self) -> bool:
        self.num_queries += 1
        return self.num_queries > 1

    def synchronize(self) -> None:
        self.num_queries = 2


def test_guard_waits_for_a_value_on_its_way_only_when_told_to() -> None:
    guard = LossGuard()
    guard.add(torch.tensor(1.0), what="loss", step=1, ids=[])
    guard._pending.append(_Watched(torch.tensor(torch.nan), Arriving(), "loss", 2, ["late"]))
    guard.check(wait=False)  # not there yet: no message, no waiting
    with pytest.raises(NonFiniteLossError, match="step 2"):
        guard.check(wait=True)


@pytest.mark.gpu
def test_guard_finds_a_bad_value_on_the_gpu_without_being_waited_for() -> None:
    guard = LossGuard()
    guard.add(torch.tensor(torch.nan, device="cuda"), what="loss", step=1, ids=["bad"])
    with pytest.raises(NonFiniteLossError, match=r"step 1 is nan.*bad"):
        guard.check(wait=True)


def test_one_damaged_photo_in_the_first_batch_stops_nothing() -> None:
    counter = DamageCounter(0.01, num_photos=100_000)
    counter.count(7, 1)
    assert (counter.num_seen, counter.num_bad) == (8, 1)


def test_lump_of_damage_that_the_epoch_forgives_stops_nothing() -> None:
    counter = DamageCounter(0.01, num_photos=20_000)
    counter.count(0, 200)  # a broken archive's photos stand side by side
    with pytest.raises(TooManyDamagedPhotosError, match=r"201 of 201 photos so far .* 0.01 of an epoch's 20000 photos"):
        counter.count(0, 1)


def test_share_is_taken_of_all_that_was_seen_once_that_is_more_than_an_epoch() -> None:
    counter = DamageCounter(0.1, num_photos=20)
    counter.count(27, 3)
    with pytest.raises(TooManyDamagedPhotosError, match="4 of 31"):
        counter.count(0, 1)


def test_one_process_judges_its_own_damage_by_what_all_have_seen() -> None:
    DamageCounter(0.1, num_photos=20, num_processes=4).count(26, 12)
    with pytest.raises(TooManyDamagedPhotosError):
        DamageCounter(0.1, num_photos=20).count(26, 12)


def test_share_of_one_allows_everything() -> None:
    DamageCounter(1.0, num_photos=10).count(0, 5000)
