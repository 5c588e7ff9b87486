"""The fine-tuning script, as a user runs it."""

import json
from pathlib import Path

import pytest
import torch
from launching import ROOT, launch_on_two_processes
from packed_photos import TINY, geolocation_trainer, pack, training_arguments
from safetensors.torch import load_file

import run_finetune_geo
from geomae.data.collate import PhotoCollator
from geomae.errors import ConfigError
from geomae.training import empty_output_dir
from modeling import GeoBaselineForGeolocation, GeoMAEConfig, GeoMAEForGeolocation, GeoMAEForPreTraining

SMOKE = str(ROOT / "configs/finetune/smoke.yaml")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("photos"), train=64, validation=13)


def words(photos: Path, output_dir: Path, *more: str) -> list[str]:
    return [SMOKE, "--data_dirs", str(photos), "--output_dir", str(output_dir), "--disable_tqdm", *more]


def test_best_model_lands_at_the_top_of_the_run(photos: Path, tmp_path: Path) -> None:
    run_finetune_geo.main(words(photos, tmp_path, "--learning_rate", "0.03", "--max_steps", "6"))
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    means = {entry["step"]: entry["eval_mean_km"] for entry in state["log_history"][:-1] if "eval_mean_km" in entry}
    best = min(means, key=lambda step: means[step])
    assert state["best_model_checkpoint"] == str(tmp_path / f"checkpoint-{best}")
    top, checkpoint = (load_file(f / "model.safetensors") for f in (tmp_path, tmp_path / f"checkpoint-{best}"))
    assert all(torch.equal(top[name], checkpoint[name]) for name in checkpoint)
    final = json.loads((tmp_path / "eval_results.json").read_text())
    assert final["eval_mean_km"] == pytest.approx(means[best])
    assert "great_circle_km" in state["log_history"][0]
    for folder in (tmp_path, tmp_path / f"checkpoint-{best}"):
        offered = {file.name for file in folder.iterdir()}
        assert offered >= {"preprocessor_config.json", "image_to_coordinates.py", "populated_places.csv"}
        assert "image-to-coordinates" in json.loads((folder / "config.json").read_text())["custom_pipelines"]


def test_pretrained_encoder_is_taken_with_its_sizes(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrained = GeoMAEForPreTraining(GeoMAEConfig(**TINY))
    pretrained.save_pretrained(tmp_path / "pretrained")
    config = tmp_path / "run.yaml"
    config.write_text("max_steps: 1\nper_device_train_batch_size: 4\nlearning_rate: 1e-12\nprediction_maps: false\n")
    argv = [str(config), "--data_dirs", str(photos), "--output_dir", str(tmp_path / "run"), "--disable_tqdm"]
    argv += ["--dataloader_num_workers", "0", "--init_from", str(tmp_path / "pretrained")]
    run_finetune_geo.main(argv)
    tuned = GeoMAEForGeolocation.from_pretrained(tmp_path / "run")
    assert tuned.config.hidden_size == TINY["hidden_size"]
    for name, weights in pretrained.backbone.state_dict().items():
        torch.testing.assert_close(tuned.backbone.state_dict()[name], weights, atol=1e-9, rtol=0)
    printed = capsys.readouterr().out
    assert "Loaded" in printed
    assert "head" in printed  # what is new


def test_baseline_is_any_timm_backbone(photos: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("model_type: geobaseline\nbackbone: resnet10t\nimage_size: 32\nmax_steps: 2\nlayer_decay: 0.8\n")
    argv = [str(config), "--data_dirs", str(photos), "--output_dir", str(tmp_path / "run"), "--disable_tqdm"]
    argv += ["--dataloader_num_workers", "0", "--per_device_train_batch_size", "4", "--prediction_maps", "false"]
    run_finetune_geo.main(argv)
    assert GeoBaselineForGeolocation.from_pretrained(tmp_path / "run").config.backbone == "resnet10t"


def test_baseline_starts_from_the_encoder_of_a_geomae(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrained = GeoMAEForPreTraining(GeoMAEConfig(**TINY))
    pretrained.save_pretrained(tmp_path / "pretrained")
    config = tmp_path / "run.yaml"
    config.write_text(
        "model_type: geobaseline\nbackbone: vit_tiny_patch16_224\nmax_steps: 1\nlearning_rate: 1e-12\n"
        "backbone_kwargs: {patch_size: 8, embed_dim: 16, depth: 2, num_heads: 2, mlp_ratio: 2}\n"
        "dataloader_num_workers: 0\nprediction_maps: false\n"
    )
    argv = [str(config), "--data_dirs", str(photos), "--output_dir", str(tmp_path / "run"), "--disable_tqdm"]
    run_finetune_geo.main([*argv, "--init_from", str(tmp_path / "pretrained")])
    tuned = GeoBaselineForGeolocation.from_pretrained(tmp_path / "run")
    assert tuned.config.image_size == TINY["image_size"]
    for name, weights in pretrained.backbone.state_dict().items():
        torch.testing.assert_close(tuned.backbone.state_dict()[name], weights, atol=1e-9, rtol=0)
    assert "Loaded" in capsys.readouterr().out


def test_overwritten_run_leaves_nothing_of_the_earlier_one(photos: Path, tmp_path: Path) -> None:
    words_of_both = words(photos, tmp_path, "--max_steps", "2", "--eval_steps", "1", "--save_steps", "1")
    run_finetune_geo.main(words_of_both)
    written = {path.name for path in tmp_path.iterdir() if path.suffix != ".py"}
    assert {"config.json", "training_args.bin", "eval_results.json", "all_results.json"} <= written
    empty_output_dir(str(tmp_path), resume_from=None, is_main_process=True)
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".py"] == [".run.lock"]


def test_key_of_the_other_architecture_is_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown key --backbone"):
        run_finetune_geo.main(words(photos, tmp_path, "--backbone", "resnet152"))


AVERAGED = pytest.param(["--ema_decay", "0.9"], marks=pytest.mark.slow, id="averaged")


@pytest.mark.parametrize("average", [pytest.param([], id="trained"), AVERAGED])
def test_two_processes_judge_as_one_does(photos: Path, tmp_path: Path, average: list[str]) -> None:
    argv = words(photos, tmp_path / "run", "--num_train_epochs", "1", "--per_device_train_batch_size", "4", *average)
    first, second = launch_on_two_processes("run_finetune_geo", tmp_path, *argv, "--per_device_eval_batch_size", "3")
    assert len(first) == len(second) == 32
    assert len({*first, *second}) == 64
    together = json.loads((tmp_path / "run/eval_results.json").read_text())
    alone = geolocation_trainer(photos, training_arguments(tmp_path / "alone"))
    alone.model = alone.model_wrapped = GeoMAEForGeolocation.from_pretrained(tmp_path / "run")
    alone.eval_collator = PhotoCollator(32, augment=False)
    metrics = alone.evaluate()
    assert len(alone.latest_evaluation.ids) == 13  # 7 and 6, in batches of 3: one process has one batch more
    for name in ("eval_mean_km", "eval_median_km", "eval_loss", "eval_accuracy_within_2500km"):
        assert together[name] == pytest.approx(metrics[name], rel=1e-4), name


def test_without_validation_photos_the_last_model_is_kept(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_finetune_geo.main(words(photos, tmp_path, "--validation_split", "null", "--max_steps", "2"))
    assert "nothing is judged in training, and the last model is kept" in caplog.text
    assert (tmp_path / "model.safetensors").is_file()
    assert not (tmp_path / "eval_results.json").exists()


def test_a_resumed_run_says_where_it_goes_on(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    every_step = ["--max_steps", "2", "--save_strategy", "steps", "--save_steps", "1"]
    every_step += ["--eval_strategy", "steps", "--eval_steps", "1"]
    run_finetune_geo.main(words(photos, tmp_path, *every_step))
    (tmp_path / "checkpoint-2" / "trainer_state.json").unlink()
    capsys.readouterr()
    run_finetune_geo.main(words(photos, tmp_path, *every_step, "--resume_from_checkpoint", "true"))
    assert f"Going on from {tmp_path / 'checkpoint-1'}." in capsys.readouterr().out
