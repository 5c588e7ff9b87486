"""What `docs/recipes.md` promises works through the scripts: public weights, continued pretraining, mixed sources."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from packed_photos import TINY, pack, rows
from safetensors.torch import load_file
from source_files import write_photos
from test_configs import ROOT
from transformers import ViTMAEConfig, ViTMAEForPreTraining

import run_finetune_geo
import run_pretrain_mae
from geomae.data.layout import shard_name
from geomae.data.shards import PhotoRow, write_shard
from geomae.training import StreamingTrainer
from modeling.patches import sincos_positions

SIZES = {name: value for name, value in TINY.items() if not name.startswith(("decoder", "head"))}
STILL = ["--learning_rate", "1e-12", "--weight_decay", "0", "--max_steps", "1", "--disable_tqdm"]
STILL += ["--eval_strategy", "no", "--load_best_model_at_end", "false", "--save_strategy", "no"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("photos"), train=16, validation=4)


def public_mae(folder: Path, layout: str) -> tuple[Path, torch.Tensor, torch.Tensor]:
    """Weights as the public MAE has them, of a tiny size: the file, and the queries' and the patches' weights in it."""
    peer = ViTMAEForPreTraining(ViTMAEConfig(**SIZES))
    with torch.no_grad():  # the released weights have these positions; transformers makes zeros of a fresh model's
        peer.vit.embeddings.position_embeddings.copy_(sincos_positions(SIZES["hidden_size"], 2))
    queries = peer.vit.layers[1].attention.q_proj.weight.detach()
    patches = peer.vit.embeddings.patch_embeddings.projection.weight.detach()
    if layout == "transformers":
        peer.save_pretrained(folder / "vit-mae-tiny")
        return folder / "vit-mae-tiny", queries, patches
    torch.save({"model": in_facebooks_names(peer)}, folder / "mae_pretrain_vit_tiny.pth")
    return folder / "mae_pretrain_vit_tiny.pth", queries, patches


def in_facebooks_names(peer: Any) -> dict[str, torch.Tensor]:
    """The same tensors under the names of facebookresearch/mae, and some of its decoder."""
    tensors = {"cls_token": peer.vit.embeddings.cls_token, "pos_embed": peer.vit.embeddings.position_embeddings}
    projection = peer.vit.embeddings.patch_embeddings.projection
    modules = {"patch_embed.proj": projection, "norm": peer.vit.layernorm}
    for number, layer in enumerate(peer.vit.layers):
        block = f"blocks.{number}"
        modules |= {f"{block}.norm1": layer.layernorm_before, f"{block}.norm2": layer.layernorm_after}
        modules |= {f"{block}.attn.proj": layer.attention.o_proj}
        modules |= {f"{block}.mlp.fc1": layer.mlp.fc1, f"{block}.mlp.fc2": layer.mlp.fc2}
        parts = [layer.attention.q_proj, layer.attention.k_proj, layer.attention.v_proj]
        for kind in ("weight", "bias"):
            tensors[f"{block}.attn.qkv.{kind}"] = torch.cat([getattr(part, kind) for part in parts])
    for name, module in modules.items():
        tensors |= {f"{name}.weight": module.weight, f"{name}.bias": module.bias}
    tensors |= {"mask_token": torch.zeros(1, 1, 16), "decoder_embed.weight": torch.zeros(16, 16)}
    return {name: tensor.detach() for name, tensor in tensors.items()}


def words(architecture: dict[str, Any]) -> list[str]:
    listed = {key: value if isinstance(value, list) else [value] for key, value in architecture.items()}
    return [word for key, value in listed.items() for word in (f"--{key}", *map(str, value))]


@pytest.mark.parametrize("layout", ["transformers", "facebook"])
@pytest.mark.parametrize("script", ["pretrain", "finetune"])
def test_both_scripts_start_from_public_mae_weights_in_both_layouts(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], layout: str, script: str
) -> None:
    source, queries, patches = public_mae(tmp_path, layout)
    main = run_pretrain_mae.main if script == "pretrain" else run_finetune_geo.main
    start = [str(ROOT / f"configs/{script}/smoke.yaml"), "--data_dirs", str(photos), "--init_from", str(source)]
    main([*start, "--output_dir", str(tmp_path / "run"), "--position_embedding", "sincos", *words(TINY), *STILL])
    weights = load_file(tmp_path / "run/model.safetensors")
    prefix = "geomae.encoder." if "geomae.encoder.norm.weight" in weights else "encoder."
    assert torch.allclose(weights[f"{prefix}blocks.1.attn.qkv.weight"][: len(queries)], queries, atol=1e-6)
    assert torch.allclose(weights[f"{prefix}patch_embed.proj.weight"], patches, atol=1e-6)
    assert f"Loaded {6 + 2 * 12} tensors of the backbone from {source}" in capsys.readouterr().out  # all of 2 blocks


def unlabelled(folder: Path, num_photos: int) -> Path:
    folder.mkdir()
    found = (PhotoRow(f"more-{row.id}", row.image) for row in rows("train", 5, num_photos))
    write_shard(folder / shard_name("train", 0, 1), found, optional_columns=(), digest="unlabelled")
    return folder


def test_pretraining_goes_on_with_labelled_and_unlabelled_packs_and_loose_photos_at_once(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more, loose = unlabelled(tmp_path / "more", 8), write_photos(tmp_path / "loose", [f"{n}.jpg" for n in range(8)])
    first = [str(ROOT / "configs/pretrain/smoke.yaml"), *words(TINY), "--disable_tqdm"]
    run_pretrain_mae.main([*first, "--data_dirs", str(photos), "--output_dir", str(tmp_path / "first")])
    seen: list[str] = []
    step = StreamingTrainer.training_step

    def record(self: Any, model: Any, inputs: Any, *rest: Any) -> Any:
        seen.extend(inputs["ids"])
        return step(self, model, inputs, *rest)

    monkeypatch.setattr(StreamingTrainer, "training_step", record)
    mixed = ["--data_dirs", str(photos), str(more), str(loose), "--init_from", str(tmp_path / "first")]
    run_pretrain_mae.main([*first, *mixed, "--output_dir", str(tmp_path / "second"), "--max_steps", "4"])
    labelled = {f"train-{shard}-{number}" for shard in (0, 1) for number in range(8)}
    others = {f"more-train-5-{number}" for number in range(8)} | {f"{number}.jpg" for number in range(8)}
    assert len(seen) == 32
    assert set(seen) == labelled | others
    logs = json.loads((tmp_path / "second/trainer_state.json").read_text())["log_history"]
    assert any("eval_loss" in entry for entry in logs)
    assert all(0 < entry["loss"] < float("inf") for entry in itertools.islice((e for e in logs if "loss" in e), 4))
