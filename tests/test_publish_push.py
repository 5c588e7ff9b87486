"""`--push_to_hub`: the folder of geomae.publish, once, after the run; a local Hub."""

import json

import pytest
from huggingface_hub import constants
from packed_photos import geolocation_trainer, pack, training_arguments
from writable_hub import serve_writable_hub

from geomae.errors import ConfigError, PublishError
from geomae.training import RunRecord


@pytest.fixture
def hub(monkeypatch):
    with serve_writable_hub() as (address, handler):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr("transformers.trainer.hf_api", lambda: __import__("huggingface_hub").HfApi(address))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        yield handler


def trainer_in(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2, "push_to_hub": True, "hub_token": "hf_SECRET"}
    args = training_arguments(tmp_path / "run", hub_model_id="someone/model", **options)
    trainer = geolocation_trainer(pack(tmp_path / "photos", train=16, validation=4), args)
    trainer.add_callback(RunRecord(trainer, {"data_dirs": ["photos"], **args.to_dict()}))
    return trainer


def test_push_uploads_the_published_folder_once_and_no_token(tmp_path, hub, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = trainer_in(tmp_path)
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    assert not hub.commits
    assert trainer.push_to_hub() == f"{constants.ENDPOINT}/someone/model"
    stored = hub.repositories["someone/model"]
    assert len(hub.commits) == 1
    assert b"Not intended" in stored["README.md"]
    assert {"model.safetensors", "training_config.yaml", "image_to_coordinates.py"} <= set(stored)
    assert not [name for name, content in stored.items() if b"hf_SECRET" in content or "checkpoint" in name]
    assert not (tmp_path / "run" / "README.md").exists()
    assert "hf_SECRET" not in (tmp_path / "run" / "run.json").read_text()
    assert {auth for _, path, auth in hub.requests if not path.startswith("/lfs/")} == {"Bearer hf_SECRET"}

    hub.breaks_at = "/commit/"
    (tmp_path / "run" / "run.json").write_text(json.dumps({"config": {}, "command": "changed"}))
    with pytest.raises(PublishError, match=r"To repeat: python -m geomae.publish .*run --repo_id someone/model"):
        trainer.push_to_hub()
    assert (tmp_path / "run" / "model.safetensors").is_file()
    (tmp_path / "run" / "trainer_state.json").unlink()
    with pytest.raises(PublishError, match=r"(?s)no finished run.*To repeat: python -m geomae.publish"):
        trainer.push_to_hub()


def test_hub_that_refuses_is_told_before_training(tmp_path, hub):
    hub.breaks_at = "/api/repos/create"
    with pytest.raises(ConfigError, match="push_to_hub: no repository someone/model could be made"):
        trainer_in(tmp_path)
