"""What `python -m geomae.retrieval index` and `search` can be told, in a YAML file or on the command line."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from geomae.errors import ConfigError
from geomae.evaluation.arguments import JudgingArguments, check_loading
from geomae.evaluation.known_test_sets import KNOWN_TEST_SETS
from geomae.evaluation.records import refuse_unwritable
from geomae.retrieval.choosing import choosing_on_test_photos
from geomae.retrieval.index_folder import refuse_existing_index

__all__ = ["GRID", "IndexArguments", "SearchArguments"]


@dataclass
class IndexArguments:
    """Photos to embed, and the index to put them into."""

    checkpoint: str | None = field(
        default=None,
        metadata={"help": "Folder of any model of GeoMAE: of pretraining, an encoder, a geolocator, a baseline."},
    )
    photos: str | None = field(
        default=None, metadata={"help": "Packed folder, or any other source of photos with coordinates."}
    )
    split: str = field(default="train", metadata={"help": "Which split of a packed folder; other sources have none."})
    csv_file: str | None = field(
        default=None, metadata={"help": "Table of the photos' coordinates; by default the only one in the source."}
    )
    swap_lat_lon: bool = field(
        default=False, metadata={"help": "Read that table's latitude column as longitude and the other way round."}
    )
    output_dir: str | None = field(
        default=None, metadata={"help": "Folder of the index; it is created, and must not hold anything."}
    )
    kind: Literal["auto", "flat", "hnsw", "ivf"] = field(
        default="auto",
        metadata={
            "help": "flat compares with every photo; ivf (lists) and hnsw (a graph) are approximate. auto: flat up "
            "to a million photos, ivf beyond."
        },
    )
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Photos in a forward pass."})
    dataloader_num_workers: int = field(
        default=0, metadata={"help": "Processes that decode photos, for each device; 0 decodes between forward passes."}
    )
    bf16: bool = field(default=False, metadata={"help": "Run the model in bfloat16; search with the same setting."})
    max_damaged_share: float = field(
        default=0.1, metadata={"help": "Share of the photos, 0 to 1, that may be damaged; these are left out."}
    )

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        for name in ("checkpoint", "photos", "output_dir"):
            if not getattr(self, name):
                raise ConfigError(f"{name} is missing: give --{name} PATH, or a line `{name}: PATH` in the YAML file")
        check_loading(self.per_device_eval_batch_size, self.dataloader_num_workers, self.max_damaged_share)
        refuse_existing_index(str(self.output_dir))
        refuse_unwritable(str(self.output_dir))


GRID: dict[str, list[Any]] = {
    "k": [1, 3, 10, 30, 100],
    "sigma_km": [10.0, 30.0, 100.0, 300.0, 1000.0],
    "similarity_exponent": [0.0, 1.0, 4.0, 16.0, 64.0, 256.0],
    "uniform_share": [0.003, 0.01, 0.03, 0.1, 0.3],
    "refine_temperature": [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0],
}
"""What is tried on validation photos where nothing else is asked for."""


@dataclass
class SearchArguments(JudgingArguments):
    """One evaluation of retrieval. Of several values of an option, the best on the validation photos is used."""

    by_retrieval: ClassVar[bool] = True

    index: str | None = field(default=None, metadata={"help": "Folder that `index` wrote, with the same checkpoint."})
    k: list[int] = field(
        default_factory=lambda: list(GRID["k"]), metadata={"help": "Neighbours that answer; values to try."}
    )
    sigma_km: list[float] = field(
        default_factory=lambda: list(GRID["sigma_km"]),
        metadata={"help": "Standard deviation of the kernel around each neighbour's place, km; values to try."},
    )
    similarity_exponent: list[float] = field(
        default_factory=lambda: list(GRID["similarity_exponent"]),
        metadata={"help": "A neighbour weighs its cosine to this power; 0: all weigh the same; values to try."},
    )
    uniform_share: list[float] = field(
        default_factory=lambda: list(GRID["uniform_share"]),
        metadata={"help": "Mass of the posterior that lies anywhere on Earth, 0 to 1; values to try, by their NLL."},
    )
    validation: str | None = field(
        default=None,
        metadata={"help": "Packed folder or other source of the photos on which values are chosen: not the test set."},
    )
    validation_split: str = field(default="validation", metadata={"help": "Which split of a packed folder that is."})
    choose_by: Literal["geoscore", "median_km"] = field(
        default="geoscore", metadata={"help": "geoscore: the largest mean is best; median_km: the smallest median."}
    )
    refine_top_k: int = field(
        default=0,
        metadata={
            "help": "Also refine the answer of a geolocator with cells within its most probable ones, as many of them: "
            "the row `refined`; 0: do not."
        },
    )
    refine_temperature: list[float] = field(
        default_factory=lambda: list(GRID["refine_temperature"]),
        metadata={"help": "Cosine that is worth one nat of a cell's probability; values to try."},
    )

    def _check_answers(self) -> None:
        """Refuse what cannot work, and test sets to choose on: nothing would be left to judge by."""
        for name in ("index", "checkpoint"):
            if not getattr(self, name):
                raise ConfigError(f"{name} is missing: give --{name} PATH, or a line `{name}: PATH` in the YAML file")
        if self.validation in KNOWN_TEST_SETS:
            raise choosing_on_test_photos(self.validation)
        if self.validation and Path(self.validation).is_dir() and self.validation_split.startswith("test"):
            raise choosing_on_test_photos(f"the split {self.validation_split} of {self.validation}")
        if self.refine_top_k < 0:
            raise ConfigError(f"refine_top_k must be at least 0; got {self.refine_top_k}")
        for name, (low, high) in {
            "k": (1, math.inf),
            "sigma_km": (0.0, math.inf),
            "similarity_exponent": (0.0, math.inf),
            "uniform_share": (0.0, 1.0),
            "refine_temperature": (0.0, math.inf),
        }.items():
            self._check_values(name, low, high)

    def _check_values(self, name: str, low: float, high: float) -> None:
        values = getattr(self, name)
        may_equal_low = name in ("k", "similarity_exponent")
        bad = [value for value in values if not (low <= value if may_equal_low else low < value) or not value < high]
        if bad or not values:
            bound = f"at least {low:g}" if may_equal_low else f"above {low:g}"
            raise ConfigError(f"{name} must be numbers {bound} and below {high:g}; got {bad or 'none'}")
        if len(values) > 1 and not self.validation and (name != "refine_temperature" or self.refine_top_k):
            raise ConfigError(
                f"{name} has {len(values)} values to choose from and there are no photos to choose on: give "
                f"--validation FOLDER, or one value, such as --{name} {values[len(values) // 2]:g}"
            )
