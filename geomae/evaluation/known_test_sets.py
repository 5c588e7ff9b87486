"""The field's test sets by their photos: found by name, never judged in part under the name of the whole.

Source: the files `NAME_places365.csv` in github.com/ShramanPramanick/Transformer_Based_Geo-localization at 0964b7d,
their column `IMG_ID`; `results/baselines/NAME/metrics.json` records the same digests. The sets are of Hays and Efros
(2008), Vo, Jacobs and Hays (2017), and Müller-Budack, Pustu-Iren and Ewerth (2018).
"""

import re
from dataclasses import dataclass
from pathlib import Path

from geomae.errors import SourceError

__all__ = [
    "ALSO_VALIDATION",
    "KNOWN_TEST_SETS",
    "SHARED_PHOTOS",
    "KnownTestSet",
    "find_known_list",
    "find_known_photos",
    "refuse_another_set",
    "recognise",
]

ALSO_VALIDATION = "yfcc25600"
"""The thesis chose its checkpoints on it, and so may others; its numbers are then no test any more."""

_LISTS = (
    "https://raw.githubusercontent.com/ShramanPramanick/Transformer_Based_Geo-localization/"
    "0964b7d107a1f010bd0614d1390a0238960692bb/resources/"
)


@dataclass(frozen=True)
class KnownTestSet:
    """What tells a published list of photos from every other, and where its photos are to be had."""

    num_photos: int
    ids_sha256: str  # of the sorted ids, joined by line breaks
    photos_from: str


KNOWN_TEST_SETS = {
    "im2gps": KnownTestSet(
        237,
        "718327c8eb88f37b631bad68a1d118464cdf0bfef10a1db481930ef2026ba98e",
        "unpack http://graphics.cs.cmu.edu/projects/im2gps/gps_query_imgs.zip there.",
    ),
    "im2gps3k": KnownTestSet(
        2997,
        "d9d0bf8e752b4ed89db8e04e261ed724a6c609e5c7c428c27baed5578aa30379",
        "unpack im2gps3ktest.zip there, which github.com/lugiavn/revisiting-im2gps links to "
        "(http://www.mediafire.com/file/7ht7sn78q27o9we/im2gps3ktest.zip). It holds 3,000 files, of which 2,997 have "
        "labels: the other 3 are left out.",
    ),
    "yfcc25600": KnownTestSet(
        25_600,
        "07174024f2821fb3aadd0dc95cb94961c7622eec3761eb96e1e8596966460eef",
        "download there, with img2dataset (docs/data.md), what Flickr still has of "
        "https://github.com/TIBHannover/GeoEstimation/releases/download/pytorch/yfcc25600_urls.csv (a repository that "
        "withdrew its code in 2026); the other photos count as misses.",
    ),
}
"""The field's test sets by name: how many photos, the SHA-256 of their sorted ids, where the photos are to be had."""

SHARED_PHOTOS = {
    frozenset(("im2gps", "im2gps3k")): (170747608, 508033358, 513453328, 534657711, 872841181, 1356370638),
}
"""Flickr numbers of the photos that two of the sets have in common; all other pairs have none (by the lists above)."""


def find_known_list(test_set: str, test_sets_dir: str | Path) -> str:
    """The list of a known test set that is given by its bare name; anything else is a path, and returned as it is.

    A bare name is never a path, whatever lies in the current folder: `./im2gps3k` is the folder of that name.

    Args:
        test_set: a path, or a key of `KNOWN_TEST_SETS`.
        test_sets_dir: holds `NAME/NAME_places365.csv` or `NAME_places365.csv`; where it does not, the current folder
            may, so that a name also works from inside the folder of the test sets.

    Raises:
        SourceError: the list is not there; the message says where it is to be had and where it belongs.
    """
    if test_set not in KNOWN_TEST_SETS:
        return test_set
    file = f"{test_set}_places365.csv"
    places = [place for folder in (Path(test_sets_dir), Path()) for place in (folder / test_set / file, folder / file)]
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        beside = f" (The folder of that name is ./{test_set}.)" if Path(test_set).exists() else ""
        raise SourceError(
            f"the list of the test set {test_set} is neither {places[0]} nor {places[1]}.{beside}\n"
            f"{_where_from(test_set, Path(test_sets_dir))}"
        )
    return str(found)


def find_known_photos(name: str, test_sets_dir: str | Path) -> str:
    """The folder `NAME/photos` of a known test set's photos, found where `find_known_list` looks for its list.

    Raises:
        SourceError: it is not there; the message says where the photos are to be had and where they belong.
    """
    places = [folder / name / "photos" for folder in (Path(test_sets_dir), Path())]
    found = next((path for path in places if path.is_dir()), None)
    if found is None:
        raise SourceError(f"there is no folder {places[0]}.\n{_where_from(name, Path(test_sets_dir))}")
    return str(found)


def _where_from(name: str, folder: Path) -> str:
    known, file = KNOWN_TEST_SETS[name], f"{name}_places365.csv"
    return (
        f"  The list of its {known.num_photos:,} photos with coordinates and authors:\n"
        f"    curl -fL --create-dirs -o {folder / name / file} {_LISTS}{file}\n"
        "  The photos, which only a checkpoint needs (a file of answers does not: --predictions FILE), in "
        f"{folder / name / 'photos'}: {known.photos_from}\n"
        "  Then run the same command again. A checkpoint is judged by: python run_evaluate_geo.py "
        f"configs/evaluate/{name}.yaml --checkpoint outputs/NAME --output_dir outputs/NAME/{name}\n"
        f"  Where they lie elsewhere than in {folder}: --test_sets_dir FOLDER."
    )


def recognise(*, num_photos: int, ids_sha256: str) -> str | None:
    """The known test set that these photos are, whatever their file is called."""
    found = (name for name, known in KNOWN_TEST_SETS.items() if (num_photos, ids_sha256) == _fingerprint(known))
    return next(found, None)


def refuse_another_set(name: str, *, num_photos: int, ids_sha256: str) -> None:
    """Refuses photos under the name of a known test set that are not the photos of that set.

    Args:
        name: a file or folder such as `im2gps3k_places365.csv` or `im2gps-3k`, or a split such as `test_im2gps`.
        num_photos: how many photos it holds.
        ids_sha256: digest of their sorted ids.

    Raises:
        SourceError: the number of photos or the digest is not that of the set after which it is named.
    """
    named = next((each for each in sorted(KNOWN_TEST_SETS, key=len, reverse=True) if _is_named_after(name, each)), None)
    if named is None:
        return
    known = KNOWN_TEST_SETS[named]
    if (num_photos, ids_sha256) == _fingerprint(known):
        return
    if other := recognise(num_photos=num_photos, ids_sha256=ids_sha256):
        found = f"its {num_photos:,} photos are those of {other}"
    elif num_photos != known.num_photos:
        found = f"it holds {num_photos:,} photos where {named} has {known.num_photos:,}"
    else:
        found = (
            f"of its {num_photos:,} ids some differ: the digest of the sorted ids is {ids_sha256[:12]}... "
            f"where that of {named} is {known.ids_sha256[:12]}..."
        )
    raise SourceError(
        f"{name} is named after the test set {named}, but {found}.\n"
        f"  Take the whole list {named}_places365.csv: with --photos, photos that are damaged or absent count as "
        "misses.\n  To judge a part or another list on purpose, rename the file (or the split): it needs its own name."
    )


def _is_named_after(name: str, known: str) -> bool:
    """Whether a name begins with that of a known set, which may be spelled with separators: `im2gps-3k.csv`."""
    return re.match(rf"(?:test[-_ ]?)?{'[-_ ]?'.join(known)}(?![a-z0-9])", name.lower()) is not None


def _fingerprint(known: KnownTestSet) -> tuple[int, str]:
    return known.num_photos, known.ids_sha256
