"""The page with many visitors: each is answered or told why not, and nothing stays of who has left."""

import asyncio
import importlib
import io
import shutil
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the extra `demo` is not installed")

from geomae.demo.page import FORGOTTEN_AFTER_S, LAUNCH_OPTIONS, MAX_SESSIONS, MAX_WAITING, build_page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(buffer, "JPEG")
    return buffer.getvalue()


class PatientGeolocator:
    """Answers when it may."""

    def __init__(self, geolocator):
        self.geolocator, self.may, self.num_asked = geolocator, threading.Event(), 0
        self.may.set()

    def answer(self, photo):
        self.num_asked += 1
        assert self.may.wait(30)
        return self.geolocator.answer(photo)


@pytest.fixture(scope="module")
def patient(geolocator):
    return PatientGeolocator(geolocator)


@pytest.fixture(scope="module")
def page(patient):
    page = build_page(patient)
    page.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", **LAUNCH_OPTIONS)
    yield page
    page.close()


@pytest.fixture
def visitors(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parent.parent / "benchmarks"))
    return importlib.import_module("lasting.visitors")


def wait_until(claim):
    for _ in range(200):
        if claim():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come to pass within ten seconds")


def test_every_one_of_many_at_once_is_answered_or_told_why_not(page, visitors):
    crowd = visitors.Crowd(page.local_url, [jpeg(), b"no photo"])
    asyncio.run(crowd.rush(20))
    assert [asked.outcome for asked in crowd.asked].count("answered") == 10
    refused = [asked for asked in crowd.asked if asked.outcome == "refused"]
    assert len(refused) == 10
    assert "This file was refused" in refused[0].said


def test_who_finds_the_queue_full_is_told_and_the_others_are_answered(page, visitors, patient, monkeypatch):
    assert page._queue.max_size == MAX_WAITING
    monkeypatch.setattr(page._queue, "max_size", 3)
    patient.may.clear()
    crowd = visitors.Crowd(page.local_url, [jpeg()])
    threading.Timer(1.5, patient.may.set).start()
    asyncio.run(crowd.rush(10))
    outcomes = [asked.outcome for asked in crowd.asked]
    assert set(outcomes) == {"answered", "too full"}
    assert outcomes.count("answered") >= 3
    again = visitors.Crowd(page.local_url, [jpeg()])
    asyncio.run(again.rush(1))
    assert again.asked[0].outcome == "answered"


def test_session_holds_the_answer_but_no_picture_and_ends_when_the_visitor_leaves(page, visitors):
    async def visit():
        crowd = visitors.Crowd(page.local_url, [jpeg()])
        crowd.began = 0.0
        async with visitors._Visit(crowd) as visit:
            await visit.ask(crowd.photos[0])
            return crowd.asked[0].outcome, visit._session, page.state_holder.session_data[visit._session]

    wait_until(lambda: not page.state_holder.session_data)
    outcome, name, session = asyncio.run(visit())
    assert outcome == "answered"
    assert "data:image" not in repr(vars(session))
    (answer,) = [value for value in session.state_data.values() if value is not None]
    assert answer.found.world_grid is not None  # or this test looks at nothing
    wait_until(lambda: name not in page.state_holder.session_data)


def test_visitors_who_never_say_goodbye_are_limited_in_number_and_in_time(page):
    assert page.state_holder.capacity == MAX_SESSIONS
    states = [block for block in page.blocks.values() if type(block).__name__ == "State"]
    assert states
    assert {state.time_to_live for state in states} == {FORGOTTEN_AFTER_S}


@pytest.mark.slow
def test_browser_shows_the_sentence_of_a_full_queue(patient):
    sync_api = pytest.importorskip("playwright.sync_api", reason="the extra `dev` is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here")
    page = build_page(patient)
    page.queue(max_size=1)  # one is asked about, and one waits
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", **LAUNCH_OPTIONS)
    patient.may.clear()
    before = patient.num_asked
    photo = {"name": "photo.jpg", "mimeType": "image/jpeg", "buffer": jpeg()}
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tabs = [browser.new_context().new_page() for _ in range(3)]
        for number, tab in enumerate(tabs):
            tab.goto(url)
            tab.locator("#answer-map svg").wait_for()
            with tab.expect_response(lambda response: "queue/join" in response.url):
                tab.set_input_files("#answer-photo", photo)
            if number == 0:
                wait_until(lambda: patient.num_asked > before)
        tabs[2].get_by_text("currently busy").wait_for()
        patient.may.set()
        for tab in tabs[:2]:
            tab.locator("section[aria-label=Answer]").wait_for()
        tabs[2].set_input_files("#answer-photo", photo)
        tabs[2].locator("section[aria-label=Answer]").wait_for()
    page.close()
