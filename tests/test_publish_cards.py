"""The cards in model_cards/: one for each configuration, up to date, and good enough for the Hub."""

from pathlib import Path

import pytest
from huggingface_hub import ModelCard, constants
from huggingface_hub.repocard_data import model_index_to_eval_results
from writable_hub import CHECKS_CARDS_HERE, serve_writable_hub

from geomae.evaluation import read_metrics
from geomae.publish.shipped import card_name, list_configurations, render_cards

ROOT = Path(__file__).resolve().parent.parent
CARDS = ROOT / "model_cards"


@pytest.fixture(scope="module")
def hub():
    with serve_writable_hub() as (address, handler), pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", address)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield handler


def test_every_configuration_that_makes_a_model_has_a_card_that_is_up_to_date():
    rendered = render_cards()
    stale = [name for name, text in rendered.items() if (CARDS / name).read_text(encoding="utf-8") != text]
    assert not stale, "run python -m geomae.publish cards"
    assert {path.name for path in CARDS.glob("*.md")} == {*rendered, "template.md", "geomae_earth.md"}


@CHECKS_CARDS_HERE
@pytest.mark.parametrize("name", [card_name(path) for path in list_configurations()])
def test_card_passes_the_hubs_own_checks(hub, name):
    card = ModelCard.load(CARDS / name)
    card.validate()
    assert card.data.license == ("cc-by-nc-4.0" if card.data.base_model == "facebook/vit-mae-base" else "apache-2.0")
    if card.data.eval_results is None:
        assert "model-index" not in card.content
    else:
        _, again = model_index_to_eval_results(card.data.to_dict()["model-index"])
        assert len(again) == len(card.data.eval_results)


@CHECKS_CARDS_HERE
def test_validation_on_the_local_hub_can_fail(hub):
    with pytest.raises(ValueError, match="needs metadata with a license"):
        ModelCard("---\ntags: [x]\n---\n# A card").validate()


def test_card_of_a_measured_configuration_has_the_numbers_of_results():
    results = ModelCard.load(CARDS / "finetune_earth_mae.md").data.eval_results
    measured = read_metrics(ROOT / "results" / "earth" / "mae_im2gps3k")
    values = {r.metric_type: r.metric_value for r in results if r.dataset_split == "test_im2gps3k"}
    assert values["mean_km"] == measured["mean_km"]
    assert values["accuracy_within_200_km"] == measured["accuracy_within_km"]["200"]


def test_card_of_what_nobody_measured_says_so():
    text = (CARDS / "finetune_mae_vit_huge_mp16.md").read_text(encoding="utf-8")
    assert "Nothing was measured" in text
    assert "No record of a training was found: unmeasured." in text
