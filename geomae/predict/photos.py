"""From a list of photos to batches, with the reason for every photo that cannot be read. Needs torch."""

from collections.abc import Mapping, Sequence
from typing import Any

from geomae.data import PhotoCollator, PhotoIndex
from geomae.data.exif import read_gps
from geomae.data.filesystems import public_text
from geomae.data.reading import PhotoReader, explain_unread
from geomae.errors import CoordinateError, DamagedPhotoError

__all__ = ["ExplainingCollator", "ListedPhotos"]


class ListedPhotos:
    """The photos of an index as a map-style data set: samples of `id` and `image` {bytes, path}, undecoded.

    A photo that cannot be read has no bytes, and `read_error` says why.
    """

    def __init__(self, index: PhotoIndex) -> None:
        self.index = index
        self._reader: PhotoReader | None = None

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """What a DataLoader asks for a whole batch with."""
        self._reader = self._reader or PhotoReader(self.index.root)
        places = self.index.table.take(list(rows)).to_pylist()
        return [_sample(place, data) for place, data in zip(places, self._reader.read_all(places), strict=True)]

    def __getstate__(self) -> dict[str, Any]:
        return {"index": self.index, "_reader": None}


def _sample(place: Mapping[str, Any], data: bytes | Exception) -> dict[str, Any]:
    if isinstance(data, bytes):
        return {"id": place["id"], "image": {"bytes": data, "path": None}}
    return {"id": place["id"], "image": {"bytes": None, "path": None}, "read_error": explain_unread(data)}


class ExplainingCollator:
    """What `PhotoCollator` makes of B photos without augmentation, and what became of the others.

    Adds to its batch
    - `problems`: id -> why it has no answer, of the photos that are left out; a batch of nothing else has no `ids`;
    - `true_deg`: with `reads_gps`, id -> latitude and longitude in degrees of the photo's EXIF block, where it has one.
    """

    def __init__(self, image_size: int, *, reads_gps: bool = False) -> None:
        self._collate = PhotoCollator(image_size, augment=False, labelled=False)
        self._reads_gps = reads_gps

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Decode, crop and stack."""
        prepared: list[dict[str, Any]] = []
        problems: dict[str, str] = {}
        true_deg: dict[str, tuple[float, float]] = {}
        for sample in samples:
            try:
                prepared += self._collate.prepare(sample)
            except (DamagedPhotoError, OSError) as error:
                problems[sample["id"]] = public_text(str(error))
                continue
            if self._reads_gps:
                try:
                    true_deg[sample["id"]] = read_gps(sample["image"]["bytes"])
                except CoordinateError:  # most photos on the web have none
                    continue
        batch = self._collate(prepared) if prepared else {"ids": []}
        return {**batch, "problems": problems, "true_deg": true_deg}
