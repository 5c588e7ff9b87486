"""A folder -> a repository of the Hub, in one commit."""

import re
from pathlib import Path
from urllib.parse import quote

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import get_token, validate_repo_id

from geomae.errors import ConfigError, PublishError
from geomae.files import list_files

__all__ = ["refuse_bad_name", "refuse_bad_target", "upload_hub_folder"]

REPLACED = re.compile(r"(pictures|metrics)/.+|model.*\.safetensors(\.index\.json)?")


def refuse_bad_name(repo_id: str) -> None:
    """Refuse a name that the Hub does not take.

    Raises:
        ConfigError: it is not OWNER/NAME.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as problem:
        raise ConfigError(f"repo_id {repo_id} is no name of the Hub: {problem}") from problem
    if repo_id.count("/") != 1:
        raise ConfigError(f"repo_id {repo_id} has no owner; expected OWNER/NAME")


def refuse_bad_target(repo_id: str, token: str | None = None) -> None:
    """Refuse before anything is built what could not be uploaded.

    Raises:
        ConfigError: as `refuse_bad_name`, or nobody is logged in.
    """
    refuse_bad_name(repo_id)
    if (token or get_token()) is None:
        raise ConfigError("there is no token to upload with: log in with `hf auth login`, or set HF_TOKEN")


def upload_hub_folder(
    folder: str | Path, repo_id: str, *, repeat: str, private: bool | None = None, token: str | None = None
) -> str:
    """Make the repository where it is missing, and put the folder into it in one commit.

    Weights, pictures and metrics of an earlier upload that the folder has no more are removed; other files stay.

    Args:
        folder: of `build_hub_folder`.
        repo_id: OWNER/NAME.
        repeat: the command that tries again, for the message of a failure.
        private: of a new repository: who may see it; None: as its owner's settings say.
        token: with the right to write; by default who is logged in.

    Returns:
        The address of the repository.

    Raises:
        ConfigError: as `refuse_bad_target`; or it was to be private, and the repository is a public one.
        PublishError: the Hub refused, answered with an error or was not reached. Nothing is half-written: a commit is
            there whole or not at all.
    """
    refuse_bad_target(repo_id, token)
    api = HfApi(token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        if private and not api.repo_info(repo_id).private:
            raise ConfigError(
                f"{repo_id} is there already and everybody sees it, whatever --private says. Nothing was uploaded: "
                "make it private in its settings on the Hub first, or choose another name"
            )
        api.create_commit(repo_id, _operations(api, Path(folder), repo_id), commit_message="Publish with GeoMAE")
    except ConfigError:
        raise
    except Exception as problem:  # whatever a network can do; the run must not be lost by it
        raise PublishError(
            f"{repo_id} was not uploaded: {type(problem).__name__}: {problem}\n"
            f"  The folder {folder} is complete and nothing is half-written. To repeat: {repeat}"
        ) from problem
    return f"{api.endpoint}/{quote(repo_id)}"


def _operations(api: HfApi, folder: Path, repo_id: str) -> list[CommitOperationAdd | CommitOperationDelete]:
    """Not `upload_folder`: where hf_xet is installed, that makes several commits of one folder."""
    names = [path.relative_to(folder).as_posix() for path in list_files(folder)]
    stale = [name for name in api.list_repo_files(repo_id) if REPLACED.fullmatch(name) and name not in names]
    return [
        *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in names),
        *(CommitOperationDelete(path_in_repo=name) for name in stale),
    ]
