"""The architecture's defaults are the thesis's, and what cannot work is refused by name."""

import pytest

from modeling import GeoBaselineConfig, GeoMAEConfig


def test_defaults_are_the_architecture_of_the_thesis() -> None:
    config = GeoMAEConfig()
    encoder = (config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.intermediate_size)
    decoder = (
        config.decoder_hidden_size,
        config.decoder_num_hidden_layers,
        config.decoder_num_attention_heads,
        config.decoder_intermediate_size,
    )
    assert encoder == (768, 12, 12, 3072)
    assert decoder == (384, 4, 12, 1536)
    assert (config.image_size, config.patch_size, config.mask_ratio) == (224, 16, 0.75)
    assert (config.num_patches, config.num_visible_patches) == (196, 49)
    assert (config.position_embedding, config.pooling, config.head_type) == ("learned", "cls", "tanh")
    assert len(config.head_hidden_sizes) + 1 == 3  # "three fully connected layers"
    assert GeoBaselineConfig().backbone == "resnet152"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"image_size": 225}, "image_size=225 is not a multiple of patch_size=16"),
        ({"num_attention_heads": 7}, "hidden_size=768 is not a multiple of num_attention_heads=7"),
        ({"decoder_num_attention_heads": 5}, "decoder_hidden_size=384 is not a multiple"),
        ({"hidden_size": 774, "num_attention_heads": 6, "position_embedding": "sincos"}, "multiple of 4"),
        ({"mask_ratio": 1.0}, "mask_ratio=1.0 leaves 0 of 196"),
        ({"mask_ratio": 0.0}, "mask_ratio=0.0"),
        ({"mask_ratio": 0.999}, "leaves 0 of 196"),
        ({"pooling": "max"}, "pooling='max' is unknown: choose one of cls, mean"),
        ({"position_embedding": "rope"}, "choose one of learned, sincos"),
        ({"loss_reduction": "none"}, "choose one of mean, sum"),
        ({"head_type": "plane"}, "choose one of tanh, sphere"),
        ({"image_mean": [0.5]}, "one value for each of num_channels=3"),
    ],
)
def test_impossible_architecture_is_refused_by_name(wrong: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        GeoMAEConfig(**wrong)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"head_type": "plane"}, "choose one of tanh, sphere"), ({"image_std": [1.0, 1.0]}, "num_channels=3")],
)
def test_impossible_baseline_is_refused_by_name(wrong: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        GeoBaselineConfig(**wrong)


def test_configuration_survives_a_round_trip_through_json(tmp_path) -> None:
    config = GeoMAEConfig(hidden_size=64, num_attention_heads=4, position_embedding="sincos", head_hidden_sizes=[3])
    config.save_pretrained(tmp_path)
    again = GeoMAEConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
