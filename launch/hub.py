"""An exported folder goes to Hugging Face, with the account that `hf auth login` set."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stargate.errors import ModelError, one_line


def check_account(repo_id: str) -> None:
    """Raises ModelError if the name can't be one, or nobody is logged in."""
    with _told(repo_id):
        from huggingface_hub import HfApi
        from huggingface_hub.utils._validators import validate_repo_id

        validate_repo_id(repo_id)
        HfApi().whoami()


def push(folder: Path, repo_id: str) -> str:
    """Uploads the folder's files as one commit; returns its address. A new model is private.

    Raises ModelError.
    """
    with _told(repo_id):
        from huggingface_hub import HfApi

        api = HfApi()
        address = api.create_repo(repo_id, private=True, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message="Exported by stargate"
        )
    return str(address)


@contextmanager
def _told(repo_id: str) -> Iterator[None]:
    import httpx
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    try:
        yield
    except LocalTokenNotFoundError:
        raise ModelError(f"--push {repo_id}: not logged in; run: hf auth login") from None
    except HFValidationError as error:
        raise ModelError(f"--push {repo_id}: {one_line(error)}") from None
    except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
        raise ModelError(
            f"--push {repo_id}: Hugging Face did not take it: {one_line(error) or error!r}"
        ) from error
