"""A small Hub on 127.0.0.1 that takes uploads: repositories of models, each with its files and the number of commits.

POST /api/repos/create                          make a repository; 409 where there is one
GET  /api/models/{id}[/revision/main]           its files
GET  /api/models/{id}/tree/main                 its files with their blobs' names
POST /api/models/{id}/preupload/main            which files go by LFS, and the blobs that are there
POST /{id}.git/info/lfs/objects/batch           where large files go; nothing for one that is there
PUT  /lfs/{sha256}                              a large file
POST /api/models/{id}/commit/main               the commit, all of it at once
POST /api/validate-yaml                         a card; 400 for one without metadata
"""

import base64
import contextlib
import hashlib
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from huggingface_hub import RepoCard
from local_server import FolderHandler, serve

OWNER = "someone"
# Older releases of huggingface_hub send a card to one fixed address, which no test may ask.
CHECKS_CARDS_HERE = pytest.mark.skipif(
    "huggingface.co" in inspect.getsource(RepoCard.validate).partition('"""')[2].partition('"""')[2],
    reason="this huggingface_hub checks cards at the Hub's own address alone",
)
_MODEL = re.compile(r"/api/models/(?P<id>[^/]+/[^/]+)(/(?P<what>revision|tree|preupload|commit)/main)?")
_BATCH = re.compile(r"/(?P<id>[^/]+/[^/]+)\.git/info/lfs/objects/batch")


def blob_name(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class WritableHubHandler(FolderHandler):
    """Holds everything in attributes of its class, which `serve_writable_hub` makes anew."""

    repositories: dict[str, dict[str, bytes]]
    large_files: dict[str, bytes]
    commits: list[list[str]]  # keys of each commit's lines
    put: list[str]
    asked: list[tuple[str, dict[str, Any]]]
    breaks_at: str = ""  # what of the path is answered by an error
    how: str = "500"  # or "disconnect"

    def do_POST(self) -> None:  # noqa: N802 (the base class's way)
        self._answer()

    def do_PUT(self) -> None:  # noqa: N802 (the base class's way)
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path
        self.requests.append((self.command, path, self.headers.get("Authorization")))
        if self.breaks_at and self.breaks_at in path:
            if self.how == "disconnect":
                self.close_connection = True
                self.connection.close()
            else:
                self.send(500, b"broken")
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._validate(json.loads(body)["content"])
        elif path.startswith("/lfs/"):
            self.put.append(path)
            self.large_files[hashlib.sha256(body).hexdigest()] = body
            self.send(200, b"")
        elif match := _BATCH.fullmatch(path):
            self._batch(json.loads(body))
        elif match := _MODEL.fullmatch(path):
            self._model(match["id"], match["what"], body)
        else:
            self.send(404, b"no such page")

    def _json(self, answer: Any, status: int = 200) -> None:
        self.send(status, json.dumps(answer).encode(), content_type="application/json")

    def _create(self, asked: dict[str, Any]) -> None:
        repo_id = f"{asked['organization'] or OWNER}/{asked['name']}"
        is_new = repo_id not in self.repositories
        self.asked.append((repo_id, asked))
        self.repositories.setdefault(repo_id, {".gitattributes": b"*.safetensors filter=lfs\n"})
        self._json({"url": f"{self._address()}/{repo_id}", "name": repo_id}, 200 if is_new else 409)

    def _address(self) -> str:
        return f"http://{self.headers['Host']}"

    def _validate(self, content: str) -> None:
        match = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
        metadata = yaml.safe_load(match[1]) if match else None
        if isinstance(metadata, dict) and metadata.get("license"):
            self._json({"errors": [], "warnings": []})
        else:
            self.send(400, b"a card needs metadata with a license")

    def _batch(self, asked: dict[str, Any]) -> None:
        objects = []
        for each in asked["objects"]:
            action = {"upload": {"href": f"{self._address()}/lfs/{each['oid']}"}}
            objects.append(each | ({} if each["oid"] in self.large_files else {"actions": action}))
        self._json({"transfer": "basic", "objects": objects})

    def _model(self, repo_id: str, what: str | None, body: bytes) -> None:
        files = self.repositories.get(repo_id)
        if files is None:
            self._json({"error": "Repository not found"}, 404)
        elif what == "preupload":
            self._json({"files": [self._mode(files, each["path"]) for each in json.loads(body)["files"]]})
        elif what == "tree":
            self._json([{"type": "file", "path": n, "oid": blob_name(d), "size": len(d)} for n, d in files.items()])
        elif what == "commit":
            self._commit(files, [json.loads(line) for line in body.splitlines()])
            self._json({"commitUrl": f"{self._address()}/{repo_id}/commit/{'0' * 40}", "commitOid": "0" * 40})
        else:
            siblings = [{"rfilename": name} for name in files]
            asked = next(asked for name, asked in self.asked if name == repo_id)  # the first time, which made it
            is_private = asked.get("visibility") == "private" or bool(asked.get("private"))
            self._json({"id": repo_id, "sha": "0" * 40, "private": is_private, "tags": [], "siblings": siblings})

    def _mode(self, files: dict[str, bytes], path: str) -> dict[str, Any]:
        is_large = path.endswith((".safetensors", ".png"))
        found = files.get(path)
        # Of a large file git's blob is the pointer, so its name is the sha256's.
        oid = None if found is None else hashlib.sha256(found).hexdigest() if is_large else blob_name(found)
        return {"path": path, "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False, "oid": oid}

    def _commit(self, files: dict[str, bytes], lines: list[dict[str, Any]]) -> None:
        self.commits.append([line["key"] for line in lines])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.large_files[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]


@contextlib.contextmanager
def serve_writable_hub() -> Iterator[tuple[str, Any]]:
    """An empty Hub; yields its address and the handler's class, which has what was stored."""
    with serve(WritableHubHandler, root=Path(), repositories={}, large_files={}, commits=[], put=[], asked=[]) as (
        address,
        handler,
    ):
        yield address, handler
