"""Distances on the sphere in torch: right to the metre, with gradients that training can survive."""

import math

import pytest
import torch

from modeling import EARTH_RADIUS_KM, great_circle_km, to_degrees, to_unit_vectors


def haversine_km(predicted: tuple[float, float], target: tuple[float, float]) -> float:
    """The thesis's formula in Python floats, for points given as latitude and longitude in degrees."""
    (lat1, lon1), (lat2, lon2) = (tuple(map(math.radians, point)) for point in (predicted, target))
    a = math.sin((lat2 - lat1) / 2) ** 2 + math.cos(lat1) * math.cos(lat2) * math.sin((lon2 - lon1) / 2) ** 2
    return 2 * 6371.0088 * math.atan2(math.sqrt(a), math.sqrt(1 - a))


def distance_km(first: tuple[float, float], second: tuple[float, float], dtype: torch.dtype = torch.float64) -> float:
    points = torch.tensor([first, second], dtype=dtype)
    return great_circle_km(*to_unit_vectors(points)).item()


def random_points(count: int, dtype: torch.dtype) -> torch.Tensor:
    vectors = torch.randn(count, 3, dtype=torch.float64)
    return torch.nn.functional.normalize(vectors, dim=-1).to(dtype)


def test_distance_is_the_haversine_of_the_thesis() -> None:
    points = to_degrees(random_points(400, torch.float64)).reshape(200, 2, 2)
    measured = great_circle_km(*to_unit_vectors(points).unbind(1))
    expected = [haversine_km(tuple(a), tuple(b)) for a, b in points.tolist()]
    assert measured.tolist() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("first", "second", "expected_km"),
    [
        ((0, 0), (0, 180), math.pi * 6371.0088),  # antipodes on the equator
        ((90, 0), (-90, 77), math.pi * 6371.0088),  # pole to pole, whatever the longitude
        ((90, 0), (90, 120), 0),  # one pole under two names
        ((0, 179.5), (0, -179.5), math.pi * 6371.0088 / 180),  # one degree across the date line
        ((0, 0), (90, 0), math.pi * 6371.0088 / 2),
    ],
)
def test_distance_at_the_corners_of_the_map(first: tuple, second: tuple, expected_km: float) -> None:
    assert distance_km(first, second) == pytest.approx(expected_km, abs=1e-6)
    assert distance_km(first, second, torch.float32) == pytest.approx(expected_km, abs=0.01)


def test_float32_distance_of_neighbours_is_right_to_two_metres() -> None:
    here, there = (55.6761, 12.5683), (55.6765, 12.5689)  # two street corners in Copenhagen
    assert distance_km(here, there, torch.float32) == pytest.approx(haversine_km(here, there), abs=0.002)


def test_near_antipodal_float32_pairs_are_never_nan() -> None:
    points = random_points(200_000, torch.float32)
    distances = great_circle_km(
        points, torch.nn.functional.normalize(-points + 1e-5 * torch.randn_like(points), dim=-1)
    )
    assert torch.isfinite(distances).all()
    assert (distances > 20_010).all()
    assert (distances <= math.pi * EARTH_RADIUS_KM + 0.01).all()


@pytest.mark.parametrize("target", [(0.0, 0.0), (90.0, 0.0), (-90.0, 0.0), (10.0, 180.0), (10.0, -180.0)])
@pytest.mark.parametrize("antipodal", [False, True])
def test_gradient_is_finite_where_the_haversine_has_none(target: tuple, antipodal: bool) -> None:
    there = to_unit_vectors(torch.tensor(target))
    here = (-there if antipodal else there.clone()).requires_grad_()
    great_circle_km(here, there).backward()
    assert torch.isfinite(here.grad).all()
    assert antipodal or (here.grad == 0).all()


def test_gradient_points_along_the_great_circle() -> None:
    here = to_unit_vectors(torch.tensor([10.0, 20.0], dtype=torch.float64)).requires_grad_()
    there = to_unit_vectors(torch.tensor([-30.0, 140.0], dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda point: great_circle_km(point, there), here)


def test_degrees_and_unit_vectors_are_inverses() -> None:
    points = random_points(1000, torch.float64)
    assert torch.allclose(to_unit_vectors(to_degrees(points)), points, atol=1e-12)
    assert torch.allclose(to_degrees(5 * points), to_degrees(points), atol=1e-9)


def test_axes_point_where_the_docstring_says() -> None:
    axes = to_unit_vectors(torch.tensor([[0.0, 0.0], [0.0, 90.0], [90.0, 0.0]], dtype=torch.float64))
    assert torch.allclose(axes, torch.eye(3, dtype=torch.float64), atol=1e-12)
