"""You against the model: a round on a few photos whose places are known."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from geomae.data import find_absent, load_photos
from geomae.demo.photo_gate import preview_uri
from geomae.errors import ConfigError, DamagedPhotoError, SourceError
from geomae.evaluation.metrics import geoscores
from geomae.geography import great_circle_km

__all__ = ["Game", "GamePhotos", "Turn", "score_turn"]

PHOTOS_PER_ROUND = 5


@dataclass(frozen=True)
class Turn:
    """One photo of a round, guessed by both; points are those of the game GeoGuessr, 0 to 5000."""

    own_deg: tuple[float, float]
    model_deg: tuple[float, float]
    true_deg: tuple[float, float]
    own_km: float
    model_km: float
    own_points: int
    model_points: int


def score_turn(own_deg: tuple[float, float], model_deg: tuple[float, float], true_deg: tuple[float, float]) -> Turn:
    """Distances and points of two guesses, all `(latitude, longitude)` in degrees."""
    own_km, model_km = (float(km) for km in great_circle_km([own_deg, model_deg], true_deg))
    own_points, model_points = (int(points) for points in np.rint(geoscores([own_km, model_km])))
    return Turn(own_deg, model_deg, true_deg, own_km, model_km, own_points, model_points)


@dataclass(frozen=True)
class Game:
    """A round: which photos, and the turns that were played. It never changes; `after` gives the next one."""

    rows: tuple[int, ...]
    turns: tuple[Turn, ...] = ()
    is_answered: bool = False  # whether the truth of the last turn's photo is on the page

    @property
    def row(self) -> int:
        """Of the photo that is on the page."""
        return self.rows[len(self.turns) - self.is_answered]

    @property
    def is_over(self) -> bool:
        """Whether every photo was guessed."""
        return len(self.turns) == len(self.rows)

    def after(self, turn: Turn) -> "Game":
        """The round with the photo on the page guessed."""
        return replace(self, turns=(*self.turns, turn), is_answered=True)

    def next_photo(self) -> "Game":
        """The round with the next photo on the page."""
        return replace(self, is_answered=False)

    def totals(self) -> tuple[int, int]:
        """Own points and the model's."""
        return sum(turn.own_points for turn in self.turns), sum(turn.model_points for turn in self.turns)


class GamePhotos:
    """Photos with known places that rounds are drawn from."""

    def __init__(self, source: str | Path, split: str) -> None:
        """Open a packed folder, or any other source of photos with coordinates.

        Raises:
            SourceError: there are no such photos.
        """
        self.dataset = load_photos(source, split)
        self.rows = np.flatnonzero(~find_absent(self.dataset))
        if not len(self.rows):
            raise SourceError(f"--photos {source} holds no photo that is there")

    def draw(self, rng: np.random.Generator, num_photos: int = PHOTOS_PER_ROUND) -> Game:
        """A new round of different photos that can be decoded; fewer where there are fewer.

        Raises:
            ConfigError: not one of them can be decoded.
        """
        drawn: list[int] = []
        for row in rng.permutation(self.rows)[: 10 * num_photos].tolist():
            if len(drawn) < num_photos and self._can_be_shown(row):
                drawn.append(row)
        if not drawn:
            raise ConfigError("none of the photos behind --photos can be decoded: try `python -m geomae.data inspect`")
        return Game(tuple(drawn))

    def _can_be_shown(self, row: int) -> bool:
        try:
            preview_uri(self.photo(row))
        except (DamagedPhotoError, OSError):
            return False
        return True

    def photo(self, row: int) -> bytes:
        """The encoded photo, as it lies in the source."""
        image = self.dataset[row]["image"]
        return Path(image["path"]).read_bytes() if image["bytes"] is None else bytes(image["bytes"])

    def place(self, row: int) -> tuple[float, float]:
        """Where it was taken, degrees."""
        sample = self.dataset[row]
        return float(sample["latitude"]), float(sample["longitude"])
