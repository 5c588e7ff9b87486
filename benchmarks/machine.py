"""What a benchmark ran on."""

import os

__all__ = ["find_cpu_model"]


def find_cpu_model() -> str:
    """What Linux calls the processor."""
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else f"unknown, {os.cpu_count()} cores"
