"""A checkpoint with a posterior, from its photos to the decodings, densities and radii that the script writes."""

import json
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from geocell_models import save_cell_model

from geomae.errors import ConfigError
from geomae.evaluation import DECODINGS
from geomae.evaluation import __main__ as evaluation_main
from geomae.evaluation.posterior import POSTERIOR_COLUMNS
from geomae.geography import EARTH_RADIUS_KM, great_circle_km
from geomae.reporting.results_section import evaluation_table
from modeling import GeoMAEConfig, GeoMAEForGeolocation
from modeling.configuration_geolocation_head import DECODINGS as DECODINGS_OF_MODELS
from run_evaluate_geo import main

NAMES = [f"{number}.jpg" for number in range(14)]


@pytest.fixture
def words(tmp_path, make_photo, tiny_sizes):
    """Fourteen photos by as many authors, the last of which is no photo, and a checkpoint."""
    for number, name in enumerate(NAMES):
        make_photo(f"photos/{name}", seed=number)
    (tmp_path / "photos" / NAMES[-1]).write_bytes(b"not a photo")
    rows = [f"{name},author {number},{9 * number - 60},{24 * number - 160}" for number, name in enumerate(NAMES)]
    (tmp_path / "set.csv").write_text("\n".join(["IMG_ID,AUTHOR,LAT,LON", *rows, ""]))
    save_cell_model(tmp_path / "checkpoint", tiny_sizes)
    paths = {"checkpoint": "checkpoint", "test_set": "set.csv", "photos": "photos"}
    given = [word for key, path in paths.items() for word in (f"--{key}", str(tmp_path / path))]
    return [*given, "--per_device_eval_batch_size", "4", "--num_resamples", "100", "--max_damaged_share", "0.2"]


def evaluate(folder, *words):
    main([*words, "--output_dir", str(folder)])
    return json.loads((folder / "metrics.json").read_text())


def read(folder, table="predictions"):
    return pyarrow.parquet.read_table(folder / f"{table}.parquet").to_pandas()


def test_one_run_writes_every_decoding_and_what_the_posterior_says(tmp_path, words, capsys):
    metrics = evaluate(tmp_path / "out", *words)
    assert metrics["decoding"] == "kernel"
    assert sorted([*metrics["decodings"], "kernel"]) == sorted(DECODINGS)
    names = ["baselines.parquet", "metrics.json", "predictions.parquet"]
    files = sorted([*names, *(f"predictions_{name}.parquet" for name in metrics["decodings"])])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == files
    headline = read(tmp_path / "out")
    assert list(headline.columns[-5:]) == list(POSTERIOR_COLUMNS)
    assert headline.iloc[-1][list(POSTERIOR_COLUMNS)].isna().all()
    for name, numbers in metrics["decodings"].items():
        errors = read(tmp_path / "out", f"predictions_{name}")["error_km"]
        assert numbers["mean_km"] == pytest.approx(errors.fillna(math.pi * EARTH_RADIUS_KM).mean())
    posterior = metrics["posterior"]
    answered = headline[:-1]
    assert posterior["nll"] == pytest.approx(answered["nll"].mean())
    for q, column in (("0.5", "radius_50_km"), ("0.9", "radius_90_km")):
        within = answered["error_km"] <= answered[column]
        assert posterior["coverage"][q] == pytest.approx(within.sum() / 14)
        assert posterior["calibration"][q] == posterior["coverage"][q]  # two ways to the same share
    assert posterior["intervals_95"].keys() >= {"nll", "coverage", "calibration", "mean_expected_km"}
    assert {name: posterior[name] for name in ("temperature", "kernel_km", "top_k", "num_photos")} == {
        "temperature": 1.0,
        "kernel_km": 200.0,
        "top_k": 5,
        "num_photos": 13,
    }
    printed = capsys.readouterr().out
    rows = [line.split("  ")[0] for line in printed.splitlines()[4:8]]
    assert rows == ["checkpoint, kernel", *(f"checkpoint, {name}" for name in metrics["decodings"])]
    assert "nats per steradian; the 50% radius holds" in printed


def test_answers_are_the_decodings_of_the_model_and_the_density_is_that_of_its_cells(tmp_path, words):
    evaluate(tmp_path / "out", *words)
    from geomae.data import center_crop, decode_photo

    model = GeoMAEForGeolocation.from_pretrained(tmp_path / "checkpoint").eval()
    crops = [
        center_crop(decode_photo((tmp_path / "photos" / name).read_bytes(), min_short_side=37), 32)
        for name in NAMES[:-1]
    ]
    with torch.no_grad():
        output = model(torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2))
        decoded = {name: each.numpy() for name, each in model.head.decode(output.logits, DECODINGS).items()}
        truths = read(tmp_path / "out")[["true_latitude", "true_longitude"]].to_numpy()[:-1]
        density = model.head.log_density(output.logits, torch.tensor(truths))
    for name, answers in decoded.items():
        table = read(tmp_path / "out", "predictions" if name == "kernel" else f"predictions_{name}")
        written = table[["latitude", "longitude"]].to_numpy()[:-1]
        assert great_circle_km(written, answers.astype(np.float64)).max() < 1.0
    assert read(tmp_path / "out")["nll"].to_numpy()[:-1] == pytest.approx(-density.numpy(), abs=1e-3)


def test_options_of_the_checkpoint_can_be_overridden_and_are_recorded(tmp_path, words):
    plain = evaluate(tmp_path / "plain", *words)
    options = [
        "--kernel_km",
        "4000",
        "--top_k",
        "2",
        "--temperature",
        "3",
        "--spread_scale",
        "2",
        "--decodings",
        "argmax",
        "mean_in_top_k",
    ]
    other = evaluate(tmp_path / "other", *words, *options)
    assert list(other["decodings"]) == ["argmax", "mean_in_top_k"]
    assert [other["posterior"][name] for name in ("kernel_km", "top_k", "temperature", "spread_scale")] == [
        *(4000.0, 2, 3.0, 2.0)
    ]
    assert other["posterior"]["nll"] != plain["posterior"]["nll"]
    assert other["decodings"]["argmax"]["mean_km"] == plain["decodings"]["argmax"]["mean_km"]  # no option moves it
    assert other["decodings"]["mean_in_top_k"]["mean_km"] != plain["decodings"]["mean_in_top_k"]["mean_km"]
    assert evaluate(tmp_path / "none", *words, "--decodings", "kernel")["decodings"] == {}


def test_ten_crops_have_decodings_and_a_posterior_of_their_own(tmp_path, words):
    metrics = evaluate(tmp_path / "out", *words, "--ten_crop")
    alone = evaluate(tmp_path / "alone", *words)
    assert metrics["posterior"] == alone["posterior"]
    assert metrics["ten_crop"]["posterior"]["nll"] != metrics["posterior"]["nll"]
    assert metrics["ten_crop"]["decodings"].keys() == metrics["decodings"].keys()
    assert (tmp_path / "out" / "predictions_ten_crop_argmax.parquet").is_file()
    names = [row[0] for row in evaluation_table({"mine": metrics}).rows[:8]]
    expected = ["kernel", *metrics["decodings"]]
    assert names == [f"mine{crops}, {name}" for crops in ("", ", ten crops") for name in expected]


def test_a_later_evaluation_leaves_no_file_of_a_decoding_that_it_does_not_have(tmp_path, words):
    evaluate(tmp_path / "out", *words, "--ten_crop")
    (tmp_path / "out" / "predictions_mine.parquet").write_bytes(b"somebody's own")
    evaluate(tmp_path / "out", *words, "--decodings", "argmax")
    names = ["baselines", "predictions", "predictions_argmax", "predictions_mine"]
    assert sorted(path.stem for path in (tmp_path / "out").glob("*.parquet")) == names


def test_two_decodings_can_be_compared_photo_by_photo(tmp_path, words, capsys):
    metrics = evaluate(tmp_path / "out", *words)
    capsys.readouterr()
    pair = [str(tmp_path / "out"), str(tmp_path / "out" / "predictions_argmax.parquet")]
    evaluation_main.main(["compare", *pair, "--num_resamples", "100", "--output_dir", str(tmp_path / "compared")])
    compared = json.loads((tmp_path / "compared" / "comparison.json").read_text())
    difference = metrics["mean_km"] - metrics["decodings"]["argmax"]["mean_km"]
    assert compared["difference"]["mean_km"] == pytest.approx(difference)


def test_an_evaluation_with_a_posterior_is_shown_again_as_it_was_printed(tmp_path, words, capsys):
    evaluate(tmp_path / "out", *words)
    printed = capsys.readouterr().out
    evaluation_main.main(["show", str(tmp_path / "out")])
    assert capsys.readouterr().out.strip() in printed


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--decodings", "kernel"], "decodings need a posterior, and a head of the type sphere answers with a point"),
        (["--temperature", "2"], "temperature need a posterior"),
    ],
)
def test_options_of_a_posterior_are_refused_for_a_head_that_answers_a_point(
    tmp_path, words, tiny_sizes, option, message
):
    GeoMAEForGeolocation(GeoMAEConfig(**{**tiny_sizes, "head_type": "sphere"})).save_pretrained(tmp_path / "checkpoint")
    with pytest.raises(ConfigError, match=message):
        evaluate(tmp_path / "out", *words, *option)
    assert not (tmp_path / "out").exists()
    assert "posterior" not in evaluate(tmp_path / "out", *words)


def test_what_is_recorded_of_a_posterior_is_explained(tmp_path, words):
    document = (Path(__file__).resolve().parent.parent / "docs" / "evaluation.md").read_text()
    recorded = {*evaluate(tmp_path / "out", *words)["posterior"], *DECODINGS, *POSTERIOR_COLUMNS}
    assert not [name for name in recorded if f"`{name}`" not in document]


def test_decodings_have_the_names_that_the_models_know():
    assert DECODINGS == DECODINGS_OF_MODELS
