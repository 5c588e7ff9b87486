"""What `docs/models.md` says of sizes and recipes is what the results and the configuration files say."""

import re

import pytest
from config_files import load
from launching import ROOT

from geomae.reporting.readme import fill_file

PAGE = ROOT / "docs/models.md"
SIZES = ("tiny", "small", "base", "large", "huge")


def test_page_shows_the_results_that_are_there() -> None:
    is_stale = fill_file(PAGE, ROOT / "results/tables.yaml", writes=False)
    assert not is_stale, "run python -m geomae.reporting fill docs/models.md"


@pytest.mark.parametrize("key", ["base_learning_rate", "layer_decay", "drop_path_rate"])
def test_recipes_on_the_page_are_those_of_the_files(key: str) -> None:
    (row,) = re.findall(rf"^\| `{key}` \|(.*)\|$", PAGE.read_text(), re.MULTILINE)
    written = [float(cell) for cell in row.split("|")]
    for size, value in zip(SIZES, written, strict=True):
        _, _, architecture, args = load(ROOT / f"configs/finetune/mae_vit_{size}_mp16.yaml")
        assert getattr(architecture if key == "drop_path_rate" else args, key) == value


@pytest.mark.parametrize("size", SIZES)
def test_decoders_are_those_of_the_files(size: str) -> None:
    _, _, architecture, _ = load(ROOT / f"configs/pretrain/mae_vit_{size}_mp16.yaml")
    assert architecture.decoder_hidden_size == 32 * architecture.decoder_num_attention_heads
    assert architecture.decoder_intermediate_size == 4 * architecture.decoder_hidden_size
