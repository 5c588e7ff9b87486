"""A page of Gradio that forgets: what it showed at once, and what a visitor's session holds when the visitor leaves."""

from collections import Counter
from typing import Any

import gradio as gr

__all__ = ["ForgettingBlocks", "num_waiting"]

MOST_LEFT = 1_000  # sessions whose last event is waited for


class ForgettingBlocks(gr.Blocks):
    """`gr.Blocks` without its memory for what it has shown.

    Gradio keeps the last value of every component of each session, the picture of a visitor's photo among them, for
    links that show a page as somebody left it, and drops none when the visitor leaves. There are no such links here.
    What stays of a session is its `gr.State`.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._num_running: Counter[str] = Counter()
        self._left: dict[str, None] = {}

    async def process_api(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        """Do what an event asks for, and forget what was shown; with the last one, a session that was left."""
        session = str(options.get("session_hash"))
        self._num_running[session] += 1
        try:
            return await super().process_api(*arguments, **options)
        finally:
            state = options.get("state")
            if state is not None:
                state.config_values.clear()
            self._num_running -= Counter([session])
            if session in self._left and session not in self._num_running:
                self._drop(session, options.get("event_id"))

    def forgets_who_leaves(self) -> None:
        """Drop a session when its page is closed; Gradio would keep its state for an hour. To be called inside it."""
        self.unload(self._leave)

    def comes_back(self, session: str) -> None:
        """A page that had lost its connection has one again."""
        self._left.pop(session, None)

    def _leave(self, request: gr.Request) -> None:
        """An event itself, with the end of which the session goes where no other one is under way."""
        if len(self._left) >= MOST_LEFT:  # events that were taken back are never waited for
            self._left.pop(next(iter(self._left)))
        self._left[str(request.session_hash)] = None

    def _drop(self, session: str, event_id: str | None) -> None:
        self.state_holder.session_data.pop(session, None)
        self.state_holder.time_last_used.pop(session, None)
        started = [event for events in self._queue.active_jobs for event in events or () if event._id != event_id]
        if not num_waiting(self, session) and all(event.session_hash != session for event in started):
            self._left.pop(session, None)  # otherwise an event that begins makes the session anew


def num_waiting(blocks: gr.Blocks, session: str) -> int:
    """Events of a session that wait in the queue; those that are being answered have left it."""
    queues = blocks._queue.event_queue_per_concurrency_id.values()
    return sum(event.session_hash == session for queue in queues for event in queue.queue)
