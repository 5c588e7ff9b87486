"""transformers' own example of masked pretraining, from a path that the user gives, against our script end to end."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from geomae.errors import ConfigError

__all__ = ["compare_with_run_mae"]

ROOT = Path(__file__).resolve().parents[2]
# GeoMAE's defaults in the words of ViTMAEConfig, whose own decoder is twice as deep and wider.
SIZES = {
    "decoder_hidden_size": 384,
    "decoder_num_hidden_layers": 4,
    "decoder_num_attention_heads": 12,
    "decoder_intermediate_size": 1536,
}


def compare_with_run_mae(script: Path, jpegs: Path, packed: Path, output_dir: Path, options: Any) -> dict[str, Any]:
    """Photos per second that each says of itself, for each round, and their ratio.

    Args:
        script: `examples/pytorch/image-pretraining/run_mae.py` of the transformers that is installed.
        jpegs: folder of the photos.
        packed: the same photos in our shards.
        output_dir: of the runs.
        options: `batch_size`, `num_workers`, `rounds`, `run_mae_steps` and `device` of the command line.

    Raises:
        ConfigError: the script is not there, or a run failed; the message ends in what it said.
    """
    if not script.is_file():
        raise ConfigError(f"--run_mae {script}: there is no such file; name run_mae.py of a transformers checkout")
    speeds: dict[str, list[float]] = {"run_mae": [], "ours": []}
    for number in range(options.rounds):
        for name, command, result in (
            ("run_mae", _their_command(script, jpegs, options), "train_results.json"),
            ("ours", _our_command(packed, options), "trainer_state.json"),
        ):
            folder = output_dir / f"{name}_{number}"
            _run([*command, "--output_dir", str(folder)], output_dir)
            speeds[name].append(_read_speed(folder / result))
    ratios = [ours / theirs for theirs, ours in zip(speeds["run_mae"], speeds["ours"], strict=True)]
    return {
        "steps": options.run_mae_steps,
        "batch_size": options.batch_size,
        "photos_per_s": {name: statistics.median(values) for name, values in speeds.items()},
        "photos_per_s_by_round": speeds,
        "ours_is_times": statistics.median(ratios),
        "ours_is_times_by_round": ratios,
    }


def _their_command(script: Path, jpegs: Path, options: Any) -> list[str]:
    """As its README starts it, on local photos; precision and readers are its defaults."""
    sizes = ",".join(f"{name}={size}" for name, size in SIZES.items())
    command = [sys.executable, str(script), "--dataset_name", "imagefolder", "--train_dir", f"{jpegs}/**"]
    command += ["--remove_unused_columns", "False", "--label_names", "pixel_values", "--do_train"]
    command += ["--config_overrides", sizes, "--mask_ratio", "0.75", "--norm_pix_loss"]
    command += ["--base_learning_rate", "1.5e-4", "--lr_scheduler_type", "cosine", "--weight_decay", "0.05"]
    return [*command, *_common(options), *(["--use_cpu"] if options.device == "cpu" else [])]


def _our_command(packed: Path, options: Any) -> list[str]:
    command = [sys.executable, str(ROOT / "run_pretrain_mae.py"), "--data_dirs", str(packed), "--validation_split"]
    command += ["null", "--norm_pix_loss", "true", "--bf16", "true", "--optim", "adamw_torch_fused"]
    command += ["--base_learning_rate", "1.5e-4", "--weight_decay", "0.05", "--dataloader_num_workers"]
    command += [str(options.num_workers), "--torch_compile", str(options.compile).lower()]
    return [*command, *_common(options), *(["--use_cpu", "true"] if options.device == "cpu" else [])]


def _common(options: Any) -> Sequence[str]:
    return (
        *("--max_steps", str(options.run_mae_steps), "--per_device_train_batch_size", str(options.batch_size)),
        *("--save_strategy", "no", "--report_to", "none", "--disable_tqdm", "True"),
    )


def _run(command: Sequence[str], folder: Path) -> None:
    """Without the Hub: everything that is read is here."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "datasets")}
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **offline}, capture_output=True, text=True)
    if done.returncode:
        raise ConfigError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")


def _read_speed(path: Path) -> float:
    """`train_samples_per_second` of a results file, or of the last log of a trainer's state."""
    content = json.loads(path.read_text(encoding="utf-8"))
    entry = content["log_history"][-1] if "log_history" in content else content
    return float(entry["train_samples_per_second"])
