"""What `--push_to_hub` does: the folder of `geomae.publish` goes to the Hub once, when the run has ended."""

import logging
import shlex
from typing import Any, cast

from huggingface_hub.utils import get_session
from transformers import Trainer

from geomae.errors import ConfigError, PublishError

__all__ = ["SECONDS_TO_ANSWER", "PublishingTrainer", "is_unreached"]

logger = logging.getLogger(__name__)

SECONDS_TO_ANSWER = 120.0
UNREACHED = {"TransportError", "ConnectionError", "TimeoutError", "OfflineModeIsEnabled"}  # of httpx, Python, the Hub


def is_unreached(problem: Exception) -> bool:
    """Whether nobody answered, or nobody may be asked: another time it may go well."""
    return bool(UNREACHED & {each.__name__ for each in type(problem).__mro__})


class PublishingTrainer(Trainer):
    """A trainer whose pushes are those of `python -m geomae.publish`, with its card.

    Nothing is pushed while it trains, whatever `hub_strategy` says: transformers would send `training_args.bin` along,
    in which `hub_token` is.
    """

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repository before the first step, so that a wrong name or token is told at once.

        A Hub that does not answer keeps nobody from training: it is asked once more when the run has ended.

        Raises:
            ConfigError: the Hub refused.
        """
        get_session().timeout = SECONDS_TO_ANSWER  # it would wait for ever
        try:
            super().init_hf_repo(
                token=token, **({} if private is None else {"private": private})
            )  # 5.17 has no private
        except Exception as problem:  # whatever a network can do
            if is_unreached(problem):
                logger.warning(
                    "the Hub was not reached (%s: %s): the run goes on, and is pushed when it has ended",
                    *(type(problem).__name__, problem),
                )
                return
            raise ConfigError(
                f"push_to_hub: no repository {self.args.hub_model_id or ''} could be made: {type(problem).__name__}: "
                f"{problem}. Log in with `hf auth login`, or train without --push_to_hub and publish afterwards"
            ) from problem

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save; transformers would push here, before the run's records are written."""
        super().save_model(output_dir, _internal_call=True)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None: the card is that of `geomae.publish`, and stands in its folder."""

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """None is pushed while it trains."""

    def push_to_hub(  # type: ignore[override]  # there is no commit to wait for
        self,
        commit_message: str | None = None,
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> str | None:
        """Build `output_dir`/hub and upload it, from the main process; the run must be saved, with its state.

        Args:
            commit_message: not used: the commits of `geomae.publish` have their own.
            blocking: not used: it waits.
            token: with the right to write; by default `hub_token`, or who is logged in.
            revision: not used.
            private: of a new repository; by default `hub_private_repo`.
            kwargs: not used: for transformers' own card.

        Returns:
            The address of the repository; None in other processes.

        Raises:
            PublishError: it failed; the run is there, and the message has the command to repeat.
        """
        if not self.is_world_process_zero():
            return None
        if self.hub_model_id is None:
            self.args.hub_private_repo = self.args.hub_private_repo if private is None else private
            self.init_hf_repo(token=token)
        token, run = token or self.args.hub_token, str(self.args.output_dir)
        made = cast(str | None, self.hub_model_id)
        repo_id = str(made or self.args.hub_model_id or "OWNER/NAME")
        again = shlex.join(["python", "-m", "geomae.publish", run, "--repo_id", repo_id])
        if made is None:
            raise PublishError(f"the Hub was not reached. The run in {run} is complete. To upload it later: {again}")
        get_session().timeout = SECONDS_TO_ANSWER
        try:
            from geomae.publish.folder import build_hub_folder  # matplotlib and cartopy; it imports this package
            from geomae.publish.upload import upload_hub_folder

            folder = f"{run}/hub"
            build_hub_folder(run, folder, repo_id=repo_id)
            private = self.args.hub_private_repo if private is None else private
            address = upload_hub_folder(folder, repo_id, repeat=again, token=token, private=private)
        except PublishError:
            raise
        except (ImportError, OSError, ValueError) as problem:
            raise PublishError(
                f"{repo_id} was not uploaded: {type(problem).__name__}: {problem}\n"
                f"  The run in {run} is complete. To repeat: {again}"
            ) from problem
        logger.info("published at %s", address)
        return address
