"""The page: three tabs of Gradio over one model, which sends nothing anywhere and keeps no photo."""

import base64
import binascii
import logging
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported, which reads it then

import gradio as gr
import numpy as np
from starlette.middleware import Middleware

from geomae.data.exif import read_gps
from geomae.demo import texts
from geomae.demo.answers import Geolocator, PhotoAnswer
from geomae.demo.forgetting import ForgettingBlocks
from geomae.demo.front_door import FrontDoor
from geomae.demo.game import Game, GamePhotos, score_turn
from geomae.demo.hidden_patches import Reconstructor
from geomae.demo.photo_gate import MAX_UPLOAD_BYTES, parse_place, preview_uri, refuse_oversized
from geomae.demo.world_map import map_script, world_symbols
from geomae.errors import ConfigError, CoordinateError, DamagedPhotoError, GeoMAEError

__all__ = ["LAUNCH_OPTIONS", "build_page"]

logger = logging.getLogger(__name__)

HERE = Path(__file__).parent
ONE_AT_A_TIME: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}  # photos wait, cores do not fight
_EVENT: dict[str, Any] = {"api_visibility": "private"}
_PHOTO: dict[str, Any] = {**_EVENT, **ONE_AT_A_TIME, "trigger_mode": "multiple"}  # one dropped meanwhile comes next
_SLIDER: dict[str, Any] = {**_EVENT, **ONE_AT_A_TIME, "trigger_mode": "always_last"}
MAX_WAITING = 64  # requests in the queue; whoever sends a later one is told to come back
MAX_SESSIONS = 256  # whose last answers are kept; the longest idle are forgotten first
FORGOTTEN_AFTER_S = 1800  # what a visitor's session holds, where the page stays open and untouched
FAILED = "Something went wrong with this photo on our side. The page still works: try another one."

LAUNCH_OPTIONS: dict[str, Any] = {
    "theme": gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.slate,
        font=("ui-sans-serif", "system-ui", "sans-serif"),
        font_mono=("ui-monospace", "monospace"),
    ).set(  # Gradio's own shade is too light for text on white
        color_accent="*primary_700",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
    ),
    "css_paths": [HERE / "page.css"],
    "footer_links": [],
    "app_kwargs": {"middleware": [Middleware(FrontDoor)]},
    "max_file_size": 1,  # bytes: photos do not come by Gradio's way of uploading, which makes files of them
    "state_session_capacity": MAX_SESSIONS,
    "run_history": False,
    "ssr_mode": False,
    "mcp_server": False,
    "enable_monitoring": False,
}
"""Of `Blocks.launch`: system fonts, no links to elsewhere, no uploads to the disk, no record of who asked what."""

INTRODUCTION = (
    "# Where was this photo taken?\n"
    "Drop a photo: a masked autoencoder that has learned where on Earth photos come from marks its answer on the map, "
    "and how sure it is. The photo goes to the machine that serves this page and no further; it is looked at once, in "
    "memory, and forgotten. Do not use this to find people who have not asked to be found."
)
GPS_LABEL = "Read the photo's own GPS position as the true place"
NO_PRETRAINED = (
    "This page has no pretrained model to ask. Start it with --pretrained PATH, the folder of a run of "
    "run_pretrain_mae.py (make demo leaves one in outputs/demo/pretrain), and a photo appears here masked, and as the "
    "model restores it."
)
GAME_LABEL = "Five photos whose places are known. Guess where each was taken, and see if you beat the model."
GUESS_LABEL = "Your guess: latitude, longitude"
GAME_BUTTON = "geo-game-button"  # by which focus.js knows them
SHOW_TYPED = """(text) => {
  document.querySelector('#game-map svg')?.dispatchEvent(new CustomEvent('typed', { bubbles: true, detail: text }));
}"""  # map.js listens
PLACE_LABEL = "True place, if you know it: latitude, longitude"


def build_page(
    geolocator: Geolocator, reconstructor: Reconstructor | None = None, game_photos: GamePhotos | None = None
) -> gr.Blocks:
    """The page, to be launched with `LAUNCH_OPTIONS`.

    Args:
        geolocator: answers.
        reconstructor: shows what a pretraining sees; its tab says how to have one where there is none.
        game_photos: what rounds are drawn from; likewise.
    """
    with ForgettingBlocks(title="GeoMAE", analytics_enabled=False, delete_cache=(60, 60)) as page:
        gr.HTML(world_symbols())
        gr.Markdown(INTRODUCTION, elem_classes="geo-introduction")
        with gr.Tabs():
            with gr.Tab("Ask the model"):
                add_answer_tab(geolocator, game_photos)
            with gr.Tab("What it sees"):
                add_patches_tab(reconstructor)
            with gr.Tab("Beat the model"):
                add_game_tab(geolocator, game_photos)
        page.forgets_who_leaves()
    page.queue(max_size=MAX_WAITING, api_open=False)
    return page


def _photo_drop(name: str) -> gr.HTML:
    """A place to drop a photo; its event `photo` carries the bytes."""
    return gr.HTML(
        apply_default_css=False,
        html_template=(
            f'<div class="geo-drop" data-max-bytes="{MAX_UPLOAD_BYTES}">'
            f'<input id="{name}-photo" type="file" accept="image/*" aria-describedby="{name}-note"/>'
            f'<label for="{name}-photo"><strong>Drop a photo here</strong>, or choose one</label>'
            f'<p class="geo-drop-note" id="{name}-note">JPEG, PNG, WebP and the like, up to '
            f"{MAX_UPLOAD_BYTES // 2**20} MB</p></div>"
        ),
        js_on_load=(HERE / "drop.js").read_text(encoding="utf-8"),  # names the event 'photo'
    )


def _map(value: str, name: str) -> gr.HTML:
    return gr.HTML(
        value, apply_default_css=False, js_on_load=map_script(), elem_classes="geo-map-holder", elem_id=f"{name}-map"
    )


def _status(value: str = "") -> gr.HTML:
    """What changes; screen readers are told of it."""
    return gr.HTML(value, html_template='<div role="status">${value}</div>', apply_default_css=False)


def _photo_bytes(event: gr.EventData) -> bytes:
    """The photo of a drop's event.

    Raises:
        DamagedPhotoError: the event holds none, or too large a one.
    """
    text = event._data.get("base64") if isinstance(event._data, dict) else None
    if not isinstance(text, str) or len(text) > MAX_UPLOAD_BYTES * 4 // 3 + 4:
        raise DamagedPhotoError(f"that is no photo of at most {MAX_UPLOAD_BYTES // 2**20} MB.")
    try:
        photo = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise DamagedPhotoError("it did not arrive whole. Send it again.") from error
    refuse_oversized(photo)
    return photo


def _or_refusal(act: Callable[[], Any], refused: Callable[[str], Any]) -> Any:
    """What `act` returns, or what `refused` makes of the sentence that says why there is nothing."""
    try:
        return act()
    except DamagedPhotoError as error:
        return refused(texts.refusal(f"This file was refused: {error}"))
    except GeoMAEError as error:
        return refused(texts.refusal(str(error)))
    except Exception:  # whatever fails in a model or a decoder, the page outlives it
        logger.exception("a photo failed")
        return refused(texts.refusal(FAILED))


def add_answer_tab(geolocator: Geolocator, photos: GamePhotos | None) -> None:
    """Photo in; map, radius, places and error out."""
    answered = gr.State(None, time_to_live=FORGOTTEN_AFTER_S)
    asked = AnswerHandlers(geolocator, photos)
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            drop = _photo_drop("answer")
            example = gr.Button("Or take one of this page's own photos", visible=photos is not None)
            shown = gr.HTML(apply_default_css=False)
            place = gr.Textbox(label=PLACE_LABEL, placeholder="48.8584, 2.2945", max_lines=1)
            reads_exif = gr.Checkbox(label=GPS_LABEL, info="Only when ticked before the photo is chosen.")
        with gr.Column(scale=5, min_width=300):
            world = _map(texts.answer_map(None), "answer")
            truth_line = _status()
            card = _status()
    drop.photo(asked.answer, [place, reads_exif], [shown, world, truth_line, card, answered], **_PHOTO)
    example.click(asked.example, None, [shown, world, truth_line, card, answered, place], **_PHOTO)
    for happens in (place.submit, place.blur):
        happens(asked.judge, [place, answered], [world, truth_line, answered], show_progress="hidden", **_EVENT)


Judged = tuple[tuple[float, float] | None, str]
"""The true place, degrees, where there is one, and a line that says how far it is from the answer, or why not."""


@dataclass(frozen=True)
class Answered:
    """The last answer of a visitor, and the true place that it was judged by, as typed."""

    found: PhotoAnswer
    place_text: str


class AnswerHandlers:
    """What the first tab does when something happens."""

    def __init__(self, geolocator: Geolocator, photos: GamePhotos | None = None) -> None:
        self.geolocator, self.photos = geolocator, photos

    def example(self) -> tuple[Any, ...]:
        """The same of a photo that the page has, whose place is known; the place that was typed goes."""

        def act() -> tuple[Any, ...]:
            if self.photos is None:
                raise ConfigError("this page has no photos of its own: start it with --photos PATH.")
            row = self.photos.draw(np.random.default_rng(), num_photos=1).row
            photo, truth = self.photos.photo(row), self.photos.place(row)
            found = self.geolocator.answer(photo)
            judged = truth, texts.truth_card(found, truth, "as this page knows it")
            return *_show(photo, "A photo of this page", Answered(found, ""), judged), ""

        return _or_refusal(act, lambda sentence: (sentence, texts.answer_map(None), "", "", None, ""))

    def answer(self, place_text: str | None, wants_exif: bool, event: gr.EventData) -> tuple[Any, ...]:
        """Photo, map, error, card and the answer, of a photo that arrived."""

        def act() -> tuple[Any, ...]:
            photo = _photo_bytes(event)
            found = self.geolocator.answer(photo)
            judged = _find_truth(place_text, photo if wants_exif else None, found)
            return _show(photo, "Your photo, made small", Answered(found, (place_text or "").strip()), judged)

        return _or_refusal(act, lambda sentence: (sentence, texts.answer_map(None), "", "", None))

    def judge(self, place_text: str | None, answered: Answered | None) -> tuple[Any, ...]:
        """Map and error, of a true place that was typed; the same text, on the way through the box, changes nothing."""
        place_text = (place_text or "").strip()
        if answered is None:
            return gr.skip(), texts.notice("Choose a photo first.") if place_text else "", gr.skip()
        if place_text == answered.place_text:
            return gr.skip(), gr.skip(), gr.skip()
        truth, line = _find_truth(place_text, None, answered.found)
        return texts.answer_map(answered.found, truth), line, Answered(answered.found, place_text)


def _show(photo: bytes, description: str, answered: Answered, judged: Judged) -> tuple[Any, ...]:
    """Photo, map, error, card and the answer."""
    truth, line = judged
    preview = texts.shown_photo(preview_uri(photo), description)
    return preview, texts.answer_map(answered.found, truth), line, texts.answer_card(answered.found), answered


def _find_truth(place_text: str | None, photo: bytes | None, found: PhotoAnswer) -> Judged:
    """The true place, typed or, where there is a photo to read it from, in the photo; and a line that says so."""
    try:
        typed = parse_place(place_text)
    except CoordinateError as error:
        return None, texts.refusal(str(error))
    if typed is not None:
        return typed, texts.truth_card(found, typed, "as you typed it")
    if photo is None:
        return None, ""
    try:
        position = read_gps(photo)
    except CoordinateError as error:
        return None, texts.refusal(f"This photo has no true place: {error}.")
    return position, texts.truth_card(found, position, "from the photo's GPS")


def add_patches_tab(reconstructor: Reconstructor | None) -> None:
    """What a pretraining sees of a photo."""
    if reconstructor is None:
        gr.HTML(texts.notice(NO_PRETRAINED))
        return
    crop = gr.State(None, time_to_live=FORGOTTEN_AFTER_S)  # the square that the model takes, without the rest
    gr.Markdown(
        "Before it learned about places, the model learned to see: most of a photo is hidden, and it fills in the rest."
    )
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            drop = _photo_drop("patches")
            refused = _status()
            share = gr.Slider(5, 95, value=round(100 * reconstructor.mask_ratio), step=5, label="Hidden, %")
            seed = gr.Slider(0, 99, value=0, step=1, label="Mask number")
            another = gr.Button("Another mask")
        with gr.Column(scale=5, min_width=300):
            pictures = _status(texts.notice("Choose a photo, and it appears here in three versions."))

    def restore(pixels: Any, hidden_percent: float, mask_number: float) -> str:
        restored = reconstructor.restore(pixels, mask_ratio=hidden_percent / 100, seed=int(mask_number))
        return texts.restored_pictures(restored)

    def take(hidden_percent: float, mask_number: float, event: gr.EventData) -> tuple[Any, ...]:
        def act() -> tuple[Any, ...]:
            pixels = reconstructor.crop(_photo_bytes(event))
            return "", restore(pixels, hidden_percent, mask_number), pixels

        return _or_refusal(act, lambda sentence: (sentence, "", None))

    def again(pixels: Any, hidden_percent: float, mask_number: float) -> Any:
        if pixels is None:
            return gr.skip()
        return _or_refusal(lambda: restore(pixels, hidden_percent, mask_number), lambda sentence: sentence)

    drop.photo(take, [share, seed], [refused, pictures, crop], **_PHOTO)
    another.click(lambda: secrets.randbelow(100), None, seed, show_progress="hidden", **_EVENT)
    for slider in (share, seed):
        slider.change(again, [crop, share, seed], pictures, show_progress="hidden", **_SLIDER)


def add_game_tab(geolocator: Geolocator, photos: GamePhotos | None) -> None:
    """A round on a handful of photos."""
    if photos is None:
        gr.HTML(
            texts.notice(
                "This page has no photos to play with. Start it with --photos PATH, a packed folder or a folder of "
                "photos with coordinates, and you can guess against the model."
            )
        )
        return
    game = gr.State(None, time_to_live=FORGOTTEN_AFTER_S)
    handlers = GameHandlers(geolocator, photos)
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            shown = _status(texts.notice(GAME_LABEL))
            guess = gr.Textbox(label=GUESS_LABEL, placeholder="click the map, or type", max_lines=1, visible=False)
            settle = gr.Button("That is my guess", variant="primary", visible=False, elem_classes=GAME_BUTTON)
            go_on = gr.Button("Start a round", variant="primary", elem_classes=GAME_BUTTON)
        with gr.Column(scale=5, min_width=300):
            world = _map(texts.game_map(None), "game")
            tally = _status()
    everything = [shown, guess, settle, go_on, world, tally, game]
    world.guess(handlers.place_guess, None, guess, show_progress="hidden", **_EVENT)
    guess.change(None, guess, None, js=SHOW_TYPED, **_EVENT)
    played = [go_on.click(handlers.advance, game, everything, **_EVENT)]
    for happens in (settle.click, guess.submit):
        played.append(happens(handlers.play, [guess, game], everything, **_EVENT, **ONE_AT_A_TIME))
    for done in played:
        done.then(None, None, None, js=(HERE / "focus.js").read_text(encoding="utf-8"), **_EVENT)


class GameHandlers:
    """What the game does when something happens: photo, guess, two buttons, map, tally and the round."""

    def __init__(self, geolocator: Geolocator, photos: GamePhotos) -> None:
        self.geolocator, self.photos = geolocator, photos

    def show(self, game: Game) -> tuple[Any, ...]:
        """The photo that is to be guessed."""
        number = f"Photo {len(game.turns) + 1} of {len(game.rows)}"
        preview = preview_uri(self.photos.photo(game.row))
        picture = texts.notice(number) + texts.shown_photo(preview, f"{number}: where was it taken?")
        seen, hidden = gr.update(visible=True), gr.update(visible=False)
        empty = gr.update(value="", visible=True)
        return picture, empty, seen, hidden, texts.game_map(None), texts.game_tally(game), game

    def advance(self, game: Game | None) -> tuple[Any, ...]:
        """The next photo, or a new round."""

        def act() -> tuple[Any, ...]:
            if game is None or game.is_over:
                return self.show(self.photos.draw(np.random.default_rng()))
            return self.show(game.next_photo())

        return _or_refusal(act, lambda sentence: (sentence, *[gr.skip()] * 5, None))

    def play(self, text: str, game: Game | None) -> tuple[Any, ...]:
        """A guess is settled: the truth, and how both did."""

        def act() -> tuple[Any, ...]:
            own_deg = parse_place(text)
            if game is None or game.is_answered or own_deg is None:
                raise CoordinateError("Click the map where you think the photo was taken, or type the place.")
            found = self.geolocator.answer(self.photos.photo(game.row))
            turn = score_turn(own_deg, (found.latitude, found.longitude), self.photos.place(game.row))
            after = game.after(turn)
            button = gr.update(value="Another round" if after.is_over else "Next photo", visible=True)
            hidden = gr.update(visible=False)
            return gr.skip(), hidden, hidden, button, texts.game_map(turn), texts.game_tally(after), after

        played = texts.game_tally(game) if game is not None else ""
        return _or_refusal(act, lambda sentence: (*[gr.skip()] * 5, sentence + played, gr.skip()))

    def place_guess(self, event: gr.EventData) -> str:
        """The place where the map was clicked, as it would be typed."""
        try:
            return f"{float(event._data['latitude']):.4f}, {float(event._data['longitude']):.4f}"
        except (KeyError, TypeError, ValueError):
            return ""
