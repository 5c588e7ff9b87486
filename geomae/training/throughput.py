"""Photos per second, and the share of the device's peak that the model's arithmetic takes (MFU)."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

__all__ = ["PeakFlops", "ThroughputMeter", "find_peak_flops"]

# Dense tensor-core peaks in 16 bits with 32-bit accumulation, FLOP/s, from NVIDIA's data sheets. The first part of a
# name that fits counts, so the longer ones come first.
PEAK_16_BIT = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A10": 125e12,
    "A6000": 155e12,
    "V100": 125e12,
    "T4": 65e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


@dataclass(frozen=True)
class PeakFlops:
    """What one device can do at most."""

    flops_per_second: float
    source: str
    """Where the number is from: `given`, a data sheet, or a measured matrix product."""


def find_peak_flops(device: torch.device, dtype: torch.dtype, *, given_tflops: float | None = None) -> PeakFlops:
    """Peak of one device: as given, from its data sheet, or as measured by a short matrix product.

    Args:
        device: where the model trains.
        dtype: of the matrix products: bfloat16, float16 or float32.
        given_tflops: TFLOP/s that the user states.
    """
    if given_tflops is not None:
        return PeakFlops(given_tflops * 1e12, "given")
    if device.type == "cuda" and dtype != torch.float32:
        name = torch.cuda.get_device_name(device)
        for part, peak in PEAK_16_BIT.items():
            if part in name:
                return PeakFlops(peak, f"data sheet of {part}, 16 bits, dense")
    size = 8192 if device.type == "cuda" else 1024
    flops = measure_matmul(device, dtype, size=size, seconds=0.3)
    return PeakFlops(flops, f"measured: {size} x {size} matrix product in {str(dtype).removeprefix('torch.')}")


def measure_matmul(device: torch.device, dtype: torch.dtype, *, size: int, seconds: float) -> float:
    """FLOP/s of the fastest of several square matrix products of `size` that together take about `seconds`."""
    left, right = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    left @ right  # the first call loads kernels
    _wait_for(device)
    fastest, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        left @ right
        _wait_for(device)
        fastest = min(fastest, time.perf_counter() - start)
    return 2 * size**3 / fastest


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class ThroughputMeter:
    """Counts photos against the clock; evaluations and checkpoints are left out by `restart` after them."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forget what was counted."""
        self._start = time.perf_counter()
        self._num_photos = 0

    def count(self, num_photos: int) -> None:
        """Add the photos of one step, over all processes."""
        self._num_photos += num_photos

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time of what happens inside."""
        begin = time.perf_counter()
        yield
        self._start += time.perf_counter() - begin

    def take(self) -> float | None:
        """Photos per second since the last `take` or `restart`; None if there were none."""
        elapsed, num_photos = time.perf_counter() - self._start, self._num_photos
        self.restart()
        return num_photos / elapsed if num_photos else None
