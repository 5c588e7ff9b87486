# ruff: noqa: RUF009 (`option` calls `dataclasses.field`)
"""The keys of a YAML file that say which photos are trained on, and what is done to them before the model."""

from dataclasses import dataclass

from geomae.data.augmentation import PixelAugmentation
from geomae.data.groups import SUBSETS
from geomae.data.listing import KINDS
from geomae.errors import ConfigError
from geomae.training.config_file import option

__all__ = ["DataArguments"]


@dataclass
class DataArguments:
    """Which photos, in what order, and what is done to them before the model."""

    data_dirs: list[str] = option(
        [],
        "What to train on, mixed by size: packed folders (`python -m geomae.data pack`), or any other source: folders, "
        "archives, URLs, data set ids of the Hub.",
    )
    data_kind: str = option("auto", f"Kind of sources that are not packed: auto, {', '.join(KINDS)}.")
    data_csv: str | None = option(None, "Their table of coordinates; null: their own, the one beside them, or EXIF.")
    swap_lat_lon: bool = option(False, "That table has longitude where it says latitude.")
    data_partial: bool = option(False, "That table names more photos than there are: only those here are expected.")
    train_split: str = option("train", "Split of `data_dirs` to train on; sources that are not packed are all of it.")
    subset: str | None = option(
        None, "first_half or last_half of each of data_dirs, by its manifest: they share no photo; null: all."
    )
    limit: int | None = option(None, "Train on the first so many photos of that; null: on all.")
    max_bad_source_fraction: float = option(
        0.1, "Stop when more than this share of a source that is not packed has no photo or no usable coordinates."
    )
    validation_split: str | None = option("validation", "Split to validate on; null: no validation.")
    validation_dir: str | None = option(
        None, "Folder to validate on, packed or with a CSV; null: the first of data_dirs."
    )
    max_validation_photos: int | None = option(None, "Validate on this many photos only, evenly spread; null: on all.")
    shuffle_buffer: int = option(2048, "Photos shuffled together in one reader; memory grows with it, bytes undecoded.")
    augment: bool = option(True, "Random crop and flip in training; false: the centre crop of evaluation.")
    crop_scale: list[float] = option([0.66, 1.0], "Smallest and largest share of the area that a random crop keeps.")
    flip: bool = option(True, "Mirror every second training photo left to right.")
    color_jitter: list[float] = option(
        [0.0, 0.0, 0.0],
        "Brightness, contrast and saturation of a training photo change by factors between 1 - x and 1 + x.",
    )
    grey_probability: float = option(0.0, "Of a training photo without its colours.")
    erase_probability: float = option(0.0, "Of a training photo with noise on a fiftieth to a third of it.")
    crops_per_photo: int = option(
        1,
        "Crops of each decoded photo: less decoding, less variety. Divides the batch; an epoch counts crops.",
    )

    def __post_init__(self) -> None:
        if not self.data_dirs:
            raise ConfigError("data_dirs is empty: name at least one folder that `python -m geomae.data` packed")
        if self.data_kind not in ("auto", *KINDS):
            raise ConfigError(f"data_kind is {self.data_kind!r}; it must be auto or one of {', '.join(KINDS)}")
        if self.subset not in (None, *SUBSETS):
            raise ConfigError(f"subset is {self.subset!r}; it must be null or one of {', '.join(SUBSETS)}")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit is {self.limit}; it must be at least 1 photo, or null")
        if not 0 <= self.max_bad_source_fraction <= 1:
            raise ConfigError(f"max_bad_source_fraction is {self.max_bad_source_fraction}; it must lie between 0 and 1")
        if self.crops_per_photo < 1:
            raise ConfigError(f"crops_per_photo is {self.crops_per_photo}; it must be at least 1")
        if self.shuffle_buffer < 1:
            raise ConfigError(f"shuffle_buffer is {self.shuffle_buffer}; it must be at least 1 photo")
        if len(self.crop_scale) != 2 or not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ConfigError(f"crop_scale is {self.crop_scale}; it must be two shares of the area: [0.66, 1.0]")
        changes_pixels = self.pixel_augmentation != PixelAugmentation()  # it refuses what is out of range
        if changes_pixels and not self.augment:
            raise ConfigError(
                "augment is false, and color_jitter, grey_probability or erase_probability are set: they change random "
                "crops only; leave them at 0, or write augment: true"
            )
        if self.max_validation_photos is not None and self.max_validation_photos < 1:
            raise ConfigError(f"max_validation_photos is {self.max_validation_photos}; it must be at least 1, or null")

    @property
    def pixel_augmentation(self) -> PixelAugmentation:
        """What becomes of the pixels of a random crop."""
        if len(self.color_jitter) != 3:
            raise ConfigError(f"color_jitter is {self.color_jitter}; it must be three numbers: [0.4, 0.4, 0.4]")
        brightness, contrast, saturation = self.color_jitter
        return PixelAugmentation((brightness, contrast, saturation), self.grey_probability, self.erase_probability)
