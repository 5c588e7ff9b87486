"""The page of `benchmarks/model_sizes.py`: every figure says whether it was measured or computed."""

from collections.abc import Mapping
from typing import Any

from loading.report import markdown_table

__all__ = ["to_markdown"]

UNMEASURED = "unmeasured"


def to_markdown(record: Mapping[str, Any]) -> str:
    """The page beside the JSON."""
    cases, settings = list(record["cases"].values()), record["settings"]
    parts = [_introduction(record), "## Size and speed", _speed_table(cases)]
    parts += ["## Memory of a step", _memory_notes(settings), _memory_table(cases, settings["gpu_gb"], "plain")]
    parts += ["## Memory with gradient checkpointing", _memory_table(cases, settings["gpu_gb"], "checkpointed")]
    parts += ["## Measured", _measured_notes(record), _measured_table(cases)]
    if (check := record["check_on_the_cpu"]) is not None:
        parts += ["## The count against a real process", _describe_check(check)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _introduction(record: Mapping[str, Any]) -> str:
    commit = (record["commit"] or "unknown")[:12]
    return (
        "# Sizes: parameters, work, memory, speed\n\n"
        f"Written by `benchmarks/model_sizes.py` at commit `{commit}`; every round and the versions are in the JSON "
        "beside this page. Photos of 224x224; architectures are those of the configuration files that the JSON names. "
        "Each column says whether it was **measured** or **computed**."
    )


def _speed_table(cases: list[Mapping[str, Any]]) -> str:
    chips = list(cases[0]["computed_photos_per_s"]) if cases else []
    header = ["model", "parameters, millions (computed)", "GFLOP a photo (computed)"]
    header += [f"photos/s, {chip} at half its peak (computed)" for chip in chips]
    rows = [
        [case["title"], f"{case['parameters_million']:,.1f}", f"{case['gflop_per_photo']:,.1f}"]
        + [f"{case['computed_photos_per_s'][chip]:,.0f}" for chip in chips]
        for case in cases
    ]
    return markdown_table(header, rows)


def _memory_notes(settings: Mapping[str, Any]) -> str:
    return (
        "Computed: the tensors that are alive at the peak of forward, backward and AdamW, in bfloat16 autocast with "
        "weights, gradients and AdamW's states in float32, attention fused, eager. The fixed part and the part of each "
        "photo are those of batches around 128 to 1,024. The largest batch leaves "
        f"{100 * settings['reserve']:.0f} % of the card's 10^9 bytes for the driver, libraries' workspaces and what "
        "the allocator cannot use; the power of two below it stands behind the slash. Of one GPU and "
        "of steps of one batch: DDP's buckets and accumulated gradients are there in the forward pass too, 4 bytes a "
        "parameter, and so is `ema_decay`'s copy of the weights."
    )


def _memory_table(cases: list[Mapping[str, Any]], gpu_gb: list[int], policy: str) -> str:
    header = ["model", "fixed, GB (computed)", "a photo, MB (computed)"]
    header += [f"largest batch, {gigabytes} GB (computed)" for gigabytes in gpu_gb]
    rows = []
    for case in cases:
        memory = case["memory"][policy]
        row = [case["title"], f"{memory['fixed_gb']:,.2f}", f"{memory['per_photo_mb']:,.1f}"]
        for gigabytes in gpu_gb:
            fit = memory["largest_batch"][str(gigabytes)]
            is_capped = fit["exact"] >= memory["largest_counted_batch"]
            row.append(f"{'≥ ' if is_capped else ''}{fit['exact']:,} / {fit['power_of_two']:,}")
        rows.append(row)
    return markdown_table(header, rows)


def _measured_notes(record: Mapping[str, Any]) -> str:
    settings, machine = record["settings"], record["machine"]
    return (
        f"{machine['device']}; {machine['cpu']}, {machine['num_cores']} cores, load "
        f"{machine['load_average_before']:.1f} before and {machine['load_average_after']:.1f} after. "
        f"Forward, backward and AdamW in bfloat16, batches of {settings['batch_size']}, "
        f"{'compiled' if settings['is_compiled'] else 'eager'}; medians of {settings['rounds']} interleaved rounds. "
        "Memory and largest batch are measured on a GPU only."
    )


def _measured_table(cases: list[Mapping[str, Any]]) -> str:
    header = [
        "model",
        "photos/s (measured)",
        "photos/s, checkpointed (measured)",
        "checkpointing takes times (measured)",
    ]
    header += [
        f"{name}{policy} (measured)" for name in ("peak, GB", "largest batch") for policy in ("", ", checkpointed")
    ]
    rows = []
    for case in cases:
        if (measured := case["measured"]) is None:
            rows.append([case["title"], *[UNMEASURED] * 7])
            continue
        plain, checkpointed = measured["plain"], measured["checkpointed"]
        row = [case["title"], *(f"{policy['photos_per_s']:,.1f}" for policy in (plain, checkpointed))]
        row.append(f"{measured['checkpointed_takes_times']:.2f}")
        row += [_or_unmeasured(policy["peak_gb"], ",.2f") for policy in (plain, checkpointed)]
        row += [_show_largest(policy) for policy in (plain, checkpointed)]
        rows.append(row)
    return markdown_table(header, rows)


def _show_largest(policy: Mapping[str, Any]) -> str:
    if policy["largest_batch"] is None:
        return UNMEASURED
    return f"{policy['largest_batch']:,} (computed {policy['computed_largest_batch']:,})"


def _or_unmeasured(value: Any, pattern: str) -> str:
    return UNMEASURED if value is None else format(value, pattern)


def _describe_check(check: Mapping[str, Any]) -> str:
    return (
        f"{check['title']}, batch {check['batch_size']}, one step on the CPU with the CPU's attention: the process "
        f"took {check['measured_gb']:.2f} GB above its weights (measured), the count says "
        f"{check['simulated_gb']:.2f} GB (computed): {check['measured_is_times']:.3f} times."
    )
