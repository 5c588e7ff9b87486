"""The count of a step's memory is that of a real step; the largest batch is the largest; the benchmark runs."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launching import ROOT
from packed_photos import TINY
from torch import nn

from geomae.errors import ConfigError
from modeling import GeoMAEConfig, GeoMAEForGeolocation, GeoMAEForPreTraining


@pytest.fixture
def sizing(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("sizing.simulation")


def on_meta(task: type = GeoMAEForPreTraining, **changes: Any) -> Any:
    with torch.device("meta"):
        return task(GeoMAEConfig(**{**TINY, **changes})).train()


def test_live_bytes_rise_with_every_new_storage_and_fall_when_it_goes(sizing: Any) -> None:
    meter = sizing.LiveBytes()
    with meter:
        first = torch.zeros(1024, dtype=torch.float32)
        view = first[:10].view(2, 5)  # the same storage
        second = first.double()
        assert meter.live_bytes == 1024 * 4 + 1024 * 8
        second.add_(1)
        del second
        assert meter.live_bytes == 1024 * 4
        del first
        assert meter.live_bytes == 1024 * 4, "the view still holds it"
        del view
        torch.zeros(1)  # a whole block of the allocator
    assert (meter.live_bytes, meter.peak_bytes) == (0, 1024 * 12)


def test_memory_of_a_linear_layer_is_what_pencil_and_paper_say(sizing: Any) -> None:
    """What a step of one layer keeps, in multiples of the allocator's 512 bytes."""

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = GeoMAEConfig(image_size=16, patch_size=8)
            self.layer = nn.Linear(3 * 16 * 16, 1024, bias=False)

        def forward(self, pixel_values: torch.Tensor) -> Any:
            output = self.layer(pixel_values.flatten(1).float()).sum()
            return type("Output", (), {"loss": output})

    with torch.device("meta"):
        model = Plain()
    step = sizing.simulate_step(model, 64)
    weight = 4 * 768 * 1024
    assert (step.weights, step.optimizer) == (weight, 2 * weight)
    photos, in_bfloat16 = 64 * 768, 2 * 64 * 768
    # the photos themselves, their copy in bfloat16 for the weight's gradient, and the sum
    assert step.saved == photos + in_bfloat16 + 512
    gradient_in_bfloat16, gradient, loss_and_its_gradient = weight // 2, weight, 2 * 512
    at_the_end_of_backward = photos + gradient_in_bfloat16 + gradient + loss_and_its_gradient
    assert step.peak == step.weights + step.optimizer + at_the_end_of_backward


@pytest.mark.parametrize("task", [GeoMAEForPreTraining, GeoMAEForGeolocation])
def test_counted_step_is_that_of_real_tensors(sizing: Any, task: type) -> None:
    simulated = sizing.simulate_step(on_meta(task), 8)
    real = task(GeoMAEConfig(**TINY)).train()
    inputs = {"coordinates_deg": torch.rand(8, 2)} if task is GeoMAEForGeolocation else {}
    meter = sizing.LiveBytes()
    for tensor in (*real.parameters(), *real.buffers()):
        meter.count(tensor)
    with meter:
        photos = torch.zeros(8, 3, 16, 16).byte()
        with torch.autocast("cpu", torch.bfloat16):
            real(pixel_values=photos, **inputs).loss.backward()
    # mse_loss leaves the squared errors of 3 hidden patches in the storage of its scalar, as fake tensors do not:
    # 1.5 % of what ViT-B holds for a photo
    scratch = 8 * 3 * 3 * 8 * 8 * 4 if task is GeoMAEForPreTraining else 0
    assert simulated.peak - simulated.optimizer == pytest.approx(meter.peak_bytes - scratch, rel=0.03)


def test_memory_grows_linearly_with_the_batch(sizing: Any) -> None:
    peaks = [sizing.simulate_step(on_meta(), 512 * times).peak for times in (1, 2, 3)]
    assert peaks[2] - peaks[1] == pytest.approx(peaks[1] - peaks[0], rel=1e-3)


def test_fused_attention_stores_no_scores(sizing: Any) -> None:
    sizes = {"image_size": 128, "decoder_num_hidden_layers": 1, "num_hidden_layers": 4}  # 256 tokens of width 16
    plain = sizing.simulate_step(on_meta(GeoMAEForGeolocation, **sizes), 64)
    with sizing.fused_attention():
        fused = sizing.simulate_step(on_meta(GeoMAEForGeolocation, **sizes), 64)
    scores = 64 * 2 * 257**2  # photos, heads, pairs: in bfloat16 in each of the three layers that all tokens leave
    assert plain.saved - fused.saved == pytest.approx(3 * 2 * scores, rel=0.05)


def test_checkpointed_blocks_leave_their_inputs_alone(sizing: Any) -> None:
    """One layer more costs one (B, N, D) tensor where it is recomputed, and many times that where it is not."""
    num_photos, tokens, width = 64, 65, 16
    added = {}
    for checkpointed in (False, True):
        saved = []
        for depth in (6, 8):
            model = on_meta(GeoMAEForGeolocation, image_size=64, num_hidden_layers=depth)
            if checkpointed:
                model.gradient_checkpointing_enable()
            with sizing.fused_attention():
                saved.append(sizing.simulate_step(model, num_photos).saved)
        added[checkpointed] = (saved[1] - saved[0]) / 2
    one = 4 * num_photos * tokens * width
    assert added[True] == pytest.approx(one, rel=0.1)
    assert added[False] > 5 * one


def test_largest_batch_lies_on_the_line_between_what_was_counted(sizing: Any) -> None:
    batches, peaks = (1, 100, 1000), (110, 200, 1100)  # 109.1 + 0.9 B, then 100 + B
    assert sizing.largest_batch(batches, peaks, 109) == 0
    assert sizing.largest_batch(batches, peaks, 110) == 1
    assert sizing.largest_batch(batches, peaks, 200) == 100
    assert sizing.largest_batch(batches, peaks, 699.5) == 599
    assert sizing.largest_batch(batches, peaks, 10**9) == 1000


@pytest.mark.parametrize("largest", [0, 1, 2, 3, 64, 1000, 4097])
def test_largest_batch_on_a_gpu_is_found_by_trying(sizing: Any, largest: int) -> None:
    measured = importlib.import_module("sizing.measured")
    tried: list[int] = []

    def fits(batch_size: int) -> bool:
        tried.append(batch_size)
        return batch_size <= largest

    found = measured.search_largest(fits)
    assert found <= largest
    assert largest - found <= max(0, 0.01 * largest)
    assert len(tried) <= 2 + 2 * np.log2(largest + 1)


@pytest.fixture
def benchmark(sizing: Any) -> Iterator[Any]:
    num_threads = torch.get_num_threads()
    yield importlib.import_module("model_sizes")
    torch.set_num_threads(num_threads)


@pytest.mark.slow
def test_benchmark_counts_measures_and_checks(
    benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--only", "pretrain_tiny", "finetune_tiny", "--gpu_gb", "24", "--reserve", "0.25", "--rounds", "1"]
    words += ["--measure", "pretrain_tiny", "--batch_size", "2", "--check_memory_of", "pretrain_tiny"]
    words += ["--check_batch_size", "16", "--output", str(tmp_path / "r.json")]
    monkeypatch.setattr(sys, "argv", ["model_sizes.py", *words])
    benchmark.main()
    result = json.loads((tmp_path / "r.json").read_text())
    entry = result["cases"]["pretrain_tiny"]
    # 5.5 million without classifier (Touvron et al., 2021, table 1), and the head
    assert 5.5 < result["cases"]["finetune_tiny"]["parameters_million"] < 6
    memory = entry["memory"]["plain"]
    exact = memory["largest_batch"]["24"]["exact"]
    assert memory["fixed_gb"] + memory["per_photo_mb"] * exact / 1000 == pytest.approx(0.75 * 24, rel=0.01)
    assert memory["largest_batch"]["24"]["power_of_two"] == 2 ** int(np.log2(exact))
    assert entry["memory"]["checkpointed"]["per_photo_mb"] < 0.5 * memory["per_photo_mb"]
    (seconds,) = entry["measured"]["plain"]["seconds_by_round"]
    assert entry["measured"]["plain"]["photos_per_s"] == pytest.approx(2 / seconds)
    assert result["check_on_the_cpu"]["measured_is_times"] == pytest.approx(1, rel=0.2)
    page = (tmp_path / "r.md").read_text()
    assert "| ViT-Ti/16, fine-tuning | unmeasured |" in page
    for line in page.splitlines():
        if line.startswith("| model |"):
            assert all("measured)" in cell or "computed)" in cell for cell in line.split("|")[2:-1]), line


@pytest.mark.parametrize(
    "words, reason",
    [("--reserve 1", "expected a share from 0 to below 1"), ("--rounds 0", "--rounds 0: expected at least 1")],
)
def test_what_cannot_be_asked_for_is_said(
    benchmark: Any, words: str, reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["model_sizes.py", *words.split()])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert reason in capsys.readouterr().err


def test_a_gpu_that_is_not_there_is_refused(benchmark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["model_sizes.py", "--device", "cuda"])
    with pytest.raises(ConfigError, match="there is no CUDA device here"):
        benchmark.main()


@pytest.mark.gpu
def test_counted_peak_is_that_of_a_gpu(sizing: Any) -> None:
    measured, cases = (importlib.import_module(f"sizing.{name}") for name in ("measured", "cases"))
    case = next(case for case in cases.CASES if case.key == "pretrain_small")
    step = measured.TrainingStep(case.build(torch.device("cuda")))
    step(64)
    with sizing.fused_attention():
        simulated = sizing.simulate_step(case.build_meta(), 64)
    assert step(64).peak_bytes == pytest.approx(simulated.peak, rel=0.1)
