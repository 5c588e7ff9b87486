"""Everything that a user can cause, by name. All are `ValueError`s, so `except ValueError` catches the lot."""

__all__ = [
    "CheckpointError",
    "ConfigError",
    "CoordinateError",
    "DamagedPhotoError",
    "DeviceMemoryError",
    "GeoMAEError",
    "NonFiniteLossError",
    "PredictionError",
    "PublishError",
    "ReaderKilledError",
    "RunStoppedError",
    "SourceError",
    "TooManyDamagedPhotosError",
]


class GeoMAEError(ValueError):
    """Base class: the message says what was given, what was expected and what to do."""


class ConfigError(GeoMAEError):
    """A configuration file or a command line cannot work."""


class CoordinateError(GeoMAEError):
    """A latitude or a longitude is missing, not finite or not on Earth."""


class SourceError(GeoMAEError):
    """Photos, shards or tables are not where or what they were said to be."""


class DamagedPhotoError(GeoMAEError):
    """One photo cannot be decoded. Callers count it, name it in the log and go on."""


class TooManyDamagedPhotosError(GeoMAEError):
    """More than the allowed share of the photos cannot be decoded."""


class PredictionError(GeoMAEError):
    """Predictions do not fit their test set: missing, unknown, duplicate, not finite or not on Earth."""


class PublishError(GeoMAEError):
    """A folder for the Hub was not uploaded. It is complete, and the message has the command to repeat."""


class NonFiniteLossError(GeoMAEError):
    """The training loss or its gradient is not a finite number."""


class CheckpointError(GeoMAEError):
    """A checkpoint could not be written. The ones before it are as they were."""


class DeviceMemoryError(GeoMAEError):
    """A batch does not fit into the memory of its device."""


class ReaderKilledError(GeoMAEError):
    """The processes that read photos were killed again and again."""


class RunStoppedError(GeoMAEError):
    """A signal has stopped a run, which can be continued; `exit_code` is what shells expect of it."""

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
