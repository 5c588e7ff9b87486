"""The trainers: exact resuming, exact evaluation, honest logs, and stops that say what to do."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packed_photos import geolocation_trainer, mae_trainer, pack, record_ids, stream_of, training_arguments
from scipy.special import log_softmax
from scipy.stats import vonmises_fisher

from geomae.checksums import write_checksums
from geomae.data.collate import PhotoCollator
from geomae.errors import ConfigError, NonFiniteLossError, PredictionError
from geomae.geography import unit_vectors
from geomae.training import MAETrainer

NUM_TRAINING = 40


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("photos"), train=NUM_TRAINING, validation=13)


def losses(trainer: Any) -> dict[int, float]:
    return {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("step", [3, 7], ids=["first_epoch", "second_epoch"])
def test_resumed_run_repeats_the_losses_of_the_unbroken_one_bitwise(
    photos: Path, tmp_path: Path, num_workers: int, step: int
) -> None:
    options = {"max_steps": 9, "save_strategy": "steps", "save_steps": step, "dataloader_num_workers": num_workers}
    unbroken = mae_trainer(photos, training_arguments(tmp_path, **options))
    unbroken.train()
    torch.manual_seed(1)  # other weights, other state of the generator: everything must come from the checkpoint
    resumed = mae_trainer(photos, training_arguments(tmp_path, **options))
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    expected = losses(unbroken)
    assert len(set(expected.values())) == 9
    assert losses(resumed) == expected
    for name, weights in unbroken.model.state_dict().items():
        assert torch.equal(weights, resumed.model.state_dict()[name]), name


def test_resumed_run_jumps_to_the_photos_that_come_next(photos: Path, tmp_path: Path) -> None:
    options = {"max_steps": 5, "save_strategy": "steps", "save_steps": 3, "gradient_accumulation_steps": 2}
    options["per_device_train_batch_size"] = 4
    unbroken = mae_trainer(photos, training_arguments(tmp_path, **options))
    all_ids = record_ids(unbroken)
    unbroken.train()
    assert len(set(all_ids)) == NUM_TRAINING
    resumed = mae_trainer(photos, training_arguments(tmp_path, **options))
    ids = record_ids(resumed)
    decoded: list[str] = []
    prepare = resumed.train_collator.prepare
    resumed.train_collator.prepare = lambda sample: decoded.append(sample["id"]) or prepare(sample)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert ids == all_ids[24:]  # 3 steps of 2 batches of 4
    assert decoded == ids


def test_finished_run_trains_no_step_more(photos: Path, tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    options |= {"load_best_model_at_end": True}
    finished = mae_trainer(photos, training_arguments(tmp_path, **options))
    finished.train()
    again = mae_trainer(photos, training_arguments(tmp_path, **options))
    ids = record_ids(again)
    again.train(resume_from_checkpoint="last")
    assert not ids
    assert again.state.global_step == 4
    for name, weights in finished.model.state_dict().items():
        assert torch.equal(weights, again.model.state_dict()[name]), name


def test_an_epoch_shows_every_photo_once(photos: Path, tmp_path: Path) -> None:
    trainer = mae_trainer(photos, training_arguments(tmp_path, max_steps=-1, num_train_epochs=1))
    seen = record_ids(trainer)
    trainer.train()
    assert sorted(seen) == sorted(f"train-{shard}-{number}" for shard in (0, 1) for number in range(20))
    assert trainer.state.epoch == 1.0


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize(("before", "after"), [(0, 1), (2, 0), (2, 1), (4, 2)])
def test_changed_workers_finish_the_epoch_with_the_photos_that_are_left(
    photos: Path, tmp_path: Path, before: int, after: int
) -> None:
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "per_device_train_batch_size": 5}
    unbroken = mae_trainer(
        photos, training_arguments(tmp_path / "a", max_steps=8, dataloader_num_workers=before, **saving)
    )
    all_ids = record_ids(unbroken)
    unbroken.train()
    assert len(set(all_ids)) == NUM_TRAINING
    changed = mae_trainer(
        photos, training_arguments(tmp_path / "b", max_steps=8, dataloader_num_workers=after, **saving)
    )
    ids = record_ids(changed)
    changed.train(resume_from_checkpoint=str(tmp_path / "a/checkpoint-3"))
    assert ids == all_ids[15:]


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_workers_that_do_not_divide_the_lanes_are_refused_by_name(photos: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    mae_trainer(photos, training_arguments(tmp_path, dataloader_num_workers=2, **options)).train()
    changed = mae_trainer(photos, training_arguments(tmp_path, dataloader_num_workers=3, max_steps=4))
    with pytest.raises(ConfigError, match=r"checkpoint-2 cannot be resumed so: .*dataloader_num_workers 1, 2"):
        changed.train(resume_from_checkpoint="true")


def test_changed_batch_size_goes_on_behind_the_same_photo(photos: Path, tmp_path: Path) -> None:
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2}
    first = mae_trainer(photos, training_arguments(tmp_path, max_steps=2, **saving))
    ids = record_ids(first)
    first.train()
    changed = mae_trainer(photos, training_arguments(tmp_path, max_steps=8, per_device_train_batch_size=4))
    rest = record_ids(changed)
    changed.train(resume_from_checkpoint="true")
    assert len({*ids, *rest}) == len(ids) + len(rest) == NUM_TRAINING


def test_checkpoint_that_an_evaluation_decided_on_knows_its_place(photos: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"save_strategy": "best", "metric_for_best_model": "loss", "max_steps": 4}
    options |= {"eval_strategy": "steps", "eval_steps": 2}
    unbroken = mae_trainer(photos, training_arguments(tmp_path, **options))
    ids = record_ids(unbroken)
    unbroken.train()
    resumed = mae_trainer(photos, training_arguments(tmp_path, **options))
    rest = record_ids(resumed)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert rest == ids[16:]


def test_several_crops_of_a_photo_train_and_resume(photos: Path, tmp_path: Path) -> None:
    def trainer(max_steps: int) -> MAETrainer:
        args = training_arguments(tmp_path, max_steps=max_steps, save_strategy="steps", save_steps=3)
        stream = stream_of(photos, args)
        stream.crops_per_photo = 2
        collator = PhotoCollator(16, augment=True, labelled=False, crops_per_photo=2)
        return MAETrainer(mae_trainer(photos, args).model, args, train_dataset=stream, train_collator=collator)

    unbroken, resumed = trainer(10), trainer(10)
    ids = record_ids(unbroken)
    unbroken.train()
    assert ids[::2] == ids[1::2]
    assert len(set(ids)) == NUM_TRAINING  # 80 crops, two of each photo
    assert unbroken.state.epoch == 2.0
    rest = record_ids(resumed)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-9"))
    assert rest == ids[72:]


def test_crops_of_collator_and_stream_must_agree(photos: Path, tmp_path: Path) -> None:
    args = training_arguments(tmp_path)
    twice = PhotoCollator(16, augment=True, labelled=False, crops_per_photo=2)
    model, stream = mae_trainer(photos, args).model, stream_of(photos, args)
    with pytest.raises(ConfigError, match="collator makes 2 crops of a photo and the stream counts 1"):
        MAETrainer(model, args, train_dataset=stream, train_collator=twice)


def test_changed_accumulation_goes_on_at_the_same_photo(photos: Path, tmp_path: Path) -> None:
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3, "per_device_train_batch_size": 4}
    unbroken = mae_trainer(photos, training_arguments(tmp_path / "whole", max_steps=8, per_device_train_batch_size=4))
    all_ids = record_ids(unbroken)
    unbroken.train()
    mae_trainer(photos, training_arguments(tmp_path, max_steps=3, gradient_accumulation_steps=2, **saving)).train()
    changed = mae_trainer(photos, training_arguments(tmp_path, max_steps=5, gradient_accumulation_steps=1, **saving))
    ids = record_ids(changed)
    changed.train(resume_from_checkpoint="true")
    assert ids == all_ids[24:]  # 3 steps of 2 batches of 4


def test_second_resume_after_a_changed_batch_size_goes_on_where_the_first_ended(photos: Path, tmp_path: Path) -> None:
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1}
    mae_trainer(photos, training_arguments(tmp_path, max_steps=2, **saving)).train()  # 16 photos
    halved = {"per_device_train_batch_size": 4, **saving}
    first = mae_trainer(photos, training_arguments(tmp_path, max_steps=5, **halved))
    first.train(resume_from_checkpoint="true")
    assert first.state.epoch == 28 / NUM_TRAINING  # 12 photos more
    unbroken = mae_trainer(photos, training_arguments(tmp_path / "whole", max_steps=8, per_device_train_batch_size=4))
    all_ids = record_ids(unbroken)
    unbroken.train()
    second = mae_trainer(photos, training_arguments(tmp_path, max_steps=6, **halved))
    ids = record_ids(second)
    second.train(resume_from_checkpoint="true")
    assert ids == all_ids[28:32]


def test_changed_shuffle_buffer_is_named(photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mae_trainer(photos, training_arguments(tmp_path, save_strategy="steps", save_steps=4)).train()
    changed = mae_trainer(photos, training_arguments(tmp_path, max_steps=5), shuffle_buffer=8)
    with caplog.at_level(logging.WARNING, "geomae"):
        changed.train(resume_from_checkpoint="true")
    assert "shuffle_buffer 16 -> 8" in caplog.text


def test_other_photos_of_the_same_number_are_named(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mae_trainer(photos, training_arguments(tmp_path, save_strategy="steps", save_steps=4)).train()
    args = training_arguments(tmp_path, max_steps=5)
    changed = mae_trainer(pack(tmp_path / "same", digest="other photos", train=NUM_TRAINING, validation=13), args)
    with caplog.at_level(logging.WARNING, "geomae"):
        changed.train(resume_from_checkpoint="true")
    assert "the order of the photos changes with photos " in caplog.text


def test_checkpoint_that_does_not_know_its_place_is_refused(photos: Path, tmp_path: Path) -> None:
    mae_trainer(photos, training_arguments(tmp_path, save_strategy="steps", save_steps=4)).train()
    state_file = tmp_path / "checkpoint-4/trainer_state.json"
    state = json.loads(state_file.read_text())
    del state["stateful_callbacks"]["StreamProgress"]
    state_file.write_text(json.dumps(state))
    write_checksums(state_file.parent)
    with pytest.raises(ConfigError, match=r"checkpoint-4 does not say how far .*--init_from"):
        mae_trainer(photos, training_arguments(tmp_path, max_steps=5)).train(resume_from_checkpoint="true")


def test_resumed_run_takes_learning_rate_and_decay_from_its_arguments(photos: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "schedule": "linear", "weight_decay": 0.05}
    mae_trainer(photos, training_arguments(tmp_path, learning_rate=1e-3, **options)).train()
    changed = {**options, "learning_rate": 2e-4, "weight_decay": 0.3, "adam_beta2": 0.9}
    resumed = mae_trainer(photos, training_arguments(tmp_path, **changed))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    rates = {entry["step"]: entry["learning_rate"] for entry in resumed.state.log_history if "loss" in entry}
    assert rates[3] == pytest.approx(2e-4 / 2)  # the third of four steps on a line from 2e-4 to 0
    assert [group["weight_decay"] for group in resumed.optimizer.param_groups] == [0.3, 0.0]
    assert {group["betas"] for group in resumed.optimizer.param_groups} == {(0.9, 0.9)}


def test_checkpoint_with_other_groups_of_parameters_is_refused(photos: Path, tmp_path: Path) -> None:
    mae_trainer(photos, training_arguments(tmp_path, save_strategy="steps", save_steps=4, weight_decay=0.1)).train()
    other = mae_trainer(photos, training_arguments(tmp_path, max_steps=5, weight_decay=0.0))
    with pytest.raises(ConfigError, match=r"other groups of parameters .*weight_decay, layer_decay"):
        other.train(resume_from_checkpoint="true")


def test_logs_of_training_say_what_they_should(photos: Path, tmp_path: Path) -> None:
    trainer = geolocation_trainer(photos, training_arguments(tmp_path, max_steps=3))
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["epoch"] for entry in logs] == pytest.approx([8 / 40, 16 / 40, 24 / 40])
    for entry in logs:
        # the sphere head's loss is the mean great-circle error, so the running error repeats it by another way
        assert entry["great_circle_km"] == pytest.approx(entry["loss"], rel=1e-5)
        assert entry["num_bad_photos"] == 0
        assert entry["photos_per_second"] > 0
        flops = trainer.model.flops_per_photo()
        assert entry["mfu"] == pytest.approx(entry["photos_per_second"] * flops / 1e12)


def test_running_error_is_a_mean_over_the_window(photos: Path, tmp_path: Path) -> None:
    every_step = geolocation_trainer(photos, training_arguments(tmp_path, learning_rate=1e-12))
    every_step.train()
    torch.manual_seed(0)
    windowed = geolocation_trainer(photos, training_arguments(tmp_path, learning_rate=1e-12, logging_steps=4))
    windowed.model.load_state_dict(every_step.model.state_dict())
    windowed.train()
    errors = [entry["great_circle_km"] for entry in every_step.state.log_history if "loss" in entry]
    (entry,) = (entry for entry in windowed.state.log_history if "loss" in entry)
    assert entry["great_circle_km"] == pytest.approx(np.mean(errors), rel=1e-6)


def test_evaluation_judges_every_photo_once_and_measures_by_hand_computable_numbers(
    photos: Path, tmp_path: Path
) -> None:
    trainer = geolocation_trainer(photos, training_arguments(tmp_path))
    metrics = trainer.evaluate()
    rows = trainer.latest_evaluation
    assert rows is not None
    assert rows.ids == [photo["id"] for photo in trainer.eval_dataset]
    predicted, target = (np.radians(rows.columns[name].astype(float)) for name in ("predicted_deg", "target_deg"))
    cosine = np.sin(predicted[:, 0]) * np.sin(target[:, 0]) + np.cos(predicted[:, 0]) * np.cos(target[:, 0]) * np.cos(
        predicted[:, 1] - target[:, 1]
    )
    error_km = 6371.0088 * np.arccos(cosine)  # the spherical law of cosines
    assert metrics["eval_mean_km"] == pytest.approx(error_km.mean(), rel=1e-6)
    assert metrics["eval_median_km"] == pytest.approx(np.median(error_km), rel=1e-6)
    assert metrics["eval_loss"] == pytest.approx(error_km.mean(), rel=1e-4)
    for radius in (1, 25, 200, 750, 2500):
        assert metrics[f"eval_accuracy_within_{radius}km"] == pytest.approx((error_km <= radius).mean())


def test_evaluation_of_a_posterior_measures_its_density_at_the_truth(photos: Path, tmp_path: Path) -> None:
    trainer = geolocation_trainer(photos, training_arguments(tmp_path), head_type="geocells", num_geocells=[30])
    metrics, rows, head = trainer.evaluate(), trainer.latest_evaluation, trainer.model.head
    assert rows is not None
    with torch.no_grad():
        pixels = trainer.eval_collator([trainer.eval_dataset[row] for row in range(13)])["pixel_values"]
        logits = trainer.model(pixel_values=pixels).logits.double().numpy()
    truth, centroids = unit_vectors(rows.columns["target_deg"]), head.cells.finest.double().numpy()
    cell = (truth @ centroids.T).argmax(axis=1)  # the nearest centroid
    steradians = head.cells.area_km2.double().numpy()[cell] / 6371.0088**2
    probability = np.exp(log_softmax(logits, axis=1))
    concentration = 2 * (6371.0088 / head.cells.spread_km.double().numpy()) ** 2
    unit = centroids / np.linalg.norm(centroids, axis=1, keepdims=True)
    each = [vonmises_fisher(mean, k).pdf(truth) for mean, k in zip(unit, concentration, strict=True)]
    # 90 % of a cell's mass is normal around its centroid, 10 % even over its area
    even = probability[np.arange(13), cell] / steradians
    nll = -np.log(0.9 * (probability * np.transpose(each)).sum(axis=1) + 0.1 * even)
    assert rows.columns["nll"] == pytest.approx(nll, abs=1e-4)
    assert metrics["eval_nll"] == pytest.approx(nll.mean(), abs=1e-4)
    assert "eval_nll" not in geolocation_trainer(photos, training_arguments(tmp_path / "sphere")).evaluate()


def test_validation_loss_of_the_autoencoder_repeats(photos: Path, tmp_path: Path) -> None:
    trainer = mae_trainer(photos, training_arguments(tmp_path))
    first = trainer.evaluate()["eval_loss"]
    torch.manual_seed(123)
    assert trainer.evaluate()["eval_loss"] == first
    trainer.args.per_device_eval_batch_size = 3
    assert trainer.evaluate()["eval_loss"] == pytest.approx(first, rel=1e-6)


def test_validation_loss_is_per_photo_also_where_training_sums(photos: Path, tmp_path: Path) -> None:
    trainer = mae_trainer(photos, training_arguments(tmp_path), loss_reduction="sum")
    summed = trainer.evaluate()["eval_loss"]
    trainer.model.config.loss_reduction = "mean"
    num_hidden = trainer.model.config.num_patches - trainer.model.config.num_visible_patches
    assert summed == pytest.approx(trainer.evaluate()["eval_loss"] * num_hidden, rel=1e-5)


def test_evaluation_leaves_the_randomness_of_training_alone(photos: Path, tmp_path: Path) -> None:
    silent = mae_trainer(photos, training_arguments(tmp_path))
    start = {name: weights.clone() for name, weights in silent.model.state_dict().items()}
    silent.train()
    judged = mae_trainer(photos, training_arguments(tmp_path, eval_strategy="steps", eval_steps=1))
    judged.model.load_state_dict(start)
    judged.train()
    assert losses(judged) == losses(silent)


def test_best_checkpoint_is_the_one_with_the_smallest_mean_error(photos: Path, tmp_path: Path) -> None:
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    options |= {"load_best_model_at_end": True, "metric_for_best_model": "mean_km", "learning_rate": 0.05}
    trainer = geolocation_trainer(photos, training_arguments(tmp_path, max_steps=5, **options))
    trainer.train()
    means = {entry["step"]: entry["eval_mean_km"] for entry in trainer.state.log_history if "eval_mean_km" in entry}
    best = min(means, key=lambda step: means[step])
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")
    assert trainer.evaluate()["eval_mean_km"] == pytest.approx(means[best])


def test_non_finite_loss_stops_the_run_and_names_step_photos_and_checkpoint(photos: Path, tmp_path: Path) -> None:
    trainer = mae_trainer(photos, training_arguments(tmp_path, save_strategy="steps", save_steps=2))
    forward = trainer.model.forward

    def overflow(pixel_values: torch.Tensor, noise: torch.Tensor | None = None) -> Any:
        outputs = forward(pixel_values, noise)
        if trainer.state.global_step == 2:
            outputs.loss = outputs.loss * torch.inf
        return outputs

    trainer.model.forward = overflow
    with pytest.raises(NonFiniteLossError, match=r"loss of step 3 is inf.*train-.*checkpoint-2"):
        trainer.train()
    assert not (tmp_path / "checkpoint-4").exists()


def test_non_finite_gradient_is_named_before_it_reaches_a_loss(photos: Path, tmp_path: Path) -> None:
    trainer = mae_trainer(photos, training_arguments(tmp_path))
    trainer.model.decoder.mask_token.register_hook(lambda gradient: gradient * torch.nan)
    with pytest.raises(NonFiniteLossError, match=r"norm of the gradient of step 1 is nan.*No checkpoint was saved"):
        trainer.train()


def test_answer_that_is_no_number_fails_the_evaluation(photos: Path, tmp_path: Path) -> None:
    trainer = geolocation_trainer(photos, training_arguments(tmp_path))
    with torch.no_grad():
        trainer.model.head.layers[-1].bias.fill_(torch.nan)
    with pytest.raises(PredictionError, match="not a finite number for some photos; the first is validation-0-0"):
        trainer.evaluate()


def test_bf16_trains_and_evaluates(photos: Path, tmp_path: Path) -> None:
    trainer = geolocation_trainer(photos, training_arguments(tmp_path, bf16=True, eval_strategy="steps", eval_steps=2))
    trainer.train()
    assert trainer.accelerator.mixed_precision == "bf16"
    assert all(np.isfinite(loss) for loss in losses(trainer).values())
    assert trainer.latest_evaluation is not None
    assert trainer.latest_evaluation.columns["predicted_deg"].dtype == np.float32


def test_epoch_strategies_become_steps(photos: Path, tmp_path: Path) -> None:
    args = training_arguments(
        tmp_path,
        max_steps=-1,
        num_train_epochs=2,
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="epoch",
    )
    trainer = mae_trainer(photos, args)
    trainer.train()
    assert [entry["epoch"] for entry in trainer.state.log_history if "eval_loss" in entry] == [1.0, 2.0]
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-5"]
