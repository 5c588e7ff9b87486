"""A small Hub on 127.0.0.1: data sets are folders `owner/name` below a root, each of one commit on `main`.

It speaks what `datasets` and `HfFileSystem` ask for when they read:

    GET  /api/datasets/{id}, /api/datasets/{id}/revision/{rev}    what the data set is
    GET  /api/datasets/{id}/tree/{rev}[/{path}]?recursive=        its files, or those below a path
    POST /api/datasets/{id}/paths-info/{rev}                      some of its files by name
    GET, HEAD /datasets/{id}/resolve/{rev}/{path}                 a file, or a part of it

Run it beside a process of its own (`HF_ENDPOINT` is read when `huggingface_hub` is imported):

    with serve_hub(folder) as endpoint:
        subprocess.run(command, env=os.environ | {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0"})
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from local_server import FolderHandler, serve

_API = re.compile(
    r"/api/datasets/(?P<id>[^/]+/[^/]+)(/(?P<what>revision|tree|paths-info)/(?P<revision>[^/]+)(/(?P<path>.+))?)?"
)
_RESOLVE = re.compile(r"/datasets/(?P<id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


def commit_of(folder: Path) -> str:
    """A commit's name: another one when a file has changed."""
    digest = hashlib.sha1()
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            digest.update(f"{file.relative_to(folder)} {oid_of(file)}\n".encode())
    return digest.hexdigest()


def oid_of(file: Path) -> str:
    """A blob's name, as git makes it."""
    data = file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class HubHandler(FolderHandler):
    """Answers for the data sets below `root`."""

    def _answer(self) -> None:
        self.requests.append((self.command, self.path, self.headers.get("Range")))
        url = urlsplit(self.path)
        for pattern, answer in ((_RESOLVE, self._resolve), (_API, self._api)):
            match = pattern.fullmatch(url.path)
            if match is not None:
                answer(match, parse_qs(url.query))
                return
        self._refuse("EntryNotFound", f"no such page: {url.path}")

    def do_POST(self) -> None:  # noqa: N802 (the base class's way)
        self._answer()

    def _folder(self, match: re.Match[str]) -> Path | None:
        """The data set that is asked for; None, and the answer is given, where there is none."""
        folder = self.root / unquote(match["id"])
        if not folder.is_dir():
            self._refuse("RepoNotFound", "Repository not found", status=401)  # as the Hub says to strangers
            return None
        revision = unquote(match["revision"] or "main")
        if revision not in ("main", commit_of(folder)):
            self._refuse("RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return folder

    def _api(self, match: re.Match[str], query: dict[str, list[str]]) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        folder = self._folder(match)
        if folder is None:
            return
        if match["what"] == "tree":
            self._tree(
                folder, unquote(match["path"] or ""), recursive=query.get("recursive", [""])[0].lower() == "true"
            )
        elif match["what"] == "paths-info":
            paths = [folder / name for name in parse_qs(body.decode()).get("paths", [])]
            self._send_json([self._describe(folder, path) for path in paths if path.exists()])
        else:
            files = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
            about = {"id": match["id"], "sha": commit_of(folder), "private": False, "gated": False, "tags": []}
            self._send_json(about | {"siblings": [{"rfilename": name} for name in files], "downloads": 0, "likes": 0})

    def _tree(self, folder: Path, name: str, *, recursive: bool) -> None:
        below = folder / name
        if not below.is_dir():
            self._refuse("EntryNotFound", f"{name} does not exist")
            return
        paths = below.rglob("*") if recursive else below.iterdir()
        self._send_json([self._describe(folder, path) for path in sorted(paths)])

    def _describe(self, folder: Path, path: Path) -> dict[str, Any]:
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            return {"type": "directory", "path": name, "oid": hashlib.sha1(name.encode()).hexdigest(), "size": 0}
        return {"type": "file", "path": name, "oid": oid_of(path), "size": path.stat().st_size}

    def _resolve(self, match: re.Match[str], _: dict[str, list[str]]) -> None:
        folder = self._folder(match)
        if folder is None:
            return
        file = folder / unquote(match["path"])
        if not file.is_file():
            self._refuse("EntryNotFound", "Entry not found")
            return
        headers = {"X-Repo-Commit": commit_of(folder), "ETag": f'"{oid_of(file)}"', "Accept-Ranges": "bytes"}
        self.send_file(file.read_bytes(), headers)

    def _refuse(self, code: str, message: str, *, status: int = 404) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message}
        body = json.dumps({"error": message}).encode()
        self.send(status, body, content_type="application/json", headers=headers)

    def _send_json(self, answer: Any) -> None:
        self.send(200, json.dumps(answer).encode(), content_type="application/json")


@contextlib.contextmanager
def serve_hub(root: Path) -> Iterator[str]:
    """Serve the data sets below `root`; yields what HF_ENDPOINT must be."""
    with serve(HubHandler, root=root) as (address, _):
        yield address
