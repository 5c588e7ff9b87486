"""What `docs/retrieval.md` and the section on calibration tell a user to type works, with what our commands make."""

import hashlib
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torch
from packed_photos import TINY, pack
from test_makefile import outside_make

from geomae.data import load_photos
from geomae.evaluation import read_metrics
from geomae.evaluation.known_test_sets import KNOWN_TEST_SETS, KnownTestSet
from geomae.retrieval.__main__ import main
from modeling import GeoMAEConfig, GeoMAEForPreTraining

ROOT = Path(__file__).resolve().parent.parent
SPLITS_OF_EARTH = {"train": 120, "validation": 24, "test_im2gps": 8, "test_im2gps3k": 20}  # `make earth` has no `test`


def commands_of(document: str, module: str) -> list[list[str]]:
    """The words after `python -m module` of every command in a document's shell blocks."""
    text = (ROOT / "docs" / document).read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
    lines = [shlex.split(line) for line in blocks.splitlines()]
    return [words[3:] for words in lines if words[:3] == ["python", "-m", module]]


def test_every_command_of_the_document_runs_on_the_splits_of_make_earth(tmp_path, monkeypatch):
    pytest.importorskip("faiss")
    monkeypatch.chdir(tmp_path)
    packed = pack(tmp_path / "outputs" / "earth" / "data", **SPLITS_OF_EARTH)
    for split in ("test_im2gps", "test_im2gps3k"):
        ids = sorted(load_photos(packed, split)["id"])
        known = KnownTestSet(len(ids), hashlib.sha256("\n".join(ids).encode()).hexdigest(), "")
        monkeypatch.setitem(KNOWN_TEST_SETS, split.removeprefix("test_"), known)
    torch.manual_seed(0)
    GeoMAEForPreTraining(GeoMAEConfig(**TINY)).save_pretrained("outputs/earth/pretrain")
    commands = commands_of("retrieval.md", "geomae.retrieval")
    assert [words[0] for words in commands] == ["index", "search", "search"]
    for words in commands:
        main(words)
    for folder in ("retrieval", "retrieval_fixed"):
        assert read_metrics(f"outputs/earth/{folder}")["test_set"]["num_photos"] == 20


def test_make_makes_the_checkpoints_that_the_documents_take():
    calibrate = [words for words in commands_of("evaluation.md", "geomae.evaluation") if words[0] == "calibrate"]
    commands = [*calibrate, *commands_of("retrieval.md", "geomae.retrieval")]
    checkpoints = {words[words.index("--checkpoint") + 1] for words in commands}
    assert calibrate
    for checkpoint in sorted(checkpoints):
        target = f"{checkpoint}/model.safetensors"
        made = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, env=outside_make())
        assert made.returncode == 0, made.stderr
