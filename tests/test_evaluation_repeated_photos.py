"""The thesis's test loader, its repeats, and what they do to a t-test."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch.utils.data import DataLoader, IterableDataset

from geomae.evaluation.repeated_photos import repeated_t_test, rows_tested_by_the_thesis


class WholeInEveryWorker(IterableDataset):
    """The fault: an iterable that does not ask which worker it is in."""

    def __init__(self, num_photos: int) -> None:
        self.num_photos = num_photos

    def __iter__(self):
        return iter(range(self.num_photos))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(("num_photos", "num_workers"), [(237, 8), (200, 3), (64, 2), (5, 1)])
def test_rows_are_those_that_a_torch_loader_gives(num_photos: int, num_workers: int) -> None:
    loader = iter(DataLoader(WholeInEveryWorker(num_photos), batch_size=64, num_workers=num_workers))
    num_batches = -(-num_photos // 64)
    given = torch.cat([next(loader) for _ in range(num_batches)]).numpy()
    np.testing.assert_array_equal(rows_tested_by_the_thesis(num_photos, num_workers=num_workers), given)


def test_64_of_237_and_384_of_2997_photos_were_tested() -> None:
    assert len(np.unique(rows_tested_by_the_thesis(237))) == 64
    times = np.bincount(rows_tested_by_the_thesis(2997))
    assert len(times) == 384
    assert set(times) == {7, 8}


def test_one_worker_tests_every_photo_once() -> None:
    np.testing.assert_array_equal(rows_tested_by_the_thesis(237, num_workers=1), np.arange(237))


def test_repeating_photos_inflates_t_by_the_square_root_of_the_repeats() -> None:
    rng = np.random.default_rng(0)
    first = rng.normal(100.0, 10.0, 512)  # 8 batches of 64: each worker shows the first 64 once
    second = first + rng.normal(1.0, 5.0, 512)
    tested = repeated_t_test(first, second)
    assert (tested["num_rows"], tested["num_photos"]) == (512, 64)
    alone = stats.ttest_rel(first[:64], second[:64])
    assert tested["without"]["t"] == pytest.approx(alone.statistic)
    assert tested["without"]["p"] == pytest.approx(alone.pvalue)
    assert (tested["without"]["degrees_of_freedom"], tested["with_repeats"]["degrees_of_freedom"]) == (63, 511)
    # t = mean / (s / sqrt(n)): eight copies leave the mean, and s but for its n - 1
    inflation = np.sqrt((8 * 64 - 1) / (64 - 1))
    assert tested["with_repeats"]["t"] == pytest.approx(alone.statistic * inflation)
    assert tested["with_repeats"]["p"] < tested["without"]["p"]
