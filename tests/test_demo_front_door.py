"""What strangers may ask of the page, sent as a stranger sends it: over HTTP, without the page's own browser code."""

import base64
import http.client
import json
import threading
import time
from urllib.parse import urlsplit

import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the extra `demo` is not installed")

from geomae.demo.forgetting import num_waiting
from geomae.demo.front_door import MAX_WAITING_PER_VISITOR
from geomae.demo.page import LAUNCH_OPTIONS, MAX_SESSIONS, build_page

JOIN = "/gradio_api/queue/join"


@pytest.fixture(scope="module")
def page(upload_folder, geolocator):
    page = build_page(geolocator)
    page.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", **LAUNCH_OPTIONS)
    yield page
    page.close()


@pytest.fixture
def ask(page):
    """Sends one request: its status and what came back."""
    address = urlsplit(page.local_url)

    def ask(method, path, body=b"", **headers):
        connection = http.client.HTTPConnection(address.hostname, address.port, timeout=30)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): each for name, each in headers.items()})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    return ask


@pytest.fixture
def join(ask, page, tmp_path):
    """Sends a photo to the first tab as the session `name`."""
    file = tmp_path / "photo.jpg"
    Image.linear_gradient("L").convert("RGB").save(file)
    photo = base64.b64encode(file.read_bytes()).decode()
    asks = next(index for index, each in page.fns.items() if "answer" in getattr(each.fn, "__qualname__", ""))

    def join(name, inputs=("", False)):
        asked = {"data": list(inputs), "event_data": {"base64": photo}, "fn_index": asks, "session_hash": name}
        return ask("POST", JOIN, json.dumps(asked).encode(), Content_Type="application/json")

    return join


def wait_until(is_so):
    for _ in range(300):
        if is_so():
            return
        time.sleep(0.05)
    pytest.fail("it did not happen within 15 s")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("POST", f"/gradio_api/{path}") for path in ("upload", "run/answer", "api/answer", "call/answer")),
        *(
            ("POST", f"/gradio_api/{path}")
            for path in ("component_server", "process_recording", "stream/1", "vibe-edit")
        ),
        *(("GET", f"/gradio_api/{path}") for path in ("deep_link?session_hash=a", "file=/etc/passwd", "vibe-code")),
        *(("GET", path) for path in ("/gradio_api/proxy=http://a.b/c", "/monitoring", "/docs", "/gradio_api/runs")),
        *(("DELETE", "/"), ("PUT", JOIN), ("OPTIONS", "/gradio_api/upload")),
    ],
)
def test_what_the_page_does_not_use_is_not_there(ask, method, path):
    status, said = ask(method, path)
    assert status == 404
    assert json.loads(said) == {"detail": "This page has nothing there."}


@pytest.mark.parametrize("content", [b"", b"a", b"abcdef"])
def test_no_upload_makes_a_file(ask, upload_folder, content):
    name = b'Content-Disposition: form-data; name="files"; filename="a.svg"'
    body = b"--x\r\n" + name + b"\r\n\r\n" + content + b"\r\n--x--\r\n"
    assert ask("POST", "/gradio_api/upload", body, Content_Type="multipart/form-data; boundary=x")[0] == 404
    assert list(upload_folder.rglob("*")) == []


@pytest.mark.parametrize(
    "inputs",
    [
        [{"path": "http://example.com/a", "meta": {"_type": "gradio.FileData"}}, False],
        [{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}, False],
        [[{"url": "http://example.com/a"}], False],
        ["x" * 10_001, False],
    ],
    ids=["address", "path", "nested", "long text"],
)
def test_inputs_that_gradio_would_fetch_or_store_never_reach_it(join, upload_folder, inputs):
    status, said = join("stranger", inputs)
    assert (status, json.loads(said)) == (400, {"detail": "This page does not ask for that."})
    assert list(upload_folder.rglob("*")) == []


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"null", b"{", b'{"data": []}', b"[" * 100_000, b"\xff", b'{"data": [' + b"9" * 5000]
)
def test_what_is_no_question_is_refused(ask, body):
    assert ask("POST", JOIN, body)[0] == 400


def test_question_that_would_grow_when_it_is_read_is_refused_unread(ask, monkeypatch):
    monkeypatch.setattr("geomae.demo.front_door.json.loads", lambda body: pytest.fail("it was read"))
    grows = b'{"data": [], "session_hash": "a", "event_data": [' + b"[]," * 7_000_000 + b"0]}"
    assert ask("POST", JOIN, grows, Content_Type="application/json")[0] == 400


def test_name_of_a_session_is_short(join, page):
    assert join("a" * 101)[0] == 400
    assert not any(len(name) > 100 for name in page.app.state_holder.session_data)


def test_large_body_is_refused_before_it_is_sent(page):
    address = urlsplit(page.local_url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=30)
    connection.putrequest("POST", JOIN)
    connection.putheader("Content-Length", str(3 * 2**30))
    connection.endheaders()  # and nothing follows
    assert connection.getresponse().status == 413
    connection.close()


def test_large_body_without_a_length_is_refused_on_its_way(page):
    address = urlsplit(page.local_url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=30)
    pieces = (b"x" * 2**20 for _ in range(64))
    try:
        connection.request("POST", JOIN, pieces, encode_chunked=True)
        status = connection.getresponse().status
    except (BrokenPipeError, ConnectionResetError):  # the answer came, and the connection went, while it was sent
        status = 413
    assert status == 413


def test_one_visitor_leaves_room_in_the_queue_for_the_others(join, page, geolocator, monkeypatch):
    may_go_on = threading.Event()
    answer = geolocator.answer
    monkeypatch.setattr(geolocator, "answer", lambda photo: (may_go_on.wait(20), answer(photo))[1])
    try:
        assert join("greedy")[0] == 200
        wait_until(lambda: len(page._queue) == 0)  # the first is being answered
        statuses = [join("greedy")[0] for _ in range(MAX_WAITING_PER_VISITOR + 2)]
        assert statuses == [200] * MAX_WAITING_PER_VISITOR + [429] * 2
        assert "still waiting" in json.loads(join("greedy")[1])["detail"]
        assert join("modest")[0] == 200
    finally:
        may_go_on.set()
        wait_until(lambda: len(page._queue) == 0)
    assert join("greedy")[0] == 200


def test_a_visitor_who_leaves_is_forgotten(join, page):
    sessions = page.app.state_holder.session_data
    address = urlsplit(page.local_url)
    visitor = http.client.HTTPConnection(address.hostname, address.port, timeout=30)
    visitor.request("GET", "/gradio_api/heartbeat/visitor")
    stream = visitor.getresponse()
    assert stream.readline().startswith(b"data: ALIVE")
    for _ in range(2):  # the second one waits, and would make the session anew
        join("visitor")
    wait_until(lambda: "visitor" in sessions)
    stream.close()
    visitor.close()
    wait_until(lambda: "visitor" not in sessions and not num_waiting(page, "visitor"))
    time.sleep(1)
    assert "visitor" not in sessions


def test_a_visitor_who_comes_back_is_remembered_again(join, page):
    """As a page does by itself that has lost its connection while a photo waited."""
    page._left["again"] = None
    address = urlsplit(page.local_url)
    visitor = http.client.HTTPConnection(address.hostname, address.port, timeout=30)
    visitor.request("GET", "/gradio_api/heartbeat/again")
    stream = visitor.getresponse()
    assert stream.readline().startswith(b"data: ALIVE")
    join("again")
    wait_until(lambda: not num_waiting(page, "again") and not any(page._queue.active_jobs))
    assert "again" in page.app.state_holder.session_data
    stream.close()
    visitor.close()
    wait_until(lambda: "again" not in page.app.state_holder.session_data)


def test_no_more_sessions_are_remembered_than_fit(page):
    assert page.state_session_capacity == MAX_SESSIONS == 256
