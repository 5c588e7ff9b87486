"""What is exported answers as the model does, for any number of photos, in onnxruntime and in torch."""

import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from launching import ROOT

from geomae import export
from geomae.errors import ConfigError, GeoMAEError
from geomae.export import export_geolocator, largest_difference, main
from modeling import GeoBaselineConfig, GeoBaselineForGeolocation, GeoMAEConfig, GeoMAEForGeolocation

HEADS = {
    "sphere": {},
    "tanh": {},
    "geocells": {"num_geocells": [3, 9, 40], "decoding": "kernel"},
    "likeliest cell": {"head_type": "geocells", "num_geocells": [40]},
    "expected_km": {"head_type": "geocells", "num_geocells": [3, 9], "decoding": "expected_km"},
    "hybrid": {"num_geocells": [8, 40]},
    "vmf_mixture": {"num_geocells": [9]},
    "free mixture": {"head_type": "vmf_mixture", "num_mixture_components": 5},
}
QUICK = {("geocells", ".onnx"), ("hybrid", ".pt2")}
CASES = [
    pytest.param(name, suffix, marks=() if (name, suffix) in QUICK else pytest.mark.slow)
    for name in (*HEADS, "baseline")
    for suffix in (".onnx", ".pt2")
]


def save_model(name: str, sizes: dict[str, Any], folder: Path) -> Any:
    """A fresh model whose outputs differ from photo to photo, saved; returned in evaluation mode."""
    torch.manual_seed(0)
    model: Any
    if name == "baseline":
        model = GeoBaselineForGeolocation(GeoBaselineConfig(backbone="resnet10t", image_size=32, head_hidden_sizes=[8]))
    else:
        model = GeoMAEForGeolocation(GeoMAEConfig(**{**sizes, "head_type": name, **HEADS[name]}))
        with torch.no_grad():
            model.head.layers[-1].weight.mul_(20)
    model.save_pretrained(folder)
    return model.eval()


def assert_names_no_path_of_this_machine(path: Path) -> None:
    parts = {path.name: path.read_bytes()}
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
    for name, content in parts.items():
        for folder in (ROOT, Path(sys.prefix), path.parent):
            assert str(folder).encode() not in content, f"{name} names {folder}"


@pytest.mark.parametrize(("name", "suffix"), CASES)
def test_exported_model_answers_as_the_model_does(
    tiny_sizes: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, suffix: str
) -> None:
    model, path = save_model(name, tiny_sizes, tmp_path / "model"), tmp_path / f"exported{suffix}"
    main([str(tmp_path / "model"), "--output_file", str(path)])
    assert "differs from the model by at most" in capsys.readouterr().out
    assert_names_no_path_of_this_machine(path)
    for num_photos in (1, 3, 5):
        photos = torch.randint(0, 256, (num_photos, 3, 32, 32), dtype=torch.uint8)
        with torch.no_grad():
            expected = model(photos)
        if suffix == ".onnx":
            session = onnxruntime.InferenceSession(path)
            names = [output.name for output in session.get_outputs()]
            answer = dict(zip(names, session.run(None, {"pixel_values": photos.numpy()}), strict=True))
        else:
            answered = torch.export.load(path).module()(photos)
            answer = {key: value.detach().numpy() for key, value in answered.items()}
        latitude, longitude = np.radians(answer["coordinates_deg"].astype(np.float64)).T
        true_latitude, true_longitude = np.radians(expected.coordinates_deg.double().numpy()).T
        assert np.abs(np.sin(latitude) - np.sin(true_latitude)).max() < 1e-4
        away = np.cos(latitude) * np.exp(1j * longitude) - np.cos(true_latitude) * np.exp(1j * true_longitude)
        assert np.abs(away).max() < 1e-4
        assert model.head.has_posterior == ("logits" in answer)
        if model.head.has_posterior:
            log_mass, _ = model.head.place_log_probabilities(expected.logits)
            masses = np.sort(log_mass.exp().numpy(), axis=1)[:, ::-1][:, :5]
            assert np.abs(answer["top_probabilities"] - masses).max() < 1e-4
    if suffix == ".onnx":
        session = onnxruntime.InferenceSession(path)
        sizes = {each.name: each.shape[0] for each in (*session.get_inputs(), *session.get_outputs())}
        assert set(sizes.values()) == {"batch"}, sizes
        described = {each.key: each.value for each in onnx.load(path).metadata_props}
        assert described["model"] == "model"
        assert described["image_size"] == "32"
        assert described["decoding"] == (model.config.decoding if model.head.has_posterior else "point")


def test_difference_sees_points_probabilities_and_logits() -> None:
    expected = {
        "coordinates_deg": np.array([[0.0, 180.0], [10.0, 10.0]]),
        "logits": np.array([[3.0, 0.0], [0.0, 0.0]]),
        "top_probabilities": np.array([[0.9, 0.1], [0.5, 0.5]]),
        "top_coordinates_deg": np.array([[[0.0, 180.0], [5.0, 5.0]], [[10.0, 10.0], [20.0, 20.0]]]),
    }
    assert largest_difference(expected, expected) == 0
    # the other side of the date line is the same place, and of two as likely places either may be answered
    same = expected | {"coordinates_deg": np.array([[0.0, -180.0], [-50.0, 10.0]])}
    assert largest_difference(same, expected) == pytest.approx(0, abs=1e-12)
    apart = expected | {"coordinates_deg": np.array([[90.0, 0.0], [10.0, 10.0]])}
    assert largest_difference(apart, expected) == pytest.approx(1)
    other = expected | {"top_probabilities": np.array([[0.7, 0.3], [0.5, 0.5]])}
    assert largest_difference(other, expected) == pytest.approx(0.2)
    other = expected | {"logits": np.array([[3.0, 0.3], [0.0, 0.0]])}
    assert largest_difference(other, expected) == pytest.approx(0.1)
    swapped = expected | {"top_coordinates_deg": expected["top_coordinates_deg"][..., ::-1] / 2}
    assert largest_difference(swapped, expected) > 0.5, "the likeliest place of the first photo is another"
    tied = expected["top_coordinates_deg"].copy()
    tied[1] = tied[1, ::-1]  # of two that are as likely either may come first
    assert largest_difference(expected | {"top_coordinates_deg": tied}, expected) == 0
    assert np.isnan(largest_difference(expected | {"logits": np.full((2, 2), np.nan)}, expected))


def test_file_that_answers_something_else_is_not_left_and_an_older_one_stays(
    tiny_sizes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model("sphere", tiny_sizes, tmp_path / "model")

    def write_wrong(geolocator: Any, example: Any, path: Path, checkpoint: Any) -> Any:
        path.write_bytes(b"wrong")
        return lambda batch: {"coordinates_deg": -geolocator(batch)["coordinates_deg"].numpy()}

    monkeypatch.setattr(export, "_write_pt2", write_wrong)
    (tmp_path / "model.pt2").write_bytes(b"older")
    with pytest.raises(GeoMAEError, match=r"differs from the model by .*nothing was written"):
        export_geolocator(tmp_path / "model", tmp_path / "model.pt2")
    assert (tmp_path / "model.pt2").read_bytes() == b"older"
    assert not list(tmp_path.glob(".*"))


def test_what_cannot_be_exported_is_said_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"ends in \.onnx or \.pt2"):
        export_geolocator(tmp_path, tmp_path / "model.bin")
    with pytest.raises(ConfigError):
        export_geolocator(tmp_path / "nothing", tmp_path / "model.pt2")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written: File exists"):
        export_geolocator(tmp_path, tmp_path / "file" / "model.pt2")
    (tmp_path / "folder.pt2").mkdir()
    with pytest.raises(ConfigError, match="cannot be written: Is a directory"):
        export_geolocator(tmp_path, tmp_path / "folder.pt2")
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(ConfigError, match=r"needs onnxscript: pip install 'geomae\[onnx\]'"):
        export_geolocator(tmp_path, tmp_path / "model.onnx")
