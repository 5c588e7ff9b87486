"""Measurements -> medians, efficiencies and Markdown tables."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from loading.report import markdown_table
from processes.computed import MACHINES, MFU, OVERLAP, SHARE_OF_LINK, TOTAL_BATCH_SIZE, compute_scaling
from processes.measure import ALONE, BESIDE, OPTIONS, TOGETHER

__all__ = ["compute_machines", "summarise", "to_markdown"]

LARGEST_BATCH_SIZE = 512  # of a GPU, in our configurations
_TITLES = {ALONE: "one process alone", BESIDE: "{} processes, each for itself", TOGETHER: "{} processes, DDP"}


def summarise(measurements: Mapping[str, Any], *, batch_size: int, num_processes: int) -> dict[str, Any]:
    """Medians over the rounds; what is compared is compared within each round.

    Args:
        measurements: of `processes.measure.work`.
        batch_size: photos of a step, in each process.
        num_processes: that trained beside each other and together.

    Returns:
        `ways`, with `efficiency`, photos/s over those of as many times the process alone, and `core_efficiency`, the
        same by core-seconds, in which nobody waits; `options`, with what each saves of the step's time;
        `all_reduce_s`.
    """
    seconds, core_seconds = measurements["seconds"], measurements["core_seconds"]
    ways = {}
    for key, runs in seconds.items():
        efficiencies, core_efficiencies = (
            [alone / run for alone, run in zip(of[ALONE], of[key], strict=True)] for of in (seconds, core_seconds)
        )
        ways[key] = {
            "step_s": median(runs),
            "core_s": median(core_seconds[key]),
            "photos_per_s": (1 if key == ALONE else num_processes) * batch_size / median(runs),
            "efficiency": median(efficiencies),
            "efficiency_by_round": efficiencies,
            "core_efficiency": median(core_efficiencies),
            "core_efficiency_by_round": core_efficiencies,
        }
    options = []
    for option in OPTIONS:
        saved, saved_core = (
            [100 * (1 - run / plain) for run, plain in zip(of[option.key], of[TOGETHER], strict=True)]
            for of in (seconds, core_seconds)
        )
        options.append(
            {
                "key": option.key,
                "title": option.title,
                "predicted_percent": option.predicted_percent,
                "saved_percent": median(saved),
                "saved_percent_by_round": saved,
                "saved_core_percent": median(saved_core),
                "saved_core_percent_by_round": saved_core,
            }
        )
    all_reduce = {name: median(runs) for name, runs in measurements["all_reduce_s"].items()}
    return {"ways": ways, "options": options, "all_reduce_s": all_reduce}


def compute_machines(flops_per_photo: float, num_parameters: int) -> list[dict[str, Any]]:
    """Every machine with MAE's total batch, and with the largest batch of a GPU where that is another."""
    entries = []
    for machine in MACHINES:
        for batch_size in sorted({TOTAL_BATCH_SIZE // machine.num_gpus, LARGEST_BATCH_SIZE}):
            entries.append(
                compute_scaling(
                    machine,
                    batch_size=batch_size,
                    flops_per_photo=flops_per_photo,
                    gradient_bytes=4 * num_parameters,
                )
            )
    return entries


def to_markdown(record: Mapping[str, Any]) -> str:
    """The page beside the JSON."""
    settings, machine, num_processes = record["settings"], record["machine"], record["settings"]["processes"]
    lines = [
        "# Pretraining by more than one process",
        "",
        f"Written by `benchmarks/process_scaling.py` at commit `{(record['commit'] or 'unknown')[:12]}` on "
        f"{machine['device']}, {machine['cpu']}, {machine['num_cores']} cores; load "
        f"{machine['load_average_before']:.1f} before, {machine['load_average_after']:.1f} after. GeoMAE, eager, bf16, "
        f"{settings['batch_size']} photos a step in each process, one CPU thread each, medians of "
        f"{settings['rounds']} interleaved rounds of {settings['steps']} step(s).",
        "",
    ]
    if settings["tiny"]:
        lines += ["**This is a tiny network, for the tests: nothing here says anything of speed.**", ""]
    if machine["load_average_after"] > num_processes + 0.5:
        lines += ["**Others were at work on the machine: go by the core-seconds, not by the clock.**", ""]
    lines += ["## Measured", "", _ways_table(record["ways"], num_processes)]
    lines += [_all_reduce_line(record, num_processes), ""]
    lines += [
        "## Ways to set DDP up",
        "",
        "Percent of the step's time that each saves against DDP as transformers' Trainer makes it; "
        "`StreamingTrainer` adds the first.",
        "",
        _options_table(record["options"]),
    ]
    return "\n".join(lines + _computed_lines(record))


def _ways_table(ways: Mapping[str, Any], num_processes: int) -> str:
    rows = [
        [
            title.format(num_processes),
            f"{ways[key]['photos_per_s']:.2f}",
            f"{1000 * ways[key]['step_s']:,.0f}",
            f"{1000 * ways[key]['core_s']:,.0f}",
            f"{100 * ways[key]['efficiency']:.0f} %",
            _range(ways[key]["efficiency_by_round"], 100, ".0f"),
            f"{100 * ways[key]['core_efficiency']:.0f} %",
            _range(ways[key]["core_efficiency_by_round"], 100, ".0f"),
        ]
        for key, title in _TITLES.items()
    ]
    columns = ["", "photos/s", "ms a step", "core-ms a step and process", "efficiency", "rounds, %"]
    return markdown_table([*columns, "by core-seconds", "rounds, %"], rows)


def _all_reduce_line(record: Mapping[str, Any], num_processes: int) -> str:
    in_fp32, in_bf16 = (record["all_reduce_s"][name] for name in ("fp32", "bf16"))
    num_bytes = 4 * record["measurements"]["num_parameters"]
    return (
        f"The gradients' {num_bytes / 1e6:,.0f} MB, added up over the {num_processes} processes with nothing else to "
        f"do: {1000 * in_fp32:,.0f} ms ({num_bytes / 1e9 / in_fp32:.2f} GB/s); as bf16 {1000 * in_bf16:,.0f} ms."
    )


def _options_table(options: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            option["title"],
            f"{option['predicted_percent']:+.1f}",
            f"{option['saved_percent']:+.1f}",
            _range(option["saved_percent_by_round"], 1, "+.1f"),
            f"{option['saved_core_percent']:+.1f}",
            _range(option["saved_core_percent_by_round"], 1, "+.1f"),
        ]
        for option in options
    ]
    return markdown_table(["", "predicted", "by the clock", "rounds", "core-seconds", "rounds"], rows)


def _computed_lines(record: Mapping[str, Any]) -> list[str]:
    megabytes = 4 * record["measurements"]["num_parameters"] / 1e6
    gflops = record["measurements"]["flops_per_photo"] / 1e9
    rows = [
        [
            entry["title"],
            f"{entry['link']}: {entry['link_gbytes_per_s']:g} GB/s",
            f"{entry['batch_size']}",
            f"{entry['step_ms']:.1f}",
            f"{entry['all_reduce_ms']:.1f}",
            f"{100 * entry['efficiency_without_overlap']:.0f} %",
            f"{100 * entry['efficiency']:.1f} %",
            f"{entry['photos_per_s']:,.0f}",
        ]
        for entry in record["computed"]
    ]
    columns = ["machine", "slowest link of the ring", "photos a GPU", "ms a step alone", "ms of all-reduce"]
    columns += ["efficiency without overlap", "with", "photos/s"]
    return [
        "## Computed for machines that are not here",
        "",
        f"A ring over n GPUs sends 2 (n - 1) / n of the gradients' {megabytes:,.0f} MB from "
        f"each. Assumed: {100 * MFU:.0f} % of the chip's TFLOP/s at {gflops:.2f} GFLOP a "
        f"photo, {100 * SHARE_OF_LINK:.0f} % of the link's rated speed in one direction, gradients averaged during "
        f"{100 * OVERLAP:.0f} % of the step (the encoder's backward) and the last 25 MiB of them after it.",
        "",
        markdown_table(columns, rows),
    ]


def _range(values: Sequence[float], factor: float, form: str) -> str:
    return f"{factor * min(values):{form}} to {factor * max(values):{form}}"
