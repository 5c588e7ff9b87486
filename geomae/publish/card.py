"""A model card: what a model is, what it is worth, what it is for and what not, from what a run recorded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

from geomae.errors import ConfigError
from geomae.publish.eval_results import list_eval_results
from geomae.publish.origins import NOT_STATED, BaseModel, describe_data, hub_datasets, licence_of
from geomae.reporting.page import Block, Code, Heading, Paragraph, Picture, Table, render_markdown
from geomae.reporting.records import EvaluationRecord, unique_names
from geomae.reporting.results_section import group_by_test_set, introduce_test_set

__all__ = ["ROOT", "CardFacts", "render_card"]

ROOT = Path(__file__).resolve().parents[2]  # the checkout, with what a wheel does not hold
TEMPLATE = ROOT / "model_cards" / "template.md"

UNMEASURED = "Nothing was measured: no evaluation of this model was found. Do not assume that it answers well."
KINDS = {  # end of the architecture's name -> what it is; the Hub's task; the class that loads it
    "ForPreTraining": (
        "A masked autoencoder of photos: it restores hidden patches, and its encoder is what geolocators start from.",
        ("image-feature-extraction", "AutoModelForPreTraining"),
    ),
    "ForGeolocation": (
        "A geolocator: it answers where on Earth a photo was taken, as latitude and longitude in degrees.",
        ("image-classification", "AutoModelForImageClassification"),
    ),
}
HEADLINES = ("mean_km", "median_km", "geoscore", *(f"accuracy_within_{km}_km" for km in (1, 25, 200, 750, 2500)))
PROCEDURE = (  # settings worth a line in the card; training_config.yaml has them all
    *("head_type", "init_from", "image_size", "hidden_size", "num_hidden_layers", "mask_ratio", "num_train_epochs"),
    *("max_steps", "per_device_train_batch_size", "base_learning_rate", "learning_rate", "weight_decay", "schedule"),
    *("layer_decay", "drop_path_rate", "bf16", "seed"),
)


@dataclass(frozen=True)
class CardFacts:
    """What a card is made from; texts may come from anywhere, and are escaped."""

    title: str
    architecture: str  # class of the model, such as GeoMAEForGeolocation
    config: Mapping[str, Any]  # settings of the training: of run.json, or of a YAML file
    run: Mapping[str, Any]  # run.json; empty where nothing was trained
    evaluations: Sequence[EvaluationRecord] = ()
    pictures: Sequence[Picture] = ()
    repo_id: str | None = None
    base_models: Sequence[BaseModel] = ()  # the nearest first
    measured_in: str | None = None  # a page with numbers of several runs, where there is none of this one alone

    @property
    def kind(self) -> tuple[str, tuple[str, str]]:
        """What it is; the Hub's task and the class that loads it."""
        found = [kind for end, kind in KINDS.items() if self.architecture.endswith(end)]
        if not found:
            raise ConfigError(
                f"the model is a {self.architecture}; a card is about one that ends in {', '.join(KINDS)}"
            )
        return found[0]


def render_card(facts: CardFacts) -> ModelCard:
    """Fill `model_cards/template.md`.

    Raises:
        ConfigError: there is no template, as where the wheel is installed without the checkout; or no such model.
    """
    if not TEMPLATE.is_file():
        raise ConfigError(
            "there is no model_cards/template.md beside this package: run it in a clone of the repository"
        )
    results, bias = _describe_results(facts)
    data = _card_data(facts)
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        title=_escape(facts.title),
        what_it_is=_escape(facts.kind[0]),
        pictures=render_markdown(facts.pictures).strip() if facts.pictures else "",
        results=results,
        bias=bias,
        training_data=render_markdown(_describe_data(facts)).strip(),
        licences=render_markdown(_describe_licences(facts)).strip(),
        training_procedure=render_markdown(_describe_procedure(facts)).strip(),
        how_to_use=_how_to_use(facts),
        citation=_cite(),
    )


def _card_data(facts: CardFacts) -> ModelCardData:
    task = facts.kind[1][0]
    results = list_eval_results([record.metrics for record in facts.evaluations], task=task)
    own_tags = ["masked-autoencoder"] if facts.architecture.startswith("GeoMAE") else []
    return ModelCardData(
        license=licence_of(facts.base_models),
        base_model=next((each.hub_id for each in facts.base_models if each.hub_id), None),
        library_name="transformers",
        pipeline_tag=task,
        tags=["geolocation", "image-geolocation", *own_tags, "vision"],
        datasets=hub_datasets(facts.config) or None,
        metrics=sorted({each.metric_type for each in results if each.metric_type in HEADLINES}) or None,
        model_name=facts.title if results else None,
        eval_results=results or None,
    )


def _describe_results(facts: CardFacts) -> tuple[str, str]:
    """The tables of results, and those by continent."""
    if not facts.evaluations and facts.measured_in:
        where = Paragraph(f"Runs of this configuration were compared over several seeds: {facts.measured_in}.")
        return render_markdown([where]).strip(), "Nothing was measured by region."
    if not facts.evaluations:
        return render_markdown([Paragraph(UNMEASURED, is_warning=True)]).strip(), "Nothing was measured by region."
    names = unique_names([record.folder for record in facts.evaluations])
    results: list[Block] = []
    regions: list[Block] = []
    for group in group_by_test_set(list(zip(names, facts.evaluations, strict=True))):
        heading, *blocks = introduce_test_set(group)
        title = Heading(heading.text, level=3) if isinstance(heading, Heading) else heading
        by_continent = [block for block in blocks if isinstance(block, Table) and block.caption == "By continent"]
        results += [title, *(block for block in blocks if block not in by_continent)]
        regions += [title, *by_continent] if by_continent else []
    unknown: list[Block] = [Paragraph("The evaluations do not tell the continents apart.")]
    return render_markdown(results).strip(), render_markdown(regions or unknown).strip()


def _describe_data(facts: CardFacts) -> list[Block]:
    listed = [Paragraph(f"Trained on {name}: {text}") for name, text in describe_data(facts.config)]
    return [
        *(listed or [Paragraph(f"Trained on: {NOT_STATED}")]),
        *(Paragraph(b.describe()) for b in facts.base_models),
    ]


def _describe_licences(facts: CardFacts) -> list[Block]:
    weights = {
        "apache-2.0": "The weights and the code are under Apache-2.0 (LICENSE).",
        "cc-by-nc-4.0": "The code is under Apache-2.0 (LICENSE). The weights began as weights under CC BY-NC 4.0: no "
        "commercial use.",
        "other": "The code is under Apache-2.0 (LICENSE). The weights began as those of somebody else, whose licence "
        "binds them; it is not known here.",
    }[licence_of(facts.base_models)]
    places = "The names of places are of GeoNames (https://www.geonames.org/), CC BY 4.0."
    return [Paragraph(weights), *([Paragraph(places)] if facts.kind[1][0] == "image-classification" else [])]


def _describe_procedure(facts: CardFacts) -> list[Block]:
    settings = [[key, str(facts.config[key])] for key in PROCEDURE if facts.config.get(key) is not None]
    blocks: list[Block] = [Table(["setting", "value"], settings)]
    if not facts.run:
        return [*blocks, Paragraph("No record of a training was found: unmeasured.")]
    versions = ", ".join(f"{name} {number}" for name, number in facts.run.get("versions", {}).items() if number)
    hardware = facts.run.get("hardware") or {}
    devices = ", ".join(hardware.get("gpus") or []) or f"{hardware.get('num_cpus', 'unknown number of')} CPU cores"
    steps = (facts.run.get("result") or {}).get("global_step")
    return [
        *blocks,
        Code(str(facts.run.get("command", "unknown command"))),
        Paragraph(
            f"{'Steps: ' + format(steps, ',') + '. ' if steps else ''}Hardware: {devices}. "
            f"Commit {facts.run.get('commit') or 'unknown'}; {versions or 'versions unknown'}."
        ),
    ]


def _how_to_use(facts: CardFacts) -> str:
    task, loader = facts.kind[1]
    path = facts.repo_id or "PATH_OF_THIS_FOLDER"
    lines = [
        f"from transformers import AutoImageProcessor, {loader}",
        "from PIL import Image",
        "",
        f'processor = AutoImageProcessor.from_pretrained("{path}", trust_remote_code=True)',
        f'model = {loader}.from_pretrained("{path}", trust_remote_code=True)',
        'outputs = model(**processor(Image.open("photo.jpg"), return_tensors="pt"))',
    ]
    if task != "image-classification":
        return _fence("python", [*lines, "outputs.loss  # the squared error of the hidden patches"])
    lines.append("outputs.coordinates_deg  # latitude, longitude")
    pipeline = [
        "from transformers import pipeline",
        "",
        f'locate = pipeline("image-to-coordinates", model="{path}", trust_remote_code=True)',
        'locate("photo.jpg")',
    ]
    folder = facts.repo_id.rpartition("/")[2] if facts.repo_id else path
    command = [f"hf download {path} --local-dir {folder}"] if facts.repo_id else []
    command.append(f"python -m geomae.predict photo.jpg --model {folder}")
    return "\n\n".join([_fence("python", lines), _fence("python", pipeline), _fence("bash", command)])


def _fence(language: str, lines: Sequence[str]) -> str:
    return "\n".join([f"```{language}", *lines, "```"])


def _cite() -> str:
    """BibTeX of the software and of the thesis, from CITATION.cff."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    thesis = next(work for work in cited["references"] if work["type"] == "thesis")
    author = "{family-names}, {given-names}".format(**thesis["authors"][0])
    return _fence(
        "bibtex",
        [
            "@software{geomae,",
            f"  title = {{{cited['title']}}},",
            f"  author = {{{{{cited['authors'][0]['name']}}}}},",
            f"  version = {{{cited['version']}}}",
            "}",
            "@mastersthesis{yang2024,",
            f"  title = {{{thesis['title']}}},",
            f"  author = {{{author}}},",
            f"  school = {{{thesis['institution']['name']}}},",
            f"  year = {{{thesis['year']}}}",
            "}",
        ],
    )


def _escape(text: str) -> str:
    """Text without a meaning in Markdown, on one line."""
    return render_markdown([Paragraph(text)]).strip()
