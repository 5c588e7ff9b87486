"""Steps' seconds -> medians, ratios, targets and Markdown tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from loading.report import markdown_table
from stepping.contestants import Contestant
from stepping.measure import Setting

__all__ = ["TARGETS", "Row", "Target", "headline", "judge_targets", "summarise_case", "to_markdown"]


@dataclass
class Row:
    """One contestant in one setting, at one batch size."""

    contestant: Contestant
    setting: Setting
    first_step_s: float = 0.0  # with compilation
    flops_per_photo: float = 0.0
    peak_bytes: float = 0.0
    seconds_by_round: list[float] = field(default_factory=list)
    """Of a step."""

    error: str = ""
    """Why there is no measurement."""


@dataclass(frozen=True)
class Target:
    """What we want at least. Stated before the measurement; a miss is reported as one."""

    title: str
    group: str
    where: str
    """`cpu` or `cuda`, or a part of the device's name."""

    quantity: str
    """`ours_over_thesis`, `ours_over_best_peer`, `mfu` or `photos_per_s`."""

    at_least: float


TARGETS = (
    Target("the thesis's code, CPU, batch 32", "pretrain_thesis", "cpu", "ours_over_thesis", 1.9),
    Target("the best peer's best setting, CPU, batch 32", "pretrain_thesis", "cpu", "ours_over_best_peer", 1.05),
    Target("GeoMAE pretraining, MFU, H200", "pretrain_thesis", "H200", "mfu", 0.5),
    Target("GeoMAE pretraining, photos/s, H200", "pretrain_thesis", "H200", "photos_per_s", 11_000),
    Target("ten times the thesis's 546 photos/s on an A100, any GPU", "pretrain_thesis", "cuda", "photos_per_s", 5460),
    Target("ViT-B/16 supervised, photos/s, H200", "vit", "H200", "photos_per_s", 3700),
    Target("ResNet-152 supervised, MFU, any GPU", "resnet", "cuda", "mfu", 0.35),
)
BATCH_SIZE_ON_CPU = 32
RATIOS = ("ours_over_thesis", "ours_over_best_peer")

_WHAT_DIFFERS = (
    "Compiled is each in the setting that was fastest uncompiled. "
    "A step is forward, backward, clipping, AdamW and zero_grad on a batch that is ready on the device. Ours gets "
    "uint8 and normalises it within the step; everybody else gets normalised floats that are ready. All but the "
    "thesis's get the fused AdamW; the thesis's gets torch's default. The peers of the regressors answer two numbers "
    "under a plain squared error; ours has its head, the great-circle loss and the error in km. Bf16 is autocast for "
    "everybody, for the thesis's too, which trained in fp16. FLOP are each model's own, as it computes them: a model "
    "that does needless work has more TFLOP/s for it, not more photos/s. Peak memory is that of the tensors: weights, "
    "gradients, AdamW's state, activations.\n"
)
_TINY = "**These are tiny networks, for the tests: nothing here says anything of speed, and no target is judged.**\n"


def summarise_case(
    *, group: str, title: str, batch_size: int, precision: str, matmul_flops: Sequence[float], rows: Sequence[Row]
) -> dict[str, Any]:
    """What was measured of one group at one batch size in one precision.

    Args:
        group: its key.
        title: of the group.
        batch_size: photos of a step.
        precision: of everybody.
        matmul_flops: FLOP/s of a matrix product on the same device, before and after.
        rows: every contestant in every setting; those with an error have no numbers. Ratios compare seconds of the
            same round, of each contestant's best setting by its median.
    """
    case: dict[str, Any] = {"group": group, "title": title, "batch_size": batch_size, "precision": precision}
    case["matmul_tflops"] = [flops / 1e12 for flops in matmul_flops]
    case["rows"] = [_summarise_row(row, batch_size, max(matmul_flops)) for row in rows]
    best: dict[str, Row] = {}
    for row in sorted((row for row in rows if not row.error), key=lambda row: median(row.seconds_by_round)):
        best.setdefault(row.contestant.key, row)  # the first is the fastest
    case["best_settings"] = {key: str(row.setting) for key, row in best.items()}
    by_role: dict[str, Row] = {}
    for row in best.values():
        by_role.setdefault(row.contestant.role, row)
    case["ours"] = by_role["ours"].contestant.key if "ours" in by_role else None
    for role, name in (("peer", "ours_over_best_peer"), ("thesis", "ours_over_thesis")):
        case[name] = _compare(by_role["ours"], by_role[role]) if {"ours", role} <= by_role.keys() else None
    others = [row for row in best.values() if row.contestant.role != "ours"]
    case["ours_over_each"] = [_compare(by_role["ours"], row) for row in others] if "ours" in by_role else []
    return case


def _summarise_row(row: Row, batch_size: int, matmul_flops: float) -> dict[str, Any]:
    contestant, setting = row.contestant, row.setting
    entry = {
        "contestant": contestant.key,
        "title": contestant.title,
        "role": contestant.role,
        "setting": str(setting),
        "compiled": setting.compiled,
        "attention": setting.attention,
        "memory_format": setting.memory_format,
    }
    if row.error:
        return entry | {"error": row.error}
    photos_per_s = batch_size / median(row.seconds_by_round)
    flops = photos_per_s * row.flops_per_photo
    return entry | {
        "photos_per_s": photos_per_s,
        "tflops": flops / 1e12,
        "mfu": flops / matmul_flops,
        "gflop_per_photo": row.flops_per_photo / 1e9,
        "peak_memory_mb": row.peak_bytes / 1e6,
        "first_step_s": row.first_step_s,
        "seconds_by_round": row.seconds_by_round,
    }


def _compare(ours: Row, other: Row) -> dict[str, Any]:
    by_round = [theirs / own for own, theirs in zip(ours.seconds_by_round, other.seconds_by_round, strict=True)]
    return {
        "compared_with": other.contestant.key,
        "title": other.contestant.title,
        "setting": str(other.setting),
        "ratio": median(by_round),
        "by_round": by_round,
    }


def headline(cases: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """What documents quote: by group, batch size and precision, ours at its best and the medians of the ratios."""
    quoted = {}
    for case in cases:
        rows = [row for row in case["rows"] if row["contestant"] == case["ours"] and "error" not in row]
        if not rows:
            continue
        best = max(rows, key=lambda row: row["photos_per_s"])
        ratios = {name: case[name]["ratio"] for name in RATIOS if case[name]}
        peers = {f"times_{each['compared_with']}": each["ratio"] for each in case["ours_over_each"]}
        ours = {"photos_per_s": best["photos_per_s"], "mfu_percent": 100 * best["mfu"]}
        quoted[f"{case['group']}_{case['batch_size']}_{case['precision']}"] = ours | ratios | peers
    return quoted


def judge_targets(cases: Sequence[Mapping[str, Any]], device_name: str, device_type: str) -> list[dict[str, Any]]:
    """Each target beside what was measured of it in bf16, the best of the batch sizes; None where it was not."""
    verdicts = []
    for target in TARGETS:
        fits = target.where == device_type or target.where in device_name
        found = [_look_up(case, target) for case in cases if fits and _is_of(case, target)]
        measured = max((each for each in found if each), key=lambda each: each["measured"], default=None)
        verdict = {"title": target.title, "quantity": target.quantity, "at_least": target.at_least}
        verdicts.append(verdict | (measured or {"measured": None, "rounds": [], "with": ""}))
        verdicts[-1]["is_met"] = measured["measured"] >= target.at_least if measured else None
    return verdicts


def _is_of(case: Mapping[str, Any], target: Target) -> bool:
    right_size = target.where != "cpu" or case["batch_size"] == BATCH_SIZE_ON_CPU
    return case["group"] == target.group and case["precision"] == "bf16" and right_size


def _look_up(case: Mapping[str, Any], target: Target) -> dict[str, Any] | None:
    if target.quantity in RATIOS:
        if not (ratio := case[target.quantity]):
            return None
        what = f"{ratio['title']}, {ratio['setting']}"
        return {"measured": ratio["ratio"], "rounds": ratio["by_round"], "with": what}
    if case["ours"] is None:
        return None
    best = max(
        (row for row in case["rows"] if row["contestant"] == case["ours"] and "error" not in row),
        key=lambda row: row["photos_per_s"],
    )
    median_s = median(best["seconds_by_round"])
    rounds = [best[target.quantity] * median_s / seconds for seconds in best["seconds_by_round"]]
    return {"measured": best[target.quantity], "rounds": rounds, "with": f"batch {case['batch_size']}"}


def to_markdown(record: Mapping[str, Any]) -> str:
    """The record as a page."""
    parts = [
        _heading(record),
        _TINY if record["settings"]["tiny"] else "",
        *(f"Left out: {title}: {reason}.\n" for title, reason in record["left_out"].items()),
        *(_case_section(case) for case in record["cases"]),
        "## What is compared\n",
        _WHAT_DIFFERS,
        *(("## Targets\n", _targets_table(record["targets"])) if record["targets"] else ()),
    ]
    return "\n".join(part for part in parts if part)


def _heading(record: Mapping[str, Any]) -> str:
    machine, settings = record["machine"], record["settings"]
    clock = "Seconds are those that the one thread's core worked, so that what else runs counts little."
    if machine["clock"] == "wall":
        clock = "Seconds are those of the clock on the wall."
    return (
        "# One training step\n\n"
        f"Written by `benchmarks/train_step.py` at commit `{str(record['commit'])[:12]}`; every round and the versions "
        "are in the JSON beside this page.\n\n"
        f"{machine['device']}. {machine['cpu']}, {machine['num_cores']} cores, load "
        f"{machine['load_average_before']:.1f} before and {machine['load_average_after']:.1f} after. Medians of "
        f"{settings['rounds']} rounds, in each of which every row runs once, in random order; ratios are "
        f"medians of the ratios within a round. {clock} MFU is the model's FLOP/s by those of a matrix product in the "
        "same precision, on the same device with as many threads, the faster of one before and one after the rounds.\n"
    )


def _case_section(case: Mapping[str, Any]) -> str:
    before, after = case["matmul_tflops"]
    header = ["contestant", "setting", "photos/s", "GFLOP/photo", "TFLOP/s", "MFU, %", "peak MB", "first step, s"]
    lines = [
        f"## {case['title']}: batch {case['batch_size']}, {case['precision']}\n",
        f"Matrix product: {before:.3f} TFLOP/s before, {after:.3f} after.\n",
        markdown_table(header, [_cells(row) for row in case["rows"]]),
    ]
    if case["ours_over_each"]:
        header = ["ours, at its best, is times", "in its best setting", "ratio", "its rounds"]
        rows = [
            [each["title"], each["setting"], f"{each['ratio']:.2f}", _span(each["by_round"], 2)]
            for each in case["ours_over_each"]
        ]
        ours = f"Ours at its best: {case['ours']}, {case['best_settings'][case['ours']]}.\n"
        lines += [ours, markdown_table(header, rows)]
    return "\n".join(lines)


def _cells(row: Mapping[str, Any]) -> list[str]:
    if "error" in row:
        return [row["title"], row["setting"], row["error"].replace("|", "/"), "", "", "", "", ""]
    return [
        row["title"],
        row["setting"],
        f"{row['photos_per_s']:,.2f}" if row["photos_per_s"] < 100 else f"{row['photos_per_s']:,.0f}",
        f"{row['gflop_per_photo']:.1f}",
        f"{row['tflops']:.3f}" if row["tflops"] < 10 else f"{row['tflops']:.0f}",
        f"{100 * row['mfu']:.1f}",
        f"{row['peak_memory_mb']:,.0f}",
        f"{row['first_step_s']:.1f}",
    ]


def _targets_table(verdicts: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for verdict in verdicts:
        digits = 0 if verdict["quantity"] == "photos_per_s" else 2
        name = f"ours / {verdict['title']}" if verdict["quantity"] in RATIOS else verdict["title"]
        measured = "" if verdict["measured"] is None else f"{verdict['measured']:,.{digits}f}"
        word = {True: "met", False: "**missed**", None: "unmeasured"}[verdict["is_met"]]
        at_least = f"{verdict['at_least']:,.{digits}f}"
        rows.append([name, at_least, measured, _span(verdict["rounds"], digits), verdict["with"], word])
    return markdown_table(["target", "at least", "measured", "its rounds", "with", "judged by the median"], rows)


def _span(values: Sequence[float], digits: int) -> str:
    return f"{min(values):,.{digits}f} to {max(values):,.{digits}f}" if values else ""
