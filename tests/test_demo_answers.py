import base64
import io
import math
import socket

import numpy as np
import pytest
import torch
from geocell_models import save_cell_model
from packed_photos import TINY, pack
from PIL import Image

from geomae.data import PhotoCollator, load_photos
from geomae.demo import DemoArguments, GamePhotos, Geolocator, Reconstructor, find_port
from geomae.demo.answers import WORLD, window_around
from geomae.demo.circles import circle_line, circle_outlines
from geomae.demo.game import Game, score_turn
from geomae.demo.photo_gate import MAX_UPLOAD_BYTES, parse_place, preview_uri, refuse_oversized
from geomae.demo.posterior_grid import HeatWindow, draw_heat, posterior_grid
from geomae.demo.texts import answer_card, answer_map
from geomae.demo.world_map import Mark, draw_map
from geomae.errors import ConfigError, CoordinateError, DamagedPhotoError
from geomae.evaluation.predict import predict_coordinates
from geomae.geography import draw_uniform, great_circle_km
from modeling import GeoMAEConfig, GeoMAEForGeolocation, GeoMAEForPreTraining


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return pack(tmp_path_factory.mktemp("photos"), test=6)


@pytest.fixture(scope="module")
def cell_model(tmp_path_factory):
    return save_cell_model(tmp_path_factory.mktemp("cells"), TINY)


@pytest.fixture(scope="module")
def geolocator(cell_model):
    return Geolocator(cell_model)


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(buffer, "JPEG")
    return buffer.getvalue()


def is_within(outlines, points_deg):
    """Even-odd rule over the map's repetitions: how often a ray to the east crosses the outlines."""
    inside = np.zeros(len(points_deg), dtype=bool)
    for shift in (-720.0, -360.0, 0.0, 360.0, 720.0):
        crossings = np.zeros(len(points_deg), dtype=int)
        for outline in outlines:
            (y, x), (next_y, next_x) = outline.T, np.roll(outline, -1, axis=0).T
            for a, b, c, d in zip(y, x, next_y, next_x, strict=True):
                spans = (a > points_deg[:, 0]) != (c > points_deg[:, 0])
                if a != c:
                    at = b + (points_deg[:, 0] - a) / (c - a) * (d - b)
                    crossings += spans & (at > points_deg[:, 1] + shift)
        inside |= crossings % 2 == 1
    return inside


@pytest.mark.parametrize(
    "latitude, longitude, radius_km",
    [(10, 20, 800), (-20, 179, 1500), (80, 30, 2500), (-75, -170, 4000), (5, -60, 12_000), (50, 170, 17_000)],
)
def test_circle_holds_exactly_the_points_within_its_radius(latitude, longitude, radius_km):
    points = draw_uniform(3000, np.random.default_rng(0))
    distance_km = great_circle_km([latitude, longitude], points)
    is_clear = np.abs(distance_km - radius_km) > 100  # a polygon cuts corners
    inside = is_within(circle_outlines(latitude, longitude, radius_km), points)
    assert (inside == (distance_km < radius_km))[is_clear].all()
    assert 0 < inside.sum() < len(points)


@pytest.mark.parametrize("latitude, longitude, radius_km", [(0, 179.5, 500), (85, 10, 3000), (5, -60, 12_000)])
def test_rim_of_a_circle_lies_at_its_radius_and_never_jumps(latitude, longitude, radius_km):
    rim = circle_line(latitude, longitude, radius_km)
    np.testing.assert_allclose(great_circle_km([latitude, longitude], rim), radius_km, rtol=1e-6)
    assert np.abs(np.diff(rim[:, 1])).max() < 180


def test_heat_over_the_earth_sums_to_one_however_narrow_the_places_are():
    for spread_km in (1.0, 50.0, 2000.0):
        places = np.array([[0.0, 0.0], [48.9, 2.3], [-17.5, 179.9], [78.2, 15.6], [-54.8, -68.3]])
        grid = posterior_grid([0.2, 0.3, 0.3, 0.1, 0.1], places, np.full(5, spread_km), WORLD)
        assert grid.probability.sum() == pytest.approx(1.0, abs=1e-3)
        at_a_pole = posterior_grid([1.0], [[-90.0, 0.0]], [spread_km], WORLD)
        assert at_a_pole.probability.sum() == pytest.approx(1.0, abs=0.2), "cells there are slices of a cake"
        assert grid.area_km2.sum() * 360 == pytest.approx(4 * math.pi * 6371.0088**2, rel=1e-9)


def test_heat_of_places_too_many_to_spread_still_sums_to_one():
    places = draw_uniform(2000, np.random.default_rng(1))
    grid = posterior_grid(np.full(2000, 1 / 2000), places, np.full(2000, 20.0), WORLD)
    assert grid.probability.sum() == pytest.approx(1.0, abs=1e-3)


def test_heat_is_the_models_density():
    """A mixture of von Mises-Fisher distributions, by the head's own density at the centres of cells around one."""
    torch.manual_seed(0)
    config = GeoMAEConfig(**TINY, head_type="vmf_mixture", num_mixture_components=5)
    head = GeoMAEForGeolocation(config).eval().head
    logits = torch.randn(1, head.layers[-1].out_features)
    log_mass, places = head.place_log_probabilities(logits)
    spread_km = head.spread_km(logits).reshape(-1)
    south, west = (places[0, log_mass[0].argmax()] - 4.0).tolist()
    window = HeatWindow(south, south + 8.0, west, west + 8.0, step_deg=0.1)
    grid = posterior_grid(log_mass[0].exp().numpy(), places[0].numpy(), spread_km.numpy(), window)
    latitude, longitude = (edges[:-1] + np.diff(edges) / 2 for edges in window.edges())
    centers = torch.tensor(np.stack(np.meshgrid(latitude, longitude, indexing="ij"), -1).reshape(-1, 2))
    density = head.log_density(logits.expand(len(centers), -1), centers).exp().double().numpy()
    expected = density.reshape(grid.probability.shape) * grid.area_km2 / 6371.0088**2
    assert expected.sum() > 0.05, "some of the posterior is here"
    np.testing.assert_allclose(grid.probability, expected, rtol=0.02, atol=1e-3 * expected.max())


def test_finer_window_holds_what_the_world_holds_there():
    mass, places, spread_km = [0.6, 0.4], np.array([[10.0, 178.0], [40.0, 0.0]]), np.array([300.0, 300.0])
    window = window_around(10.0, 178.0, 400.0)
    assert window.east > 180.0, "it crosses the date line"
    assert posterior_grid(mass, places, spread_km, window).probability.sum() == pytest.approx(0.6, abs=0.01)


def test_heat_picture_leaves_out_what_the_finer_one_shows():
    grid = posterior_grid([1.0], [[0.0, 0.0]], [500.0], WORLD)
    peak = float((grid.probability / grid.area_km2).max())
    whole, holed = (
        np.asarray(Image.open(io.BytesIO(draw_heat(grid, peak_density=peak, hole=hole))))
        for hole in (None, HeatWindow(-5.0, 5.0, -5.0, 5.0, 0.1))
    )
    assert whole.shape == (180, 360, 4)
    assert whole[90, 180, 3] > 200 > whole[90, 190, 3] > whole[0, 0, 3] == 0
    assert (holed[85:95, 175:185] == 0).all()
    np.testing.assert_array_equal(holed[:85], whole[:85])


def test_answers_are_those_of_an_evaluation(geolocator, photos):
    dataset = load_photos(photos, "test")
    predictions = predict_coordinates(
        geolocator.model, dataset, PhotoCollator(16, augment=False), batch_size=1, device="cpu"
    )
    answers = [geolocator.answer(row["image"]["bytes"]) for row in dataset]
    np.testing.assert_array_equal([(a.latitude, a.longitude) for a in answers], predictions.coordinates_deg)
    for name in ("radius_50_km", "radius_90_km"):
        np.testing.assert_allclose([getattr(a, name) for a in answers], predictions.posterior[name], rtol=1e-5)


def test_answer_lists_the_likeliest_places_first(geolocator, photos):
    answer = geolocator.answer(load_photos(photos, "test")[0]["image"]["bytes"])
    shares = [place.probability for place in answer.top_places]
    assert len(shares) == 5
    assert shares == sorted(shares, reverse=True)
    assert answer.world_grid.probability.sum() == pytest.approx(1.0, abs=0.01)


def test_point_answer_says_why_it_has_no_radius(tmp_path, photos):
    GeoMAEForGeolocation(GeoMAEConfig(**TINY, head_type="sphere")).save_pretrained(tmp_path)
    answer = Geolocator(tmp_path).answer(load_photos(photos, "test")[0]["image"]["bytes"])
    assert answer.radius_50_km is None
    assert answer.top_places == []
    assert "single point" in answer_card(answer)
    assert "geo-heat" not in answer_map(answer)
    assert "geo-answer" in answer_map(answer)


def test_labels_from_outside_are_escaped():
    drawn = draw_map("m", 'a "map" <b>', marks=[Mark("truth", "<script>", 0.0, 0.0)])
    assert "<script>" not in drawn
    assert "<b>" not in drawn


@pytest.mark.parametrize("text, place", [("48.8, 2.3", (48.8, 2.3)), (" -33.9 151.2 ", (-33.9, 151.2)), ("  ", None)])
def test_typed_place_is_read(text, place):
    assert parse_place(text) == place


@pytest.mark.parametrize(
    "text, words", [("Paris", "decimal degrees"), ("48.8", "comma"), ("139.7, 35.7", "swapped"), ("1," * 9000, "comma")]
)
def test_typed_place_that_is_none_is_refused_with_advice(text, words):
    with pytest.raises(CoordinateError, match=words):
        parse_place(text)


@pytest.mark.parametrize(
    "data, words", [(b"", "empty"), (b"\0" * (MAX_UPLOAD_BYTES + 1), "20 MB at most"), (b"hello", "no photo")]
)
def test_what_is_no_photo_is_refused(geolocator, data, words):
    with pytest.raises(DamagedPhotoError, match=words):
        geolocator.answer(data)


def test_preview_shrinks_a_photo_and_keeps_its_shape():
    buffer = io.BytesIO()
    Image.new("RGB", (3000, 1500)).save(buffer, "PNG")
    header, _, encoded = preview_uri(buffer.getvalue()).partition(",")
    assert header == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as shown:
        assert shown.size == (640, 320)


@pytest.fixture(scope="module")
def reconstructor(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    GeoMAEForPreTraining(GeoMAEConfig(**{**TINY, "image_size": 32})).save_pretrained(folder)
    return Reconstructor(folder)


def test_restored_photo_differs_from_the_original_in_its_hidden_patches_alone(reconstructor, photos):
    crop = reconstructor.crop(load_photos(photos, "test")[0]["image"]["bytes"])
    restored = reconstructor.restore(crop, mask_ratio=0.5, seed=3)
    assert (restored.num_hidden, restored.num_patches) == (8, 16)
    np.testing.assert_array_equal(restored.original, crop[0].permute(1, 2, 0))
    is_grey = (restored.masked == 128).all(axis=-1)
    assert is_grey.mean() == pytest.approx(0.5, abs=0.05)
    np.testing.assert_array_equal(restored.restored[~is_grey], restored.original[~is_grey])


@pytest.mark.parametrize("mask_ratio, num_hidden", [(0.0, 1), (0.05, 1), (0.75, 12), (1.0, 15)])
def test_slider_leaves_at_least_one_patch_on_either_side(reconstructor, photos, mask_ratio, num_hidden):
    crop = reconstructor.crop(load_photos(photos, "test")[0]["image"]["bytes"])
    assert reconstructor.restore(crop, mask_ratio=mask_ratio, seed=0).num_hidden == num_hidden


def test_geolocator_is_no_model_to_restore_photos_with(cell_model):
    with pytest.raises(ConfigError, match="no decoder"):
        Reconstructor(cell_model)


def test_turn_gives_full_points_on_the_spot_and_the_publications_elsewhere():
    turn = score_turn((0.0, 0.0), (0.0, 90.0), (0.0, 0.0))
    quarter_km = math.pi / 2 * 6371.0088
    assert (turn.own_km, turn.own_points) == (0.0, 5000)
    assert turn.model_km == pytest.approx(quarter_km)
    assert turn.model_points == round(5000 * math.exp(-quarter_km / 1492.7))


def test_round_shows_different_photos_and_ends(photos):
    source = GamePhotos(photos, "test")
    game = source.draw(np.random.default_rng(0), num_photos=3)
    assert len(set(game.rows)) == 3
    seen = []
    for _ in range(3):
        seen.append(game.row)
        game = game.after(score_turn((0.0, 0.0), (0.0, 0.0), source.place(game.row)))
        assert game.row == seen[-1], "the photo stays until the next one is asked for"
        game = game if game.is_over else game.next_photo()
    assert tuple(seen) == game.rows
    assert game.totals()[0] == game.totals()[1]


def test_round_passes_over_damaged_photos(tmp_path):
    source = GamePhotos(pack(tmp_path, test=8, num_damaged=2), "test")
    game = source.draw(np.random.default_rng(0), num_photos=8)
    assert isinstance(game, Game)
    assert len(game.rows) == 4


@pytest.mark.parametrize("given, words", [({}, "--model PATH"), ({"model": "x", "server_port": 70000}, "65535")])
def test_page_cannot_start_without_a_model_or_on_no_port(given, words):
    with pytest.raises(ConfigError, match=words):
        DemoArguments(**given)


def test_photo_of_too_many_pixels_is_refused_from_its_header():
    buffer = io.BytesIO()
    Image.new("1", (9000, 6000)).save(buffer, "PNG")
    with pytest.raises(DamagedPhotoError, match=r"9000 x 6000 is more than the 50,000,000 pixels that this page"):
        refuse_oversized(buffer.getvalue())


def test_typed_nonsense_is_told_alone_and_hides_no_photo(geolocator):
    page = pytest.importorskip("geomae.demo.page")
    found = geolocator.answer(jpeg())
    truth, line = page._find_truth("Paris", b"whatever", found)
    assert truth is None
    assert "That is not a place" in line
    assert "no true place" not in line
    _, line = page._find_truth("", jpeg(), found)
    assert "This photo has no true place: no GPS position in its EXIF block." in line


def test_box_of_the_place_that_was_never_touched_may_say_nothing_at_all(geolocator):
    """Gradio sends null for it where a photo is dropped before the page is ready."""
    page = pytest.importorskip("geomae.demo.page")
    event = page.gr.EventData(target=None, _data={"base64": base64.b64encode(jpeg()).decode()})
    handlers = page.AnswerHandlers(geolocator)
    *_, card, answered = handlers.answer(None, None, event)
    assert 'aria-label="Answer"' in card
    assert answered.place_text == ""
    assert handlers.judge(None, answered) == (page.gr.skip(),) * 3
    assert handlers.judge(None, None)[1] == ""


def test_taken_port_and_unknown_address_are_told_in_a_sentence():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"at 127.0.0.1, port {port}: .* --server_port"):
            find_port(None, port)
    assert find_port(None, port) == port
    with pytest.raises(ConfigError, match="no address that is known here"):
        find_port("not.a.host.invalid", None)
    with pytest.raises(ConfigError, match=r"at 192.0.2.1, any port from 7860 to 7959: "):
        find_port("192.0.2.1", None)
