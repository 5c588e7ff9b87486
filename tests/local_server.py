"""A small HTTP server on 127.0.0.1 for tests: a folder's files, with parts of them (Range) or without."""

import contextlib
import html
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit


class FolderHandler(BaseHTTPRequestHandler):
    """GET and HEAD of files below `root`; folders are pages of links, as every web server shows them."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one packet: two wait 40 ms for each other
    root: Path
    has_ranges = True
    requests: list[tuple[str, str, str | None]]  # method, path, Range
    num_failures: int = 0  # of the next requests that are answered with 503

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.requests.append((self.command, path, self.headers.get("Range")))
        if type(self).num_failures and self.command == "GET":
            type(self).num_failures -= 1
            self.send(503, b"try again")
            return
        file = self.root / path.strip("/")
        if file.is_dir():
            names = sorted(item.name + "/" * item.is_dir() for item in file.iterdir())
            page = "".join(f'<a href="{html.escape(quote(name))}">{html.escape(name)}</a>\n' for name in names)
            sorting = '<a href="../">Parent</a> <a href="?C=M;O=D">Last modified</a>\n'  # as Apache writes
            self.send(200, (sorting + page).encode(), content_type="text/html")
        elif file.is_file():
            self.send_file(file.read_bytes())
        else:
            self.send(404, b"not found")

    def send_file(self, data: bytes, headers: dict[str, str] | None = None) -> None:
        """A file, or the part of it that is asked for."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        headers = {"ETag": f'"{hash(data)}"', **(headers or {})}
        if not self.has_ranges or asked is None:
            self.send(200, data, headers={"Accept-Ranges": "bytes", **headers} if self.has_ranges else headers)
            return
        start, stop = int(asked[1]), min(int(asked[2] or len(data)) + 1, len(data))
        if start >= len(data):
            self.send(416, b"", headers={"Content-Range": f"bytes */{len(data)}"})
            return
        where = f"bytes {start}-{stop - 1}/{len(data)}"
        self.send(206, data[start:stop], headers={"Content-Range": where, **headers})

    def send(
        self,
        status: int,
        body: bytes,
        *,
        content_type: str = "application/octet-stream",
        headers: dict[str, str] | None = None,
    ) -> None:
        """A whole answer; of HEAD the headers alone."""
        self.send_response(status)
        for name, value in {"Content-Type": content_type, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.wfile.write(body)


@contextlib.contextmanager
def serve(handler: type[BaseHTTPRequestHandler], **attributes: object) -> Iterator[tuple[str, type]]:
    """Serve on a free port; yields the address and the handler's class."""
    made = type(handler.__name__, (handler,), {"requests": [], **attributes})
    server = ThreadingHTTPServer(("127.0.0.1", 0), made)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", made
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
