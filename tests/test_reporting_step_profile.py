"""Where a step's time goes: categories and phases of a trace that is built by hand, so that every sum is known."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from geomae.errors import SourceError
from geomae.reporting.__main__ import main
from geomae.reporting.step_profile import read_profile, summarise_trace

MAIN, BACKWARD = 1, 2


def event(name: str, ts: float, dur: float, *, cat: str = "cpu_op", tid: int = MAIN, external_id: int = 0) -> Any:
    return {
        "ph": "X",
        "cat": cat,
        "name": name,
        "tid": tid,
        "ts": ts,
        "dur": dur,
        "args": {"External id": external_id},
    }


def step(number: int, ts: float, dur: float) -> Any:
    return event(f"ProfilerStep#{number}", ts, dur, cat="user_annotation", external_id=1000 + number)


def write_trace(folder: Path, *events: Any, packed: bool = False) -> Path:
    path = folder / ("trace.json.gz" if packed else "trace.json")
    text = json.dumps({"traceEvents": [{"ph": "M", "name": "process_name"}, *events]})
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    return path


def flat(parts: dict[str, dict[str, float]]) -> dict[tuple[str, str], float]:
    return {(category, phase): ms for category, phases in parts.items() for phase, ms in phases.items()}


def total(parts: dict[str, dict[str, float]]) -> float:
    return sum(sum(phases.values()) for phases in parts.values())


# One step of 100 ms on the main thread, in microseconds.
STEP_ON_A_CPU = (
    step(1, 0, 100_000),
    event("enumerate(DataLoader)#_MultiProcessingDataLoaderIter.__next__", 0, 4_000, cat="user_annotation"),
    event("aten::index_select", 1_000, 2_000),  # inside the reading of data: its own
    event("aten::linear", 5_000, 20_000),
    event("aten::to", 6_000, 3_000),  # the weight is cast: a copy
    event("aten::_to_copy", 6_500, 2_000),
    event("aten::addmm", 10_000, 15_000),
    event("aten::scaled_dot_product_attention", 30_000, 8_000),
    event("aten::mm", 31_000, 5_000),  # inside attention
    event("aten::gelu", 40_000, 5_000),
    event("aten::layer_norm", 45_000, 5_000),
    event("aten::native_layer_norm", 46_000, 3_000),
    event("autograd::engine::evaluate_function: AddmmBackward0", 50_000, 30_000),
    event("AddmmBackward0", 51_000, 28_000),
    event("aten::mm", 52_000, 26_000),
    event("Optimizer.step#AdamW.step", 82_000, 10_000, cat="user_annotation"),
    event("aten::add_", 83_000, 1_000),  # of the optimizer's own counter
    event("aten::_fused_adamw_", 85_000, 6_000),
)


def test_every_microsecond_of_a_step_counts_once(tmp_path: Path) -> None:
    summary = summarise_trace(write_trace(tmp_path, *STEP_ON_A_CPU))
    assert flat(summary["host_ms"]) == pytest.approx(
        {
            ("matrix products", "forward"): 17.0,  # linear's own 2 and addmm's 15
            ("matrix products", "backward"): 26.0,
            ("attention", "forward"): 8.0,
            ("normalisation", "forward"): 5.0,
            ("activations and sums", "forward"): 5.0,
            ("copies, casts, gathers", "forward"): 3.0,
            ("optimizer and clipping", "rest"): 10.0,
            ("waiting for data", "rest"): 4.0,
            ("other operations", "backward"): 4.0,  # what autograd takes beside the product
            ("idle", "rest"): 18.0,
        }
    )
    assert summary["step_ms"] == 100
    assert total(summary["host_ms"]) == pytest.approx(100)
    assert summary["device_ms"] is None


def test_steps_are_averaged_and_what_lies_outside_them_is_left_out(tmp_path: Path) -> None:
    events = [step(1, 0, 10_000), step(2, 10_000, 30_000), event("aten::mm", 1_000, 4_000)]
    events += [event("aten::mm", 20_000, 8_000), event("aten::mm", 50_000, 9_000)]  # the last: after the steps
    summary = summarise_trace(write_trace(tmp_path, *events, packed=True))
    assert summary["step_ms_by_step"] == [10, 30]
    assert summary["host_ms"]["matrix products"] == {"forward": pytest.approx(6)}
    assert summary["host_ms"]["idle"] == {"rest": pytest.approx(14)}


@pytest.mark.parametrize(
    "name, category",
    [
        ("aten::bmm", "attention"),
        ("aten::_softmax", "attention"),
        ("aten::_log_softmax", "other operations"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("mkldnn::_linear_pointwise", "matrix products"),
        ("aten::convolution_backward", "matrix products"),
        ("aten::addmm", "matrix products"),
        ("aten::native_batch_norm", "normalisation"),
        ("aten::native_layer_norm_backward", "normalisation"),
        ("aten::gelu_backward", "activations and sums"),
        ("aten::add_", "activations and sums"),
        ("aten::address", "other operations"),
        ("aten::gather", "copies, casts, gathers"),
        ("aten::_to_copy", "copies, casts, gathers"),
        ("aten::_foreach_norm", "optimizer and clipping"),
        ("aten::_foreach_lerp_", "optimizer and clipping"),
        ("Torch-Compiled Region: 0/0", "fused by the compiler"),
        ("cudaStreamSynchronize", "waiting for the device"),
        ("c10d::allreduce_", "between processes"),
        ("aten::view", "other operations"),
    ],
)
def test_operations_are_told_apart_by_name(tmp_path: Path, name: str, category: str) -> None:
    summary = summarise_trace(write_trace(tmp_path, step(1, 0, 10_000), event(name, 0, 6_000)))
    assert sum(summary["host_ms"][category].values()) == pytest.approx(6)


def test_operation_without_a_name_of_its_own_is_what_it_is_part_of(tmp_path: Path) -> None:
    events = [event("aten::gather", 0, 6_000), event("aten::empty", 1_000, 4_000)]
    summary = summarise_trace(write_trace(tmp_path, step(1, 0, 10_000), *events))
    assert summary["host_ms"]["copies, casts, gathers"] == {"forward": pytest.approx(6)}


def kernel(name: str, ts: float, dur: float, external_id: int, cat: str = "kernel") -> Any:
    return event(name, ts, dur, cat=cat, tid=7, external_id=external_id)


def test_kernels_count_as_what_launched_them_over_whole_steps_of_the_gpu(tmp_path: Path) -> None:
    """Three steps of the host, 10 ms each; the GPU is 25 ms behind and takes 20 ms for a step."""
    events: list[Any] = []
    for number in range(3):
        host, gpu = 10_000 * number, 25_000 + 20_000 * number
        ids = [10 * number + place for place in range(1, 6)]
        events += [
            step(number, host, 10_000),
            event("aten::addmm", host + 1_000, 500, external_id=ids[0]),
            event("cudaLaunchKernel", host + 1_100, 200, cat="cuda_runtime", external_id=ids[0]),
            event("aten::gelu", host + 2_000, 500, external_id=ids[1]),
            event("CompiledFunction", host + 3_000, 500, external_id=ids[2]),
            event("autograd::engine::evaluate_function: MmBackward0", host + 4_000, 900, tid=BACKWARD),
            event("aten::mm", host + 4_100, 500, tid=BACKWARD, external_id=ids[3]),
            event("aten::copy_", host + 6_000, 500, external_id=ids[4]),
            kernel("sm90_xmma_gemm", gpu, 6_000, ids[0]),
            kernel("vectorized_elementwise", gpu + 6_000, 2_000, ids[1]),
            kernel("triton_per_fused_native_layer_norm_0", gpu + 8_000, 3_000, ids[2]),
            kernel("sm90_xmma_gemm", gpu + 11_000, 5_000, ids[3]),
            kernel("Memcpy HtoD", gpu + 15_000, 2_000, ids[4], cat="gpu_memcpy"),  # half of it beside the product
        ]
    summary = summarise_trace(write_trace(tmp_path, *events))
    assert flat(summary["device_ms"]) == pytest.approx(
        {
            ("matrix products", "forward"): 6.0,
            ("matrix products", "backward"): 5.0,
            ("normalisation", "forward"): 3.0,
            ("activations and sums", "forward"): 2.0,
            ("copies, casts, gathers", "forward"): 1.0,
            ("idle", "rest"): 3.0,
        }
    )
    assert total(summary["device_ms"]) == pytest.approx(20)
    assert total(summary["host_ms"]) == pytest.approx(10)


@pytest.mark.parametrize("content, message", [("{}", "no trace"), ('{"traceEvents": []}', "holds no step")])
def test_what_is_no_trace_of_steps_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "trace.json"
    path.write_text(content)
    with pytest.raises(SourceError, match=message):
        summarise_trace(path)


def a_profile(folder: Path, **changes: Any) -> Path:
    described = {"model": "GeoMAEForPreTraining", "batch_size": 32, "precision": "bf16", "torch_compile": True}
    described["device"] = "CPU, 1 thread(s)"
    path = folder / "profile.json"
    summary = summarise_trace(write_trace(folder, *STEP_ON_A_CPU))
    path.write_text(json.dumps(described | summary | changes))
    return path


def test_picture_is_drawn_by_the_command_line(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = a_profile(tmp_path)
    assert main(["profile", str(path), "--output_file", str(tmp_path / "new" / "profile.png")]) == 0
    assert (tmp_path / "new" / "profile.png").read_bytes().startswith(b"\x89PNG")


def test_bars_of_a_picture_are_as_long_as_their_times(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from geomae.reporting.plots import profile_bars

    (axes,) = profile_bars(read_profile(a_profile(tmp_path))).axes
    assert sum(bar.get_width() for bar in axes.patches) == pytest.approx(100)
    texts = {label.get_text(): text.get_text() for label, text in zip(axes.get_yticklabels(), axes.texts, strict=True)}
    assert texts["matrix products"] == " 43 ms, 43.0 %"
    assert texts["between operations: Python"] == " 18 ms, 18.0 %"
    assert "100 ms a step of 32 photos" in axes.get_title(loc="left")
    assert "bf16, compiled, CPU" in axes.get_title(loc="left")


def test_picture_of_a_gpu_shows_the_gpu(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from geomae.reporting.plots import profile_bars

    device_ms = {"attention": {"forward": 6.0, "backward": 2.0}, "idle": {"rest": 2.0}}
    (axes,) = profile_bars(read_profile(a_profile(tmp_path, device_ms=device_ms))).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["attention", "GPU idle"]
    assert sum(bar.get_width() for bar in axes.patches) == pytest.approx(10)


@pytest.mark.parametrize("content", ["[]", "no json", '{"steps": [1, 2]}', None])
def test_what_is_no_profile_is_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "profile.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SourceError, match=r"profile\.json"):
        read_profile(path)
