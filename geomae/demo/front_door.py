"""What may be asked of the page over HTTP: what its own browser code asks, in the sizes that this needs, and no more.

Gradio serves more than this page uses: uploads that make files, addresses in inputs that the server downloads to its
disk, a link that stores a session, an API. All of that is closed here, in front of it. Seen in Gradio 6.31.
"""

import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from geomae.demo.forgetting import ForgettingBlocks, num_waiting
from geomae.demo.photo_gate import MAX_UPLOAD_BYTES

__all__ = ["MAX_WAITING_PER_VISITOR", "FrontDoor"]

MAX_WAITING_PER_VISITOR = 3
"""Requests of one browser tab in the queue; of a photo dropped meanwhile and what it changes there are two."""

MAX_PHOTO_BODY = MAX_UPLOAD_BYTES * 4 // 3 + 2**16  # as base64, and what stands around it
MAX_OTHER_BODY = 2**16
MAX_TYPED = 10_000  # letters of a text box
MAX_SESSION = 100  # letters of its name, by which Gradio keeps what it shows; a browser's has eleven
MAX_VALUES = 2 * MAX_TYPED  # of a question; read, a list of nothing takes twenty times the room of its two letters
JOIN = "/gradio_api/queue/join"
HEARTBEAT = "/gradio_api/heartbeat/"

_OPEN = {
    "GET": re.compile(
        r"/(?:config/?|theme\.css|favicon\.ico|robots\.txt|manifest\.json|pwa_icon(?:/\w+)?|(?:static|assets|svelte)/.*)?"
        r"|/gradio_api/(?:queue/data|heartbeat/\w+|startup-events/?|app_id/?|theme\.css|info/?)"
    ),
    "POST": re.compile(rf"{JOIN}|/gradio_api/(?:cancel|reset)/?"),
}
_OPEN["HEAD"] = _OPEN["GET"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class RefusedError(Exception):
    """A request that the page's own browser code does not make."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


class FrontDoor:
    """ASGI middleware around Gradio's application."""

    def __init__(self, app: Callable[[Message, Receive, Send], Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass on what the page uses; answer everything else with a sentence."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        try:
            if not (known := _OPEN.get(scope["method"])) or not known.fullmatch(scope["path"]):
                raise RefusedError(404, "This page has nothing there.")
            if scope["path"].startswith(HEARTBEAT):
                _note_visitor(scope)
            if scope["method"] == "POST":
                body = await _read_body(scope, receive)
                if scope["path"] == JOIN:
                    _check_join(body, scope)
                receive = _replay(body, receive)
        except RefusedError as refused:
            return await _answer(refused, send)
        await self.app(scope, receive, send)


async def _read_body(scope: Message, receive: Receive) -> bytes:
    """The body, as long as it is no longer than it can be; what it says of its own length is not believed."""
    most = MAX_PHOTO_BODY if scope["path"] == JOIN else MAX_OTHER_BODY
    too_large = RefusedError(413, f"That is more than this page takes: {MAX_UPLOAD_BYTES // 2**20} MB at most.")
    said = dict(scope["headers"]).get(b"content-length", b"0")
    if said.isdigit() and int(said) > most:
        raise too_large
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RefusedError(400, "The request broke off.")
        parts.append(message.get("body", b""))
        size, more = size + len(parts[-1]), message.get("more_body", False)
        if size > most:
            raise too_large
    return b"".join(parts)


def _note_visitor(scope: Message) -> None:
    blocks = scope["app"].get_blocks()
    if isinstance(blocks, ForgettingBlocks):
        blocks.comes_back(scope["path"].removeprefix(HEARTBEAT))


def _check_join(body: bytes, scope: Message) -> None:
    """Inputs are texts, numbers and switches: of anything else Gradio might make a file, or download one."""
    strange = RefusedError(400, "This page does not ask for that.")
    if sum(map(body.count, (b"[", b"{", b","))) > MAX_VALUES:  # none of which is in a photo's base64
        raise strange
    try:
        asked = json.loads(body)
        inputs, session = asked.get("data"), asked.get("session_hash")
    except (ValueError, AttributeError, RecursionError):
        raise strange from None
    if not isinstance(inputs, list) or not isinstance(session, str) or len(session) > MAX_SESSION:
        raise strange
    for given in inputs:
        if not isinstance(given, (str, int, float, bool, type(None))) or len(str(given)) > MAX_TYPED:
            raise strange
    if num_waiting(scope["app"].get_blocks(), session) >= MAX_WAITING_PER_VISITOR:
        raise RefusedError(429, "The photos that you sent before are still waiting. Send more when they are answered.")


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body once more, then what else comes: the end of the connection."""
    is_read = False

    async def again() -> Message:
        nonlocal is_read
        if is_read:
            return await receive()
        is_read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _answer(refused: RefusedError, send: Send) -> None:
    content = json.dumps({"detail": refused.sentence}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
