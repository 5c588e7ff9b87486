"""Checkpoint folders from anybody: nothing in them is run, and what does not fit is refused before it takes memory."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from modeling import (
    GeoBaselineConfig,
    GeoBaselineForGeolocation,
    GeoMAEConfig,
    GeoMAEForGeolocation,
    load_encoder_weights,
    load_geolocator,
)
from modeling.checkpoint_guard import MAX_JSON_BYTES, read_json

SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
SIZES |= {"image_size": 32, "patch_size": 16, "head_hidden_sizes": [8]}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    GeoMAEForGeolocation(GeoMAEConfig(**SIZES)).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change_config(folder: Path, **changes: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": 32_000_000}, r"hidden_size=32000000 cannot be: expected int from 1 to 65,536"),
        ({"num_hidden_layers": 10**7}, "from 1 to 1,000"),
        ({"intermediate_size": 2**40}, "intermediate_size=1099511627776 cannot be"),
        ({"num_attention_heads": 0}, "num_attention_heads=0 cannot be"),
        ({"hidden_size": "32"}, 'hidden_size="32" cannot be'),
        ({"mask_ratio": "x"}, "expected float"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps=NaN"),
        ({"image_mean": "abc"}, "expected list"),
        ({"head_hidden_sizes": [8] * 2000}, r"head_hidden_sizes=\[8, 8.*\.\.\. cannot be"),
        ({"num_geocells": [2, 10**10]}, "num_geocells"),
        ({"num_labels": 10**9}, "num_labels=1000000000"),
        ({"dtype": "evil"}, "dtype='evil' is none of float32"),
        ({"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil"}}, "model_type 'evil'; expected geomae or geo"),
        ({"attn_implementation": "evil/kernel"}, "asks for other code by attn_implementation"),
        ({"_attn_implementation": "evil/kernel"}, "asks for other code by _attn_implementation"),
        ({"quantization_config": {"quant_method": "evil"}}, "asks for other code by quantization_config"),
    ],
)
def test_configurations_that_cannot_be_are_refused_by_their_key(
    checkpoint: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        load_geolocator(change_config(checkpoint, **changes))


@pytest.mark.parametrize("changes", [{"id2label": [1]}, {"sub_configs": 1}, {"__class__": 5}, {"to_dict": 5}], ids=str)
def test_keys_of_transformers_that_cannot_be_end_in_one_kind_of_error(
    checkpoint: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=r"no model can be built from .*config\.json: \w+Error: "):
        load_geolocator(change_config(checkpoint, **changes))


@pytest.mark.parametrize("options", [{"act_layer": "nope"}, {"features_only": True}, {"norm_layer": {"a": 1}}], ids=str)
def test_options_of_timm_that_cannot_be_end_in_one_kind_of_error(tmp_path: Path, options: dict[str, Any]) -> None:
    GeoBaselineForGeolocation(GeoBaselineConfig(backbone="resnet10t", image_size=32)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no model can be built from .*config\.json: \w+Error"):
        load_geolocator(change_config(tmp_path, backbone_kwargs=options))


def test_a_configuration_too_deep_or_too_large_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"config.json cannot be read as JSON: maximum recursion"):
        load_geolocator(checkpoint)
    large = tmp_path / "large.json"
    with large.open("wb") as file:
        file.truncate(MAX_JSON_BYTES + 1)
    with pytest.raises(ValueError, match="more than 16,777,216 bytes"):
        read_json(large)


def test_shapes_that_do_not_fit_are_listed(checkpoint: Path) -> None:
    change_config(checkpoint, hidden_size=16)
    with pytest.raises(ValueError, match=r"\d+ tensors of other shapes .*cls_token \(1, 1, 32\) for \(1, 1, 16\)"):
        load_geolocator(checkpoint)


def test_weights_that_lack_a_tensor_are_not_filled_with_chance(checkpoint: Path) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    lost = weights.pop("geomae.encoder.cls_token")
    save_file({**weights, "geomae.encoder.other": lost}, checkpoint / "model.safetensors")
    with pytest.raises(ValueError, match=r"lacks 1 of the \d+ tensors .*: geomae.encoder.cls_token. They would be"):
        load_geolocator(checkpoint)


def test_a_pickle_is_refused_by_its_name_and_never_opened(checkpoint: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "opened"),)

    (checkpoint / "model.safetensors").unlink()
    torch.save(Evil(), checkpoint / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"no model.safetensors: pytorch_model.bin is a pickle, which can run code"):
        load_geolocator(checkpoint)
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize("name", ["../outside.safetensors", "/outside.safetensors", "a\\b.safetensors", "model.bin"])
def test_an_index_does_not_lead_out_of_its_folder(checkpoint: Path, name: str) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint.parent / "outside.safetensors")
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ValueError, match="which is no safetensors file of this folder"):
        load_geolocator(checkpoint)
    with pytest.raises(ValueError, match="which is no safetensors file of this folder"):
        load_encoder_weights(GeoMAEForGeolocation(GeoMAEConfig(**SIZES)), checkpoint)


@pytest.mark.parametrize("content", [b"", b"junk" * 99, b"\xff" * 8 + b"{}", (2).to_bytes(8, "little") + b"{}"])
def test_weights_that_are_none_are_named(checkpoint: Path, content: bytes) -> None:
    (checkpoint / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"model.safetensors is no whole safetensors file|lacks \d+ of the"):
        load_geolocator(checkpoint)


@pytest.mark.parametrize("content", [b"", b"junk" * 99, b"PK\3\4" + b"a" * 99])
def test_a_pth_that_is_none_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"a.pth is no whole file of weights"):
        load_encoder_weights(GeoMAEForGeolocation(GeoMAEConfig(**SIZES)), tmp_path / "a.pth")
    torch.save([1, 2], tmp_path / "b.pth")
    with pytest.raises(ValueError, match="holds a list; expected tensors by name"):
        load_encoder_weights(GeoMAEForGeolocation(GeoMAEConfig(**SIZES)), tmp_path / "b.pth")


@pytest.mark.parametrize(
    "changes",
    [
        {"backbone": "hf-hub:evil/model"},
        {"backbone": "local-dir:/tmp"},
        {"backbone_kwargs": {"checkpoint_path": "/tmp/a.pth"}},
        {"backbone_kwargs": {"pretrained": True}},
        {"backbone_kwargs": {"embed_dim": 10**9}},
        {"backbone_kwargs": {"depth": 10**6}},
    ],
)
def test_a_baseline_is_built_from_its_name_and_sizes_alone(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = GeoBaselineConfig(backbone="resnet18", image_size=32, head_hidden_sizes=[8])
    GeoBaselineForGeolocation(config).save_pretrained(tmp_path)
    assert load_geolocator(tmp_path).config.backbone == "resnet18"
    with pytest.raises(ValueError, match="is no model of timm that is built from its name and sizes alone"):
        load_geolocator(change_config(tmp_path, **changes))
