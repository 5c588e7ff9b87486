import os
import subprocess
import sys
from importlib.metadata import version

import pytest
from geocell_models import save_cell_model
from huggingface_hub import RepoCard
from packed_photos import TINY

pytest.importorskip("gradio", reason="the extra `demo` is not installed")

from geomae.demo.__main__ import main
from geomae.demo.space import write_space
from geomae.errors import ConfigError


@pytest.mark.slow
def test_space_starts_where_nothing_but_its_folder_is(tmp_path):
    """Its own app.py, with a download that a test makes of a folder, and a launch that does not listen."""
    assert main(["space", "--model", "somebody/geomae-small", "--output_dir", str(tmp_path / "space")]) == 0
    settings = RepoCard.load(tmp_path / "space" / "README.md", ignore_metadata_errors=False).data.to_dict()
    assert (settings["sdk"], settings["app_file"]) == ("gradio", "app.py")
    assert settings["sdk_version"] == version("gradio")
    assert float(settings["python_version"].partition(".")[2]) >= 11, "as pyproject.toml has it"
    assert settings["models"] == ["somebody/geomae-small"]
    assert any(line.startswith("torch>=") for line in (tmp_path / "space" / "requirements.txt").read_text().split())
    save_cell_model(tmp_path / "model", TINY)
    start = (
        "import runpy, huggingface_hub, gradio\n"
        f"huggingface_hub.snapshot_download = lambda name: {str(tmp_path / 'model')!r} if name == "
        "'somebody/geomae-small' else None\n"
        "gradio.Blocks.launch = lambda page, **options: print('launched', len(page.blocks) > 10, sorted(options)[:1])\n"
        "runpy.run_path('app.py')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", start],
        cwd=tmp_path / "space",
        env={**os.environ, "PYTHONPATH": "", "GRADIO_ANALYTICS_ENABLED": "False"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "launched True ['app_kwargs']" in done.stdout


@pytest.mark.parametrize("model", ["../secrets", "name-alone", 'a/b"); import os', "a/b/c"])
def test_space_for_what_is_no_id_of_the_hub_is_refused(tmp_path, model):
    with pytest.raises(ConfigError, match="OWNER/NAME"):
        write_space(model, tmp_path / "space")
    assert not (tmp_path / "space").exists()


def test_space_is_not_written_over_anything(tmp_path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(ConfigError, match="not an empty folder"):
        write_space("owner/name", tmp_path)


def test_folder_of_a_space_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be made"):
        write_space("owner/name", tmp_path / "file" / "space")
