import itertools
import sys
from collections import Counter

import numpy as np
import pytest
import s2geometry
from spheres import EDGES_DEG, draw_photos

from geomae.errors import ConfigError, SourceError
from geomae.geocells import draft_by_s2
from geomae.geocells.s2 import leaf_ids, refuse_missing_s2

PHOTOS_DEG = np.concatenate([EDGES_DEG, draw_photos(3000)])
MAX_PHOTOS, MIN_PHOTOS = [400, 100, 40], 10


@pytest.fixture(scope="module")
def blueprints() -> tuple:
    return draft_by_s2(PHOTOS_DEG, max_photos=MAX_PHOTOS, min_photos=MIN_PHOTOS)


@pytest.fixture(scope="module")
def leaves() -> list:
    return [s2geometry.S2CellId(s2geometry.S2LatLng.FromDegrees(*point)) for point in PHOTOS_DEG.tolist()]


def cells_of(blueprint: object) -> list:
    return [s2geometry.S2CellId.FromToken(token) for token in blueprint.s2_tokens]


def test_leaf_ids_are_those_of_the_library(leaves: list) -> None:
    assert leaf_ids(PHOTOS_DEG).tolist() == [leaf.id() for leaf in leaves]


def test_photos_are_in_the_cell_that_contains_them_by_the_librarys_word(blueprints: tuple, leaves: list) -> None:
    for blueprint in blueprints:
        cells = cells_of(blueprint)
        containing = [[row for row, cell in enumerate(cells) if cell.contains(leaf)] for leaf in leaves]
        assert all(len(rows) <= 1 for rows in containing)
        assert blueprint.groups.tolist() == [rows[0] if rows else -1 for rows in containing]


def test_cells_have_no_fewer_photos_than_the_minimum_and_no_more_than_the_maximum(
    blueprints: tuple, leaves: list
) -> None:
    for most, blueprint in zip(MAX_PHOTOS, blueprints, strict=True):
        cells = cells_of(blueprint)
        counts = [sum(cell.contains(leaf) for leaf in leaves) for cell in cells]
        assert min(counts) >= MIN_PHOTOS
        assert max(counts) <= most
        whole = [cell for cell in cells if not cell.is_face()]
        of_parents = [sum(cell.parent().contains(leaf) for leaf in leaves) for cell in whole]
        assert min(of_parents) > most, "a cell is divided only where it holds too many"


def test_only_photos_in_cells_below_the_minimum_are_left_out(blueprints: tuple, leaves: list) -> None:
    levels = range(31)
    counts = [Counter(leaf.parent(level).id() for leaf in leaves) for level in levels]
    for most, blueprint in zip(MAX_PHOTOS, blueprints, strict=True):
        assert (blueprint.groups == -1).any()
        for photo in np.flatnonzero(blueprint.groups == -1):
            sizes = [counts[level][leaves[photo].parent(level).id()] for level in levels]
            assert next(size for size in sizes if size <= most) < MIN_PHOTOS


def test_each_cell_has_the_coarser_cell_that_contains_it_as_parent_and_none_is_childless(blueprints: tuple) -> None:
    assert blueprints[0].parents is None
    for coarse, fine in itertools.pairwise(blueprints):
        for cell, parent in zip(cells_of(fine), fine.parents, strict=True):
            assert cells_of(coarse)[parent].contains(cell)
        assert set(fine.parents.tolist()) == set(range(coarse.num_cells))
        assert fine.num_cells > coarse.num_cells


def test_cells_do_not_depend_on_the_order_of_the_photos(blueprints: tuple) -> None:
    order = np.random.default_rng(0).permutation(len(PHOTOS_DEG))
    again = draft_by_s2(PHOTOS_DEG[order], max_photos=MAX_PHOTOS, min_photos=MIN_PHOTOS)
    for one, other in zip(blueprints, again, strict=True):
        assert one.s2_tokens == other.s2_tokens
        np.testing.assert_array_equal(one.groups[order], other.groups)


def test_photos_that_no_division_can_part_keep_a_cell_of_their_own() -> None:
    photos_deg = np.array([[48.85, 2.35]] * 50 + [[-33.0, 151.0]] * 4)
    (blueprint,) = draft_by_s2(photos_deg, max_photos=[20], min_photos=5)
    (cell,) = cells_of(blueprint)
    assert cell.is_leaf()
    assert blueprint.groups.tolist() == [0] * 50 + [-1] * 4


@pytest.mark.parametrize("max_photos", [[], [100, 100], [40, 100]])
def test_maxima_that_do_not_fall_are_refused(max_photos: list[int]) -> None:
    with pytest.raises(ConfigError, match="max_photos must fall"):
        draft_by_s2(PHOTOS_DEG, max_photos=max_photos, min_photos=1)


@pytest.mark.parametrize("min_photos", [0, 26])
def test_a_minimum_by_which_a_divided_cell_could_vanish_is_refused(min_photos: int) -> None:
    with pytest.raises(ConfigError, match=f"from 1 to a quarter of the least max_photos, 100.*got {min_photos}"):
        draft_by_s2(PHOTOS_DEG, max_photos=[200, 100], min_photos=min_photos)


def test_too_few_photos_for_a_cell_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"no S2 cell .* has min_photos 50: there are 10 photos"):
        draft_by_s2(EDGES_DEG, max_photos=[1000], min_photos=50)


def test_a_missing_library_is_named_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s2geometry", None)
    with pytest.raises(SourceError, match=r"pip install 'geomae\[geocells\]'.*--kind kmeans does without"):
        refuse_missing_s2()
