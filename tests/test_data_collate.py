import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from geomae.data.collate import PhotoCollator
from geomae.data.photos import encode_jpeg
from geomae.errors import ConfigError, CoordinateError, DamagedPhotoError


def sample(number: int = 0, **changes: Any) -> dict[str, Any]:
    pixels = (
        np.random.default_rng(number).integers(0, 255, (6, 9, 3), dtype=np.uint8).repeat(12, axis=0).repeat(12, axis=1)
    )
    row = {"image": {"bytes": encode_jpeg(pixels, 90), "path": None}, "latitude": 10.0 + number, "longitude": -20.0}
    return {**row, "id": f"photo-{number}", "augmentation_seed": number, **changes}


def test_batch_holds_uint8_pixels_coordinates_and_ids() -> None:
    batch = PhotoCollator(48, augment=False)([sample(number) for number in range(3)])
    assert batch["pixel_values"].shape == (3, 3, 48, 48)
    assert batch["pixel_values"].dtype == torch.uint8
    assert torch.equal(batch["coordinates_deg"], torch.tensor([[10.0, -20.0], [11.0, -20.0], [12.0, -20.0]]))
    assert batch["ids"] == ["photo-0", "photo-1", "photo-2"]
    assert batch["num_bad"] == 0
    assert set(batch) == {"pixel_values", "coordinates_deg", "ids", "num_bad"}


def test_channels_are_red_green_blue_and_rows_run_from_the_top() -> None:
    pixels = np.zeros((64, 64, 3), dtype=np.uint8)
    pixels[:32], pixels[32:] = (250, 0, 0), (0, 0, 250)
    image = {"bytes": encode_jpeg(pixels, 95), "path": None}
    batch = PhotoCollator(32, augment=False)([sample(image=image)])
    assert batch["pixel_values"][0, 0, 4, 16] > 200
    assert batch["pixel_values"][0, 2, 4, 16] < 50
    assert batch["pixel_values"][0, 2, -4, 16] > 200


def test_augmentation_is_a_function_of_the_seed_alone() -> None:
    collator = PhotoCollator(48, augment=True)
    first, again, other = (collator([sample(1, augmentation_seed=seed)])["pixel_values"] for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_neighbours_in_a_batch_do_not_change_a_photo() -> None:
    collator = PhotoCollator(48, augment=True)
    alone = collator([sample(1)])["pixel_values"][0]
    beside = collator([sample(0), sample(1), sample(2)])["pixel_values"][1]
    assert torch.equal(alone, beside)


def test_half_of_the_photos_are_mirrored() -> None:
    ramp = np.broadcast_to(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], (64, 64, 3))
    image = {"bytes": encode_jpeg(ramp, 95), "path": None}
    samples = [sample(image=image, augmentation_seed=seed) for seed in range(400)]
    for flip, low, high in ((True, 160, 240), (False, 0, 0)):
        pixels = PhotoCollator(16, augment=True, flip=flip)(samples)["pixel_values"].int()
        assert low <= int((pixels[:, 0, 8, 0] > pixels[:, 0, 8, -1]).sum()) <= high


def test_photo_without_a_seed_is_augmented_by_torch_s_generator() -> None:
    photo = sample()
    del photo["augmentation_seed"]
    collator = PhotoCollator(48, augment=True)
    torch.manual_seed(0)
    first, second = (collator([photo])["pixel_values"] for _ in range(2))
    torch.manual_seed(0)
    assert torch.equal(collator([photo])["pixel_values"], first)
    assert not torch.equal(first, second)


def test_damaged_photos_are_left_out_named_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    damaged = sample(1, image={"bytes": b"\xff\xd8 broken", "path": None})
    with caplog.at_level(logging.WARNING):
        batch = PhotoCollator(48, augment=False)([sample(0), damaged, sample(2)])
    assert batch["ids"] == ["photo-0", "photo-2"]
    assert batch["num_bad"] == 1
    assert batch["pixel_values"].shape[0] == len(batch["coordinates_deg"]) == 2
    assert torch.equal(batch["pixel_values"][1], PhotoCollator(48, augment=False)([sample(2)])["pixel_values"][0])
    assert "photo-1" in caplog.text


def test_batch_of_only_damaged_photos_is_refused() -> None:
    damaged = sample(image={"bytes": b"nothing", "path": None})
    with pytest.raises(DamagedPhotoError, match="all 2 photos of a batch are damaged; the last is photo-0"):
        PhotoCollator(48, augment=False)([damaged, damaged])


def test_bytes_that_are_absent_are_read_from_the_path(make_photo: Callable[..., Path]) -> None:
    path = make_photo()
    from_path = PhotoCollator(32, augment=False)([sample(image={"bytes": None, "path": str(path)})])
    from_bytes = PhotoCollator(32, augment=False)([sample(image={"bytes": path.read_bytes(), "path": None})])
    assert torch.equal(from_path["pixel_values"], from_bytes["pixel_values"])


def test_missing_file_counts_as_damaged(tmp_path: Path) -> None:
    gone = sample(1, image={"bytes": None, "path": str(tmp_path / "gone.jpg")})
    assert PhotoCollator(48, augment=False)([sample(0), gone])["num_bad"] == 1


def test_unlabelled_photos_need_no_coordinates() -> None:
    batch = PhotoCollator(48, augment=True, labelled=False)([sample(latitude=None, longitude=None)])
    assert "coordinates_deg" not in batch


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_labelled_batch_names_the_photo_without_coordinates(missing: float | None) -> None:
    with pytest.raises(CoordinateError, match="photo-0 has no coordinates"):
        PhotoCollator(48, augment=True)([sample(longitude=missing)])


def test_validation_noise_belongs_to_the_photo() -> None:
    collator = PhotoCollator(48, augment=False, num_patches=9)
    forward, backward = collator([sample(0), sample(1)]), collator([sample(1), sample(0)])
    assert forward["noise"].shape == (2, 9)
    assert forward["noise"].dtype == torch.float32
    assert torch.equal(forward["noise"], backward["noise"].flip(0))
    assert not torch.equal(forward["noise"][0], forward["noise"][1])
    assert "noise" not in PhotoCollator(48, augment=True, num_patches=9)([sample(0)])


@pytest.mark.parametrize("crop_scale", [(0.0, 1.0), (0.9, 0.5), (0.5, 1.5)])
def test_impossible_crop_scale_is_refused(crop_scale: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="crop_scale"):
        PhotoCollator(48, augment=True, crop_scale=crop_scale)


def test_workers_return_the_same_batches_as_the_process_itself() -> None:
    samples = [sample(number) for number in range(8)]
    collator = PhotoCollator(48, augment=True)
    alone, with_workers = (
        list(DataLoader(samples, batch_size=4, num_workers=number, collate_fn=collator))  # type: ignore[arg-type]
        for number in (0, 2)
    )
    for one, other in zip(alone, with_workers, strict=True):
        assert torch.equal(one["pixel_values"], other["pixel_values"])
        assert one["ids"] == other["ids"]


def test_real_photos_make_a_batch(shared_data: Path) -> None:
    files = sorted((shared_data / "photos" / "unlabelled").glob("*"))
    samples = [sample(n, image={"bytes": None, "path": str(file)}, id=file.name) for n, file in enumerate(files[:8])]
    batch = PhotoCollator(224, augment=True, labelled=False)(samples)
    assert batch["pixel_values"].shape == (8, 3, 224, 224)
    assert batch["pixel_values"].float().std(dim=(1, 2, 3)).min() > 5


def test_prepared_samples_make_the_batch_that_raw_ones_do() -> None:
    collator = PhotoCollator(48, augment=True)
    samples = [sample(number) for number in range(3)]
    raw, prepared = collator(samples), collator([crop for one in samples for crop in collator.prepare(one)])
    assert torch.equal(raw["pixel_values"], prepared["pixel_values"])
    assert torch.equal(raw["coordinates_deg"], prepared["coordinates_deg"])


def test_batch_of_a_stream_says_where_the_stream_is_and_what_it_passed_over() -> None:
    collator = PhotoCollator(48, augment=True)
    places = [{"lane": 2, "position": 7, "num_bad": 1}, {"lane": 2, "position": 10, "num_bad": 2}]
    batch = collator([{**collator.prepare(sample(n))[0], **place} for n, place in enumerate(places)])
    assert (batch["lane"], batch["position"], batch["num_bad"]) == (2, 10, 3)


def test_several_crops_of_a_photo_differ_and_share_its_coordinates() -> None:
    batch = PhotoCollator(48, augment=True, crop_scale=(0.1, 0.3), crops_per_photo=3)([sample(0), sample(1)])
    assert batch["ids"] == ["photo-0"] * 3 + ["photo-1"] * 3
    assert batch["coordinates_deg"][:, 0].tolist() == [10.0] * 3 + [11.0] * 3
    assert batch["num_bad"] == 0
    assert not torch.equal(batch["pixel_values"][0], batch["pixel_values"][1])


def test_photo_that_its_source_could_not_read_is_damaged() -> None:
    unread = sample(1, image={"bytes": None, "path": "a.tar"}, read_error="cannot be read: a.tar ends within it")
    with pytest.raises(DamagedPhotoError, match=r"a\.tar ends within it"):
        PhotoCollator(48, augment=False).prepare(unread)


def test_ten_crops_come_crop_by_crop_and_begin_with_the_batch_of_central_ones() -> None:
    samples = [sample(number) for number in range(3)]
    central = PhotoCollator(48, augment=False)(samples)
    batch = PhotoCollator(48, augment=False, ten_crop=True)(samples)
    assert batch["pixel_values"].shape == (30, 3, 48, 48)
    assert batch["pixel_values"].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(batch["pixel_values"][:3], central["pixel_values"])
    mirrored = batch["pixel_values"][15:]
    assert torch.equal(mirrored, batch["pixel_values"][:15].flip(-1))
    assert (batch["ids"], batch["num_bad"]) == (central["ids"], 0)
    assert torch.equal(batch["coordinates_deg"], central["coordinates_deg"])


def test_a_damaged_photo_takes_all_of_its_ten_crops_away() -> None:
    damaged = sample(1, image={"bytes": b"\xff\xd8 broken", "path": None})
    collator = PhotoCollator(48, augment=False, ten_crop=True)
    batch, without = collator([sample(0), damaged, sample(2)]), collator([sample(0), sample(2)])
    assert (batch["ids"], batch["num_bad"]) == (["photo-0", "photo-2"], 1)
    assert torch.equal(batch["pixel_values"], without["pixel_values"])


def test_a_photo_is_decoded_once_for_its_ten_crops(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []

    def decode(data: bytes, *, min_short_side: int) -> np.ndarray:
        decoded.append(min_short_side)
        return np.zeros((60, 90, 3), np.uint8)

    monkeypatch.setattr("geomae.data.collate.decode_photo", decode)
    PhotoCollator(48, augment=False, ten_crop=True)([sample(0), sample(1)])
    assert decoded == [55, 55]  # 48 x 256 / 224: what the central crop asks for


def test_ten_crops_of_augmented_photos_are_refused() -> None:
    with pytest.raises(ConfigError, match="ten_crop is for evaluations"):
        PhotoCollator(48, augment=True, ten_crop=True)
