"""The field's test sets by their photos, so that a part of one is never judged under the name of the whole.

Source: the files `NAME_places365.csv` in github.com/ShramanPramanick/Transformer_Based_Geo-localization at 0964b7d,
their column `IMG_ID`; `results/baselines/NAME/metrics.json` records the same digests. The sets are of Hays and Efros
(2008), Vo, Jacobs and Hays (2017), and Müller-Budack, Pustu-Iren and Ewerth (2018).
"""

import re
from dataclasses import dataclass

from geomae.errors import SourceError

__all__ = ["KNOWN_TEST_SETS", "KnownTestSet", "refuse_another_set"]


@dataclass(frozen=True)
class KnownTestSet:
    """What tells a published list of photos from every other."""

    num_photos: int
    ids_sha256: str  # of the sorted ids, joined by line breaks


KNOWN_TEST_SETS = {
    "im2gps": KnownTestSet(237, "718327c8eb88f37b631bad68a1d118464cdf0bfef10a1db481930ef2026ba98e"),
    "im2gps3k": KnownTestSet(2997, "d9d0bf8e752b4ed89db8e04e261ed724a6c609e5c7c428c27baed5578aa30379"),
    "yfcc25600": KnownTestSet(25_600, "07174024f2821fb3aadd0dc95cb94961c7622eec3761eb96e1e8596966460eef"),
}


def refuse_another_set(name: str, *, num_photos: int, ids_sha256: str) -> None:
    """Refuses photos under the name of a known test set that are not the photos of that set.

    Args:
        name: a file such as `im2gps3k_places365.csv`, or a split such as `test_im2gps`.
        num_photos: how many photos it holds.
        ids_sha256: digest of their sorted ids.

    Raises:
        SourceError: the number of photos or the digest is not that of the set after which it is named.
    """
    match = re.match(rf"(?:test_)?({'|'.join(KNOWN_TEST_SETS)})(?![a-z0-9])", name.lower())
    known = KNOWN_TEST_SETS[match[1]] if match else None
    if match is None or known is None or (num_photos, ids_sha256) == (known.num_photos, known.ids_sha256):
        return
    if num_photos != known.num_photos:
        found = f"it holds {num_photos:,} photos where {match[1]} has {known.num_photos:,}"
    else:
        found = (
            f"of its {num_photos:,} ids some differ: the digest of the sorted ids is {ids_sha256[:12]}... "
            f"where that of {match[1]} is {known.ids_sha256[:12]}..."
        )
    raise SourceError(
        f"{name} is named after the test set {match[1]}, but {found}.\n"
        f"  Take the whole list {match[1]}_places365.csv: with --photos, photos that are damaged or absent count as "
        "misses.\n  To judge a part or another list on purpose, rename the file (or the split): it needs its own name."
    )
