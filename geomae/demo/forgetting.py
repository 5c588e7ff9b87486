"""A page of Gradio that forgets: what it showed at once, and what a visitor's session holds when the visitor leaves."""

from typing import Any

import gradio as gr

__all__ = ["ForgettingBlocks"]


class ForgettingBlocks(gr.Blocks):
    """`gr.Blocks` without its memory for what it has shown.

    Gradio keeps the last value of every component of each session, the picture of a visitor's photo among them, for
    links that show a page as somebody left it, and drops none when the visitor leaves. There are no such links here.
    What stays of a session is its `gr.State`.
    """

    async def process_api(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        """Do what an event asks for, and forget what was shown."""
        try:
            return await super().process_api(*arguments, **options)
        finally:
            state = options.get("state")
            if state is not None:
                state.config_values.clear()

    def forgets_who_leaves(self) -> None:
        """Drop a session when its page is closed; Gradio would keep its state for an hour. To be called inside it."""
        self.unload(self._forget)

    def _forget(self, request: gr.Request) -> None:
        session = str(request.session_hash)
        self.state_holder.session_data.pop(session, None)
        self.state_holder.time_last_used.pop(session, None)
