"""A geolocator as one file for other programs: `python -m geomae.export CHECKPOINT --output_file model.onnx`.

Also `model.pt2`, which `torch.export.load(...).module()` reads back without this repository. Either takes
`pixel_values` `(B, 3, image_size, image_size)` uint8, as `GeoMAEImageProcessor` makes them, of any B, and answers
`coordinates_deg` `(B, 2)`; of a posterior head also `logits`, `top_probabilities` `(B, k)` and `top_coordinates_deg`
`(B, k, 2)`. What was written is asked and compared with the model before the command ends well.
"""

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from geomae.checkpoints import load_geolocator
from geomae.command_line import CommandParser
from geomae.errors import ConfigError, GeoMAEError
from geomae.geography import unit_vectors

__all__ = ["ExportableGeolocator", "export_geolocator", "largest_difference"]

NUM_TOP_PLACES = 5
LARGEST_ONNX = 2**31 - 2**24  # bytes of weights; protobuf ends at 2 GiB
TOLERANCE = 1e-4
"""Of a unit vector's components, of probabilities, and of logits as a share of the largest: 0.6 km on the Earth."""

BATCH_SIZES = (1, 3)  # that what was written is asked; neither is the one that it was traced with


class ExportableGeolocator(nn.Module):
    """A geolocator that answers a dictionary of tensors.

    Args:
        model: a geolocator in evaluation mode.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """`(B, 3, S, S)` uint8 -> what the module's docstring lists."""
        answer = self.model(pixel_values)
        answers: dict[str, Tensor] = {"coordinates_deg": answer.coordinates_deg}
        if self.model.head.has_posterior:
            probabilities, places = self.model.head.top_places(answer.logits, NUM_TOP_PLACES)
            answers |= {"logits": answer.logits, "top_probabilities": probabilities, "top_coordinates_deg": places}
        return answers


def export_geolocator(checkpoint: str | Path, output_file: str | Path) -> float:
    """Write a geolocator to a file and check what was written.

    Args:
        checkpoint: folder of a geolocator of GeoMAE or of its baselines.
        output_file: `.onnx` (for onnxruntime and others; needs the extra `onnx`) or `.pt2` (for torch).

    Returns:
        The largest difference between what the file and what the model answer: see `largest_difference`.

    Raises:
        ConfigError: the file has another ending, a package is missing, or there is no geolocator in the folder.
        GeoMAEError: what was exported answers something else, by more than `TOLERANCE`; what was there before stays.
    """
    path = Path(output_file)
    if path.suffix not in (".onnx", ".pt2"):
        raise ConfigError(f"output_file={path}: expected a name that ends in .onnx or .pt2.")
    if path.suffix == ".onnx":
        _require_onnx()
    _refuse_unwritable(path)
    model = load_geolocator(checkpoint).float()
    num_bytes = sum(4 * parameter.numel() for parameter in model.parameters())
    if path.suffix == ".onnx" and num_bytes > LARGEST_ONNX:
        raise ConfigError(
            f"{checkpoint} has {num_bytes / 1e9:.1f} GB of weights, more than the 2 GB of any .onnx file: write .pt2."
        )
    geolocator, size = ExportableGeolocator(model).eval(), model.config.image_size
    generator = torch.Generator().manual_seed(0)
    batches = [
        torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=generator) for n in (*BATCH_SIZES, 2)
    ]
    with torch.no_grad(), _quiet():
        unchecked = path.with_name(f".{path.stem}.unchecked{path.suffix}")
        try:
            write = _write_onnx if path.suffix == ".onnx" else _write_pt2
            ask = write(geolocator, batches.pop(), unchecked, checkpoint)
            expected = [{name: tensor.numpy() for name, tensor in geolocator(batch).items()} for batch in batches]
            difference = max(largest_difference(ask(batch), by) for batch, by in zip(batches, expected, strict=True))
            if not difference <= TOLERANCE:
                raise GeoMAEError(
                    f"what was exported from {checkpoint} differs from the model by {difference:.1e}, more than "
                    f"{TOLERANCE:.0e}: nothing was written. Try the other format, or other versions of torch and "
                    "onnxruntime."
                )
            os.replace(unchecked, path)
        finally:
            unchecked.unlink(missing_ok=True)
    return difference


def _refuse_unwritable(path: Path) -> None:
    """Before a minute of tracing, not after it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab"):
            pass
        if not path.stat().st_size:
            path.unlink()
    except OSError as error:
        raise ConfigError(f"output_file={path} cannot be written: {error.strerror}. Choose another place.") from error


def largest_difference(answered: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[Any]]) -> float:
    """How far two answers to the same photos are apart.

    It is the largest difference of
    - `coordinates_deg` as unit vectors' components, for degrees jump at the date line and mean little near a pole;
      where the two likeliest places are as likely, either may be answered, and such photos are left out;
    - `top_probabilities`;
    - `top_coordinates_deg`, likewise, of the places that are not as likely as the one before or behind them;
    - `logits`, as a share of the largest of them, or of 1.

    Args:
        answered: arrays of B photos by their names.
        expected: the same.
    """
    is_settled = np.ones(len(expected["coordinates_deg"]), bool)
    differences = [0.0]
    if "logits" in expected:
        probabilities = expected["top_probabilities"]
        if probabilities.shape[1] > 1:
            is_settled = probabilities[:, 0] - probabilities[:, 1] > TOLERANCE
        scale = max(1.0, float(np.abs(expected["logits"]).max()))
        differences.append(float(np.abs(answered["logits"] - expected["logits"]).max()) / scale)
        differences.append(float(np.abs(answered["top_probabilities"] - probabilities).max()))
        differences.append(_difference_of_places(answered, expected))
    points = [unit_vectors(each["coordinates_deg"][is_settled]) for each in (answered, expected)]
    differences.append(float(np.abs(points[0] - points[1]).max(initial=0)))
    return float(np.max(differences))


def _difference_of_places(answered: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[Any]]) -> float:
    """Of the likeliest places, in their order; of two that are as likely, either may come first."""
    steps = -np.diff(expected["top_probabilities"], axis=1) > TOLERANCE  # (B, k - 1)
    certain = np.ones((len(steps), 1), bool)
    # behind the last one come those that are not listed, of which one may be as likely
    is_settled = np.concatenate((certain, steps), axis=1) & np.concatenate((steps, ~certain), axis=1)
    places = [unit_vectors(each["top_coordinates_deg"])[is_settled] for each in (answered, expected)]
    return float(np.abs(places[0] - places[1]).max(initial=0))


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # type: ignore[import-untyped]  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"an .onnx file needs {error.name}: pip install 'geomae[onnx]', or write a .pt2 file."
        ) from error


def _write_onnx(geolocator: ExportableGeolocator, example: Tensor, path: Path, checkpoint: str | Path) -> Any:
    """Write a file, all in one; a function that asks it."""
    import onnx
    import onnxruntime

    names = list(geolocator(example))
    traced = _trace(geolocator, example)
    program = torch.onnx.export(
        traced,
        input_names=["pixel_values"],
        output_names=names,
        dynamic_shapes={"pixel_values": {0: "batch"}},  # names the dimension, which the traced program calls s99
        dynamo=True,
        verbose=False,
    )
    config: Any = geolocator.model.config
    written: Any = program.model_proto  # type: ignore[union-attr]  # None where it is not dynamo's
    described: dict[str, str] = {
        "model": Path(checkpoint).resolve().name,
        "model_type": config.model_type,
        "head_type": config.head_type,
        "image_size": str(config.image_size),
        "decoding": config.decoding if geolocator.model.head.has_posterior else "point",
    }
    onnx.helper.set_model_props(written, described)
    onnx.save(written, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda batch: dict(zip(names, session.run(names, {"pixel_values": batch.numpy()}), strict=True))


def _write_pt2(geolocator: ExportableGeolocator, example: Tensor, path: Path, checkpoint: str | Path) -> Any:
    """Write a file; a function that asks it."""
    torch.export.save(_trace(geolocator, example), path)
    loaded = torch.export.load(path).module()
    return lambda batch: {name: tensor.numpy() for name, tensor in loaded(batch).items()}


def _trace(geolocator: nn.Module, example: Tensor) -> Any:
    """The program that torch.export makes of it, for any number of photos; without the lines of code of each node.

    They are of files on this machine, whose paths would travel along.
    """
    photos = torch.export.Dim("num_photos")
    program = torch.export.export(geolocator, (example,), dynamic_shapes={"pixel_values": {0: photos}})
    for part in program.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)
    return program


@contextlib.contextmanager
def _quiet() -> Any:
    """Without the exporter's progress and its warnings of itself."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    parser = CommandParser(prog="python -m geomae.export", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", help="folder of a geolocator, GeoMAE or baseline")
    parser.add_argument("--output_file", required=True, help="what to write: a name that ends in .onnx or .pt2")
    args = parser.parse_args(argv)
    difference = export_geolocator(args.checkpoint, args.output_file)
    print(f"{args.output_file}: differs from the model by at most {difference:.1e} (unit vectors, probabilities)")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except GeoMAEError as error:
        sys.exit(f"{type(error).__name__}: {error}")
