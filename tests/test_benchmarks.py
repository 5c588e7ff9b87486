"""The benchmarks run; what they measure is not a matter of tests."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_input_pipeline_compares_ours_with_what_decoding_alone_takes(tmp_path: Path, shared_data: Path) -> None:
    command = [sys.executable, "benchmarks/input_pipeline.py", "--shared_data", str(shared_data), "--rounds", "1"]
    command += ["--only", "ours", "ours_unshuffled", "ours_four_crops", "bound", "--memory_epochs", "2"]
    command += ["--photos", "128", "--batches", "2", "--warmup_batches", "1", "--batch_size", "16", "--no-pin"]
    command += ["--cache_dir", str(tmp_path), "--output", str(tmp_path / "result.json")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["commit"]
    page = (tmp_path / "result.md").read_text()
    for title in ("GeoMAE, not shuffled", "GeoMAE, four crops of each photo", "decode and resize alone"):
        assert f"| {title} |" in page
