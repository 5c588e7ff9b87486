import json
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from geomae.data.earth import EarthCutter, EarthPicture, EarthSplit, default_extent_km, pack_earth
from geomae.data.layout import list_shards
from geomae.data.photos import decode_photo
from geomae.errors import ConfigError, SourceError

RADIUS_KM = 6371.0088
PICTURE_WIDTH = 1440  # a quarter of a degree a pixel


def coordinate_picture() -> np.ndarray:
    """A world whose colours say where they are: red is the latitude, green and blue turn with the longitude."""
    latitude = 90 - (np.arange(PICTURE_WIDTH // 2) + 0.5) * 180 / (PICTURE_WIDTH // 2)
    longitude = np.radians((np.arange(PICTURE_WIDTH) + 0.5) * 360 / PICTURE_WIDTH - 180)
    red = np.broadcast_to((latitude[:, None] + 90) / 180 * 255, (len(latitude), len(longitude)))
    green = np.broadcast_to(127.5 + 127.5 * np.cos(longitude), red.shape)
    blue = np.broadcast_to(127.5 + 127.5 * np.sin(longitude), red.shape)
    return np.rint(np.stack([red, green, blue], axis=-1)).astype(np.uint8)


def read_coordinates(colours: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Latitude and longitude in degrees that colours stand for, to about a degree."""
    red, green, blue = np.moveaxis(colours.astype(float), -1, 0)
    return red / 255 * 180 - 90, np.degrees(np.arctan2(blue - 127.5, green - 127.5))


def angle_between(first_deg: np.ndarray, second_deg: np.ndarray) -> np.ndarray:
    return np.abs((first_deg - second_deg + 180) % 360 - 180)


def destination(latitude: float, longitude: float, bearing: float, distance_km: float) -> tuple[float, float]:
    """Where a great circle leads: the direct problem on the sphere, by the law of cosines for sides."""
    arc, start, course = distance_km / RADIUS_KM, math.radians(latitude), math.radians(bearing)
    end = math.asin(math.sin(start) * math.cos(arc) + math.cos(start) * math.sin(arc) * math.cos(course))
    east = math.atan2(
        math.sin(course) * math.sin(arc) * math.cos(start), math.cos(arc) - math.sin(start) * math.sin(end)
    )
    return math.degrees(end), (longitude + math.degrees(east) + 180) % 360 - 180


@pytest.fixture(scope="module")
def picture() -> EarthPicture:
    return EarthPicture(coordinate_picture())


@pytest.fixture
def picture_file(tmp_path: Path) -> Path:
    file = tmp_path / "world.png"
    cv2.imwrite(str(file), coordinate_picture()[..., ::-1])
    return file


PLACES = [(0.0, 0.0), (55.7, 12.6), (-33.9, 151.2), (64.1, -21.9), (-16.8, 179.9), (52.0, -179.95), (-54.8, -68.3)]


@pytest.mark.parametrize(("latitude", "longitude"), PLACES)
@pytest.mark.parametrize("heading", [0.0, 137.0])
def test_center_of_a_crop_is_its_coordinate(
    picture: EarthPicture, latitude: float, longitude: float, heading: float
) -> None:
    crop = picture.crop(latitude, longitude, image_size=33, extent_km=1200, heading_deg=heading)
    seen_latitude, seen_longitude = read_coordinates(crop[16, 16])
    assert abs(seen_latitude - latitude) < 1
    assert angle_between(seen_longitude, np.array(longitude)) < 1.5


@pytest.mark.parametrize(("latitude", "longitude"), [*PLACES, (86.0, 40.0), (-87.0, -100.0)])
@pytest.mark.parametrize("heading", [0.0, 90.0, -45.0])
def test_edges_of_a_crop_lie_half_its_extent_away_in_their_compass_directions(
    picture: EarthPicture, latitude: float, longitude: float, heading: float
) -> None:
    size, extent_km = 65, 2000.0
    crop = picture.crop(latitude, longitude, image_size=size, extent_km=extent_km, heading_deg=heading)
    half_plane = math.tan(extent_km / 2 / RADIUS_KM)
    middle, inner = size // 2, half_plane * (1 - 1 / size)  # the centre of the outermost pixel, on the tangent plane
    edges = {0: (0, middle), 90: (middle, size - 1), 180: (size - 1, middle), 270: (middle, 0)}
    for bearing, (row, column) in edges.items():
        expected = destination(latitude, longitude, bearing + heading, RADIUS_KM * math.atan(inner))
        seen_latitude, seen_longitude = read_coordinates(crop[row, column])
        assert abs(seen_latitude - expected[0]) < 1
        # colours tell a longitude to about a degree and a half; near a pole that is no distance at all
        assert angle_between(seen_longitude, np.array(expected[1])) < 2.5


def test_great_circles_through_the_center_are_straight(picture: EarthPicture) -> None:
    crop = picture.crop(40.0, -100.0, image_size=129, extent_km=4000)
    for fraction in (0.25, 0.5, 0.75):  # along the diagonal to the north-east, bearing 45
        plane = math.tan(2000 / RADIUS_KM) * fraction * math.sqrt(2)
        expected = destination(40.0, -100.0, 45.0, RADIUS_KM * math.atan(plane))
        row, column = 64 - round(64 * fraction), 64 + round(64 * fraction)
        seen_latitude, seen_longitude = read_coordinates(crop[row, column])
        assert abs(seen_latitude - expected[0]) < 1.2
        assert angle_between(seen_longitude, np.array(expected[1])) < 2


def test_north_is_up_and_east_is_right(picture: EarthPicture) -> None:
    latitude, longitude = read_coordinates(picture.crop(30.0, 20.0, image_size=32, extent_km=1500))
    assert (np.diff(latitude.mean(axis=1)) < 0.2).all()
    assert latitude[0].mean() - latitude[-1].mean() > 10
    assert longitude[:, -1].mean() - longitude[:, 0].mean() > 10


def test_crop_across_the_date_line_has_no_seam(picture: EarthPicture) -> None:
    crop = picture.crop(0.0, 180.0, image_size=64, extent_km=1500).astype(int)
    assert np.abs(np.diff(crop, axis=1)).max() <= 4
    _, longitude = read_coordinates(crop[32, [4, -5]])
    assert longitude[0] > 170
    assert longitude[1] < -170


@pytest.mark.parametrize("pole", [90.0, -90.0])
def test_crop_at_a_pole_shows_every_longitude_around_it(picture: EarthPicture, pole: float) -> None:
    latitude, longitude = read_coordinates(picture.crop(pole, 0.0, image_size=65, extent_km=3000))
    ring = [longitude[4, 32], longitude[32, 60], longitude[60, 32], longitude[32, 4]]
    # straight up from a pole along the meridian that is given, the far side is opposite; east turns the other way round
    expected = [180, 90, 0, -90] if pole > 0 else [0, 90, 180, -90]
    assert angle_between(np.array(ring), np.array(expected)).max() < 3
    distance = np.abs(np.abs(latitude) - 90)
    assert distance[32, 32] < 1
    np.testing.assert_allclose(
        distance[32, [4, 60]], math.degrees(math.atan(math.tan(1500 / RADIUS_KM) * 28 / 32.5)), atol=1
    )


def test_shrinking_averages_instead_of_sampling() -> None:
    checkerboard = np.indices((512, 1024)).sum(axis=0) % 2 * 255
    picture = EarthPicture(np.repeat(checkerboard[..., None], 3, axis=2).astype(np.uint8))
    for latitude in (0.0, 60.0, 85.0):
        crop = picture.crop(latitude, 10.0, image_size=24, extent_km=24 * 4 * picture.km_per_pixel)
        assert np.abs(crop.astype(int) - 127).max() <= 12


def test_narrow_pixels_near_the_poles_are_averaged_too() -> None:
    meridians = np.arange(1024) // 2 % 2 * 255  # stripes of two pixels: 78 km wide at the equator, 14 km at 80 degrees
    picture = EarthPicture(np.broadcast_to(meridians[None, :, None], (512, 1024, 3)).astype(np.uint8))
    at_equator, near_pole = (
        picture.crop(latitude, 10.0, image_size=12, extent_km=12 * picture.km_per_pixel).astype(int)
        for latitude in (0.0, 80.0)
    )
    assert np.ptp(at_equator) > 150
    assert np.abs(near_pole - 127).max() <= 20


def test_picture_that_is_not_the_whole_earth_is_refused() -> None:
    with pytest.raises(SourceError, match="twice as wide as it is high"):
        EarthPicture(np.zeros((100, 100, 3), np.uint8))


def test_missing_picture_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"nowhere\.png"):
        EarthPicture.open(tmp_path / "nowhere.png")


def test_default_extent_of_a_5400_pixel_picture_is_300_to_1500_km() -> None:
    low, high = default_extent_km(EarthPicture(np.zeros((2700, 5400, 3), np.uint8)))
    assert low == pytest.approx(300, abs=5)
    assert high == pytest.approx(1500, abs=25)


@pytest.mark.parametrize(
    "options",
    [{"extent_km": (500, 100)}, {"extent_km": (0, 100)}, {"light": 2.0}, {"rotation_deg": -1}, {"image_size": 2}],
)
def test_impossible_options_are_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        EarthCutter("world.png", **options)


def split_of(name: str, num_points: int, seed: int) -> EarthSplit:
    rng = np.random.default_rng(seed)
    latitude, longitude = rng.uniform(-80, 80, num_points), rng.uniform(-180, 180, num_points)
    return EarthSplit(name, latitude, longitude, [f"earth-{name}-{index:06d}" for index in range(num_points)], {})


def test_crops_draw_their_extent_log_uniformly_and_turn_to_every_side(picture: EarthPicture) -> None:
    cutter = EarthCutter("unused", extent_km=(400.0, 1600.0), light=0.0)
    extents, headings = [], []
    for index in range(300):
        latitude, longitude = read_coordinates(cutter.cut(picture, 0.0, 0.0, "train", index))
        right = longitude[48, -1] - longitude[48, 0], latitude[48, -1] - latitude[48, 0]
        extents.append(math.radians(math.hypot(*right)) * RADIUS_KM)
        headings.append(math.atan2(right[1], right[0]))
    assert 350 < min(extents) < 500
    assert 1450 < max(extents) < 1700
    assert np.median(extents) == pytest.approx(800, rel=0.15)  # the geometric mean of 400 and 1600
    assert np.histogram(headings, bins=4, range=(-math.pi, math.pi))[0].min() > 45


def test_rotation_off_keeps_north_up_and_light_off_keeps_the_colours(picture: EarthPicture) -> None:
    cutter = EarthCutter("unused", extent_km=(1000.0, 1000.0), rotation_deg=0.0, light=0.0)
    plain = picture.crop(48.0, 2.0, image_size=96, extent_km=1000)
    assert (cutter.cut(picture, 48.0, 2.0, "train", 7) == plain).all()


def test_light_changes_with_the_index_and_the_split(picture: EarthPicture) -> None:
    cutter = EarthCutter("unused", extent_km=(1000.0, 1000.0), rotation_deg=0.0)
    crops = [
        cutter.cut(picture, 48.0, 2.0, *which).mean(axis=(0, 1)) for which in (("train", 0), ("train", 1), ("test", 0))
    ]
    assert np.abs(crops[0] - crops[1]).max() > 1
    assert np.abs(crops[0] - crops[2]).max() > 1


def test_grey_crop_is_the_luma_of_the_coloured_one(picture: EarthPicture) -> None:
    options: dict[str, Any] = {"extent_km": (1000.0, 1000.0), "rotation_deg": 0.0}
    coloured, grey = (
        EarthCutter("unused", **options, grey=grey).cut(picture, 48.0, 2.0, "train", 3) for grey in (False, True)
    )
    luma = coloured.astype(float) @ [0.299, 0.587, 0.114]  # ITU-R BT.601
    assert np.abs(grey - luma[..., None]).max() <= 0.51
    assert (grey == grey[..., :1]).all()


def test_grey_crops_cannot_tell_places_apart_that_only_colours_do() -> None:
    world = np.full((90, 180, 3), 60, np.uint8)
    world[:, 90:] = (60 + 114, 60 - 58, 60)  # the eastern half: redder by as much luma as it is less green
    picture = EarthPicture(world)
    options: dict[str, Any] = {"extent_km": (500.0, 500.0), "light": 0.0}
    west, east = (EarthCutter("unused", **options).cut(picture, 0.0, lon, "train", 0).astype(int) for lon in (-90, 90))
    assert np.abs(west - east).min(axis=(0, 1)).max() > 100
    west, east = (
        EarthCutter("unused", **options, grey=True).cut(picture, 0.0, lon, "train", 0).astype(int) for lon in (-90, 90)
    )
    assert np.abs(west - east).max() <= 1


def pack(output_dir: Path, picture_file: Path, **options: Any) -> dict[str, Any]:
    splits = [split_of("train", 70, 1), split_of("test_im2gps", 20, 2)]
    num_processes = options.pop("num_processes", 1)
    cutter = EarthCutter(str(picture_file), image_size=24, **options)
    return pack_earth(splits, output_dir, cutter, source="a test", photos_per_shard=30, num_processes=num_processes)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.glob("[!.]*"))}


def test_one_and_two_processes_write_the_same_bytes(tmp_path: Path, picture_file: Path) -> None:
    pack(tmp_path / "one", picture_file)
    pack(tmp_path / "two", picture_file, num_processes=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert len(contents(tmp_path / "one")) == 5


def test_another_seed_cuts_other_crops(tmp_path: Path, picture_file: Path) -> None:
    pack(tmp_path / "one", picture_file)
    pack(tmp_path / "two", picture_file, seed=1)
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert one.keys() == two.keys()
    assert all(one[name] != two[name] for name in one)


def test_finished_shards_are_kept_and_missing_ones_written_again(tmp_path: Path, picture_file: Path) -> None:
    pack(tmp_path / "out", picture_file)
    before = contents(tmp_path / "out")
    times = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("*.parquet")}
    (tmp_path / "out" / "train-00001-of-00003.parquet").unlink()
    (tmp_path / "out" / "manifest.json").unlink()
    pack(tmp_path / "out", picture_file)
    assert contents(tmp_path / "out") == before
    changed = {name for name, time in times.items() if (tmp_path / "out" / name).stat().st_mtime_ns != time}
    assert changed == {"train-00001-of-00003.parquet"}


def test_finished_crops_are_not_overwritten_by_other_options(tmp_path: Path, picture_file: Path) -> None:
    pack(tmp_path / "out", picture_file)
    before = contents(tmp_path / "out")
    with pytest.raises(SourceError, match=r"split 'train' made with extent_km=.* would overwrite"):
        pack(tmp_path / "out", picture_file, extent_km=(2000.0, 3000.0))
    assert contents(tmp_path / "out") == before


def test_unfinished_crops_of_other_options_are_written_again(tmp_path: Path, picture_file: Path) -> None:
    pack(tmp_path / "out", picture_file)
    (tmp_path / "out" / "manifest.json").unlink()  # written last
    pack(tmp_path / "out", picture_file, extent_km=(2000.0, 3000.0))
    pack(tmp_path / "fresh", picture_file, extent_km=(2000.0, 3000.0))
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_shards_hold_the_coordinates_that_the_crops_show(tmp_path: Path, picture_file: Path) -> None:
    manifest = pack(tmp_path / "out", picture_file, light=0.0, jpeg_quality=98)
    assert {name: entry["num_photos"] for name, entry in manifest["splits"].items()} == {"train": 70, "test_im2gps": 20}
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == manifest
    for file in list_shards(tmp_path / "out", "train"):
        for row in pq.read_table(file).to_pylist():
            crop = decode_photo(row["image"]["bytes"], min_short_side=0)
            seen_latitude, seen_longitude = read_coordinates(crop[11:13, 11:13].mean(axis=(0, 1)))
            assert abs(seen_latitude - row["latitude"]) < 3
            assert angle_between(seen_longitude, np.array(row["longitude"])) < 6
