"""Measurements -> medians, ratios, targets and Markdown tables."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from loading.measure import Measurement, MemoryOfEpoch
from loading.pipelines import Pipeline

__all__ = ["cores_needed", "judge_memory", "judge_targets", "markdown_table", "medians_and_ratios", "to_markdown"]

# The ratio ours / other that we want at least. Stated before the measurement; a miss is reported as one.
TARGETS = {
    "thesis": 4.0,
    "run_mae": 4.0,
    "webdataset": 2.5,
    "mosaicml": 2.5,
    "bound": 0.85,
    "ours_unshuffled": 0.90,
}
MOST_MEMORY_GROWTH = 0.05  # of the peak, from the second epoch to the last

# Photos per second that a training step of 16-bit forward and backward takes from its chip: FLOP of the model by the
# chip's dense peak (A100: 312 TFLOP/s) or by what was measured on it (H200: 790 TFLOP/s).
LIMITS = (
    ("GeoMAE, one A100 at 50 %", 4365),
    ("GeoMAE, one A100 at 100 %", 8731),
    ("GeoMAE, eight A100s at 50 %", 8 * 4365),
    ("GeoMAE, eight A100s at 100 %", 8 * 8731),
    ("GeoMAE, one H200 at 50 %", 11053),
    ("GeoMAE, one H200 at 100 %", 22107),
    ("ViT-B/16 supervised, one A100 at 50 %", 1484),
    ("ViT-B/16 supervised, eight A100s at 50 %", 8 * 1484),
    ("ViT-B/16 supervised, one H200 at 50 %", 3756),
)


# Each peer as its users run it; said, because it is not all of the work that is ours.
_WHAT_DIFFERS = (
    "Each peer does what its users do. The PIL pipelines give normalised float32, ours and torchvision's uint8, which "
    "the model normalises on its device; `run_mae.py` crops 20 to 100 % of the area by bicubic interpolation, the "
    "others 66 to 100 % by bilinear. Nearest to ours in what they deliver are torchvision's `decode_jpeg` with v2 "
    "transforms, and decoding and resizing alone.\n"
)


def medians_and_ratios(
    pipelines: Sequence[Pipeline], rounds: Mapping[str, Sequence[Measurement]]
) -> dict[str, dict[str, Any]]:
    """One entry for each pipeline that was measured.

    Args:
        pipelines: their titles and order.
        rounds: measurements by key, one a round; ratios compare those of the same round.
    """
    entries = {}
    for pipeline in pipelines:
        runs = rounds[pipeline.key]
        pairs = list(zip(rounds["ours"], runs, strict=True))
        entries[pipeline.key] = {
            "title": pipeline.title,
            "photos_per_s": median(run.photos_per_s for run in runs),
            "photos_per_worker_core_s": median(run.photos_per_core_s for run in runs),
            "main_cpu_ms_per_1000_photos": median(run.main_cpu_ms_per_1000 for run in runs),
            "ours_is_times": {
                "photos_per_s": median(own.photos_per_s / run.photos_per_s for own, run in pairs),
                "photos_per_worker_core_s": median(own.photos_per_core_s / run.photos_per_core_s for own, run in pairs),
            },
            "ours_is_times_by_round": [own.photos_per_core_s / run.photos_per_core_s for own, run in pairs],
            "rounds": [asdict(run) for run in runs],
        }
    return entries


def judge_targets(entries: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each target beside what was measured, judged by photos per worker-core-second."""
    verdicts = []
    for key, target in TARGETS.items():
        if key in entries:
            ratios = entries[key]["ours_is_times"]
            verdict = {"compared_with": key, "title": entries[key]["title"], "at_least": target, **ratios}
            by_round = entries[key]["ours_is_times_by_round"]
            spread = {"least": min(by_round), "most": max(by_round)}
            verdicts.append(verdict | spread | {"is_met": ratios["photos_per_worker_core_s"] >= target})
    return verdicts


def judge_memory(epochs: Sequence[MemoryOfEpoch]) -> dict[str, Any]:
    """Growth of the peak behind the first epoch, which fills the caches."""
    growth = epochs[-1].peak_uss_mb / epochs[1].peak_uss_mb - 1
    return {
        "epochs": [asdict(epoch) for epoch in epochs],
        "growth_of_peak": growth,
        "at_most": MOST_MEMORY_GROWTH,
        "is_met": growth <= MOST_MEMORY_GROWTH,
    }


def cores_needed(entries: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Worker cores that feed accelerators at their limits, with our pipeline and with the thesis's."""
    needs = []
    for title, limit in LIMITS:
        cores = {key: limit / entries[key]["photos_per_worker_core_s"] for key in ("ours", "thesis") if key in entries}
        needs.append({"title": title, "photos_per_s": limit, "worker_cores": cores})
    return needs


def to_markdown(record: Mapping[str, Any]) -> str:
    """The record as a page."""
    parts = [
        _heading(record),
        _pipelines_table(record["pipelines"]),
        *(f"Left out: {title}: {reason}.\n" for title, reason in record["left_out"].items()),
        "## Targets\n",
        _targets_table(record["targets"]),
        _WHAT_DIFFERS,
        _memory_table(record["memory"]) if record["memory"] else "",
        _cores_table(record["cores_needed"]),
    ]
    return "\n".join(part for part in parts if part)


def _heading(record: Mapping[str, Any]) -> str:
    machine, photos, settings = record["machine"], record["photos"], record["settings"]
    placed = "workers and main process on cores of their own" if machine["is_pinned"] else "placed by the scheduler"
    return (
        "# From files on disk to batches of 224x224 crops\n\n"
        f"Written by `benchmarks/input_pipeline.py` at commit `{str(record['commit'])[:12]}`; every round and the "
        "versions are in the JSON beside this page.\n\n"
        f"{photos['count']:,} JPEGs of {photos['width']}x{photos['height']}, quality {photos['quality']}, "
        f"{photos['mean_kilobytes']:.1f} KB in the mean, in the page cache. {machine['cpu']}, "
        f"{machine['num_cores']} cores, {placed}. {settings['num_workers']} DataLoader worker(s), batches of "
        f"{settings['batch_size']}. Medians of {settings['rounds']} interleaved rounds; ratios are medians of the "
        "ratios within a round. A core-second is processor time of the worker; the column main is processor time of "
        "the process that receives the batches.\n"
    )


def _pipelines_table(entries: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        [
            entry["title"],
            f"{entry['photos_per_s']:,.0f}",
            f"{entry['photos_per_worker_core_s']:,.0f}",
            f"{entry['main_cpu_ms_per_1000_photos']:.0f}",
            f"{entry['ours_is_times']['photos_per_s']:.2f}",
            f"{entry['ours_is_times']['photos_per_worker_core_s']:.2f}",
        ]
        for entry in entries.values()
    ]
    header = ["pipeline", "photos/s", "photos/worker-core-s", "main ms/1,000", "ours/it, wall", "ours/it, core-s"]
    return markdown_table(header, rows)


def _targets_table(verdicts: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            f"ours / {verdict['title']}",
            f"{verdict['at_least']:.2f}",
            f"{verdict['photos_per_worker_core_s']:.2f}",
            f"{verdict['least']:.2f} to {verdict['most']:.2f}",
            f"{verdict['photos_per_s']:.2f}",
            "met" if verdict["is_met"] else "**missed**",
        ]
        for verdict in verdicts
    ]
    header = ["ratio", "at least", "per worker-core-s", "its rounds", "by the wall", "judged by the median"]
    return markdown_table(header, rows)


def _memory_table(memory: Mapping[str, Any]) -> str:
    rows = [
        [str(number), *(f"{epoch[key]:.0f}" for key in ("peak_uss_mb", "last_uss_mb", "peak_rss_mb"))]
        for number, epoch in enumerate(memory["epochs"], start=1)
    ]
    verdict = "met" if memory["is_met"] else "**missed**"
    return (
        "## Memory of our worker\n\n"
        + markdown_table(["epoch", "peak USS, MB", "USS at its end, MB", "peak RSS, MB"], rows)
        + f"\nThe peak grows by {memory['growth_of_peak']:.1%} from the second epoch to the last; "
        f"at most {memory['at_most']:.0%}: {verdict}.\n"
    )


def _cores_table(needs: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            need["title"],
            f"{need['photos_per_s']:,}",
            *(f"{need['worker_cores'][key]:.1f}" if key in need["worker_cores"] else "-" for key in ("ours", "thesis")),
        ]
        for need in needs
    ]
    return (
        "## Worker cores that feed an accelerator\n\n"
        "The limit is computed from the FLOP of a step, not measured; the cores are the limit divided by photos per "
        "worker-core-second above.\n\n"
        + markdown_table(["training", "photos/s", "cores, ours", "cores, the thesis"], rows)
    )


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    """A table whose first column is text and whose others are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
