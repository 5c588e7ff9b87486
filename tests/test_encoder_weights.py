"""Weights in and out: numerically the same network as timm's and transformers', whoever wrote the checkpoint."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from transformers import PreTrainedModel, ViTConfig, ViTMAEConfig, ViTMAEForPreTraining, ViTMAEModel, ViTModel

from modeling import (
    GeoBaselineConfig,
    GeoBaselineForGeolocation,
    GeoMAEConfig,
    GeoMAEForGeolocation,
    GeoMAEForPreTraining,
    GeoMAEModel,
    export_encoder,
    load_embedder,
    load_encoder_weights,
    load_geolocator,
)

PEER_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
    "layer_norm_eps": 1e-6,
}


@pytest.fixture
def photos() -> Tensor:
    return torch.randn(3, 3, 32, 32)


def randomise(model: torch.nn.Module) -> torch.nn.Module:
    """Fill everything, positions too, with numbers that would show any mix-up."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn_like(parameter))
    return model.eval()


def timm_peer(**options: Any) -> VisionTransformer:
    settings = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 2}
    return randomise(VisionTransformer(**settings | {"num_classes": 0} | options))


def geolocator(sizes: dict[str, Any], **options: Any) -> GeoMAEForGeolocation:
    return GeoMAEForGeolocation(GeoMAEConfig(**sizes | options)).eval()


def test_encoder_computes_what_timm_computes(tiny_sizes: dict, photos: Tensor, tmp_path: Path) -> None:
    peer = timm_peer()
    torch.save(peer.state_dict(), tmp_path / "vit.pth")
    model = geolocator(tiny_sizes)
    report = load_encoder_weights(model, tmp_path / "vit.pth")
    assert torch.allclose(model.geomae(photos).last_hidden_state, peer.forward_features(photos), atol=1e-5)
    assert len(report.loaded) == len(peer.state_dict())
    assert not report.unused
    assert set(report.new) == {f"head.{name}" for name, _ in model.head.named_parameters()}


def test_encoder_computes_what_transformers_vitmae_computes(tiny_sizes: dict, photos: Tensor, tmp_path: Path) -> None:
    peer = randomise(ViTMAEForPreTraining(ViTMAEConfig(**PEER_SIZES)))
    assert peer.vit.embeddings.position_embeddings.abs().max() > 0
    peer.save_pretrained(tmp_path)
    model = GeoMAEForPreTraining(GeoMAEConfig(**tiny_sizes)).eval()
    report = load_encoder_weights(model, tmp_path)
    noise = torch.rand(3, 16)
    expected = peer.vit(photos, noise=noise)
    assert torch.allclose(model.geomae(photos, noise).last_hidden_state, expected.last_hidden_state, atol=1e-5)
    answer = model(photos, noise)
    assert torch.equal(answer.mask, expected.mask.bool())
    assert torch.equal(answer.ids_restore, expected.ids_restore)
    assert any(name.startswith("decoder.") for name in report.unused)


@pytest.mark.parametrize("masked", [False, True])
def test_both_dialects_of_transformers_names_load(
    tiny_sizes: dict, photos: Tensor, tmp_path: Path, masked: bool
) -> None:
    peer = randomise(ViTMAEModel(ViTMAEConfig(**PEER_SIZES)) if masked else ViTModel(ViTConfig(**PEER_SIZES)))
    save_file(peer.state_dict(), tmp_path / "in_memory_names.safetensors")  # `layers.0.attention.q_proj`
    peer.save_pretrained(tmp_path / "on_disk_names")  # `encoder.layer.0.attention.attention.query`
    answers = []
    for source in ("in_memory_names.safetensors", "on_disk_names"):
        model = geolocator(tiny_sizes)
        load_encoder_weights(model, tmp_path / source)
        answers.append(model.geomae(photos).last_hidden_state)
    assert torch.equal(answers[0], answers[1])
    if not masked:
        assert torch.allclose(answers[0], peer(photos).last_hidden_state, atol=1e-5)


def test_facebook_style_checkpoint_loads_without_its_decoder(tiny_sizes: dict, photos: Tensor, tmp_path: Path) -> None:
    peer = timm_peer()
    decoder = {"mask_token": torch.zeros(1, 1, 16), "decoder_embed.weight": torch.zeros(16, 32)}
    torch.save({"model": peer.state_dict() | decoder, "epoch": 799}, tmp_path / "mae_pretrain_vit.pth")
    model = geolocator(tiny_sizes)
    report = load_encoder_weights(model, tmp_path / "mae_pretrain_vit.pth")
    assert report.unused == ("decoder_embed.weight", "mask_token")
    assert torch.allclose(model.geomae(photos).last_hidden_state, peer.forward_features(photos), atol=1e-5)
    assert "Unused in the checkpoint: decoder_embed.weight, mask_token" in str(report)


def test_positions_of_another_photo_size_are_interpolated_and_reported(tiny_sizes: dict, tmp_path: Path) -> None:
    peer = timm_peer(img_size=64)
    torch.save(peer.state_dict(), tmp_path / "vit.pth")
    model = geolocator(tiny_sizes)
    assert load_encoder_weights(model, tmp_path / "vit.pth").resized == ("pos_embed",)
    peer.set_input_size(img_size=(32, 32))
    assert torch.allclose(model.backbone.pos_embed, peer.pos_embed, atol=1e-6)


def test_pretraining_checkpoint_initialises_a_geolocator(tiny_sizes: dict, photos: Tensor, tmp_path: Path) -> None:
    pretrained = randomise(GeoMAEForPreTraining(GeoMAEConfig(**tiny_sizes)))
    pretrained.save_pretrained(tmp_path)
    model = geolocator(tiny_sizes, head_type="sphere")
    report = load_encoder_weights(model, tmp_path)
    by_transformers = GeoMAEForGeolocation.from_pretrained(tmp_path, head_type="sphere").eval()
    expected = pretrained.geomae(photos).last_hidden_state
    for loaded in (model, by_transformers):
        assert torch.equal(loaded.geomae(photos).last_hidden_state, expected)
    assert "Fresh in the model" in str(report)
    assert any("head.layers" in name for name in report.new)
    first_layer = by_transformers.head.layers[0]
    assert 0 < first_layer.weight.abs().max() <= (6 / (32 + 16)) ** 0.5
    assert (first_layer.bias == 0).all()


def test_pretraining_that_goes_on_keeps_its_decoder_where_the_sizes_are_the_same(
    tiny_sizes: dict, photos: Tensor, tmp_path: Path
) -> None:
    peer = randomise(GeoMAEForPreTraining(GeoMAEConfig(**tiny_sizes)))
    peer.save_pretrained(tmp_path)
    model = GeoMAEForPreTraining(GeoMAEConfig(**tiny_sizes)).eval()
    report = load_encoder_weights(model, tmp_path)
    noise = torch.rand(3, 16)
    assert torch.equal(model(photos, noise).loss, peer(photos, noise).loss)
    assert not [name for name in (*report.new, *report.unused) if name.startswith("decoder.")]
    assert "Loaded of the decoder: decoder." in str(report)
    smaller = GeoMAEForPreTraining(GeoMAEConfig(**{**tiny_sizes, "decoder_num_hidden_layers": 1}))
    before = {name: tensor.clone() for name, tensor in smaller.decoder.state_dict().items()}
    report = load_encoder_weights(smaller, tmp_path)
    assert all(torch.equal(before[name], tensor) for name, tensor in smaller.decoder.state_dict().items())
    assert report.decoder == ()
    assert all(name.startswith("decoder.") for name in report.new)


def test_encoder_exports_to_timm(tiny_sizes: dict, photos: Tensor, tmp_path: Path) -> None:
    model = randomise(geolocator(tiny_sizes))
    path = export_encoder(model, tmp_path / "new" / "encoder.safetensors")
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 2}
    peer = timm.create_model("vit_base_patch16_224", num_classes=0, checkpoint_path=str(path), **sizes).eval()
    assert torch.allclose(peer.forward_features(photos), model.geomae(photos).last_hidden_state, atol=1e-5)


def test_baseline_loads_timm_weights(tmp_path: Path) -> None:
    peer = randomise(timm.create_model("resnet10t", num_classes=10))
    torch.save(peer.state_dict(), tmp_path / "resnet.pth")
    model = GeoBaselineForGeolocation(GeoBaselineConfig(backbone="resnet10t", head_hidden_sizes=[4])).eval()
    report = load_encoder_weights(model, tmp_path / "resnet.pth")
    photos = torch.randn(2, 3, 64, 64)
    assert torch.allclose(model.backbone(photos), peer.forward_head(peer.forward_features(photos), pre_logits=True))
    assert set(report.unused) == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"embed_dim": 48}, "does not fit the model in .* tensors: .*48.* for .*32"),
        ({"depth": 1}, "has 18 of the backbone's 30 tensors; missing are blocks.1.attn"),
    ],
)
def test_weights_that_do_not_fit_change_nothing(tiny_sizes: dict, tmp_path: Path, options: dict, words: str) -> None:
    torch.save(timm_peer(**options).state_dict(), tmp_path / "vit.pth")
    model = geolocator(tiny_sizes)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=words):
        load_encoder_weights(model, tmp_path / "vit.pth")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_missing_files_say_what_was_looked_for(tiny_sizes: dict, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"looked for model\.safetensors"):
        load_encoder_weights(geolocator(tiny_sizes), tmp_path)
    with pytest.raises(ValueError, match="does not exist: give a checkpoint folder, a weight file or a Hub id"):
        load_encoder_weights(geolocator(tiny_sizes), tmp_path / "nowhere.pth")


@pytest.mark.parametrize("size", [32, 64])
def test_fixed_positions_take_the_table_of_their_own_grid(tiny_sizes: dict, tmp_path: Path, size: int) -> None:
    sizes = tiny_sizes | {"position_embedding": "sincos"}
    GeoMAEForPreTraining(GeoMAEConfig(**sizes | {"image_size": size})).save_pretrained(tmp_path)
    model = geolocator(sizes)
    table = model.backbone.pos_embed.clone()
    load_encoder_weights(model, tmp_path)
    assert torch.equal(model.backbone.pos_embed, table)


def test_learned_positions_are_refused_by_a_model_of_fixed_ones(tiny_sizes: dict, tmp_path: Path) -> None:
    torch.save(timm_peer().state_dict(), tmp_path / "vit.pth")
    with pytest.raises(ValueError, match=r"positions of its own.*set position_embedding to learned"):
        load_encoder_weights(geolocator(tiny_sizes, position_embedding="sincos"), tmp_path / "vit.pth")


def test_unknown_name_is_neither_a_folder_nor_on_the_hub(tiny_sizes: dict) -> None:
    with pytest.raises(ValueError, match="outputs/typo is no folder here, and the Hub could not give a repository"):
        load_encoder_weights(geolocator(tiny_sizes), "outputs/typo")


def test_a_pickle_with_code_in_it_is_refused(tiny_sizes: dict, tmp_path: Path) -> None:
    torch.save({"model": timm_peer()}, tmp_path / "whole_module.pth")
    with pytest.raises(ValueError, match=r"holds more than tensors, and loading it could run code"):
        load_encoder_weights(geolocator(tiny_sizes), tmp_path / "whole_module.pth")


@pytest.mark.parametrize("kind", ["geomae", "geobaseline"])
def test_geolocator_loads_by_its_folder_alone(tiny_sizes: dict, tmp_path: Path, kind: str) -> None:
    model: PreTrainedModel
    if kind == "geomae":
        model = geolocator(tiny_sizes)
    else:
        model = GeoBaselineForGeolocation(GeoBaselineConfig(backbone="resnet10t", image_size=32)).eval()
    model.save_pretrained(tmp_path)
    loaded, photos = load_geolocator(tmp_path), torch.randn(2, 3, 32, 32)
    assert type(loaded) is type(model)
    assert not loaded.training
    assert torch.equal(loaded(photos).coordinates_deg, model(photos).coordinates_deg)


def test_pretraining_checkpoint_is_no_geolocator(tiny_sizes: dict, tmp_path: Path) -> None:
    GeoMAEForPreTraining(GeoMAEConfig(**tiny_sizes)).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match="holds a GeoMAEForPreTraining, which answers no coordinates: fine-tune it first"
    ):
        load_geolocator(tmp_path)
    with pytest.raises(ValueError, match="nowhere is not a checkpoint: there is no such folder"):
        load_geolocator(tmp_path / "nowhere")


@pytest.mark.parametrize("content", ["{", "[]", '{"architectures": {}}', "\ud800"])
def test_broken_configuration_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    named = r"config\.json (is no configuration of a model|cannot be read as JSON|holds a list)|holds a unknown"
    with pytest.raises(ValueError, match=named):
        load_geolocator(tmp_path)


@pytest.mark.parametrize("model_class", [GeoMAEModel, GeoMAEForPreTraining, GeoMAEForGeolocation])
def test_every_kind_of_checkpoint_embeds_photos_as_its_own_encoder_pools_them(
    tiny_sizes: dict, tmp_path: Path, model_class: type[PreTrainedModel]
) -> None:
    model = model_class(GeoMAEConfig(**tiny_sizes, pooling="mean")).eval()
    model.save_pretrained(tmp_path)
    loaded, photos = load_embedder(tmp_path), torch.randn(3, 3, 32, 32)
    tokens = model.base_model(photos).last_hidden_state
    assert not loaded.training
    assert torch.equal(loaded.embed(photos), model.embed(photos))
    assert torch.allclose(loaded.embed(photos), tokens[:, 1:].mean(dim=1))
    in_half = loaded.bfloat16().embed(photos)
    assert (in_half.dtype, in_half.shape) == (torch.float32, (3, 32))


def test_a_baseline_embeds_photos_as_its_backbone_pools_them(tmp_path: Path) -> None:
    model = GeoBaselineForGeolocation(GeoBaselineConfig(backbone="resnet10t", image_size=32)).eval()
    model.save_pretrained(tmp_path)
    photos = torch.randn(2, 3, 32, 32)
    features = load_embedder(tmp_path).embed(photos)
    assert torch.allclose(features, model.backbone(photos), atol=1e-5)  # which gets them with channels last
    assert torch.equal(model.head(features).coordinates_deg, model(photos).coordinates_deg)


def test_a_folder_without_a_model_of_ours_embeds_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not a checkpoint: it has no config\.json"):
        load_embedder(tmp_path)
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}')
    with pytest.raises(ValueError, match="holds a BertModel, which is no model of GeoMAE"):
        load_embedder(tmp_path)


def test_fixed_positions_stay_fixed_after_loading(tiny_sizes: dict, tmp_path: Path) -> None:
    GeoMAEForPreTraining(GeoMAEConfig(**tiny_sizes, position_embedding="sincos")).save_pretrained(tmp_path)
    model = GeoMAEModel.from_pretrained(tmp_path)
    assert not model.encoder.pos_embed.requires_grad
    assert model.encoder.cls_token.requires_grad
