"""The training step's benchmarks: everybody learns the same, ratios are fair, what is undone changes speed alone."""

import importlib
import json
import re
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from geomae.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def benchmarks_are_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def stepping(name: str) -> Any:
    return importlib.import_module(f"stepping.{name}")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[dict[str, Any], str]]:
    """Run a benchmark in this process, since libraries take long to import; gives its JSON and its page."""

    def run_here(script: str, *words: str) -> tuple[dict[str, Any], str]:
        monkeypatch.setattr(sys, "argv", [script, "--output", str(tmp_path / "result.json"), *words])
        importlib.import_module(script).main()
        return json.loads((tmp_path / "result.json").read_text()), (tmp_path / "result.md").read_text()

    return run_here


def test_tiny_networks_go_through_every_part_of_train_step(run: Callable[..., Any]) -> None:
    words = ["--tiny", "--no-compile", "--batch_sizes", "4", "--rounds", "2", "--groups", "pretrain_thesis", "vit"]
    result, page = run("train_step", *words, "--only", "vit_mae", "thesis_mae", "timm_vit", "facebook_mae")
    settings = {(row["contestant"], row["attention"]) for case in result["cases"] for row in case["rows"]}
    assert {("geomae", "own"), ("vit_mae", "plain"), ("vit_mae", "fused"), ("timm_vit", "fused")} <= settings
    assert all(row["photos_per_s"] > 0 and row["peak_memory_mb"] > 0 for c in result["cases"] for row in c["rows"])
    assert "These are tiny networks" in page
    assert "## Targets" not in page
    assert "Left out: facebookresearch/mae: --facebook_mae names no checkout of it." in page
    headline = result["headline"]["pretrain_thesis_4_bf16"]
    assert headline["ours_over_thesis"] == headline["times_thesis_mae"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rounds", "0"], "--rounds 0: expected at least 1"),
        (["--precisions", "tf32"], "only CUDA devices have it"),
        (["--only", "vit_meh"], "--only vit_meh: pretrain_thesis, pretrain_published have only geomae"),
        (["--facebook_mae", "nowhere"], "there is no models_mae.py in it"),
    ],
)
def test_options_of_train_step_that_cannot_work_are_refused(
    run: Callable[..., Any], capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    with pytest.raises((SystemExit, ConfigError)) as refusal:
        run("train_step", *words)
    assert message in capsys.readouterr().err + str(refusal.value)


@pytest.mark.parametrize("script", ["train_step", "step_changes"])
def test_tiny_page_does_not_take_the_place_of_the_real_one(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [script, "--tiny"])
    with pytest.raises(SystemExit):
        importlib.import_module(script).main()
    assert "give another --output" in capsys.readouterr().err


def test_thesis_s_step_is_as_large_as_its_description() -> None:
    sizes, thesis = stepping("sizes"), stepping("thesis_model")
    with torch.device("meta"):
        model = thesis.ThesisMAE(sizes.VIT_BASE, sizes.DECODERS["thesis"])

    def block(width: int) -> int:  # two norms, queries, keys, values and projection, an MLP of four times the width
        return 2 * 2 * width + 4 * width * (width + 1) + 4 * width * (width + 1) + width * (4 * width + 1)

    encoder = 768 * (3 * 16 * 16 + 1) + 768 + 197 * 768 + 12 * block(768) + 2 * 768
    decoder = 384 * 769 + 384 + 197 * 384 + 4 * block(384) + 2 * 384 + 384 * 3 * 16 * 16
    assert sum(p.numel() for p in model.parameters()) == encoder + decoder
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.1}


def test_thesis_s_loss_sums_the_mean_squared_error_of_hidden_patches() -> None:
    sizes, thesis = stepping("sizes"), stepping("thesis_model")
    model = thesis.ThesisMAE(sizes.TINY, sizes.tiny_decoder(sizes.DECODERS["thesis"]))
    pictures, photos, hidden = torch.randn(2, 3, 32, 32), torch.randn(2, 3, 32, 32), torch.rand(2, 16) < 0.75
    squared = functional.avg_pool2d((pictures - photos).square(), 8).mean(dim=1)  # (2, 4, 4): the mean of each patch
    expected = (squared.flatten(1) * hidden).sum()
    assert model.loss(pictures, photos, hidden).item() == pytest.approx(expected.item(), rel=1e-5)


def test_thesis_s_great_circle_loss_is_the_mean_distance() -> None:
    loss = stepping("thesis_model").looped_great_circle_loss
    quarter = 6371.0 * torch.pi / 2
    predicted = torch.tensor([[0.0, 0.0], [90.0, 0.0], [10.0, 20.0]])
    true = torch.tensor([[0.0, 90.0], [0.0, 0.0], [10.0, 20.0]])
    assert loss(predicted, true).item() == pytest.approx(2 * quarter / 3, rel=1e-4)


def test_peers_do_the_work_of_their_papers_and_ours_does_less() -> None:
    """By hand: 12 blocks on 50 tokens, 4 on 197, 768 pixels for each; multiply-adds count as two, backward as two."""
    contestants, sizes, measure = stepping("contestants"), stepping("sizes"), stepping("measure")

    def block(tokens: int, width: int) -> int:
        return 2 * tokens * 12 * width**2 + 4 * tokens**2 * width

    flops = {}
    (group, *_) = contestants.build_groups(tiny=True, facebook_mae=None)
    batch = contestants.make_batch(2, sizes.TINY.image_size, torch.device("cpu"))
    for contestant in group.contestants:
        if not contestant.missing:
            trainee = measure.Trainee(contestant, "", torch.device("cpu"))
            setting = measure.Setting("fp32", False, contestant.attentions[0], "")
            flops[contestant.key] = trainee.count_flops(batch, setting)
    width, decoder = 32, 12
    blocks = 2 * block(5, width) + block(17, decoder)
    around = 2 * 16 * 192 * width + 2 * 5 * width * decoder + 2 * 17 * decoder * 192  # every patch in, every patch out
    pixels_have_no_gradient = 2 * 16 * 192 * width
    assert flops["vit_mae"] == pytest.approx(3 * (blocks + around) - pixels_have_no_gradient, rel=0.02)
    assert flops["thesis_mae"] == pytest.approx(flops["vit_mae"], rel=0.03)
    assert flops["geomae"] < 0.8 * flops["vit_mae"]


def test_ratios_of_steps_are_taken_within_rounds_and_targets_can_be_missed() -> None:
    contestants, measure, report = stepping("contestants"), stepping("measure"), stepping("report")
    (group, *_) = contestants.build_groups(tiny=True, facebook_mae=None)
    by_key = {each.key: each for each in group.contestants}

    def row(key: str, attention: str, *seconds: float) -> Any:
        setting = measure.Setting("bf16", False, attention, "")
        return report.Row(by_key[key], setting, flops_per_photo=1e9, seconds_by_round=list(seconds))

    rows = [row("geomae", "own", 1.0, 2.0, 1.0), row("thesis_mae", "", 2.0, 8.0, 1.0)]
    rows += [row("vit_mae", "plain", 9.0, 9.0, 9.0), row("vit_mae", "fused", 1.1, 2.2, 1.1)]
    case = report.summarise_case(
        group="pretrain_thesis", title="", batch_size=32, precision="bf16", matmul_flops=(1e12, 2e12), rows=rows
    )
    assert case["ours_over_thesis"]["by_round"] == [2.0, 4.0, 1.0]
    assert case["ours_over_thesis"]["ratio"] == 2.0
    assert case["ours_over_best_peer"]["setting"] == "eager, fused attention"
    assert case["ours_over_best_peer"]["ratio"] == pytest.approx(1.1)
    assert case["rows"][0]["mfu"] == pytest.approx(32 * 1e9 / 2e12)  # of the faster matrix product
    verdicts = {verdict["title"]: verdict for verdict in report.judge_targets([case], "CPU", "cpu")}
    assert verdicts["the thesis's code, CPU, batch 32"]["is_met"] is True
    rows[1].seconds_by_round = [1.8, 3.0, 1.8]
    case = report.summarise_case(
        group="pretrain_thesis", title="", batch_size=32, precision="bf16", matmul_flops=(1e12, 2e12), rows=rows
    )
    verdicts = {verdict["title"]: verdict for verdict in report.judge_targets([case], "CPU", "cpu")}
    assert verdicts["the thesis's code, CPU, batch 32"]["is_met"] is False
    assert verdicts["GeoMAE pretraining, MFU, H200"]["is_met"] is None


def test_tiny_networks_go_through_every_change_of_the_step(run: Callable[..., Any]) -> None:
    result, page = run("step_changes", "--tiny", "--batch_sizes", "2", "2", "2", "--rounds", "1")
    assert list(result["cases"]) == ["pretraining", "fine_tuning", "resnet"]
    assert "| attention is chosen by device | +6.0 |" in page
    assert len(re.findall(r"\| [+-]\d+\.\d to [+-]\d+\.\d \|", page)) == sum(
        len(case["changes"]) for case in result["cases"].values()
    )


def test_worth_of_a_change_is_taken_within_rounds() -> None:
    benchmark, changes = importlib.import_module("step_changes"), stepping("changes")
    case = changes.Case("one", "one", lambda tiny: None, 1, (changes.CLIP,))
    summary = benchmark.summarise(case, {"as_it_is": [1.0, 2.0, 4.0], "foreach_clip": [1.1, 2.0, 6.0]})
    assert summary["changes"]["foreach_clip"]["worth_percent"] == pytest.approx(10)
    assert summary["step_s"] == 2.0


@pytest.mark.parametrize(
    ("case", "change"),
    [
        *[
            ("pretraining", key)
            for key in ("embed_visible", "last_decoder_block", "predict_hidden", "attention", "scaled_product", "uint8")
        ],
        *[("fine_tuning", key) for key in ("last_encoder_block", "attention", "vectorised_loss")],
        ("resnet", "channels_last"),
    ],
)
def test_undoing_a_change_leaves_loss_and_gradients_alone(case: str, change: str) -> None:
    contestants, changes = stepping("contestants"), stepping("changes")
    (found,) = (each for each in changes.CASES if each.key == case)
    (undo,) = (each.undone for each in found.changes if each.key == change)
    batch = contestants.make_batch(4, 64, torch.device("cpu"))
    mean, std = (torch.tensor(values)[:, None, None] for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    floats = (batch.pixel_values / 255 - mean) / std  # as the model normalises them
    step = changes.Step(found.build(True), contestants.Batch(batch.pixel_values, floats, batch.coordinates_deg))
    found_gradients = []
    for context in (nullcontext(), undo(step)):
        step.model.zero_grad()
        torch.manual_seed(0)  # of the masks
        with context:
            loss = step.loss()
            loss.backward()
        gradients = {name: p.grad.clone() for name, p in step.model.named_parameters() if p.grad is not None}
        found_gradients.append((loss.item(), gradients))
    (loss, fast), (other_loss, slow) = found_gradients
    assert other_loss == pytest.approx(loss, rel=1e-5)
    assert fast.keys() == slow.keys()
    for name, gradient in fast.items():
        largest = gradient.abs().max().item()
        torch.testing.assert_close(slow[name], gradient, rtol=1e-3, atol=1e-4 * largest + 1e-7, msg=name)


@pytest.mark.parametrize("change", ["fused_adamw", "foreach_adamw"])
def test_every_adamw_makes_the_same_step(change: str) -> None:
    contestants, changes = stepping("contestants"), stepping("changes")
    case = changes.CASES[0]
    (undo,) = (each.undone for each in case.changes if each.key == change)
    moved = []
    for undone in (False, True):
        torch.manual_seed(0)
        step = changes.Step(case.build(True), contestants.make_batch(4, 64, torch.device("cpu")))
        before = [parameter.detach().clone() for parameter in step.parameters]
        with undo(step) if undone else nullcontext():
            step.run()
        moved.append([parameter.detach() - old for parameter, old in zip(step.parameters, before, strict=True)])
    assert max(change.abs().max().item() for change in moved[0]) > 9e-7  # the learning rate is 1e-6
    for mine, other in zip(*moved, strict=True):
        assert torch.allclose(mine, other, atol=1.3e-7)  # float32 near 1


def test_undone_steps_run_the_other_way() -> None:
    """Each undoing is seen to undo something: what it replaces is not called as before."""
    contestants, changes = stepping("contestants"), stepping("changes")
    case, undo = changes.CASES[0], {change.key: change.undone for change in changes.CASES[0].changes}
    step = changes.Step(case.build(True), contestants.make_batch(4, 64, torch.device("cpu")))
    shapes: dict[str, list[tuple[int, ...]]] = {"embedded": [], "decoded": []}
    model = step.model
    model.decoder.blocks[-1].register_forward_hook(lambda *call: shapes["decoded"].append(tuple(call[-1].shape)))
    normalise = model.geomae.pixel_normalizer.register_forward_hook
    normalise(lambda *call: shapes["embedded"].append(tuple(call[-1].shape)))
    seen = {}
    for key in ("none", "embed_visible", "last_decoder_block", "predict_hidden"):
        for each in shapes.values():
            each.clear()
        with undo[key](step) if key in undo else nullcontext():
            step.loss()
        seen[key] = (shapes["embedded"][0][1], shapes["decoded"][0][1])
    assert seen == {
        "none": (4, 12),  # 16 patches of 64 px, 4 of them visible
        "embed_visible": (16, 12),
        "last_decoder_block": (4, 17),
        "predict_hidden": (4, 16),
    }
