"""A tracker or a Hub that does not answer keeps nobody from training, and the message says how to upload later."""

import logging
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import wandb
from huggingface_hub import constants
from huggingface_hub.utils import get_session
from launching import find_free_port, run_beside_itself
from packed_photos import geolocation_trainer, mae_trainer, pack, training_arguments

from geomae.errors import ConfigError, PublishError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return pack(tmp_path / "photos", train=16, validation=4)


@pytest.fixture(params=["refuses", "stalls"])
def address(request: pytest.FixtureRequest) -> Iterator[str]:
    """Of a server that is not there, or that takes a request and says nothing."""
    if request.param == "refuses":
        yield f"http://127.0.0.1:{find_free_port()}"
        return
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        yield f"http://127.0.0.1:{silent.getsockname()[1]}"


def test_hub_that_does_not_answer_is_asked_again_when_the_run_has_ended(
    photos: Path, tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr("transformers.trainer.hf_api", lambda: __import__("huggingface_hub").HfApi(address))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("geomae.training.publishing.SECONDS_TO_ANSWER", 0.2)
    monkeypatch.setattr(get_session(), "timeout", None)
    options = {"push_to_hub": True, "hub_token": "hf_SECRET", "hub_model_id": "someone/model", "max_steps": 2}
    with caplog.at_level(logging.WARNING):
        trainer = geolocation_trainer(photos, training_arguments(tmp_path / "run", **options))
    assert "the Hub was not reached" in caplog.text
    assert "the run goes on, and is pushed when it has ended" in caplog.text
    trainer.train()
    trainer.save_model()
    again = r"complete\. To upload it later: python -m geomae\.publish .*run --repo_id someone/model"
    with pytest.raises(PublishError, match=again):
        trainer.push_to_hub()
    assert (tmp_path / "run/model.safetensors").is_file()


TRACKED = """
import logging, sys
from pathlib import Path
from packed_photos import mae_trainer, training_arguments

logging.basicConfig(level=logging.WARNING, stream=sys.stdout)
photos, folder = Path(sys.argv[1]), Path(sys.argv[2])
trainer = mae_trainer(photos, training_arguments(folder / "run", report_to=["wandb"], max_steps=2))
trainer.train()
assert trainer.state.global_step == 2
"""


@pytest.mark.slow
def test_run_that_wandb_does_not_answer_is_recorded_on_the_disk(
    photos: Path, tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"WANDB_BASE_URL": address, "WANDB_API_KEY": "a" * 40, "WANDB_MODE": "online", "WANDB_INIT_TIMEOUT": "3"}
    for name, value in (settings | {"WANDB_DIR": str(tmp_path)}).items():
        monkeypatch.setenv(name, value)
    told = run_beside_itself(TRACKED, tmp_path, str(photos), str(tmp_path))
    assert "W&B was not reached" in told
    folder = Path(told.split("upload it when it has ended: wandb sync ")[1].split()[0])
    assert list(folder.glob("run-*.wandb"))


def test_tracker_that_answers_is_not_doubted(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes wrong in W&B for another reason is not passed over."""

    def refuse(**_: object) -> None:
        raise wandb.errors.UsageError("api_key not configured")

    monkeypatch.setattr(wandb, "init", refuse)
    trainer = mae_trainer(photos, training_arguments(tmp_path, report_to=["wandb"]))
    with pytest.raises(ConfigError, match="report_to wandb: api_key not configured"):
        trainer.train()


@pytest.mark.parametrize("by_environment", [False, True])
def test_run_whose_space_is_not_reached_is_recorded_on_the_disk(
    photos: Path,
    tmp_path: Path,
    by_environment: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pytest.importorskip("trackio", reason="the extra `dashboards` is not installed")
    monkeypatch.setenv("HF_TOKEN", "hf_SECRET")
    if by_environment:
        monkeypatch.setenv("TRACKIO_SPACE_ID", "someone/runs")
    options = {"report_to": ["trackio"], "project": f"unreached-{by_environment}", "max_steps": 2}
    options |= {} if by_environment else {"trackio_space_id": "someone/runs"}
    trainer = mae_trainer(photos, training_arguments(tmp_path / "run", **options))
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert trainer.state.global_step == 2
    assert f"trackio sync --project unreached-{by_environment} --space-id someone/runs" in caplog.text
    assert "SECRET" not in caplog.text
