"""The heads: every point of the Earth within reach, finite gradients, and float32 whatever happens around them."""

import math

import pytest
import torch
from torch import nn

from modeling import (
    HEAD_TYPES,
    HEADS,
    GeolocationHead,
    GeolocationHeadConfig,
    GeolocationOutput,
    build_head,
    great_circle_km,
    to_unit_vectors,
)

POINT_HEADS = ("tanh", "sphere")

CORNERS = torch.tensor(
    [[0, 0], [90, 0], [-90, 0], [0, 180], [0, -180], [45, 179.999], [-45, -179.999], [89.999, 12.0], [0.0, 90.0]]
)


def head_of(name: str, **options: object) -> GeolocationHead:
    settings = {"head_hidden_sizes": [5, 4], "num_geocells": [12, 40]} | options
    return build_head(6, GeolocationHeadConfig(head_type=name, **settings))


def test_every_head_type_of_the_configuration_is_a_head() -> None:
    assert tuple(HEADS) == HEAD_TYPES


def with_outputs(name: str, outputs: list[float]) -> GeolocationHead:
    """A head whose last layer answers `outputs` whatever it sees."""
    head = head_of(name)
    nn.init.zeros_(head.layers[-1].weight)
    head.layers[-1].bias.data = torch.tensor(outputs)
    return head


def test_tanh_head_is_three_fully_connected_layers_with_relu() -> None:
    kinds = [type(layer) for layer in head_of("tanh").layers if not isinstance(layer, nn.Dropout)]
    assert kinds == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]


@pytest.mark.parametrize(
    ("outputs", "expected_deg"),
    [([0.0, 0.0], [0, 0]), ([math.atanh(0.5), math.atanh(-0.5)], [45, -90]), ([math.atanh(-0.99), 0.0], [-89.1, 0])],
)
def test_tanh_head_scales_to_degrees(outputs: list[float], expected_deg: list[float]) -> None:
    answer = with_outputs("tanh", outputs)(torch.randn(1, 6)).coordinates_deg
    assert answer[0].tolist() == pytest.approx(expected_deg, abs=1e-4)


@pytest.mark.parametrize(
    ("outputs", "expected_deg"),
    [([2.0, 0, 0], [0, 0]), ([0, -3.0, 0], [0, -90]), ([0.0, 0, 5], [90, 0]), ([-1.0, -1e-9, 0], [0, -180])],
)
def test_sphere_head_answers_the_direction_of_its_outputs(outputs: list[float], expected_deg: list[float]) -> None:
    answer = with_outputs("sphere", outputs)(torch.randn(1, 6)).coordinates_deg
    assert answer[0].tolist() == pytest.approx(expected_deg, abs=1e-4)


@pytest.mark.parametrize("name", POINT_HEADS)
def test_loss_of_a_point_head_is_the_mean_great_circle_error_in_km(name: str) -> None:
    head, features, truth = head_of(name), torch.randn(7, 6), torch.rand(7, 2) * 80
    answer = head(features, truth)
    errors = []
    for predicted, target in zip(answer.coordinates_deg.double(), truth.double(), strict=True):
        (lat1, lon1), (lat2, lon2) = torch.deg2rad(predicted).tolist(), torch.deg2rad(target).tolist()
        cosine = math.sin(lat1) * math.sin(lat2) + math.cos(lat1) * math.cos(lat2) * math.cos(lon1 - lon2)
        errors.append(6371.0088 * math.acos(cosine))
    assert answer.error_km.tolist() == pytest.approx(errors, rel=1e-4)
    assert answer.loss.item() == pytest.approx(sum(errors) / 7, rel=1e-4)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0])
def test_gradients_are_finite_everywhere_on_the_sphere(name: str, size: float) -> None:
    head = head_of(name)
    features = (size * torch.randn(len(CORNERS), 6)).requires_grad_()
    head(features, CORNERS).loss.backward()
    assert torch.isfinite(features.grad).all()
    assert all(torch.isfinite(parameter.grad).all() for parameter in head.parameters())


@pytest.mark.parametrize("outputs", [[0.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, -1.0], [-1.0, 0.0, 0.0]])
def test_sphere_head_has_finite_gradients_on_and_opposite_its_target(outputs: list[float]) -> None:
    head = with_outputs("sphere", outputs)
    head(torch.randn(2, 6), torch.tensor([[90.0, 0.0], [0.0, 180.0]])).loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in head.parameters())


@pytest.mark.parametrize(("name", "short_way"), [("sphere", True), ("tanh", False)])
def test_only_the_sphere_head_crosses_the_date_line(name: str, short_way: bool) -> None:
    start = {"sphere": [-1.0, 0.02, 0.0], "tanh": [0.0, math.atanh(178.9 / 180)]}[name]
    head, target = with_outputs(name, start), torch.tensor([[0.0, -170.0]])
    optimizer = torch.optim.SGD([head.layers[-1].bias], lr=2e-6)
    passed = [head(torch.zeros(1, 6)).coordinates_deg[0, 1].item()]
    for _ in range(300):
        optimizer.zero_grad()
        head(torch.zeros(1, 6), target).loss.backward()
        optimizer.step()
        passed.append(head(torch.zeros(1, 6)).coordinates_deg[0, 1].item())
    assert passed[0] == pytest.approx(178.9, abs=0.1)
    assert (abs(passed[-1] + 170) < 2) == short_way


@pytest.mark.parametrize("name", HEADS)
def test_head_stays_float32_through_casts_and_autocast(name: str) -> None:
    head, features, truth = head_of(name), torch.randn(3, 6), torch.rand(3, 2)
    exact = head(features, truth)
    for cast in (torch.bfloat16, torch.float16):
        moved = nn.ModuleDict({"head": head}).to(cast)["head"]
        assert {parameter.dtype for parameter in moved.parameters()} == {torch.float32}
        with torch.autocast("cpu", dtype=torch.bfloat16):
            answer = moved(features, truth)
        assert torch.equal(answer.coordinates_deg, exact.coordinates_deg)
        assert answer.loss.dtype == torch.float32
        assert torch.equal(answer.loss, exact.loss)


def test_head_moves_to_other_devices() -> None:
    assert {parameter.device.type for parameter in head_of("sphere").to("meta").parameters()} == {"meta"}
    assert {p.dtype for p in head_of("sphere").to("meta", torch.bfloat16).parameters()} == {torch.float32}


def test_answer_without_truth_has_no_loss() -> None:
    answer = head_of("sphere")(torch.randn(2, 6))
    assert answer.loss is None
    assert answer.error_km is None
    assert answer.coordinates_deg.shape == (2, 2)


def test_dropout_works_in_training_only() -> None:
    head, features = head_of("tanh", head_hidden_sizes=[64], head_dropout_prob=0.5), torch.ones(1, 6)
    assert not torch.equal(head(features).coordinates_deg, head(features).coordinates_deg)
    head.eval()
    assert torch.equal(head(features).coordinates_deg, head(features).coordinates_deg)


# ---- several crops of a photo


def answers_of(*coordinates_deg: list[list[float]]) -> list[GeolocationOutput]:
    return [GeolocationOutput(coordinates_deg=torch.tensor(crop)) for crop in coordinates_deg]


@pytest.mark.parametrize("name", POINT_HEADS)
def test_crops_of_one_answer_keep_it(name: str) -> None:
    places = [[48.85, 2.35], [-90.0, 0.0], [0.0, 180.0]]
    combined = head_of(name).combine_crops(answers_of(*[places] * 10))
    assert (
        great_circle_km(to_unit_vectors(combined.coordinates_deg), to_unit_vectors(torch.tensor(places))).max() < 0.01
    )
    assert combined.logits is None


@pytest.mark.parametrize(
    ("crops", "expected_deg"),
    [
        ([[0.0, 0.0], [0.0, 90.0]], [0, 45]),  # half-way along the equator
        ([[10.0, 179.0], [10.0, -179.0]], [10.0015, 180]),  # across the date line, not through Greenwich
        ([[80.0, 0.0], [80.0, 180.0]], [90, None]),  # over the pole
        ([[0.0, 0.0], [0.0, 90.0], [90.0, 0.0]], [math.degrees(math.atan(1 / math.sqrt(2))), 45]),
    ],
)
def test_regressors_average_points_on_the_sphere(crops: list[list[float]], expected_deg: list[float | None]) -> None:
    answer = head_of("sphere").combine_crops(answers_of(*[[crop] for crop in crops])).coordinates_deg
    latitude, longitude = answer[0].tolist()
    assert latitude == pytest.approx(expected_deg[0], abs=1e-3)
    assert expected_deg[1] is None or abs(longitude) == pytest.approx(expected_deg[1], abs=1e-3)


def test_the_mean_does_not_depend_on_the_order_of_the_crops() -> None:
    crops = answers_of(*(torch.rand(10, 3, 2) * 160 - 80).tolist())
    head = head_of("sphere")
    forward, backward = head.combine_crops(crops).coordinates_deg, head.combine_crops(crops[::-1]).coordinates_deg
    assert torch.allclose(forward, backward, atol=1e-4)


@pytest.mark.parametrize("centre", [[0.0, 0.0], [35.0, 139.0], [90.0, 0.0], [-33.0, -180.0]])
def test_crops_that_cancel_out_leave_the_central_answer(centre: list[float]) -> None:
    opposite = [-centre[0], centre[1] - 180 if centre[1] > 0 else centre[1] + 180]
    answer = head_of("sphere").combine_crops(answers_of([centre], [opposite])).coordinates_deg
    place = great_circle_km(to_unit_vectors(answer), to_unit_vectors(torch.tensor([centre])))
    assert place.item() < 0.01


def test_a_posterior_answers_with_its_logits() -> None:
    head, features = head_of("geocells", num_geocells=[3]).eval(), torch.randn(5, 6)
    answer = head(features)
    assert torch.equal(answer.logits, head.layers(features))
    assert torch.equal(head(features, torch.zeros(5, 2))["logits"], answer.logits)


def test_a_posterior_averages_logits_and_not_places() -> None:
    head = head_of("geocells", num_geocells=[3], decoding="argmax").eval()
    centres_deg = [[0.0, 0.0], [50.0, 10.0], [-30.0, 150.0]]
    head.set_geocells([centres_deg], [], torch.ones(3), torch.ones(3))
    logits = torch.tensor(
        [[[3.0, 2.0, 0.0]], [[0.0, 2.0, 3.0]]]
    )  # two crops: each prefers another, the mean the second
    crops = [GeolocationOutput(coordinates_deg=torch.zeros(1, 2), logits=crop) for crop in logits]
    combined = head.combine_crops(crops)
    assert combined.coordinates_deg[0].tolist() == pytest.approx([50, 10], abs=1e-4)
    assert combined.logits.tolist() == [[1.5, 2.0, 1.5]]
