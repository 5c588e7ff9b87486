"""How fast something grows: a slope with its interval, from samples that stand close together in time."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from geomae.errors import ConfigError

__all__ = ["NUM_STRETCHES", "WARM_UP", "fit_growth"]

NUM_STRETCHES = 10
WARM_UP = 0.5  # share of the steps that is left out: caches fill, pools of memory find their size


def fit_growth(steps: Sequence[float], values: ArrayLike, *, warm_up: float = WARM_UP) -> dict[str, Any]:
    """The slope per 1,000 steps behind the warm-up, with a 95 % interval.

    Neighbouring samples resemble each other, so that an interval from all of them would be far too narrow. They are
    cut into `NUM_STRETCHES` stretches, each is one point, its median, and a line goes through the points: Student's t
    with eight degrees of freedom.

    Args:
        steps: n step counts in ascending order.
        values: `(n,)` what was seen at them.
        warm_up: share of the steps that is left out at the beginning.

    Returns:
        `per_1000_steps`, `interval_95`, `stretch_medians`, `least`, `most`, `num_samples` and `from_step`.

    Raises:
        ConfigError: there are too few samples.
    """
    at, seen = np.asarray(steps, dtype=np.float64), np.asarray(values, dtype=np.float64)
    first = at[0] + warm_up * (at[-1] - at[0])
    at, seen = at[at >= first], seen[at >= first]
    if len(at) < 2 * NUM_STRETCHES:
        raise ConfigError(
            f"{len(at)} samples behind the warm-up are too few for {NUM_STRETCHES} stretches: let it run for longer."
        )
    middles, medians = (
        np.array([np.median(stretch) for stretch in np.array_split(numbers, NUM_STRETCHES)]) for numbers in (at, seen)
    )
    slope, error = 0.0, 0.0
    if np.ptp(medians):  # of equal points SciPy knows no error
        line = stats.linregress(middles, medians)
        slope, error = 1000 * float(line.slope), 1000 * float(line.stderr)
    margin = float(stats.t.ppf(0.975, NUM_STRETCHES - 2)) * error
    return {
        "per_1000_steps": slope,
        "interval_95": [slope - margin, slope + margin],
        "stretch_steps": middles.tolist(),
        "stretch_medians": medians.tolist(),
        "least": float(seen.min()),
        "most": float(seen.max()),
        "num_samples": len(at),
        "from_step": float(first),
    }
