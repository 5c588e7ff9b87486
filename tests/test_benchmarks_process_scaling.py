"""`benchmarks/process_scaling.py` runs, compares within rounds, and computes what larger machines would do."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return lambda name: importlib.import_module(f"processes.{name}")


@pytest.mark.slow
def test_two_processes_train_alone_beside_each_other_and_together(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/process_scaling.py", "--tiny", "--batch_size", "2", "--rounds", "1"]
    command += ["--steps", "1", "--output", str(tmp_path / "result.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    result = json.loads((tmp_path / "result.json").read_text())
    ways = result["ways"]
    assert all(way["step_s"] > 0 and way["core_s"] > 0 for way in ways.values())
    assert ways["alone"]["efficiency"] == 1
    assert ways["together"]["photos_per_s"] == pytest.approx(2 * 2 / ways["together"]["step_s"])
    assert {option["key"] for option in result["options"]} == set(ways) - {"alone", "beside", "together"}
    page = (tmp_path / "result.md").read_text()
    assert "| 2 processes, DDP |" in page
    assert "This is a tiny network" in page


def test_gpus_that_are_not_there_are_refused(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/process_scaling.py", "--device", "cuda", "--processes", "4096"]
    done = subprocess.run([*command, "--output", str(tmp_path / "x.json")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "--device cuda --processes 4096: each process needs a CUDA device, and there are" in done.stderr


def test_efficiency_and_savings_are_taken_within_each_round(part: Any) -> None:
    options = [option.key for option in part("measure").OPTIONS]
    runs = {"alone": [1.0, 2.0, 4.0], "beside": [1.0, 4.0, 4.0], "together": [2.0, 4.0, 16.0]}
    runs |= {key: [1.0, 3.0, 12.0] for key in options}
    core = {key: [1.0, 1.0, 2.0] if key == "alone" else [2.0, 1.0, 8.0] for key in runs}
    measurements = {"seconds": runs, "core_seconds": core, "all_reduce_s": {"fp32": [3.0, 1.0, 2.0]}}
    summary = part("report").summarise(measurements, batch_size=8, num_processes=2)
    together = summary["ways"]["together"]
    assert together["efficiency_by_round"] == [0.5, 0.5, 0.25]
    assert together["efficiency"] == 0.5
    assert together["core_efficiency_by_round"] == [0.5, 1, 0.25]
    assert together["core_efficiency"] == 0.5
    assert together["photos_per_s"] == 4  # 16 photos by the median of 2, 4 and 16 seconds
    assert summary["ways"]["alone"]["photos_per_s"] == 4
    assert {option["saved_percent"] for option in summary["options"]} == {25}  # of 50, 25 and 25
    assert summary["all_reduce_s"] == {"fp32": 2}


def test_a_ring_of_two_exchanges_everything_once_and_a_large_one_twice(part: Any) -> None:
    ring_bytes = part("computed").ring_bytes
    assert ring_bytes(100, 1) == 0
    assert ring_bytes(100, 2) == 100  # each sends the half that the other adds up, and then the half it has added up
    assert ring_bytes(100, 4) == 150  # Patarasuk & Yuan (2009): 2 (n - 1) / n
    assert ring_bytes(100, 10**9) == pytest.approx(200)


def test_averaging_costs_what_the_backward_does_not_hide(part: Any) -> None:
    computed = part("computed")
    # chips of 2 TFLOP/s, half of it reached; a link of 1 GB/s, 0.8 of it reached; 2 GPUs send the gradients once
    machine = computed.Machine("pair", 2, tflops=2, link_gbytes_per_s=1, link="wire")
    options = {"batch_size": 10, "flops_per_photo": 1e11}  # a step of 1 s
    slow = computed.compute_scaling(machine, **options, gradient_bytes=1.6e9)  # 2 s of all-reduce, 0.49 s of it hidden
    assert slow["step_ms"] == pytest.approx(1000)
    assert slow["all_reduce_ms"] == pytest.approx(2000)
    assert slow["efficiency_without_overlap"] == pytest.approx(1 / 3)
    assert slow["efficiency"] == pytest.approx(1 / (1 + 2 - 0.49))
    assert slow["photos_per_s"] == pytest.approx(20 / 2.51)
    hidden = computed.compute_scaling(machine, **options, gradient_bytes=0.2e9)  # 0.25 s: but for the last 25 MiB
    assert hidden["efficiency"] == pytest.approx(1 / (1 + 25 * 2**20 / 0.8e9))


def test_the_backward_of_the_encoder_is_the_share_of_the_step_that_is_assumed(part: Any) -> None:
    """Two thirds of the encoder's work, counted by hand: 2 FLOP a weight and token, and attention's products."""
    width, tokens, layers, patch_values = 768, 50, 12, 3 * 16 * 16
    weights = 12 * width * width * layers * tokens + patch_values * width * (tokens - 1)
    attention = 2 * tokens * tokens * width * layers
    assert pytest.approx(4 * (weights + attention) / 34.86e9, abs=0.015) == part("computed").OVERLAP


def test_machines_share_mae_s_batch_or_take_the_largest_of_ours(part: Any) -> None:
    entries = part("report").compute_machines(34.86e9, 93_600_000)
    assert {entry["num_gpus"] * entry["batch_size"] for entry in entries} == {4096, 32 * 512}
    # half of an A100's 312 TFLOP/s is 4,475 photos/s at 34.86 GFLOP a photo
    assert 512 / entries[0]["step_ms"] * 1000 == pytest.approx(4475, abs=1)
    assert all(0 < entry["efficiency_without_overlap"] <= entry["efficiency"] < 1 for entry in entries)


def test_scaling_quotes_what_is_computed(part: Any) -> None:
    text = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    entries = part("report").compute_machines(34.86e9, 93_600_000)
    for entry in entries:
        shares = f"{100 * entry['efficiency_without_overlap']:.0f} % | {100 * entry['efficiency']:.1f} %"
        row = f"| {entry['batch_size']} | {entry['step_ms']:.1f} | {entry['all_reduce_ms']:.1f} | {shares} |"
        assert f"{row} {entry['photos_per_s']:,.0f} |" in text
