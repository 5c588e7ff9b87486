"""GeoMAE: what the encoder may see, what the loss counts, and every option of the architecture."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from modeling import GeoMAEConfig, GeoMAEForGeolocation, GeoMAEForPreTraining, GeoMAEModel
from modeling.attention import DeviceAwareAttention
from modeling.patches import patchify, unpatchify


@pytest.fixture
def photos() -> Tensor:
    return torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)


@pytest.fixture
def noise() -> Tensor:
    return torch.rand(3, 16)


def pretraining_model(sizes: dict[str, Any], **options: Any) -> GeoMAEForPreTraining:
    return GeoMAEForPreTraining(GeoMAEConfig(**sizes | options)).eval()


def changed_where(photos: Tensor, mask: Tensor) -> Tensor:
    """The photos with every pixel of the patches in `mask` inverted."""
    patches = patchify(photos, 8)
    return unpatchify(torch.where(mask[..., None], 255 - patches, patches), 8, 32, 32)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def reference_loss(model: GeoMAEForPreTraining, pixels: Tensor, noise: Tensor) -> Tensor:
    """The same mathematics as the papers write it: embed everything, restore the order, predict everything."""
    encoder, decoder, config = model.geomae.encoder, model.decoder, model.config
    tokens = encoder.patch_embed.proj(pixels).flatten(2).transpose(1, 2) + encoder.pos_embed[:, 1:]
    visible_count = int(16 * (1 - config.mask_ratio))
    rows = []
    for photo in range(len(pixels)):
        order = noise[photo].argsort()
        seen = torch.cat((encoder.cls_token[0] + encoder.pos_embed[0, :1], tokens[photo, order[:visible_count]]))[None]
        for block in encoder.blocks:
            seen = block(seen)
        embedded = decoder.embedding(encoder.norm(seen))[0]
        full = decoder.mask_token[0].repeat(17, 1)
        full[0] = embedded[0]
        full[1 + order[:visible_count]] = embedded[1:]
        full = (full + decoder.pos_embed[0])[None]
        for block in decoder.blocks:
            full = block(full)
        grid = decoder.norm(full)[0, 1:].T.reshape(1, -1, 4, 4)
        squared = (decoder.prediction(grid) - pixels[photo]).square()[0]  # (3, 32, 32)
        for patch in order[visible_count:].tolist():
            top, left = 8 * (patch // 4), 8 * (patch % 4)
            rows.append(squared[:, top : top + 8, left : left + 8].mean())
    return torch.stack(rows).mean()


def test_fast_path_equals_the_written_out_reference(tiny_sizes: dict, photos: Tensor, noise: Tensor) -> None:
    model = pretraining_model(tiny_sizes).double().train()
    pixels = model.geomae.pixel_normalizer(photos).double()
    loss = model(pixels, noise).loss
    loss.backward()
    fast = gradients(model)
    model.zero_grad()
    expected = reference_loss(model, pixels, noise)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    slow = gradients(model)
    assert fast.keys() == slow.keys() == dict(model.named_parameters()).keys()
    for name in slow:
        assert torch.allclose(fast[name], slow[name], atol=1e-12), name


def test_base_model_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        model = GeoMAEForPreTraining(GeoMAEConfig())
    encoder = sum(p.numel() for p in model.backbone.parameters())
    assert encoder == 85_798_656  # ViT-B/16 without classifier: timm's and torchvision's count
    assert model.flops_per_photo() == pytest.approx(34.86e9, rel=0.001)


def test_fresh_model_tells_patch_positions_apart(tiny_sizes: dict, photos: Tensor) -> None:
    for positions in ("learned", "sincos"):
        model = GeoMAEModel(GeoMAEConfig(**tiny_sizes, position_embedding=positions)).eval()
        shuffled = unpatchify(patchify(photos, 8)[:, torch.randperm(16)], 8, 32, 32)
        assert not torch.allclose(model(photos).pooler_output, model(shuffled).pooler_output, atol=1e-4)


def test_fresh_weights_have_the_statistics_of_mae(tiny_sizes: dict) -> None:
    config = GeoMAEConfig(**tiny_sizes | {"hidden_size": 256, "intermediate_size": 512})
    model = GeoMAEForPreTraining(config)
    qkv = model.backbone.blocks[0].attn.qkv
    assert qkv.weight.abs().max().item() == pytest.approx((6 / (256 + 768)) ** 0.5, rel=0.01)  # Xavier-uniform bound
    assert (qkv.bias == 0).all()
    assert (model.backbone.norm.weight == 1).all()
    patch_projection = model.backbone.patch_embed.proj.weight
    assert patch_projection.abs().max().item() == pytest.approx((6 / (192 + 256)) ** 0.5, rel=0.01)
    assert model.backbone.pos_embed.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.decoder.pos_embed.std().item() == pytest.approx(0.02, rel=0.2)


def test_encoder_does_not_see_hidden_patches(tiny_sizes: dict, photos: Tensor, noise: Tensor) -> None:
    model = pretraining_model(tiny_sizes)
    mask = model(photos, noise).mask
    seen = model.geomae(photos, noise).last_hidden_state
    assert torch.equal(model.geomae(changed_where(photos, mask), noise).last_hidden_state, seen)
    assert not torch.allclose(model.geomae(changed_where(photos, ~mask), noise).last_hidden_state, seen)


def test_loss_ignores_visible_patches(tiny_sizes: dict, photos: Tensor, noise: Tensor) -> None:
    model = pretraining_model(tiny_sizes)
    answer = model(photos, noise)
    target = patchify(model.geomae.pixel_normalizer(photos), 8)
    squared = (answer.logits - target).square().mean(-1)  # (B, N)
    assert answer.loss.item() == pytest.approx(squared[answer.mask].mean().item(), rel=1e-5)
    assert answer.loss.item() != pytest.approx(squared.mean().item(), rel=1e-5)


def test_mask_is_true_where_a_patch_is_hidden(tiny_sizes: dict, photos: Tensor) -> None:
    noise = torch.arange(16.0).flip(0).repeat(3, 1)  # the last patches have the smallest noise: they stay visible
    answer = pretraining_model(tiny_sizes)(photos, noise)
    assert answer.mask.dtype == torch.bool
    assert answer.mask[0].tolist() == [True] * 12 + [False] * 4


@pytest.mark.parametrize(("mask_ratio", "hidden"), [(0.25, 4), (0.5, 8), (0.75, 12), (0.9, 15)])
def test_mask_ratio_sets_how_many_patches_are_hidden(
    tiny_sizes: dict, photos: Tensor, mask_ratio: float, hidden: int
) -> None:
    answer = pretraining_model(tiny_sizes, mask_ratio=mask_ratio)(photos)
    assert answer.mask.sum(dim=1).tolist() == [hidden] * 3


def test_every_photo_gets_its_own_mask_and_noise_decides_it(tiny_sizes: dict, photos: Tensor, noise: Tensor) -> None:
    model = pretraining_model(tiny_sizes)
    drawn, again = model(photos).mask, model(photos).mask
    assert not torch.equal(drawn, again)
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(model(photos, noise).logits, model(photos, noise).logits)


def test_summed_loss_is_the_mean_times_the_hidden_patches(tiny_sizes: dict, photos: Tensor, noise: Tensor) -> None:
    model = pretraining_model(tiny_sizes)
    mean = model(photos, noise).loss.item()
    model.config.loss_reduction = "sum"
    assert model(photos, noise).loss.item() == pytest.approx(mean * 3 * 12, rel=1e-5)


def test_norm_pix_loss_does_not_see_brightness_or_contrast(tiny_sizes: dict, photos: Tensor, noise: Tensor) -> None:
    model = pretraining_model(tiny_sizes, norm_pix_loss=True)
    patches = patchify(model.geomae.pixel_normalizer(photos), 8)
    predicted = torch.randn_like(patches)
    loss = model.reconstruction_loss(predicted, patches)
    assert model.reconstruction_loss(predicted, 3 * patches + 2).item() == pytest.approx(loss.item(), rel=1e-4)
    standardised = (patches - patches.mean(-1, keepdim=True)) / patches.std(-1, keepdim=True)
    assert loss.item() == pytest.approx(functional.mse_loss(predicted, standardised).item(), rel=1e-4)


def test_training_returns_the_loss_alone_unless_asked(tiny_sizes: dict, photos: Tensor, noise: Tensor) -> None:
    model = pretraining_model(tiny_sizes)
    expected = model(photos, noise)
    model.train()
    assert list(model(photos, noise)) == ["loss"]
    asked = model(photos, noise, return_logits=True)
    assert torch.equal(asked.logits, expected.logits)
    assert torch.equal(asked.ids_restore, expected.ids_restore)


def test_uint8_photos_equal_normalised_floats(tiny_sizes: dict, photos: Tensor, noise: Tensor) -> None:
    model = pretraining_model(tiny_sizes)
    floats = (photos / 255 - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[
        :, None, None
    ]
    assert model(photos, noise).loss.item() == pytest.approx(model(floats, noise).loss.item(), rel=1e-5)


def test_other_photo_sizes_work_by_interpolated_positions(tiny_sizes: dict) -> None:
    model = pretraining_model(tiny_sizes)
    photos = torch.randint(0, 256, (2, 3, 48, 64), dtype=torch.uint8)
    assert model(photos).logits.shape == (2, 6 * 8, 3 * 64)
    assert model.reconstruct(photos).restored.shape == photos.shape
    ramp = torch.linspace(0, 1, 4).repeat(4, 1).reshape(1, 16, 1).expand(1, 16, 32)  # grows from left to right
    with torch.no_grad():
        model.backbone.pos_embed[:, 1:] = ramp
        model.backbone.patch_embed.proj.weight.zero_()
    stretched = torch.zeros(1, 3, 32, 64)
    seen = []
    model.backbone.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.geomae(stretched)
    columns = seen[0][0, 1:, 0].reshape(4, 8)
    assert (columns.diff(dim=1) > 0).all()
    assert torch.allclose(columns[0], columns[3], atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "words"),
    [((2, 3, 30, 32), "30x32 pixels do not divide into patches of 8x8"), ((2, 1, 32, 32), "expected \\(B, 3, H, W\\)")],
)
def test_photos_of_impossible_shape_are_refused(tiny_sizes: dict, shape: tuple, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        pretraining_model(tiny_sizes)(torch.zeros(shape))


def test_noise_of_another_shape_is_refused(tiny_sizes: dict, photos: Tensor) -> None:
    with pytest.raises(ValueError, match=r"noise has shape \(3, 15\); expected \(B, N\) = \(3, 16\)"):
        pretraining_model(tiny_sizes)(photos, torch.rand(3, 15))


def block_flops(tokens: int, width: int, wanted: int) -> int:
    """Forward, by hand: queries, keys, values of all tokens; scores, mixing, projection and MLP of those wanted."""
    projections = 3 * tokens + wanted + 8 * wanted  # qkv, proj, two layers of the MLP
    return 2 * projections * width**2 + 4 * wanted * tokens * width


def test_work_of_a_base_model_is_what_the_architecture_demands() -> None:
    """Forward and twice as much backward, but for the pixels, which have no gradient; the head's is 3e-5 of it."""
    with torch.device("meta"):
        pretraining, geolocation = GeoMAEForPreTraining(GeoMAEConfig()), GeoMAEForGeolocation(GeoMAEConfig())
    embedding, decoding = 2 * 49 * 768 * 768, 2 * 50 * 768 * 384 + 2 * 147 * 384 * 768
    blocks = 12 * block_flops(50, 768, 50) + 3 * block_flops(197, 384, 197) + block_flops(197, 384, 147)
    assert pretraining.flops_per_photo() == pytest.approx(3 * (blocks + decoding) + 2 * embedding, rel=1e-3)
    blocks = 11 * block_flops(197, 768, 197) + block_flops(197, 768, 1)
    assert geolocation.flops_per_photo() == pytest.approx(
        3 * blocks + 2 * 4 * embedding, rel=1e-3
    )  # 196 patches, not 49


def whole_then_cut(self: Any, tokens: Tensor, blocks: Any, wanted: slice) -> Tensor:
    """As the papers write it: every block for every token, and what nobody reads is thrown away."""
    for block in blocks:
        tokens = block(tokens)
    return tokens[:, wanted]


@pytest.mark.parametrize("is_fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("options", [{}, {"pooling": "mean"}, {"drop_path_rate": 0.9, "qkv_bias": False}])
def test_geolocation_leaves_out_only_what_nobody_reads(
    tiny_sizes: dict,
    photos: Tensor,
    options: dict,
    checkpointing: bool,
    is_fused: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = GeoMAEForGeolocation(GeoMAEConfig(**tiny_sizes | options)).double().train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    coordinates, answers = torch.tensor([[10.0, 20.0], [-30.0, 150.0], [89.0, -70.0]]), []
    for forward in (type(model.geomae.run_blocks).forward, whole_then_cut):
        monkeypatch.setattr(type(model.geomae.run_blocks), "forward", forward)
        monkeypatch.setattr(DeviceAwareAttention, "fused_attn", is_fused and forward is not whole_then_cut)
        model.zero_grad()
        torch.manual_seed(0)  # of stochastic depth
        answer = model(photos, coordinates)
        answer.loss.backward()
        answers.append((answer.coordinates_deg, gradients(model)))
    assert torch.allclose(answers[0][0], answers[1][0], atol=1e-4)
    assert answers[0][1].keys() == answers[1][1].keys()
    for name, gradient in answers[0][1].items():
        assert torch.allclose(gradient, answers[1][1][name], rtol=1e-4, atol=1e-5), name


def test_a_block_takes_the_masks_that_those_of_timm_take(tiny_sizes: dict, photos: Tensor) -> None:
    encoder = GeoMAEModel(GeoMAEConfig(**tiny_sizes)).eval().backbone
    block, tokens = encoder.blocks[0], torch.randn(2, 5, encoder.embed_dim)
    only_itself = torch.zeros(5, 5).masked_fill(~torch.eye(5, dtype=torch.bool), -torch.inf)
    alone = torch.cat([block(tokens[:, i : i + 1]) for i in range(5)], dim=1)
    assert torch.allclose(block(tokens, attn_mask=only_itself), alone, atol=1e-5)


def test_a_decoder_without_blocks_predicts_the_patches_and_not_the_class_token(
    tiny_sizes: dict, photos: Tensor
) -> None:
    settings = {"decoder_num_hidden_layers": 0, "norm_pix_loss": False}
    model = GeoMAEForPreTraining(GeoMAEConfig(**tiny_sizes | settings)).eval()
    output = model(photos)
    target = model.geomae.pixel_normalizer(patchify(photos, model.config.patch_size))
    error = (output.logits - target).square().mean(dim=-1)
    assert output.loss.item() == pytest.approx(error[output.mask].mean().item(), rel=1e-5)


def test_last_block_of_a_geolocator_works_for_the_class_token_alone(tiny_sizes: dict, photos: Tensor) -> None:
    for pooling, tokens in (("cls", 1), ("mean", 17)):
        model = GeoMAEForGeolocation(GeoMAEConfig(**tiny_sizes, pooling=pooling)).eval()
        shapes: list[Any] = []
        model.backbone.blocks[-1].register_forward_hook(lambda *call, into=shapes: into.append(call[-1].shape))
        model(photos)
        model.embed(photos)
        model.geomae(photos)
        assert [shape[1] for shape in shapes] == [tokens, tokens, 17]
        assert torch.allclose(model.embed(photos), model.geomae(photos).pooler_output, atol=1e-6)
        assert model.geomae(photos, pooled_only=True).last_hidden_state is None


def test_a_layer_in_the_place_of_qkv_is_not_passed_by(tiny_sizes: dict, photos: Tensor) -> None:
    """LoRA puts one there, also in the block that answers for some tokens only."""
    model = GeoMAEForGeolocation(GeoMAEConfig(**tiny_sizes)).eval()
    before = model(photos).coordinates_deg
    model.backbone.blocks[-1].attn.qkv.register_forward_hook(lambda *call: call[-1].tanh())
    assert not torch.allclose(model(photos).coordinates_deg, before, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("task", [GeoMAEForPreTraining, GeoMAEForGeolocation])
def test_one_graph_holds_the_whole_model(tiny_sizes: dict, photos: Tensor, task: type, training: bool) -> None:
    torch.compiler.reset()
    model = task(GeoMAEConfig(**tiny_sizes)).train(training)
    second = torch.rand(3, 16) if task is GeoMAEForPreTraining else torch.rand(3, 2)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)(photos, second)
    assert compiled.loss.item() == pytest.approx(model(photos, second).loss.item(), rel=1e-5)


@pytest.mark.slow
def test_compiled_model_gives_the_same_loss_and_gradients(tiny_sizes: dict, photos: Tensor, noise: Tensor) -> None:
    torch.compiler.reset()
    model = pretraining_model(tiny_sizes).train()
    model(photos, noise).loss.backward()
    eager = gradients(model)
    model.zero_grad()
    torch.compile(model, fullgraph=True)(photos, noise).loss.backward()
    assert all(torch.allclose(grad, eager[name], atol=1e-5) for name, grad in gradients(model).items())


@pytest.mark.parametrize("task", [GeoMAEForPreTraining, GeoMAEForGeolocation])
def test_gradient_checkpointing_changes_nothing_but_memory(tiny_sizes: dict, photos: Tensor, task: type) -> None:
    model = task(GeoMAEConfig(**tiny_sizes)).train()
    second = torch.rand(3, 16) if task is GeoMAEForPreTraining else torch.rand(3, 2)
    calls = []
    model.backbone.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    model(photos, second).loss.backward()
    plain, plain_calls = gradients(model), len(calls)
    model.zero_grad()
    model.gradient_checkpointing_enable()
    model(photos, second).loss.backward()
    assert (plain_calls, len(calls) - plain_calls) == (1, 2)  # the second time, once more in the backward pass
    assert all(torch.allclose(grad, plain[name], atol=1e-6) for name, grad in gradients(model).items())


def test_bfloat16_stays_near_float32(tiny_sizes: dict, photos: Tensor, noise: Tensor) -> None:
    model = pretraining_model(tiny_sizes)
    exact = model(photos, noise).loss.item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(photos, noise).loss.item() == pytest.approx(exact, rel=0.01)
    assert model.to(torch.bfloat16)(photos, noise).loss.item() == pytest.approx(exact, rel=0.02)


def test_mean_pooling_averages_the_patch_tokens(tiny_sizes: dict, photos: Tensor) -> None:
    model = GeoMAEModel(GeoMAEConfig(**tiny_sizes)).eval()
    answer = model(photos)
    assert torch.equal(answer.pooler_output, answer.last_hidden_state[:, 0])
    model.config.pooling = "mean"
    assert torch.allclose(model(photos).pooler_output, answer.last_hidden_state[:, 1:].mean(1))


@pytest.mark.parametrize("option", ["hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate"])
def test_regularisation_works_in_training_only(tiny_sizes: dict, photos: Tensor, option: str) -> None:
    model = GeoMAEModel(GeoMAEConfig(**tiny_sizes | {option: 0.5}))
    assert not torch.equal(model.train()(photos).pooler_output, model(photos).pooler_output)
    assert torch.equal(model.eval()(photos).pooler_output, model(photos).pooler_output)


def test_drop_path_grows_with_depth(tiny_sizes: dict) -> None:
    model = GeoMAEModel(GeoMAEConfig(**tiny_sizes | {"num_hidden_layers": 3, "drop_path_rate": 0.2}))
    assert isinstance(model.encoder.blocks[0].drop_path1, nn.Identity)
    assert [b.drop_path1.drop_prob for b in list(model.encoder.blocks)[1:]] == pytest.approx([0.1, 0.2])


def test_sincos_positions_are_fixed_and_learned_ones_are_not(tiny_sizes: dict) -> None:
    for positions, learned in (("sincos", False), ("learned", True)):
        model = pretraining_model(tiny_sizes, position_embedding=positions)
        assert model.backbone.pos_embed.requires_grad == model.decoder.pos_embed.requires_grad == learned


@pytest.mark.parametrize(
    ("option", "value"), [("qkv_bias", False), ("layer_norm_eps", 0.5), ("initializer_range", 0.3)]
)
def test_remaining_options_reach_the_network(tiny_sizes: dict, option: str, value: Any) -> None:
    backbone = pretraining_model(tiny_sizes, **{option: value}).backbone
    reached = {
        "qkv_bias": backbone.blocks[0].attn.qkv.bias is not None,
        "layer_norm_eps": backbone.blocks[0].norm1.eps,
        "initializer_range": round(backbone.pos_embed.std().item(), 1),
    }
    assert reached[option] == value


@pytest.mark.parametrize("width", range(33, 129, 5))
def test_mlp_has_exactly_the_width_that_was_asked_for(tiny_sizes: dict, width: int) -> None:
    model = pretraining_model(
        tiny_sizes | {"hidden_size": 36}, intermediate_size=width, decoder_intermediate_size=width
    )
    assert model.backbone.blocks[0].mlp.fc1.out_features == model.decoder.blocks[0].mlp.fc1.out_features == width


def test_reconstruction_keeps_visible_pixels_and_greys_hidden_ones(tiny_sizes: dict, photos: Tensor) -> None:
    pictures = pretraining_model(tiny_sizes).reconstruct(photos)
    hidden = unpatchify(pictures.mask[..., None].expand(-1, -1, 192), 8, 32, 32)
    assert torch.equal(pictures.original, photos)
    assert torch.equal(pictures.masked[~hidden], photos[~hidden])
    assert (pictures.masked[hidden] == 128).all()
    assert torch.equal(pictures.restored[~hidden], photos[~hidden])
    assert not torch.equal(pictures.restored[hidden], photos[hidden])


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_a_perfect_prediction_restores_the_photo(
    tiny_sizes: dict, photos: Tensor, noise: Tensor, norm_pix_loss: bool
) -> None:
    model = pretraining_model(tiny_sizes, norm_pix_loss=norm_pix_loss)
    target = patchify(model.geomae.pixel_normalizer(photos), 8)
    if norm_pix_loss:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()

    class Oracle(nn.Module):
        def forward(self, encoded: Any, height: int, width: int, *, hidden_only: bool) -> Tensor:
            order = torch.cat((encoded.ids_visible, encoded.ids_masked), dim=1)
            return target.gather(1, order[..., None].expand(-1, -1, target.shape[-1]))

    model.decoder = Oracle()
    assert model(photos, noise).loss.item() == pytest.approx(0, abs=1e-9)
    assert torch.equal(model.reconstruct(photos, noise).restored, photos)


def test_attention_is_plain_on_the_cpu_and_the_same_number_fused(tiny_sizes: dict, photos: Tensor) -> None:
    model = GeoMAEModel(GeoMAEConfig(**tiny_sizes)).eval()
    attention = model.encoder.blocks[0].attn
    assert not attention.fused_attn
    tokens = torch.randn(2, 5, 32)
    plain = attention(tokens)
    q, k, v = attention.qkv(tokens).reshape(2, 5, 3, 4, 8).permute(2, 0, 3, 1, 4)
    fused = attention.proj(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 5, 32))
    assert torch.allclose(plain, fused, atol=1e-6)
    assert attention.to("meta").fused_attn


def test_a_few_steps_learn_to_restore_a_photo(tiny_sizes: dict) -> None:
    columns = torch.arange(32).float()
    photo = (127 + 100 * torch.sin(columns / 6)).to(torch.uint8).expand(1, 3, 32, 32).contiguous()
    model = pretraining_model(tiny_sizes).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = model(photo).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) / 5 < 0.15 * losses[0]


def test_geolocation_uses_every_patch_and_reports_errors(tiny_sizes: dict, photos: Tensor) -> None:
    model = GeoMAEForGeolocation(GeoMAEConfig(**tiny_sizes, head_type="sphere")).eval()
    truth = torch.tensor([[10.0, 20.0], [-30.0, 170.0], [0.0, 0.0]])
    answer = model(photos, truth)
    assert answer.loss.item() == pytest.approx(answer.error_km.mean().item())
    for patch in range(16):
        one_hidden = torch.zeros(3, 16, dtype=torch.bool)
        one_hidden[:, patch] = True
        changed = model(changed_where(photos, one_hidden)).coordinates_deg
        assert not torch.equal(changed, answer.coordinates_deg)
