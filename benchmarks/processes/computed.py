"""What data parallelism costs on machines that are not here: bytes of a ring all-reduce beside the time of a step."""

from dataclasses import asdict, dataclass
from typing import Any

from processes.measure import BUCKET_BYTES

__all__ = [
    "MACHINES",
    "MFU",
    "OVERLAP",
    "SHARE_OF_LINK",
    "TOTAL_BATCH_SIZE",
    "Machine",
    "compute_scaling",
    "ring_bytes",
]

MFU = 0.5  # assumed of every chip
SHARE_OF_LINK = 0.8  # assumed: what an all-reduce gets of a link's rated speed
OVERLAP = 0.49
"""Share of the step in which gradients can be averaged: the encoder's backward, in which 91 % of them come into being.

4 FLOP x 85.4 M weights x 50 tokens = 17.1 of 34.86 GFLOP a photo. The decoder's backward comes before it.
"""
TOTAL_BATCH_SIZE = 4096  # of MAE's recipe


@dataclass(frozen=True)
class Machine:
    """GPUs, and the slowest link of a ring through them."""

    title: str
    num_gpus: int
    tflops: float
    """In bf16, dense: of a chip, its data sheet's; of the H200, a matrix product's that was measured."""

    link_gbytes_per_s: float
    """In one direction, as rated: of one GPU's NVLink, or of all network cards of a node together."""

    link: str


MACHINES = (
    Machine("8 A100", 8, 312, 300, "NVLink 3"),
    Machine("8 H200", 8, 790, 450, "NVLink 4"),
    Machine("4 x 8 A100", 32, 312, 200, "8 x InfiniBand HDR, 200 Gbit/s, a node"),
    Machine("4 x 8 H200", 32, 790, 400, "8 x InfiniBand NDR, 400 Gbit/s, a node"),
    Machine("4 x 8 A100", 32, 312, 12.5, "one card of 100 Gbit/s a node"),
    Machine("4 x 8 H200", 32, 790, 12.5, "one card of 100 Gbit/s a node"),
)


def ring_bytes(num_bytes: float, num_members: int) -> float:
    """Bytes that each member of a ring sends, and receives, until all hold the sum.

    Source: Patarasuk & Yuan (2009), "Bandwidth optimal all-reduce algorithms for clusters of workstations".
    """
    return 2 * (num_members - 1) / num_members * num_bytes


def compute_scaling(
    machine: Machine, *, batch_size: int, flops_per_photo: float, gradient_bytes: float
) -> dict[str, Any]:
    """Times and efficiencies of a machine.

    Args:
        machine: assumed to reach `MFU` of its chips and `SHARE_OF_LINK` of its link.
        batch_size: photos of a step, on each GPU.
        flops_per_photo: of forward and backward.
        gradient_bytes: that are averaged in a step.

    Returns:
        `step_ms` without and `all_reduce_ms` of the other GPUs, photos/s of all GPUs with overlap, and `efficiency`,
        photos/s over those of as many single GPUs: where the all-reduce follows the backward, and where it runs during
        `OVERLAP` of the step, and the last bucket after it.
    """
    step_s = batch_size * flops_per_photo / (MFU * machine.tflops * 1e12)
    seconds_per_byte = ring_bytes(1, machine.num_gpus) / (SHARE_OF_LINK * machine.link_gbytes_per_s * 1e9)
    all_reduce_s = gradient_bytes * seconds_per_byte
    last_bucket_s = min(gradient_bytes, BUCKET_BYTES) * seconds_per_byte
    exposed_s = max(last_bucket_s, all_reduce_s - OVERLAP * step_s)
    return asdict(machine) | {
        "batch_size": batch_size,
        "step_ms": 1000 * step_s,
        "all_reduce_ms": 1000 * all_reduce_s,
        "efficiency_without_overlap": step_s / (step_s + all_reduce_s),
        "efficiency": step_s / (step_s + exposed_s),
        "photos_per_s": machine.num_gpus * batch_size / (step_s + exposed_s),
    }
