"""A run that is killed, at any moment and again and again, ends as the run that nothing has stopped, bit for bit."""

from pathlib import Path

import pytest
from launching import run_beside_itself

# For more kills: python tests/kill_rehearsal.py --num_kills 20
REHEARSED = """
import sys
from pathlib import Path
from kill_rehearsal import SAVE_STEPS, make_photos, rehearse

kind, num_processes, num_kills, work = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
make_photos(work)
tally = rehearse(kind, num_processes, num_kills, work, "--dataloader_num_workers", "1", seed=1)
assert not tally.steps_that_differ, tally
assert tally.most_steps_lost <= SAVE_STEPS, tally
assert tally.num_kills == num_kills and 3 * tally.num_while_saving >= num_kills, tally
"""


@pytest.mark.slow
@pytest.mark.parametrize("num_kills", [6])
@pytest.mark.parametrize("num_processes", [1, 2])
@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_killed_runs_repeat_the_unbroken_one_and_lose_no_more_than_a_save_interval(
    tmp_path: Path, kind: str, num_processes: int, num_kills: int
) -> None:
    run_beside_itself(REHEARSED, tmp_path, kind, str(num_processes), str(num_kills), str(tmp_path))
