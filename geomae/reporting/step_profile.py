"""Where the time of a training step goes, from a trace of torch's profiler. Needs neither torch nor matplotlib."""

import gzip
import itertools
import re
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geomae.documents import parse_json, read_text
from geomae.errors import SourceError

__all__ = ["CATEGORIES", "PHASES", "read_profile", "summarise_trace"]

# In the order in which they are shown.
CATEGORIES = (
    "matrix products",
    "attention",
    "normalisation",
    "activations and sums",
    "copies, casts, gathers",
    "fused by the compiler",
    "optimizer and clipping",
    "waiting for data",
    "waiting for the device",
    "between processes",
    "other operations",
    "idle",
)
PHASES = ("forward", "backward", "rest")

# The first pattern that is found in an operation's name counts. `bmm` is attention's alone here: linear layers use mm.
_PATTERNS = tuple(
    (category, re.compile(pattern, re.IGNORECASE))
    for category, pattern in (
        ("waiting for data", r"^enumerate\(DataLoader\)"),
        ("optimizer and clipping", r"^Optimizer\.|_foreach_|_fused_adam|linalg_vector_norm|multi_tensor_apply"),
        ("waiting for the device", r"Synchronize"),
        ("between processes", r"nccl|gloo|c10d::|all_?reduce|DistributedDataParallel"),
        ("attention", r"scaled_?dot_?product|flash|fmha|::_?softmax|\bSoftmaxBackward|::(b|baddb)mm|BmmBackward"),
        ("matrix products", r"::(add)?mm\b|::matmul|linear|conv|einsum|gemm"),
        ("normalisation", r"layer_norm|batch_norm|group_norm"),
        ("fused by the compiler", r"Compiled|^graph_\d+_cpp_fused"),
        (
            "copies, casts, gathers",
            r"copy|::to\b|clone|contiguous|::cat|::stack|gather|scatter|index|sort|memcpy|memset",
        ),
        (
            "activations and sums",
            r"gelu|relu|threshold|sigmoid|tanh|::(r?sub|add|mul|div|pow|sqrt|rsqrt|abs|exp|log|sum|mean|var|square"
            r"|where|eq|ne|ge|gt|lt|le|clamp\w*|atan2|neg|isfinite|fill|zero|rand\w*)_?\b",
        ),
    )
)
# Whatever happens inside these is theirs: a matrix product inside attention is attention.
_ENCLOSING = ("waiting for data", "optimizer and clipping", "attention")
_MAX_TRACE_BYTES = 2**30  # unpacked
_HOST = ("cpu_op", "user_annotation", "cuda_runtime", "cuda_driver")
_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")


@dataclass(eq=False)
class _Span:
    """An operation on one thread: microseconds, and what it counts as."""

    begin: float
    end: float
    category: str
    phase: str
    own: float  # without the operations inside
    external_id: Any  # what its kernels are known by


def read_profile(path: str | Path) -> dict[str, Any]:
    """A `profile.json` of a run that was started with `--profile`.

    Raises:
        SourceError: there is none, or it is another file.
    """
    try:
        profile = parse_json(read_text(path))
    except (OSError, ValueError) as error:
        raise SourceError(
            f"{path} is no profile ({error}): name the profile.json that a run with --profile has written to "
            "OUTPUT_DIR/profile"
        ) from error
    if not isinstance(profile, dict) or "step_ms" not in profile:
        raise SourceError(f"{path} is no profile.json of a run with --profile: it has no step_ms")
    return profile


def summarise_trace(path: str | Path) -> dict[str, Any]:
    """Milliseconds of a step by category and phase, from a Chrome trace with annotations `ProfilerStep#N`.

    The thread of the annotations is followed from operation to operation: what an operation does not spend in others
    is its own, what lies between operations is idle, Python for the most part. So the categories add up to the step.
    Kernels of a GPU count as the operations that launched them, over whole steps of the GPU, which lie behind those of
    the host; where two run at once, the first to start counts.

    Args:
        path: of `torch.profiler`'s `export_chrome_trace`, compressed or not.

    Returns:
        `step_ms`, `step_ms_by_step`, `host_ms` and `device_ms`: category -> phase -> ms; `device_ms` is None on a CPU.

    Raises:
        SourceError: the file is no such trace, or holds no annotated step.
    """
    events = _read_events(Path(path))
    steps = sorted(
        (event for event in events if event["cat"] == "user_annotation" and event["name"].startswith("ProfilerStep#")),
        key=lambda event: event["ts"],
    )
    if not steps:
        raise SourceError(f"{path} holds no step: record with torch.profiler's schedule and call step()")
    windows = [(step["ts"], step["ts"] + step["dur"]) for step in steps]
    threads = defaultdict(list)
    for event in events:
        if event["cat"] in _HOST and not event["name"].startswith("ProfilerStep#"):
            threads[event["tid"]].append(event)
    spans_of = {thread: _follow(own_events) for thread, own_events in threads.items()}
    host = _add_up(windows, spans_of.get(steps[0]["tid"], []))
    launched: dict[Any, _Span] = {}
    for span in itertools.chain.from_iterable(spans_of.values()):
        launched.setdefault(span.external_id, span)  # runtime calls bear the id of the operation that makes them
    durations = [(end - begin) / 1000 for begin, end in windows]
    return {
        "step_ms": sum(durations) / len(durations),
        "step_ms_by_step": durations,
        "host_ms": host,
        "device_ms": _summarise_device(events, windows, launched),
    }


def _read_events(path: Path) -> list[dict[str, Any]]:
    """All that have a duration."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(_MAX_TRACE_BYTES + 1)
        if len(content) > _MAX_TRACE_BYTES:
            raise ValueError(f"it has more than {_MAX_TRACE_BYTES:,} bytes")
        events = parse_json(content)["traceEvents"]
        return [_tidy(event) for event in events if event.get("ph") == "X" and "cat" in event]
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise SourceError(f"{path} is no trace of torch's profiler ({error!r})") from error


def _tidy(event: Mapping[str, Any]) -> dict[str, Any]:
    """What is read of an event, each of its type."""
    external_id = event.get("args", {}).get("External id")
    return {
        **{name: str(event.get(name)) for name in ("cat", "name", "tid")},
        **{name: float(event[name]) for name in ("ts", "dur")},
        "external_id": external_id if isinstance(external_id, int | str) else None,
    }


def _follow(events: Sequence[Mapping[str, Any]]) -> list[_Span]:
    """Every operation of one thread in its order, with what lies inside taken out."""
    spans: list[_Span] = []
    open_spans: list[_Span] = []
    for event in sorted(events, key=lambda event: (event["ts"], -event["dur"])):
        begin, end = event["ts"], event["ts"] + event["dur"]
        while open_spans and open_spans[-1].end <= begin:
            open_spans.pop()
        parent = open_spans[-1] if open_spans else None
        if parent is not None:
            end = min(end, parent.end)
            parent.own -= end - begin
        category, phase = _place(event["name"], parent)
        open_spans.append(_Span(begin, end, category, phase, end - begin, event["external_id"]))
        spans.append(open_spans[-1])
    return spans


def _place(name: str, parent: _Span | None) -> tuple[str, str]:
    """Category and phase of an operation inside another one."""
    if name.startswith(("autograd::engine", "CompiledFunctionBackward")) or (parent and parent.phase == "backward"):
        phase = "backward"
    else:
        phase = "forward"
    if parent is not None and parent.category in _ENCLOSING:
        return parent.category, parent.phase
    category = _classify(name) or (parent.category if parent else "other operations")
    is_outside_the_model = category in ("optimizer and clipping", "waiting for data")
    return category, "rest" if is_outside_the_model else phase


def _classify(name: str) -> str | None:
    return next((category for category, pattern in _PATTERNS if pattern.search(name)), None)


def _add_up(windows: Sequence[tuple[float, float]], spans: Iterable[_Span]) -> dict[str, dict[str, float]]:
    """Milliseconds of a window by category and phase; what no span covers is idle."""
    sums: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    total = sum(end - begin for begin, end in windows)
    for span in spans:
        if any(begin <= span.begin < end for begin, end in windows):
            sums[span.category][span.phase] += span.own
            total -= span.own
    sums["idle"]["rest"] = total
    return _in_ms(sums, len(windows))


def _in_ms(sums: Mapping[str, Mapping[str, float]], num_steps: int) -> dict[str, dict[str, float]]:
    return {
        category: {phase: sums[category][phase] / num_steps / 1000 for phase in PHASES if phase in sums[category]}
        for category in CATEGORIES
        if category in sums
    }


def _summarise_device(
    events: Sequence[Mapping[str, Any]], windows: Sequence[tuple[float, float]], launched: Mapping[Any, _Span]
) -> dict[str, dict[str, float]] | None:
    """The same of a GPU, from the first kernel of the first step to the first of the last one; None without kernels."""
    kernels = sorted((event for event in events if event["cat"] in _DEVICE), key=lambda event: event["ts"])
    first_of_step: dict[int, float] = {}
    for kernel in kernels:
        span = launched.get(kernel["external_id"])
        for number, (begin, end) in enumerate(windows):
            if span is not None and begin <= span.begin < end:
                first_of_step.setdefault(number, kernel["ts"])
    if len(first_of_step) < 2:
        return None
    begin, end = first_of_step[min(first_of_step)], first_of_step[max(first_of_step)]
    sums: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    idle = end - begin
    for kernel, busy in _one_at_a_time(kernels, begin, end):
        span = launched.get(kernel["external_id"])
        # A fused kernel bears the names of what was fused; any other one is what its operation is.
        by_name = _classify(kernel["name"]) if span is None or span.category == "fused by the compiler" else None
        sums[by_name or (span.category if span else "other operations")][span.phase if span else "rest"] += busy
        idle -= busy
    sums["idle"]["rest"] = idle
    return _in_ms(sums, max(first_of_step) - min(first_of_step))


def _one_at_a_time(
    kernels: Sequence[Mapping[str, Any]], begin: float, end: float
) -> Iterator[tuple[Mapping[str, Any], float]]:
    """Each kernel with the microseconds of the window that it adds to what ran before it."""
    covered = begin
    for kernel in kernels:
        until = min(kernel["ts"] + kernel["dur"], end)
        if until > covered:
            yield kernel, until - max(covered, kernel["ts"])
            covered = until
