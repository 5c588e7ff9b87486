"""The saved view of W&B: it shows what runs log, and what is sent is what the dry run prints."""

import json
import os
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("wandb_workspaces")

from launching import ROOT

from geomae.errors import ConfigError
from geomae.reporting.__main__ import main
from geomae.reporting.workspace import PANELS, PINNED, build_workspace

DOCUMENT = (ROOT / "docs" / "wandb.md").read_text(encoding="utf-8")


class FakeWandb(BaseHTTPRequestHandler):
    """Speaks the two documents of GraphQL that saving a view sends."""

    views: list[dict[str, Any]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        data: dict[str, Any] = {"viewer": {"id": "1", "username": "me", "entity": "me", "flags": "{}"}}
        if "upsertView" in body:
            self.views.append(json.loads(body)["variables"])
            data = {"upsertView": {"view": {"id": "1", "name": "nw-abc-v"}, "inserted": True}}
        answer = json.dumps({"data": data}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def fake_wandb() -> Iterator[str]:
    FakeWandb.views.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeWandb)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def run_command(folder: Path, address: str, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "WANDB_BASE_URL": address, "WANDB_API_KEY": "0" * 40, "PYTHONPATH": str(ROOT)}
    environment |= {"HOME": str(folder), "NETRC": str(folder / ".netrc")}
    environment = {key: value for key, value in environment.items() if key not in ("WANDB_MODE", "WANDB_SILENT")}
    command = [sys.executable, "-m", "geomae.reporting", "workspace", "--entity", "me", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def panels_of(specification: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    sections = specification["section"]["panelBankConfig"]["sections"]
    return {section["name"]: section["panels"] for section in sections}


def test_what_is_saved_is_what_the_dry_run_prints(
    fake_wandb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = run_command(tmp_path, fake_wandb, "--project", "photos", "--test_set", "yfcc25600", "--name", "Ours")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == f"the view is at {fake_wandb}/me/photos?nw=abc"
    (saved,) = FakeWandb.views
    assert (saved["entityName"], saved["projectName"], saved["displayName"]) == ("me", "photos", "Ours")
    words = ["--entity", "me", "--project", "photos", "--test_set", "yfcc25600", "--name", "Ours", "--dry_run"]
    assert main(["workspace", *words]) == 0
    printed = json.loads(capsys.readouterr().out)
    without_ids = [
        re.sub(r'"(__id__|id|ref)": ?"[^"]*"', "", json.dumps(spec, sort_keys=True))
        for spec in (printed, json.loads(saved["spec"]))
    ]
    assert without_ids[0] == without_ids[1]


def test_runs_are_grouped_by_experiment_and_job_type_and_panels_stand_in_their_sections(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["workspace", "--entity", "me", "--dry_run"]) == 0
    printed = json.loads(capsys.readouterr().out)
    (runs,) = printed["section"]["runSets"]
    assert [key["name"] for key in runs["grouping"]] == ["group", "jobType"]
    assert {f"summary:test/im2gps3k/{number}" for number in PINNED} < set(runs["runFeed"]["columnPinned"])
    drawn = panels_of(printed)
    assert {name: len(panels) for name, panels in drawn.items()} == Counter(panel.section for panel in PANELS)
    text = json.dumps(printed)
    assert all(json.dumps(name.format(test_set="im2gps3k")) in text for panel in PANELS for name in panel.logged)
    first = drawn["Validation"][0]["config"]
    assert (first["xAxis"], first["metrics"], first["yLogScale"]) == ("train/global_step", ["eval/mean_km"], True)


def test_every_panel_has_the_title_that_is_given_or_is_of_the_kind_that_has_its_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["workspace", "--entity", "me", "--dry_run"]) == 0
    drawn = [panel for panels in panels_of(json.loads(capsys.readouterr().out)).values() for panel in panels]
    shown = [panel["config"].get("chartTitle", panel["viewType"]).lower() for panel in drawn]
    assert shown == [panel.title.lower() for panel in PANELS]


def test_panels_show_what_the_document_says_that_runs_log() -> None:
    tables = DOCUMENT[DOCUMENT.index("## What is logged") : DOCUMENT.index("## The panels")]  # see test_docs_wandb.py
    logged = {name.removesuffix("_low").removesuffix("_high") for name in re.findall(r"`([\w/.]+)`", tables)}
    shown = {name.format(test_set="im2gps3k") for panel in PANELS for name in panel.logged}
    assert shown <= logged
    assert {f"test/im2gps3k/{number}".removesuffix("_low").removesuffix("_high") for number in PINNED} <= logged


def test_the_document_names_every_panel() -> None:
    section = DOCUMENT[DOCUMENT.index("## The panels") : DOCUMENT.index("## Sweeps")]
    rows = dict(re.findall(r"^\| \*\*(.+?)\*\* \| (.+?) \|", section, flags=re.MULTILINE))
    assert list(rows) == list(dict.fromkeys(panel.section for panel in PANELS))
    for name, titles in rows.items():
        assert titles.split("; ") == [panel.title for panel in PANELS if panel.section == name]


def test_wandb_out_of_reach_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    done = run_command(tmp_path, "notaurl")
    assert done.returncode == 1
    assert "WorkspaceError: W&B did not take the view" in done.stderr
    assert "--dry_run prints the view" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_the_package_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geomae.reporting.workspace.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"wandb-workspaces.*geomae\[dashboards\]"):
        build_workspace("me", "photos")


def test_a_name_that_wandb_refuses_is_told() -> None:
    with pytest.raises(ConfigError, match="is no name for a view"):
        build_workspace("me", "photos", name="ours \N{FIRE}")
