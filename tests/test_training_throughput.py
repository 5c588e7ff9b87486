"""Speed: what is counted, what is left out, and what the peak is relative to."""

from typing import Any

import pytest
import torch

from geomae.training import throughput
from geomae.training.throughput import ThroughputMeter, find_peak_flops, measure_matmul


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(throughput, "time", clock)
    return clock


def test_photos_per_second_are_photos_over_seconds(clock: Clock) -> None:
    meter = ThroughputMeter()
    meter.count(64)
    clock.now += 2
    meter.count(64)
    clock.now += 2
    assert meter.take() == 32
    assert meter.take() is None  # counting starts anew


def test_restart_and_pause_leave_time_out(clock: Clock) -> None:
    meter = ThroughputMeter()
    clock.now += 1000
    meter.restart()
    meter.count(10)
    clock.now += 1
    with meter.paused():
        clock.now += 1000
    clock.now += 1
    assert meter.take() == 5


def test_given_peak_is_taken_as_it_is() -> None:
    peak = find_peak_flops(torch.device("cpu"), torch.float32, given_tflops=312)
    assert (peak.flops_per_second, peak.source) == (312e12, "given")


@pytest.mark.parametrize(
    "name, expected",
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
    ],
)
def test_peak_of_a_known_gpu_is_its_data_sheets(monkeypatch: pytest.MonkeyPatch, name: str, expected: float) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    peak = find_peak_flops(torch.device("cuda"), torch.bfloat16)
    assert peak.flops_per_second == expected
    assert peak.source.startswith("data sheet")


def test_peak_of_a_cpu_is_measured_and_says_so() -> None:
    peak = find_peak_flops(torch.device("cpu"), torch.float32)
    assert 1e8 < peak.flops_per_second < 1e14
    assert peak.source == "measured: 1024 x 1024 matrix product in float32"


def test_measured_rate_counts_two_operations_for_each_multiplication(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(100))
    fake: Any = type("Time", (), {"perf_counter": staticmethod(lambda: float(next(ticks)))})
    monkeypatch.setattr(throughput, "time", fake)
    assert measure_matmul(torch.device("cpu"), torch.float32, size=4, seconds=5) == 2 * 4**3 / 1.0
