"""What the page says: answers, refusals and tallies as HTML, everything from outside escaped."""

import html

from geomae.demo.answers import PhotoAnswer
from geomae.demo.game import Game, Turn
from geomae.demo.hidden_patches import RestoredPhoto
from geomae.demo.photo_gate import jpeg_uri
from geomae.demo.world_map import Circle, Mark, draw_map
from geomae.geography import great_circle_km
from geomae.populated_places import NearestPlace

__all__ = [
    "answer_card",
    "answer_map",
    "game_map",
    "game_tally",
    "notice",
    "refusal",
    "restored_pictures",
    "shown_photo",
    "truth_card",
]


def show_place(latitude: float, longitude: float) -> str:
    """`48.86° N, 2.29° E`."""
    return (
        f"{abs(latitude):.2f}° {'N' if latitude >= 0 else 'S'}, {abs(longitude):.2f}° {'E' if longitude >= 0 else 'W'}"
    )


def show_km(distance_km: float) -> str:
    """Kilometres as precise as they mean something."""
    return f"{distance_km:.1f} km" if distance_km < 10 else f"{distance_km:,.0f} km"


def show_nearest(place: NearestPlace) -> str:
    """`near Lyon, France`, or how far from it; escaped."""
    name = html.escape(f"{place.name}, {place.country}")
    return f"near {name}" if place.distance_km < 30 else f"{show_km(place.distance_km)} from {name}"


def notice(text: str) -> str:
    """A quiet sentence; escaped."""
    return f'<p class="geo-notice">{html.escape(text)}</p>'


def refusal(text: str) -> str:
    """A sentence in the place of an answer; escaped, and read out at once by screen readers."""
    text = text[:1].upper() + text[1:]
    return f'<p class="geo-refusal" role="alert">{html.escape(text)}</p>'


def shown_photo(uri: str, description: str) -> str:
    """The photo as it was re-encoded."""
    return f'<img class="geo-photo" src="{uri}" alt="{html.escape(description)}"/>'


def answer_card(answer: PhotoAnswer) -> str:
    """Where, how sure, how fast, and what else."""
    if answer.radius_50_km is None or answer.radius_90_km is None:
        sure = (
            '<p class="geo-notice">This model answers with a single point. It says nothing of how sure it is, so there '
            "is no radius, no heat and no list of other places.</p>"
        )
    else:
        sure = (
            '<dl class="geo-facts">'
            f"<div><dt>even odds within</dt><dd>{show_km(answer.radius_50_km)}</dd></div>"
            f"<div><dt>nine in ten within</dt><dd>{show_km(answer.radius_90_km)}</dd></div>"
            f"<div><dt>answered in</dt><dd>{answer.milliseconds:,.0f} ms</dd></div></dl>"
        )
    fast = f'<p class="geo-notice">Answered in {answer.milliseconds:,.0f} ms.</p>' if not answer.top_places else ""
    return (
        '<section class="geo-card" aria-label="Answer"><p class="geo-kicker">The model says</p>'
        f'<p class="geo-answer-place">{show_nearest(answer.nearest_place)}</p>'
        f'<p class="geo-coordinates">{show_place(answer.latitude, answer.longitude)}</p>{sure}{fast}'
        f"{_top_places(answer)}</section>"
    )


def _top_places(answer: PhotoAnswer) -> str:
    if not answer.top_places:
        return ""
    longest = max(place.probability for place in answer.top_places)
    rows = "".join(
        f'<tr><td class="geo-share"><span style="--share:{100 * place.probability / longest:.1f}%"></span>'
        f"{100 * place.probability:.1f} %</td>"
        f"<td>{show_nearest(place.nearest_place)}<br>"
        f"<small>{show_place(place.latitude, place.longitude)}</small></td></tr>"
        for place in answer.top_places
    )
    return (
        '<table class="geo-places"><caption>Likeliest places</caption><thead class="geo-unseen"><tr>'
        f'<th scope="col">Probability</th><th scope="col">Place</th></tr></thead><tbody>{rows}</tbody></table>'
    )


def truth_card(answer: PhotoAnswer, truth: tuple[float, float], source: str) -> str:
    """How far the answer is from the true place."""
    error_km = float(great_circle_km([answer.latitude, answer.longitude], truth))
    inside = ""
    if answer.radius_90_km is not None and answer.radius_50_km is not None:
        inside = (
            ", within the inner circle"
            if error_km <= answer.radius_50_km
            else ", within the outer circle"
            if error_km <= answer.radius_90_km
            else ", outside of both circles"
        )
    return (
        f'<p class="geo-truth"><strong>{show_km(error_km)} off</strong>{inside}. '
        f"True place, {html.escape(source)}: {show_place(*truth)}.</p>"
    )


def answer_map(answer: PhotoAnswer | None, truth: tuple[float, float] | None = None) -> str:
    """The map of an answer; of none, the empty world."""
    if answer is None:
        return draw_map("answer", "World map, empty until a photo is chosen.")
    marks = [Mark("answer", "model", answer.latitude, answer.longitude)]
    described = f"World map. The model's answer is {show_place(answer.latitude, answer.longitude)}"
    if truth is not None:
        marks.append(Mark("truth", "true place", *truth))
        described += f", the true place {show_place(*truth)}"
    circles = [
        Circle(answer.latitude, answer.longitude, radius_km, f"{share} % of the posterior: within {show_km(radius_km)}")
        for share, radius_km in ((50, answer.radius_50_km), (90, answer.radius_90_km))
        if radius_km is not None
    ]
    grids = [grid for grid in (answer.world_grid, answer.near_grid) if grid is not None]
    return draw_map("answer", f"{described}.", grids=grids, circles=circles, marks=marks)


def restored_pictures(restored: RestoredPhoto) -> str:
    """What the model saw and made of it, side by side."""
    seen = restored.num_patches - restored.num_hidden
    pictures = (
        ("The photo, cropped as the model takes it", "The crop of the photo", restored.original),
        (
            f"What the model sees: {seen} of {restored.num_patches} patches",
            f"The same crop with {restored.num_hidden} of {restored.num_patches} patches in grey",
            restored.masked,
        ),
        ("What it makes of that", "The crop with its hidden patches as the model fills them in", restored.restored),
    )
    shown = "".join(
        f'<figure><img src="{jpeg_uri(pixels)}" alt="{alt}"/><figcaption>{caption}</figcaption></figure>'
        for caption, alt, pixels in pictures
    )
    return f'<div class="geo-pictures">{shown}</div>'


def game_map(turn: Turn | None) -> str:
    """The map that takes a guess, or that shows how both guesses fared."""
    if turn is None:
        return draw_map("game", "World map that takes your guess.", takes_guess=True)
    marks = [
        Mark("truth", "true place", *turn.true_deg),
        Mark("guess", "you", *turn.own_deg),
        Mark("answer", "model", *turn.model_deg),
    ]
    described = (
        f"World map. The true place is {show_place(*turn.true_deg)}, your guess {show_place(*turn.own_deg)}, "
        f"the model's {show_place(*turn.model_deg)}."
    )
    return draw_map("game", described, marks=marks)


def game_tally(game: Game) -> str:
    """The turns so far, the sum, and who is ahead."""
    if not game.turns:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{number}</th>'
        f"<td>{show_km(turn.own_km)}</td><td>{turn.own_points:,}</td>"
        f"<td>{show_km(turn.model_km)}</td><td>{turn.model_points:,}</td></tr>"
        for number, turn in enumerate(game.turns, start=1)
    )
    own, model = game.totals()
    return (
        f'<section class="geo-card" aria-label="Tally"><p class="geo-kicker">{_progress(game)}</p>'
        f'<p class="geo-answer-place">{describe_lead(own, model)}</p>'
        '<table class="geo-tally"><thead><tr><th scope="col">Photo</th><th scope="col">You</th>'
        '<th scope="col">points</th><th scope="col">Model</th><th scope="col">points</th></tr></thead>'
        f'<tbody>{rows}</tbody><tfoot><tr><th scope="row">Sum</th><td></td><td>{own:,}</td><td></td>'
        f"<td>{model:,}</td></tr></tfoot></table></section>"
    )


def describe_lead(own_points: int, model_points: int) -> str:
    """Who is ahead, in a sentence."""
    if own_points == model_points:
        return "It is a draw."
    return "You are ahead of the model." if own_points > model_points else "The model is ahead of you."


def _progress(game: Game) -> str:
    return "The round is over" if game.is_over else f"After {len(game.turns)} of {len(game.rows)} photos"
