"""Maps of what models think possible: the mass, the answers and the truth of each photo, drawn where they belong."""

import math

import numpy as np
import pytest

pytest.importorskip("cartopy")

import cartopy.crs
from packed_photos import TINY, pack
from PIL import Image

from geomae.errors import ConfigError
from geomae.reporting.__main__ import main
from geomae.reporting.posterior_maps import PhotoPosterior, posterior_map
from geomae.reporting.posteriors import compute_posteriors
from modeling import GeoMAEConfig, GeoMAEForGeolocation

PLACES = np.array([[10.0, 20.0], [-30.0, 140.0], [50.0, -100.0]])


def photo_posterior(mass):
    answers = {"argmax": PLACES[0], "expected_km": np.array([0.0, 0.0])}
    photo = np.zeros((8, 8, 3), np.uint8)
    return PhotoPosterior("a.jpg", photo, np.array(mass), PLACES, answers, np.array([0.0, 90.0]))


def axes_of(figure):
    maps = [axes for axes in figure.axes if hasattr(axes, "projection")]
    photos = [axes for axes in figure.axes if axes.get_title(loc="left") == "a.jpg"]
    return maps, photos


def test_map_draws_likely_places_the_likeliest_on_top_and_leaves_out_the_rest():
    figure = posterior_map([photo_posterior([0.3, 0.6995, 0.0005])], title="one")
    (world,), _ = axes_of(figure)
    (places,) = world.collections
    np.testing.assert_array_equal(places.get_offsets(), [[20.0, 10.0], [140.0, -30.0]])  # longitude, latitude
    np.testing.assert_array_equal(places.get_array(), [0.3, 0.6995])
    assert places.get_sizes()[1] > places.get_sizes()[0]


def test_answers_and_truth_stand_where_they_are_and_errors_above():
    figure = posterior_map([photo_posterior([0.5, 0.5, 0.0])], title="one")
    (world,), _ = axes_of(figure)
    marks = {line.get_label(): line.get_xydata()[0].tolist() for line in world.get_lines()}
    assert marks == {"argmax": [20.0, 10.0], "expected_km": [0.0, 0.0], "truth": [90.0, 0.0]}
    quarter = math.pi / 2 * 6371.0088  # from (0, 0) to (0, 90)
    assert f"expected_km {quarter:,.0f}" in world.get_title(loc="left")


def test_every_photo_stands_beside_its_map():
    maps, photos = axes_of(posterior_map([photo_posterior([0.2, 0.3, 0.5])] * 5, title="five"))
    assert len(maps) == len(photos) == 5
    assert all(isinstance(world.projection, cartopy.crs.Robinson) for world in maps)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return pack(tmp_path_factory.mktemp("photos"), test=6)


def save_model(folder, **head):
    GeoMAEForGeolocation(GeoMAEConfig(**TINY | head)).save_pretrained(folder)
    return str(folder)


def test_checkpoint_is_asked_for_its_whole_posterior_and_every_decoding(photos, tmp_path):
    checkpoint = save_model(tmp_path / "model", head_type="geocells", num_geocells=[4, 12])
    posteriors = compute_posteriors(checkpoint, str(photos), "test", num_photos=4)
    assert len({shown.name for shown in posteriors}) == 4
    for shown in posteriors:
        assert shown.mass.shape == (12,)
        assert shown.mass.sum() == pytest.approx(1.0, abs=1e-5)
        assert set(shown.answers_deg) == {"argmax", "kernel", "expected_km", "mean_in_top_k"}
        np.testing.assert_allclose(shown.answers_deg["argmax"], shown.places_deg[shown.mass.argmax()], atol=1e-3)
        assert shown.photo.shape == (TINY["image_size"], TINY["image_size"], 3)
    again = compute_posteriors(checkpoint, str(photos), "test", num_photos=4)
    assert [shown.name for shown in again] == [shown.name for shown in posteriors]


@pytest.mark.parametrize(("option", "given", "least"), [("num_photos", 0, 1), ("num_photos", -18, 1), ("seed", -1, 0)])
def test_numbers_that_draw_nothing_are_refused(photos, tmp_path, option, given, least):
    checkpoint = save_model(tmp_path / "model", head_type="geocells", num_geocells=[4])
    words = ["posteriors", "--photos", str(photos), "--checkpoint", checkpoint, f"--{option}", str(given)]
    with pytest.raises(ConfigError, match=f"--{option} {given} is too small: give {least} or more"):
        main([*words, "--output_file", str(tmp_path / "maps.png")])


def test_photos_that_only_the_table_names_are_never_drawn(tmp_path):
    names = [f"{number}.jpg" for number in range(6)]
    (tmp_path / "photos").mkdir()
    for name in names[:2]:
        Image.new("RGB", (24, 24), "green").save(tmp_path / "photos" / name)
    table = "".join(f"{name},{number},{number}\n" for number, name in enumerate(names))
    (tmp_path / "photos/table.csv").write_text(f"id,latitude,longitude\n{table}")
    checkpoint = save_model(tmp_path / "model", head_type="geocells", num_geocells=[4])
    posteriors = compute_posteriors(checkpoint, str(tmp_path / "photos"), "test", num_photos=4)
    assert {shown.name for shown in posteriors} == set(names[:2])


def test_command_writes_the_picture_and_refuses_a_head_that_answers_with_a_point(photos, tmp_path, capsys):
    words = ["posteriors", "--photos", str(photos), "--num_photos", "2", "--output_file", str(tmp_path / "p/maps.png")]
    checkpoint = save_model(tmp_path / "mixture", head_type="vmf_mixture", num_mixture_components=5)
    assert main([*words, "--checkpoint", checkpoint]) == 0
    assert (tmp_path / "p/maps.png").is_file()
    assert "maps.png" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="sphere, which answers with a point"):
        main([*words, "--checkpoint", save_model(tmp_path / "point", head_type="sphere")])
