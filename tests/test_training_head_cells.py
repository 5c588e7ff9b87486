"""Cells go from their file into the head, and from there only into the checkpoint."""

from pathlib import Path

import numpy as np
import pytest
import torch
from launching import ROOT
from packed_photos import pack
from safetensors.torch import load_file

import run_finetune_geo
from geomae.errors import ConfigError, SourceError
from geomae.geocells import Geocells, Partition, write_geocells
from geomae.training import GeoMAEArguments, read_head_geocells
from modeling import GeoMAEForGeolocation, to_degrees

SMOKE = str(ROOT / "configs/finetune/smoke.yaml")


def partition(num_cells: int, parents: list[int] | None, seed: int) -> Partition:
    rng = np.random.default_rng(seed)
    return Partition(
        centroids_deg=np.stack([rng.uniform(-60, 60, num_cells), rng.uniform(-180, 180, num_cells)], axis=-1),
        num_photos=np.full(num_cells, 50),
        area_km2=rng.uniform(1e5, 1e6, num_cells),
        spread_km=rng.uniform(50, 500, num_cells),
        parents=None if parents is None else np.array(parents),
    )


@pytest.fixture
def cells(tmp_path: Path) -> tuple[Path, Geocells]:
    geocells = Geocells((partition(3, None, 0), partition(6, [0, 0, 1, 2, 2, 1], 1)))
    return write_geocells(tmp_path / "geocells.parquet", geocells), geocells


@pytest.mark.parametrize("head_type", ["geocells", "hybrid", "vmf_mixture"])
def test_a_run_takes_its_cells_from_the_file_and_keeps_them_in_its_checkpoint(
    cells: tuple[Path, Geocells], tmp_path: Path, head_type: str
) -> None:
    path, geocells = cells
    photos = pack(tmp_path / "photos", train=32, validation=9)
    argv = [SMOKE, "--data_dirs", str(photos), "--output_dir", str(tmp_path / "run"), "--disable_tqdm"]
    argv += ["--max_steps", "3", "--head_type", head_type, "--geocells", str(path)]
    run_finetune_geo.main(argv)
    path.unlink()
    model = GeoMAEForGeolocation.from_pretrained(tmp_path / "run")
    assert model.config.num_geocells == [3, 6]
    finest = geocells.partitions[-1]
    assert to_degrees(model.head.cells.finest).numpy() == pytest.approx(finest.centroids_deg, abs=1e-3)
    assert model.head.cells.ancestors.tolist() == [[0, 0, 1, 2, 2, 1], [0, 1, 2, 3, 4, 5]]
    assert model.head.cells.area_km2.numpy() == pytest.approx(finest.area_km2)
    assert model.head.cells.spread_km.numpy() == pytest.approx(finest.spread_km)
    assert "head.cells.centroids" in load_file(tmp_path / "run" / "model.safetensors")


def test_a_point_head_refuses_cells(cells: tuple[Path, Geocells], tmp_path: Path) -> None:
    photos = pack(tmp_path / "photos", train=32, validation=9)
    argv = [SMOKE, "--data_dirs", str(photos), "--output_dir", str(tmp_path / "run"), "--geocells", str(cells[0])]
    with pytest.raises(ConfigError, match="has no cells: leave geocells out"):
        run_finetune_geo.main([*argv, "--head_type", "sphere"])


def test_other_counts_than_the_files_are_refused(cells: tuple[Path, Geocells]) -> None:
    architecture = GeoMAEArguments(head_type="geocells", num_geocells=[3, 7])
    with pytest.raises(ConfigError, match=r"num_geocells is \[3, 7\].*has \[3, 6\]"):
        read_head_geocells(architecture, str(cells[0]))
    with pytest.raises(SourceError, match=r"python -m geomae\.geocells build"):
        read_head_geocells(architecture, "nowhere/geocells.parquet")


def test_cells_of_python_and_of_torch_are_the_same(cells: tuple[Path, Geocells]) -> None:
    from modeling import GeocellTensors, to_unit_vectors

    _, geocells = cells
    tensors = GeocellTensors(geocells.num_geocells)
    coarse, fine = geocells.partitions
    tensors.set_geocells([coarse.centroids_deg, fine.centroids_deg], [fine.parents], fine.area_km2, fine.spread_km)
    points = np.stack([np.linspace(-90, 90, 500), np.linspace(-180, 180, 500) * 7 % 360 - 180], axis=-1)
    by_torch = tensors.assign(to_unit_vectors(torch.tensor(points).float()))
    assert by_torch.T.tolist() == geocells.assign(points).tolist()
