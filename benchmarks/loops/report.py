"""Rounds -> what is lost inside Trainer, by part; the verdict; the page."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from loops.interleave import Round

__all__ = ["TARGETS", "describe_parts", "judge_targets", "summarise_rounds", "to_markdown"]

TARGETS = {"ready": 3, "pipeline": 5}  # percent of the bare step that may be lost
MODEL_PARTS = ("forward", "backward", "optimizer", "zero_grad")  # both loops have them, and they are the work itself
GPU_STEP_MS = 45.2  # 512 photos of 34.86 GFLOP at half of an H200's 790 TFLOP/s


def summarise_rounds(rounds: Sequence[Round], steps_per_round: int, batch_size: int) -> dict[str, Any]:
    """Medians over rounds; what is lost is taken within each round."""
    lost = [100 * (each.trainer_s / each.bare_s - 1) for each in rounds]
    lost_cpu = [100 * (each.trainer_cpu_s / each.bare_cpu_s - 1) for each in rounds]
    trainer_s, bare_s = (statistics.median(getattr(each, name) for each in rounds) for name in ("trainer_s", "bare_s"))
    return {
        "batch_size": batch_size,
        "steps_per_round": steps_per_round,
        "trainer_ms": 1000 * trainer_s / steps_per_round,
        "bare_ms": 1000 * bare_s / steps_per_round,
        "photos_per_s": batch_size * steps_per_round / trainer_s,
        "lost_percent": statistics.median(lost),
        "lost_percent_by_round": lost,
        "processor_time_lost_percent": statistics.median(lost_cpu),
        "processor_time_lost_percent_by_round": lost_cpu,
        "seconds_by_round": [[each.trainer_s, each.bare_s] for each in rounds],
    }


def describe_parts(
    rounds: Sequence[Round], trainer_s: Mapping[str, float], bare_s: Mapping[str, float], num_steps: int
) -> dict[str, dict[str, float]]:
    """Milliseconds of the host a step, by part: in Trainer, in the bare loop.

    What Trainer does between its parts is the rest, so the parts add up to its step.
    """
    parts = {name: seconds for name, seconds in trainer_s.items() if name != "bare loop"}
    parts["rest"] = sum(each.trainer_s for each in rounds) - sum(parts.values())
    return {
        name: {
            "trainer_ms": 1000 * parts.get(name, 0.0) / num_steps,
            "bare_ms": 1000 * bare_s.get(name, 0.0) / num_steps,
        }
        for name in (*parts, *(name for name in bare_s if name not in parts))
    }


def host_work_ms(parts: Mapping[str, Mapping[str, float]]) -> float:
    """What Trainer adds around the model: milliseconds of the host that a GPU does not wait for."""
    return sum(part["trainer_ms"] - part["bare_ms"] for name, part in parts.items() if name not in MODEL_PARTS)


def judge_targets(entries: Mapping[str, Mapping[str, Any]], num_cores: int, num_workers: int) -> list[dict[str, Any]]:
    """The real models' contestants that have a target; whoever reads photos needs cores for its readers."""
    verdicts = []
    for key, entry in entries.items():
        for name, at_most in TARGETS.items():
            if name not in entry["contestants"] or key.startswith("small"):
                continue
            lost = entry["contestants"][name]["lost_percent"]
            has_cores = name != "pipeline" or num_cores > num_workers > 0
            is_met = lost <= at_most if has_cores else None
            verdict = {"case": key, "contestant": name, "lost_percent": lost, "at_most_percent": at_most}
            verdicts.append({**verdict, "is_met": is_met})
    return verdicts


def to_markdown(record: Mapping[str, Any]) -> str:
    """The page beside the JSON."""
    return "\n".join([*_introduction(record), *_losses(record), *_verdicts(record), *_parts(record), *_peer(record)])


def _introduction(record: Mapping[str, Any]) -> list[str]:
    settings, machine = record["settings"], record["machine"]
    width, height = settings["size"]
    return [
        "# What the Trainer costs",
        "",
        f"Written by `benchmarks/trainer_loop.py` at commit `{(record['commit'] or 'unknown')[:12]}`; every round and "
        "the versions are in the JSON beside this page.",
        "",
        f"The same training step in bf16{', compiled' if settings['compile'] else ''}, inside HF Trainer with our "
        "trainers, stream, collator and callbacks, and in a bare loop: forward, backward, clipping, fused AdamW on a "
        "batch that is ready. Both are live in one process, each on its own copy of the model, and take turns; the "
        "readers sleep while the bare loop runs. "
        f"{machine['device']}, {machine['cpu']}, {machine['num_cores']} cores, load average "
        f"{machine['load_average_before']:.1f} before, {machine['load_average_after']:.1f} after. "
        f"{settings['rounds']} rounds after one to warm up; photos are generated JPEGs of {width}x{height}, read by "
        f"{settings['num_workers']} worker(s). By the clock a step also meets whatever else runs on the "
        "machine; processor time is that of the main process alone.",
        "",
    ]


def _losses(record: Mapping[str, Any]) -> list[str]:
    lines = [
        "| model | batch | Trainer with | bare, ms | Trainer, ms | lost, % | its rounds, % | processor time lost, % |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for entry in record["cases"].values():
        for contestant in entry["contestants"].values():
            lost = contestant["lost_percent_by_round"]
            lines.append(
                f"| {entry['title']} | {contestant['batch_size']} | {contestant['title']} | "
                f"{contestant['bare_ms']:,.1f} | {contestant['trainer_ms']:,.1f} | {contestant['lost_percent']:.1f} | "
                f"{min(lost):.1f} to {max(lost):.1f} | {contestant['processor_time_lost_percent']:.1f} |"
            )
    return lines


def _verdicts(record: Mapping[str, Any]) -> list[str]:
    lines = [""]
    for verdict in record["targets"]:
        entry = record["cases"][verdict["case"]]
        met = {True: "met", False: "not met", None: "not judged, for want of a core for the readers"}[verdict["is_met"]]
        lines.append(
            f"- {entry['title']}, {entry['contestants'][verdict['contestant']]['title']}: "
            f"{verdict['lost_percent']:.1f} % lost of at most {verdict['at_most_percent']} %: {met}."
        )
    return lines


def _parts(record: Mapping[str, Any]) -> list[str]:
    lines = ["", "## Where it is lost", "", "Milliseconds of the host a step: in Trainer / in the bare loop.", ""]
    columns = [
        (entry["title"], contestant)
        for entry in record["cases"].values()
        for contestant in entry["contestants"].values()
    ]
    names = list(dict.fromkeys(name for _, contestant in columns for name in contestant["parts"]))
    lines.append("| part | " + " | ".join(f"{title}: {contestant['title']}" for title, contestant in columns) + " |")
    lines.append("| --- |" + " ---: |" * len(columns))
    for name in names:
        cells = [_cell(contestant["parts"].get(name)) for _, contestant in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    for title, contestant in columns:
        if contestant["title"] == "batches ready":
            work_ms = host_work_ms(contestant["parts"])
            lines += [
                "",
                f"{title}: outside forward, backward and optimizer the host works {work_ms:.1f} ms a step more than in "
                f"the bare loop. Beside a GPU step of {GPU_STEP_MS} ms (computed: 512 photos at half of an H200's "
                f"peak) that is {100 * work_ms / GPU_STEP_MS:.0f} %, hidden as long as nothing waits for the GPU and "
                "the host is done with its launches before the GPU is.",
            ]
    return lines


def _cell(part: Mapping[str, float] | None) -> str:
    return "-" if part is None else f"{part['trainer_ms']:,.2f} / {part['bare_ms']:,.2f}"


def _peer(record: Mapping[str, Any]) -> list[str]:
    lines = ["", "## Against `run_mae.py` of transformers, end to end", ""]
    peer = record["run_mae"]
    if peer is None:
        return [
            *lines,
            "Left out: no `--run_mae PATH` was given. On a GPU the target is twice its speed: unmeasured.",
            "",
        ]
    return [
        *lines,
        f"As shipped against `run_pretrain_mae.py` in bf16 with {record['settings']['num_workers']} worker(s), the "
        f"same photos and sizes, {peer['steps']} steps of {peer['batch_size']} photos, from the start of the readers "
        "on. Photos/s, medians of interleaved rounds:",
        "",
        "| run_mae.py | ours | ours is times | its rounds |",
        "| ---: | ---: | ---: | ---: |",
        f"| {peer['photos_per_s']['run_mae']:,.1f} | {peer['photos_per_s']['ours']:,.1f} | {peer['ours_is_times']:.2f} "
        f"| {', '.join(f'{ratio:.2f}' for ratio in peer['ours_is_times_by_round'])} |",
        "",
    ]
