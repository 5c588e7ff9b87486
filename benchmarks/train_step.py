"""One training step of GeoMAE beside those of its peers and of the thesis: photos/s, TFLOP/s, MFU, peak memory.

    python benchmarks/train_step.py
    python benchmarks/train_step.py --groups vit resnet --no-compile --output outputs/benchmarks/regressors.json
    python benchmarks/train_step.py --device cuda --batch_sizes 256 512 --seconds 2 --rounds 5 \
        --groups pretrain_thesis pretrain_published vit resnet --output results/benchmarks/train_step_h200.json

Every contestant trains in every one of its settings: plain and fused attention, channels_last or not, and compiled in
the one that is fastest without. What its best setting reaches is compared, within rounds that interleave them all. Two
peers are left out, and the result says so, unless they are there:

    pip install ".[bench]"                                          # lightly
    git clone https://github.com/facebookresearch/mae ../mae       # and --facebook_mae ../mae

By default pretraining is measured with the thesis's decoder and with the published one, in bf16, in batches of 32, on
one CPU thread. Takes about eight minutes on two cores, half of them to compile. On an H200 or an A100 the last command
is the one to run; --precisions fp32 tf32 bf16 compares precisions. Writes the JSON and a page of tables beside it.
"""

import argparse
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where modeling/ lies

import torch
from recording import write_results

from geomae.errors import ConfigError, GeoMAEError
from geomae.provenance import find_commit, find_versions
from machine import describe_machine
from stepping.contestants import GROUP_KEYS, Group, build_groups
from stepping.measure import clock_of
from stepping.report import headline, judge_targets, to_markdown
from stepping.rounds import Plan, measure_group

_PACKAGES = ("torch", "torchvision", "timm", "transformers", "lightly", "numpy")
_SETTINGS = ("batch_sizes", "precisions", "compile", "rounds", "steps", "seconds", "threads", "tiny")
_OUTPUT = Path("results/benchmarks/train_step.json")


def main() -> None:
    """Build the models, run the rounds, write the results."""
    arguments = _parse_arguments()
    torch.set_num_threads(arguments.threads)
    device, commit, load_before = torch.device(arguments.device), find_commit(), os.getloadavg()[0]
    groups, left_out = _choose_groups(arguments)
    plan = Plan(
        batch_sizes=arguments.batch_sizes,
        precisions=arguments.precisions,
        compiles=arguments.compile,
        num_rounds=arguments.rounds,
        num_steps=arguments.steps,
        seconds=arguments.seconds,
    )
    cases = [case for group in groups for case in measure_group(group, plan, device)]
    clock = "wall" if clock_of(device) is time.perf_counter else "cpu"
    machine = {**describe_machine(device, load_before), "clock": clock}
    record = {
        "commit": commit,
        "versions": find_versions(_PACKAGES),
        "machine": machine,
        "settings": {name: getattr(arguments, name) for name in _SETTINGS},
        "left_out": left_out,
        "headline": headline(cases),
        "cases": cases,
        "targets": [] if arguments.tiny else judge_targets(cases, machine["device"], device.type),
    }
    write_results(arguments.output, record, to_markdown)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="(%(default)s)")
    parser.add_argument("--groups", nargs="+", choices=GROUP_KEYS, default=list(GROUP_KEYS[:2]), help="(%(default)s)")
    parser.add_argument("--only", nargs="+", metavar="KEY", help="contestants to run beside ours; all by default")
    parser.add_argument("--facebook_mae", type=Path, help="a checkout of facebookresearch/mae; left out without one")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[32], help="photos of a step (%(default)s)")
    parser.add_argument(
        "--precisions",
        nargs="+",
        choices=("fp32", "tf32", "bf16"),
        default=["bf16"],
        help="fp32 is without TF32 (%(default)s)",
    )
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=True, help="compiled as well as eager (%(default)s)"
    )
    parser.add_argument("--threads", type=int, default=1, help="of the CPU (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="in each, everything runs once (%(default)s)")
    parser.add_argument("--steps", type=int, default=1, help="of a round, at least (%(default)s)")
    parser.add_argument("--seconds", type=float, default=0.0, help="of a round, at least (%(default)s)")
    parser.add_argument("--tiny", action="store_true", help="tiny networks, which say nothing of speed: for tests")
    parser.add_argument("--output", type=Path, default=_OUTPUT, help="JSON; the page lies beside it (%(default)s)")
    arguments = parser.parse_args()
    try:
        _check(arguments)
    except ConfigError as error:
        parser.error(str(error))
    return arguments


def _check(arguments: argparse.Namespace) -> None:
    least = {"batch_sizes": min(arguments.batch_sizes)}
    least |= {name: getattr(arguments, name) for name in ("threads", "rounds", "steps")}
    for name, value in least.items():
        if value < 1:
            raise ConfigError(f"--{name} {value}: expected at least 1.")
    if arguments.seconds < 0:
        raise ConfigError(f"--seconds {arguments.seconds}: expected at least 0.")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: there is no CUDA device here.")
    if arguments.device == "cpu" and "tf32" in arguments.precisions:
        raise ConfigError("--precisions tf32: only CUDA devices have it; leave it out, or add --device cuda.")
    if arguments.facebook_mae and not (arguments.facebook_mae / "models_mae.py").is_file():
        raise ConfigError(
            f"--facebook_mae {arguments.facebook_mae}: there is no models_mae.py in it. "
            "Give the folder of a clone of https://github.com/facebookresearch/mae."
        )
    if arguments.tiny and arguments.output == _OUTPUT:
        raise ConfigError(f"--tiny: its page would take the place of {_OUTPUT}; give another --output.")


def _choose_groups(arguments: argparse.Namespace) -> tuple[list[Group], dict[str, str]]:
    """Those that were asked for, with the contestants that can run, and why the others cannot."""
    groups = build_groups(tiny=arguments.tiny, facebook_mae=arguments.facebook_mae)
    groups = [group for group in groups if group.key in arguments.groups]
    known = {each.key: each for group in groups for each in group.contestants}
    if unknown := set(arguments.only or ()) - set(known):
        raise ConfigError(
            f"--only {' '.join(sorted(unknown))}: {', '.join(arguments.groups)} have only {', '.join(known)}."
        )
    wanted = {key for key, each in known.items() if not arguments.only or key in arguments.only or each.role == "ours"}
    left_out = {known[key].title: known[key].missing for key in known if key in wanted and known[key].missing}
    for group in groups:
        group.contestants[:] = [each for each in group.contestants if each.key in wanted and not each.missing]
    return groups, left_out


if __name__ == "__main__":
    try:
        main()
    except GeoMAEError as error:
        sys.exit(f"{type(error).__name__}: {error}")
