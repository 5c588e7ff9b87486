"""The page in a browser, as a visitor meets it: one server and one Chromium for the module."""

import base64
import io
import json
import os
import shutil
import struct
import urllib.request
import zlib

import pytest
from packed_photos import TINY, pack
from PIL import Image

pytest.importorskip("gradio", reason="the extra `demo` is not installed")
sync_api = pytest.importorskip("playwright.sync_api", reason="the extra `dev` is not installed")

from geomae.demo import GamePhotos, Reconstructor  # noqa: E402
from geomae.demo.page import LAUNCH_OPTIONS, build_page  # noqa: E402
from geomae.demo.photo_gate import MAX_UPLOAD_BYTES  # noqa: E402
from modeling import GeoMAEConfig, GeoMAEForPreTraining  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def jpeg_with_gps() -> bytes:
    exif = Image.Exif()
    exif[0x010F] = "a camera of somebody"
    exif.get_ifd(0x8825).update({1: "N", 2: (48.0, 51.0, 30.24), 3: "E", 4: (2.0, 17.0, 40.2)})
    buffer = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG of 70 bytes that says it has 900 million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def address(tmp_path_factory, upload_folder, geolocator):
    pretrained = tmp_path_factory.mktemp("pretrained")
    GeoMAEForPreTraining(GeoMAEConfig(**{**TINY, "image_size": 32})).save_pretrained(pretrained)
    photos = GamePhotos(pack(tmp_path_factory.mktemp("photos"), test=6), "test")
    page = build_page(geolocator, Reconstructor(pretrained), photos)
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", **LAUNCH_OPTIONS)
    yield url
    page.close()


@pytest.fixture(scope="module")
def browser(address):
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here")
    with sync_api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.fixture
def visit(browser, address):
    """A page as a new visitor has it, with every address that it asked for in `page.asked`."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(20_000)
    page = context.new_page()
    page.asked, page.problems = [], []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.goto(address)
    page.locator("#answer-map svg").wait_for()
    yield page
    assert page.problems == []
    context.close()


def send(page, data: bytes, name: str = "photo.jpg", drop: str = "answer") -> None:
    page.set_input_files(f"#{drop}-photo", {"name": name, "mimeType": "image/jpeg", "buffer": data})


def refusal_of(page) -> str:
    return page.locator("[role=alert]").first.inner_text()


def test_upload_is_answered_without_any_other_address_or_a_file_left_behind(visit, address, upload_folder, geolocator):
    photo = jpeg_with_gps()
    send(visit, photo)
    card = visit.locator("section[aria-label=Answer]")
    card.wait_for()
    expected = geolocator.answer(photo)
    assert expected.nearest_place.name in card.inner_text()
    assert f"{expected.top_places[0].probability:.1%}".replace("%", " %") in card.inner_text()
    assert visit.locator("#answer-map image.geo-heat").count() == 2
    assert visit.locator("#answer-map .geo-circle").count() == 2
    outside = [url for url in visit.asked if not url.startswith((address, "data:", "blob:"))]
    assert outside == []
    assert [path for path in upload_folder.rglob("*") if path.is_file()] == []


def test_nothing_of_the_exif_comes_back_unless_it_is_asked_for(visit):
    send(visit, jpeg_with_gps())
    visit.locator("section[aria-label=Answer]").wait_for()
    shown = visit.locator("img.geo-photo").get_attribute("src")
    data = base64.b64decode(shown.partition(",")[2])
    assert b"Exif" not in data
    assert b"a camera of somebody" not in data
    assert not visit.locator("p.geo-truth").count()
    visit.get_by_label("Read the photo's own GPS").check()
    send(visit, jpeg_with_gps())
    line = visit.locator("p.geo-truth")
    line.wait_for()
    assert "48.86° N, 2.29° E" in line.inner_text()
    assert "km off" in line.inner_text()


@pytest.mark.slow
def test_tabbing_through_the_box_of_the_place_leaves_truth_and_view_as_they_are(visit):
    visit.get_by_label("Read the photo's own GPS").check()
    send(visit, jpeg_with_gps())
    visit.locator("p.geo-truth").wait_for()
    world = visit.locator("#answer-map svg")
    world.focus()
    visit.keyboard.press("+")
    zoomed = world.get_attribute("viewBox")
    box = visit.get_by_label("True place, if you know it")
    box.focus()
    visit.keyboard.press("Tab")
    visit.wait_for_timeout(1000)  # nothing happens, which nothing tells
    assert visit.locator("p.geo-truth").count() == 1
    assert world.get_attribute("viewBox") == zoomed
    box.fill("10, 20")
    box.press("Enter")
    visit.get_by_text("as you typed it").wait_for()
    assert world.get_attribute("viewBox") == zoomed, "another truth of the same answer keeps the view"


def test_photo_of_the_page_itself_is_answered_beside_its_truth(visit):
    visit.get_by_role("button", name="Or take one of this page's own photos").click()
    visit.locator("p.geo-truth").wait_for()
    assert "as this page knows it" in visit.locator("p.geo-truth").inner_text()
    assert visit.locator("section[aria-label=Answer]").count() == 1
    assert visit.locator("#answer-map g.geo-truth").count() == 1
    assert visit.locator("img.geo-photo").count() == 1


@pytest.mark.slow
def test_typed_truth_is_judged_and_a_mistyped_one_explained(visit):
    send(visit, jpeg_with_gps())
    visit.locator("section[aria-label=Answer]").wait_for()
    box = visit.get_by_label("True place, if you know it")
    box.fill("139.7, 35.7")
    box.press("Enter")
    visit.locator("[role=alert]").wait_for()
    assert "swapped" in refusal_of(visit)
    box.fill("<img src=x onerror=alert(1)>")
    box.press("Enter")
    visit.get_by_text("decimal degrees").wait_for()
    box.fill("48.8584, 2.2945")
    box.press("Enter")
    visit.locator("p.geo-truth").wait_for()
    assert visit.locator("#answer-map g.geo-truth").count() == 1


def test_what_is_no_photo_is_refused_with_a_sentence_and_the_page_goes_on(visit):
    for data, words in (
        (b"this is a text", "no photo"),
        (bomb(), "900000000"),
        (b"", "empty"),
        (b"GIF89a", "refused"),
    ):
        send(visit, data)
        visit.get_by_role("alert").filter(has_text=words).wait_for()
        assert "Traceback" not in visit.content()
        send(visit, jpeg_with_gps())
        visit.locator("section[aria-label=Answer]").wait_for()
        visit.get_by_role("alert").wait_for(state="detached")


@pytest.mark.slow
def test_huge_file_is_not_even_sent(visit, tmp_path):
    before = len(visit.asked)
    huge = tmp_path / "huge.jpg"
    huge.touch()
    os.truncate(huge, MAX_UPLOAD_BYTES + 1)
    visit.set_input_files("#answer-photo", huge)
    visit.locator("[role=alert]").wait_for()
    assert "nothing was sent" in refusal_of(visit)
    assert not [url for url in visit.asked[before:] if "queue/join" in url]


@pytest.mark.slow
def test_model_that_fails_does_not_take_the_page_with_it(visit, geolocator, monkeypatch, caplog):
    def fail(photo):
        raise RuntimeError("secret of the machine")

    with monkeypatch.context() as patch:
        patch.setattr(geolocator, "answer", fail)
        send(visit, jpeg_with_gps())
        visit.locator("[role=alert]").wait_for()
        assert "The page still works" in refusal_of(visit)
        assert "secret" not in visit.content()
    send(visit, jpeg_with_gps())
    visit.locator("section[aria-label=Answer]").wait_for()


@pytest.mark.slow
def test_map_is_moved_by_keys_and_by_the_wheel(visit):
    send(visit, jpeg_with_gps())
    visit.locator("section[aria-label=Answer]").wait_for()
    world = visit.locator("#answer-map svg")
    size = lambda: [float(number) for number in world.get_attribute("viewBox").split()]  # noqa: E731
    visit.wait_for_function("document.querySelector('#answer-map svg').view")
    assert size()[2:] == pytest.approx([360, 180], abs=1)
    world.focus()
    visit.keyboard.press("+")
    zoomed = size()
    assert zoomed[3] < 120
    visit.keyboard.press("ArrowLeft")
    assert size()[0] < zoomed[0]
    visit.keyboard.press("0")
    assert size()[3] == pytest.approx(180, abs=1)
    visit.get_by_role("button", name="Zoom to the answer").click()
    assert size()[3] < 180


def test_a_photo_is_asked_about_by_keyboard_alone(visit, tmp_path):
    file = tmp_path / "photo.jpg"
    file.write_bytes(jpeg_with_gps())
    visit.on("filechooser", lambda chooser: chooser.set_files(file))  # long before the key: else a real dialog opens
    for _ in range(12):
        visit.keyboard.press("Tab")
        if visit.evaluate("document.activeElement.id") == "answer-photo":
            break
    assert visit.evaluate("getComputedStyle(document.activeElement.parentElement).outlineStyle") == "solid"
    visit.keyboard.press("Enter")
    visit.locator("section[aria-label=Answer]").wait_for()
    reached = set()
    for _ in range(12):
        visit.keyboard.press("Tab")
        reached.add(visit.evaluate("document.activeElement.tagName"))
    assert {"INPUT", "BUTTON", "svg"} <= reached


@pytest.mark.slow
def test_everything_that_takes_input_has_a_name_and_every_picture_a_text(visit):
    send(visit, jpeg_with_gps())
    visit.locator("section[aria-label=Answer]").wait_for()
    nameless = visit.evaluate(
        """() => [...document.querySelectorAll('input, button, svg[tabindex], textarea')].filter((e) => e.offsetParent
        && !e.getAttribute('aria-label') && !(e.labels && e.labels.length) && !e.textContent.trim()
        && !e.title).map((e) => e.outerHTML)"""
    )
    assert nameless == []
    assert visit.evaluate("[...document.images].filter((e) => !e.alt).map((e) => e.outerHTML.slice(0, 80))") == []


def test_phone_scrolls_in_one_direction_only(visit):
    visit.set_viewport_size({"width": 375, "height": 812})
    send(visit, jpeg_with_gps())
    visit.locator("section[aria-label=Answer]").wait_for()
    assert visit.evaluate("document.documentElement.scrollWidth") <= 375
    assert all(tab.is_visible() for tab in visit.get_by_role("tab").all()), "no tab hides behind dots"
    assert visit.get_by_role("tab").count() == 3
    box = visit.locator("#answer-map svg").bounding_box()
    assert box["width"] > 280
    assert box["height"] > 200


@pytest.mark.slow
def test_photo_is_shown_masked_and_restored_and_masked_anew(visit):
    visit.get_by_role("tab", name="What it sees").click()
    send(visit, jpeg_with_gps(), drop="patches")
    pictures = visit.locator(".geo-pictures img")
    pictures.nth(2).wait_for()
    assert visit.get_by_text("4 of 16 patches").count()
    before = pictures.nth(1).get_attribute("src")
    visit.get_by_label("number input for Mask number").fill("7")
    visit.wait_for_function("before => document.querySelectorAll('.geo-pictures img')[1]?.src !== before", arg=before)


def test_round_is_played_to_its_end(visit):
    visit.get_by_role("tab", name="Beat the model").click()
    visit.get_by_role("button", name="Start a round").click()
    for turn in range(5):
        visit.get_by_text(f"Photo {turn + 1} of 5").wait_for()
        visit.locator("#game-map .geo-guessing").wait_for()
        box = visit.get_by_role("textbox", name="Your guess")
        if turn % 2:
            box.fill("10, 20")
        else:
            visit.locator("#game-map svg").click(position={"x": 200, "y": 60})
            visit.wait_for_function("[...document.querySelectorAll('input')].some((e) => /^-?[0-9.]+, /.test(e.value))")
        visit.get_by_role("button", name="That is my guess").click()
        visit.locator(".geo-tally tbody tr").nth(turn).wait_for()
        assert visit.locator("#game-map .geo-pin").count() == 3
        if turn < 4:
            visit.get_by_role("button", name="Next photo").click()
    visit.get_by_text("The round is over").wait_for()
    points = [
        int(cell.replace(",", "")) for cell in visit.locator(".geo-tally tbody td:nth-child(3)").all_inner_texts()
    ]
    assert visit.locator(".geo-tally tfoot td:nth-child(3)").inner_text() == f"{sum(points):,}"
    assert visit.get_by_role("button", name="Another round").is_visible()


def wait_for_focus(page, name: str) -> None:
    page.wait_for_function("name => document.activeElement.textContent.trim() === name", arg=name)


def test_focus_goes_on_with_the_game_and_a_typed_guess_moves_the_mark(visit):
    visit.get_by_role("tab", name="Beat the model").click()
    visit.get_by_role("button", name="Start a round").press("Enter")
    wait_for_focus(visit, "That is my guess")
    box, marks = visit.get_by_role("textbox", name="Your guess"), visit.locator("#game-map .geo-own .geo-pin")
    visit.locator("#game-map svg").click(position={"x": 200, "y": 60})
    marks.nth(2).wait_for(state="attached")  # one beyond each edge, too
    visit.wait_for_function("[...document.querySelectorAll('input')].some((e) => /^-?[0-9.]+, /.test(e.value))")
    for text in ("10, ", "10, 200", "somewhere", "1, 2, 3", ""):
        box.fill(text)
        marks.first.wait_for(state="detached")
        box.fill("10, 20")
        marks.nth(1).wait_for(state="attached")
        assert marks.nth(1).get_attribute("style") == "--x:20px;--y:-10px"
    box.fill("-10.5° +20")
    visit.wait_for_function("document.querySelector('#game-map .geo-own')?.innerHTML.includes('--x:20px;--y:10.5px')")
    box.press("Enter")
    wait_for_focus(visit, "Next photo")
    visit.keyboard.press("Enter")
    wait_for_focus(visit, "That is my guess")
    visit.get_by_text("Photo 2 of 5").wait_for()
    visit.keyboard.press("Enter")
    visit.get_by_text("Click the map where you think").wait_for()
    wait_for_focus(visit, "That is my guess")


@pytest.mark.slow
def test_guess_that_is_no_place_is_explained(visit):
    visit.get_by_role("tab", name="Beat the model").click()
    visit.get_by_role("button", name="Start a round").click()
    visit.get_by_text("Photo 1 of 5").wait_for()
    visit.get_by_role("button", name="That is my guess").click()
    visit.get_by_text("Click the map where you think").wait_for()


def test_served_page_names_no_other_host_to_load_from(address):
    with urllib.request.urlopen(address) as answer:
        served = answer.read().decode()
    for marker in ("fonts.googleapis", "fonts.gstatic", "cdnjs", "jsdelivr", "unpkg"):
        assert marker not in served
    assert json.loads(served.split("window.gradio_config = ")[1].split(";</script>")[0])["analytics_enabled"] is False
