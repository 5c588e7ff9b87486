"""Photos as vectors: those of the model, of length 1, and a digest that tells models apart."""

import datasets
import numpy as np
import pytest
import torch

from geomae.errors import ConfigError, PredictionError, TooManyDamagedPhotosError
from geomae.retrieval import embed_photos, embedder_digest
from geomae.retrieval.embedding import refuse_model_without_cells
from modeling import (
    GeoBaselineConfig,
    GeoBaselineForGeolocation,
    GeoMAEConfig,
    GeoMAEForGeolocation,
    GeoMAEForPreTraining,
    load_embedder,
)


def photos(num_photos):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (num_photos, 3 * 32 * 32)).tolist()
    return datasets.Dataset.from_dict({"id": [f"photo {number}" for number in range(num_photos)], "pixels": pixels})


def collate(samples):
    good = [sample for sample in samples if sample["id"] not in collate.damaged]
    pixels = torch.tensor([sample["pixels"] for sample in good], dtype=torch.uint8).reshape(-1, 3, 32, 32)
    return {"pixel_values": pixels, "ids": [sample["id"] for sample in good]}


@pytest.fixture(autouse=True)
def nothing_is_damaged():
    collate.damaged = ()


def model_of(tiny_sizes, **changes):
    torch.manual_seed(0)
    return GeoMAEForGeolocation(GeoMAEConfig(**{**tiny_sizes, **changes})).eval()


def test_vectors_are_the_models_features_brought_to_length_one(tiny_sizes):
    model, dataset = model_of(tiny_sizes), photos(7)
    embeddings = embed_photos(model, dataset, collate, batch_size=3)
    with torch.no_grad():
        features = model.embed(collate(list(dataset))["pixel_values"]).double().numpy()
    assert embeddings.ids == list(dataset["id"])
    assert embeddings.vectors.dtype == np.float32
    assert embeddings.vectors == pytest.approx(features / np.linalg.norm(features, axis=1, keepdims=True), abs=1e-5)
    assert embeddings.top_cells is None


def test_a_damaged_photo_is_left_out_and_too_many_stop_the_run(tiny_sizes):
    collate.damaged = ("photo 2",)
    embeddings = embed_photos(model_of(tiny_sizes), photos(5), collate, batch_size=2, max_damaged_share=0.3)
    assert embeddings.ids == ["photo 0", "photo 1", "photo 3", "photo 4"]
    assert len(embeddings.vectors) == 4
    with pytest.raises(TooManyDamagedPhotosError, match=r"1 of 5 photos are damaged.*max_damaged_share=0\.1"):
        embed_photos(model_of(tiny_sizes), photos(5), collate, batch_size=2)


def test_features_that_are_no_direction_are_refused_by_their_id(tiny_sizes):
    model = model_of(tiny_sizes)
    torch.nn.init.constant_(model.geomae.encoder.norm.weight, float("nan"))
    with pytest.raises(PredictionError, match="5 of 5 photos are not finite or zero; the first is id photo 0"):
        embed_photos(model, photos(5), collate, batch_size=2)


def test_the_digest_follows_from_what_vectors_follow_from(tiny_sizes, tmp_path):
    model = model_of(tiny_sizes)
    digest = embedder_digest(model)
    assert digest == embedder_digest(model_of(tiny_sizes, head_type="sphere"))
    assert digest != embedder_digest(model_of(tiny_sizes, pooling="mean"))
    assert digest != embedder_digest(model_of(tiny_sizes, image_mean=[0.5, 0.5, 0.5]))
    assert digest == embedder_digest(model_of(tiny_sizes, mask_ratio=0.5, drop_path_rate=0.1))
    heads = tiny_sizes["num_attention_heads"]
    other = model_of(tiny_sizes, num_attention_heads=1 if heads > 1 else 2)
    other.load_state_dict(model.state_dict())  # the weights tell nothing of the attention heads
    assert digest != embedder_digest(other)
    model.save_pretrained(tmp_path)
    loaded = load_embedder(tmp_path)
    assert digest == embedder_digest(loaded)
    with torch.no_grad():
        loaded.backbone.blocks[0].attn.proj.bias[0] += 1e-3
    assert digest != embedder_digest(loaded)


def test_pretraining_and_its_encoder_have_one_digest_and_a_baseline_has_its_own(tiny_sizes, tmp_path):
    torch.manual_seed(0)
    model = GeoMAEForPreTraining(GeoMAEConfig(**tiny_sizes)).eval()
    model.save_pretrained(tmp_path)
    assert embedder_digest(model) == embedder_digest(load_embedder(tmp_path))
    baseline = GeoBaselineForGeolocation(GeoBaselineConfig(backbone="resnet10t", image_size=32))
    assert embedder_digest(baseline) not in ("", embedder_digest(model))


@pytest.mark.parametrize("kind", ["tanh", "encoder"])
def test_a_model_without_cells_has_nothing_to_refine_within(tiny_sizes, kind):
    model = model_of(tiny_sizes)
    with pytest.raises(ConfigError, match=r"outputs/x has no cells to refine within.*leave refine_top_k out"):
        refuse_model_without_cells(model if kind == "tanh" else model.geomae, "outputs/x")
