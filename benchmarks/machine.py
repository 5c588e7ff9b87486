"""What a benchmark ran on."""

import os
from typing import Any

import torch

__all__ = ["describe_machine", "find_cpu_model"]


def describe_machine(device: torch.device, load_before: float) -> dict[str, Any]:
    """The device, the processor, and what others did on the machine.

    Args:
        device: that the models ran on.
        load_before: the load average of a minute when the benchmark began.
    """
    cpu = f"CPU with {torch.get_num_threads()} thread(s)"
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "cpu": find_cpu_model(),
        "num_cores": len(os.sched_getaffinity(0)),
        "load_average_before": load_before,
        "load_average_after": os.getloadavg()[0],
    }


def find_cpu_model() -> str:
    """What Linux calls the processor."""
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else f"unknown, {os.cpu_count()} cores"
