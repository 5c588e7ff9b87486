"""Visitors of the page, who do over HTTP what a browser does for them, many at once."""

import asyncio
import base64
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

__all__ = ["Asked", "Crowd"]

ANSWERED, REFUSED, TOO_FULL, FAILED = "answered", "refused", "too full", "failed"
_LONGEST_WAIT_S = 120.0


@dataclass
class Asked:
    """One photo that was sent, and what came of it."""

    began_s: float
    """Since the crowd came."""

    seconds: float
    outcome: str
    said: str = ""
    """The sentence that the visitor reads, where there is no answer."""


@dataclass
class Crowd:
    """Visitors of one page; `asked` fills with every photo that they send."""

    address: str
    photos: Sequence[bytes]
    asked: list[Asked] = field(default_factory=list)
    num_visits: int = 0

    async def stay(self, num_visitors: int, seconds: float, *, pause_s: float, photos_per_visit: int) -> None:
        """So many at any time: who leaves makes room for another.

        Args:
            num_visitors: at once.
            seconds: until nobody sends another photo.
            pause_s: looking at an answer takes as long in the mean.
            photos_per_visit: then the visitor closes the page.
        """
        self.began = time.perf_counter()

        async def seat(number: int) -> None:
            rng = random.Random(number)
            await asyncio.sleep(rng.uniform(0, 2 * pause_s))
            while time.perf_counter() - self.began < seconds:
                async with _Visit(self) as visit:
                    for _ in range(photos_per_visit):
                        if time.perf_counter() - self.began >= seconds:
                            break
                        await visit.ask(rng.choice(self.photos))
                        await asyncio.sleep(rng.uniform(0, 2 * pause_s))

        await asyncio.gather(*(seat(number) for number in range(num_visitors)))

    async def rush(self, num_visitors: int) -> None:
        """All open the page, and then each sends a photo at the same moment."""
        self.began = time.perf_counter()
        visits = [_Visit(self) for _ in range(num_visitors)]
        await asyncio.gather(*(visit.__aenter__() for visit in visits))
        await asyncio.gather(*(visit.ask(self.photos[n % len(self.photos)]) for n, visit in enumerate(visits)))
        await asyncio.gather(*(visit.__aexit__(None, None, None) for visit in visits))


class _Visit:
    """The page as it is open in one browser: it says that it is there, until it is closed."""

    def __init__(self, crowd: Crowd) -> None:
        self._crowd = crowd
        self._session = f"{random.getrandbits(64):016x}"
        limits = httpx.Limits(max_connections=8)
        self._client = httpx.AsyncClient(base_url=crowd.address, timeout=_LONGEST_WAIT_S, limits=limits)

    async def __aenter__(self) -> "_Visit":
        self._crowd.num_visits += 1
        (await self._client.get("/")).raise_for_status()
        config = (await self._client.get("/config")).json()
        self._event = next(each for each in config["dependencies"] if any(of[1] == "photo" for of in each["targets"]))
        self._is_there = asyncio.create_task(self._beat())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._is_there.cancel()
        await asyncio.gather(self._is_there, return_exceptions=True)
        await self._client.aclose()

    async def _beat(self) -> None:
        async with self._client.stream("GET", f"/gradio_api/heartbeat/{self._session}") as beats:
            async for _ in beats.aiter_lines():
                pass

    async def ask(self, photo: bytes) -> None:
        """Send a photo and read the answer."""
        began = time.perf_counter()
        try:
            outcome, said = await self._exchange(photo)
        except (httpx.HTTPError, ValueError, KeyError) as error:
            outcome, said = FAILED, f"{type(error).__name__}: {error}"
        ended = time.perf_counter()
        self._crowd.asked.append(Asked(began - self._crowd.began, ended - began, outcome, said))

    async def _exchange(self, photo: bytes) -> tuple[str, str]:
        body: dict[str, Any] = {
            "data": ["", False],  # no true place is typed, and the photo's own is not asked for
            "event_data": {"base64": base64.b64encode(photo).decode("ascii")},
            "fn_index": self._event["id"],
            "trigger_id": self._event["targets"][0][0],
            "session_hash": self._session,
        }
        joined = await self._client.post("/gradio_api/queue/join", json=body)
        if joined.status_code == httpx.codes.SERVICE_UNAVAILABLE:
            return TOO_FULL, str(joined.json()["detail"])
        joined.raise_for_status()
        address = f"/gradio_api/queue/data?session_hash={self._session}"
        async with self._client.stream("GET", address) as messages:
            async for line in messages.aiter_lines():
                if not line.startswith("data:"):
                    continue
                message = json.loads(line[5:])
                if message["msg"] == "process_completed":
                    return _read(message)
        return FAILED, "the page stopped speaking before it had answered"


def _read(message: dict[str, Any]) -> tuple[str, str]:
    if not message["success"]:
        return FAILED, str(message["output"])
    preview, _, _, card, *_ = message["output"]["data"]
    if 'aria-label="Answer"' in card:
        return ANSWERED, ""
    return (REFUSED, preview) if 'role="alert"' in preview else (FAILED, f"{preview} {card}")
