"""The baselines: timm's networks as timm initialises them, under our heads."""

import pytest
import timm
import torch

from modeling import GeoBaselineConfig, GeoBaselineForGeolocation, to_degrees, to_unit_vectors

SMALL = {"backbone": "resnet10t", "image_size": 32, "head_hidden_sizes": [8]}
SMALL_VIT = {
    "backbone": "vit_tiny_patch16_224",
    "backbone_kwargs": {"depth": 2, "embed_dim": 24, "num_heads": 3},
    "image_size": 32,
    "head_hidden_sizes": [8],
}


@pytest.mark.parametrize(
    ("backbone", "parameters", "gflop"),
    [("resnet152", 58_143_808, 69.1), ("vit_base_patch16_224", 85_798_656, 105.2)],  # timm's counts without classifier
)
def test_baselines_of_the_thesis_have_their_published_sizes(backbone: str, parameters: int, gflop: float) -> None:
    with torch.device("meta"):
        model = GeoBaselineForGeolocation(GeoBaselineConfig(backbone=backbone))
    assert sum(p.numel() for p in model.backbone.parameters()) == parameters
    assert model.flops_per_photo() / 1e9 == pytest.approx(gflop, rel=0.005)


@pytest.mark.parametrize("sizes", [SMALL, SMALL_VIT])
def test_fresh_backbone_keeps_the_initialisation_of_timm(sizes: dict) -> None:
    torch.manual_seed(3)
    model = GeoBaselineForGeolocation(GeoBaselineConfig(**sizes))
    torch.manual_seed(3)
    is_vit = "backbone_kwargs" in sizes
    peer = timm.create_model(
        sizes["backbone"], num_classes=0, **sizes.get("backbone_kwargs", {}), **({"img_size": 32} if is_vit else {})
    )
    ours = model.backbone.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in peer.state_dict().items())


def test_resnet_starts_with_zero_gammas_and_kaiming_convolutions() -> None:
    backbone = GeoBaselineForGeolocation(GeoBaselineConfig(**SMALL)).backbone
    assert (backbone.layer1[0].bn2.weight == 0).all()  # transformers' own initialisation would make these 1
    weight = backbone.layer2[0].conv1.weight
    fan_out = weight.shape[0] * weight[0, 0].numel()
    assert weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)


@pytest.mark.parametrize(("sizes", "is_channels_last"), [(SMALL, True), (SMALL_VIT, False)])
def test_convolutions_get_and_pass_on_channels_last(sizes: dict, is_channels_last: bool) -> None:
    model = GeoBaselineForGeolocation(GeoBaselineConfig(**sizes)).eval()
    strides: list[torch.Tensor] = []
    first = next(module for module in model.backbone.modules() if isinstance(module, torch.nn.Conv2d))
    first.register_forward_hook(lambda _, inputs, output: strides.extend((inputs[0], output)))
    photos = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    answer = model(photos).coordinates_deg
    assert strides[0].is_contiguous(memory_format=torch.channels_last) == is_channels_last
    assert not is_channels_last or strides[1].is_contiguous(memory_format=torch.channels_last)
    assert all(parameter.is_contiguous() for parameter in model.parameters()), "weights are saved as anybody expects"
    first.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
    assert torch.allclose(model(photos).coordinates_deg, answer, atol=1e-3)


def test_loaded_weights_survive(tmp_path) -> None:
    model = GeoBaselineForGeolocation(GeoBaselineConfig(**SMALL))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
        running_mean = model.backbone.layer1[0].bn1.running_mean
        running_mean.copy_(torch.randn_like(running_mean))
    model.save_pretrained(tmp_path)
    again = GeoBaselineForGeolocation.from_pretrained(tmp_path)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("sizes", [SMALL, SMALL_VIT])
@pytest.mark.parametrize("head_type", ["tanh", "sphere"])
def test_baseline_learns_a_place_by_its_colour(sizes: dict, head_type: str) -> None:
    model = GeoBaselineForGeolocation(GeoBaselineConfig(**sizes, head_type=head_type)).train()
    photos = torch.zeros(8, 3, 32, 32, dtype=torch.uint8)
    photos[:4, 0], photos[4:, 2] = 255, 255
    truth = torch.tensor([[48.0, 2.0]] * 4 + [[-33.0, 151.0]] * 4)  # red is Paris, blue is Sydney
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(80):
        answer = model(photos, truth)
        optimizer.zero_grad()
        answer.loss.backward()
        optimizer.step()
    assert answer.error_km.mean().item() < 4000  # a constant cannot do better than 8,480: half the way between them


def test_backbone_options_reach_timm() -> None:
    model = GeoBaselineForGeolocation(
        GeoBaselineConfig(**SMALL_VIT | {"backbone_kwargs": {**SMALL_VIT["backbone_kwargs"], "global_pool": "avg"}})
    )
    assert model.backbone.global_pool == "avg"
    config = GeoBaselineConfig(**SMALL_VIT, drop_path_rate=0.3)
    assert GeoBaselineForGeolocation(config).backbone.blocks[1].drop_path1.drop_prob == pytest.approx(0.3)


def test_unknown_backbone_is_refused_with_near_names() -> None:
    with pytest.raises(ValueError, match="backbone='resnet999' is not a model of timm"):
        GeoBaselineForGeolocation(GeoBaselineConfig(backbone="resnet999"))


@pytest.mark.parametrize("backbone", ["mobilenetv3_small_050", "ghostnet_050", "convnext_atto", "levit_128s"])
def test_other_families_of_timm_work_as_backbones(backbone: str) -> None:
    size = 224 if backbone == "levit_128s" else 64
    model = GeoBaselineForGeolocation(
        GeoBaselineConfig(backbone=backbone, image_size=size, head_hidden_sizes=[8])
    ).eval()
    assert model(torch.zeros(2, 3, size, size, dtype=torch.uint8)).coordinates_deg.shape == (2, 2)


def test_options_that_a_backbone_does_not_know_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"backbone=vgg11 does not take every one of {'drop_path_rate': 0\.1}"):
        GeoBaselineForGeolocation(GeoBaselineConfig(backbone="vgg11", drop_path_rate=0.1))


def test_gradient_checkpointing_recomputes_the_backbone() -> None:
    model = GeoBaselineForGeolocation(GeoBaselineConfig(**SMALL_VIT)).train()
    calls = []
    model.backbone.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    model.gradient_checkpointing_enable()
    model(torch.rand(2, 3, 32, 32), torch.rand(2, 2)).loss.backward()
    assert len(calls) == 2


def test_non_persistent_buffers_survive_loading(tmp_path) -> None:
    sizes = {
        "backbone": "eva02_tiny_patch14_224",
        "backbone_kwargs": {"depth": 1},
        "image_size": 28,
        "head_hidden_sizes": [8],
    }
    model = GeoBaselineForGeolocation(GeoBaselineConfig(**sizes)).eval()
    hidden = set(dict(model.named_buffers())) - set(model.state_dict())
    assert hidden, "this backbone was chosen because it has non-persistent buffers"
    model.save_pretrained(tmp_path)
    again = GeoBaselineForGeolocation.from_pretrained(tmp_path).eval()
    photos = torch.randint(0, 256, (2, 3, 28, 28), dtype=torch.uint8)
    assert torch.equal(model(photos).coordinates_deg, again(photos).coordinates_deg)


def test_half_precision_loading_leaves_the_head_in_float32(tmp_path) -> None:
    GeoBaselineForGeolocation(GeoBaselineConfig(**SMALL)).save_pretrained(tmp_path)
    model = GeoBaselineForGeolocation.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    assert {p.dtype for p in model.head.parameters()} == {torch.float32}
    assert {p.dtype for p in model.backbone.parameters()} == {torch.bfloat16}
    assert model(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).coordinates_deg.dtype == torch.float32


def test_several_crops_of_a_photo_get_one_answer() -> None:
    model = GeoBaselineForGeolocation(GeoBaselineConfig(**SMALL, head_type="sphere")).eval()
    photos = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    answer, mirrored = model(photos), model(photos.flip(-1))
    combined = model.combine_crops([answer, mirrored, mirrored]).coordinates_deg
    assert torch.allclose(model.combine_crops([answer] * 3).coordinates_deg, answer.coordinates_deg, atol=1e-3)
    mean = to_unit_vectors(answer.coordinates_deg) + 2 * to_unit_vectors(mirrored.coordinates_deg)
    assert torch.allclose(combined, to_degrees(mean), atol=1e-3)
