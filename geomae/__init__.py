"""The workshop: photos in; checkpoints, numbers and reports out. The models live next door, in `modeling/`."""

__all__ = ["__version__"]

__version__ = "0.1.0"
