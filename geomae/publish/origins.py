"""Where a model comes from: its training data and the weights it started from, as far as their names tell."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from geomae.errors import SourceError
from geomae.provenance import shown_config
from geomae.reporting.records import read_run_record

__all__ = ["BaseModel", "describe_data", "find_base_models", "hub_datasets", "is_stand_in", "licence_of"]

# Folders that this project itself makes or tells to make under these names; of any other name nothing is known.
_MP16 = (
    "MP-16 (Larson et al., 2017, MediaEval Placing Task): 4.7 million geotagged photos of Flickr, a part of YFCC100M "
    "(Thomee et al., 2016). Each photo has a Creative Commons licence of its own."
)
_EARTH = (
    "a stand-in for photos: patches of NASA's Blue Marble (public domain), cut at coordinates of MP-16. Numbers of it "
    "say nothing about photos."
)
_DEMO = "synthetic patches of a drawn Earth, to try the software. Numbers of it say nothing about photos."
KNOWN_DATA = {
    "data/mp16": _MP16,
    "outputs/earth/data": _EARTH,
    "outputs/earth/ambiguous": _EARTH,
    "outputs/demo/data": _DEMO,
    "outputs/smoke/data": _DEMO,
}
NOT_STATED = "not stated. Its owner has to say what these photos are, and under which licence they were used."

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# The weights that facebookresearch/mae released, under whatever name, are for non-commercial use; their copies on the
# Hub are labelled in several ways, so the strictest is said.
_NON_COMMERCIAL = re.compile(r"(?i)(^facebook/vit-mae-|vit_\w*\.mae$|mae_(?:pretrain|finetuned)_vit)")


@dataclass(frozen=True)
class BaseModel:
    """What a training started from."""

    name: str  # as the run recorded it
    config: Mapping[str, Any] = field(default_factory=dict)  # of its own training; empty where that is not here

    @property
    def hub_id(self) -> str | None:
        """OWNER/NAME, where it is one."""
        is_local = bool(self.config) or self.name.startswith((".", "/", "outputs/"))
        return self.name if not is_local and _HUB_ID.fullmatch(self.name) else None

    @property
    def licence(self) -> str | None:
        """Of its weights, as the Hub calls it; None where nobody here knows it."""
        if _NON_COMMERCIAL.search(self.name.rstrip("/")):
            return "cc-by-nc-4.0"
        return "apache-2.0" if self.config and not self.config.get("init_from") else None

    def describe(self) -> str:
        """A sentence for the card."""
        if self.licence == "cc-by-nc-4.0":
            return (
                f"It starts from {self.name}: weights that facebookresearch/mae released under CC BY-NC 4.0, which "
                "forbids commercial use, also of what is made from them."
            )
        if self.config:
            data = "; ".join(f"{name}: {text}" for name, text in describe_data(self.config))
            return f"It starts from {self.name}, a run of this software, whose training data were: {data or NOT_STATED}"
        whose = "a checkpoint of the Hub" if self.hub_id else "another run, or a file"
        return (
            f"It starts from {self.name}, {whose}: see there for its data and its licence, which bind this model too."
        )


def find_base_models(config: Mapping[str, Any]) -> list[BaseModel]:
    """What a run started from, what that started from, and so on, as far as their records are here.

    Args:
        config: of the run, with `init_from`.
    """
    found: list[BaseModel] = []
    while (name := config.get("init_from")) and len(found) < 10 and str(name) not in [each.name for each in found]:
        try:
            config = read_run_record(Path(str(name))).get("config") or {}
        except (SourceError, OSError):
            config = {}
        found.append(BaseModel(str(name), shown_config(config)))
    return found


def licence_of(base_models: Sequence[BaseModel]) -> str:
    """The licence of what is trained from these: that of this project where all that is known allows it.

    Returns:
        An id of the Hub; `other` where the weights at the beginning are of somebody whose licence is not known here.
    """
    licences = [each.licence for each in base_models]
    if "cc-by-nc-4.0" in licences:
        return "cc-by-nc-4.0"
    return "apache-2.0" if not licences or licences[-1] == "apache-2.0" else "other"


def describe_data(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Each training folder by its name, and what is known of it."""
    names = [str(name).rstrip("/") for name in config.get("data_dirs") or ()]
    return [(name, KNOWN_DATA.get(name, NOT_STATED)) for name in names]


def is_stand_in(config: Mapping[str, Any]) -> bool:
    """Whether all training data are pictures of the Earth from above, which show nobody."""
    known = [text for _, text in describe_data(config)]
    return bool(known) and all(text in (_EARTH, _DEMO) for text in known)


def hub_datasets(config: Mapping[str, Any]) -> list[str]:
    """Data sets of the Hub among the training data."""
    found = [re.match(r"hf://datasets/([\w.-]+/[\w.-]+)", str(name)) for name in config.get("data_dirs") or ()]
    return sorted({match[1] for match in found if match})
