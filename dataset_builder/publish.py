"""Publishing a folder to the Hub as ONE commit, idempotently, and reading it back as a stranger would.

`huggingface_hub.upload_folder` makes several commits when Xet is on, and `create_commit` is not retried by the client
although it may have been applied when its answer was lost. So every try starts from what the Hub holds now: whatever went
wrong before, the repo ends as the old folder or the new one, and the same folder pushed twice makes no commit.
"""

from __future__ import annotations

import hashlib
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HFValidationError, HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.hf_api import RepoFile

from dataset_builder.errors import InputError, RunError

KEPT = (".gitattributes",)  # the Hub's own file
_TRANSIENT = (408, 409, 412, 429, 500, 502, 503, 504)


@dataclass
class HubArguments:
    """Where a folder is published."""

    hub_private_repo: bool = field(default=False, metadata={"help": "Create the repo as private."})
    dry_run: bool = field(default=False, metadata={"help": "Show what would go where, and change nothing."})


@dataclass(frozen=True)
class FileId:
    """Identity of a file's content, as git and as LFS know it."""

    size: int
    git_sha1: str
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileId:
        """Read a file."""
        sha256, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                sha256.update(chunk)
                git.update(chunk)
        return cls(path.stat().st_size, git.hexdigest(), sha256.hexdigest())

    def equals(self, theirs: RepoFile) -> bool:
        """Tell whether the Hub's file has this content."""
        if self.size != theirs.size:
            return False
        return theirs.lfs.sha256 == self.sha256 if theirs.lfs else theirs.blob_id == self.git_sha1


def manifest(folder: Path) -> dict[str, FileId]:
    """Return the identities of all files below `folder`, by their path in the repo."""
    return {p.relative_to(folder).as_posix(): FileId.of(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def differences(api: HfApi, repo_id: str, repo_type: str, revision: str, mine: dict[str, FileId]) -> dict[str, str]:
    """Return what the Hub lacks, has otherwise or has too much at `revision`: {path: 'new', 'changed' or 'gone'}."""
    tree = api.list_repo_tree(repo_id, recursive=True, revision=revision, repo_type=repo_type)
    theirs = {file.path: file for file in tree if isinstance(file, RepoFile)}
    changes = {path: "gone" for path in theirs if path not in mine and path not in KEPT}
    for path, file_id in mine.items():
        if path not in theirs:
            changes[path] = "new"
        elif not file_id.equals(theirs[path]):
            changes[path] = "changed"
    return dict(sorted(changes.items()))


def publish(
    folder: Path,
    repo_id: str,
    repo_type: str,
    arguments: HubArguments,
    *,
    message: str,
    api: HfApi | None = None,
    max_tries: int = 12,
) -> str:
    """Make `folder` the content of the repo's main branch and return its URL at that commit.

    Raises:
        InputError: if the Hub refuses the name, the token or the content; nothing was changed then.
        RunError: if the Hub cannot be reached or keeps failing; the repo is as it was, or complete.
    """
    api, mine = api or HfApi(), manifest(folder)
    url = f"{api.endpoint}/{'datasets/' if repo_type == 'dataset' else ''}{repo_id}"
    if arguments.dry_run:
        return _dry_run(api, repo_id, repo_type, mine, url)

    def attempt() -> str:
        api.create_repo(repo_id, repo_type=repo_type, private=arguments.hub_private_repo, exist_ok=True)
        head = _head(api, repo_id, repo_type)
        changes = differences(api, repo_id, repo_type, head, mine)
        if not changes:
            return head
        operations: list[Any] = [
            CommitOperationDelete(path, is_folder=False)
            if change == "gone"
            else CommitOperationAdd(path, str(folder / path))
            for path, change in changes.items()
        ]
        commit = api.create_commit(
            repo_id, operations, commit_message=message, repo_type=repo_type, parent_commit=head
        )
        return str(commit.oid)

    sha = _retried(attempt, repo_id, max_tries)
    left = _retried(lambda: differences(api, repo_id, repo_type, sha, mine), repo_id, max_tries)
    if left:
        raise RunError(f"{repo_id} was read back after the push and differs in {', '.join(left)}; push again.")
    print(f"{repo_id}: {len(mine)} files read back at commit {sha[:12]}, all equal", file=sys.stderr)
    return f"{url}/tree/{sha}"


def _head(api: HfApi, repo_id: str, repo_type: str) -> str:
    sha = api.repo_info(repo_id, repo_type=repo_type).sha
    if sha is None:
        raise RunError(f"The Hub tells no commit of {repo_id}; try again.")
    return sha


def _dry_run(api: HfApi, repo_id: str, repo_type: str, mine: dict[str, FileId], url: str) -> str:
    try:
        changes = differences(api, repo_id, repo_type, "main", mine)
    except (HfHubHTTPError, OSError):  # no such repo yet, or no Hub: then all would be new
        changes = dict.fromkeys(mine, "new")
    for path, change in changes.items():
        size = f"{mine[path].size:,} bytes" if path in mine else ""
        print(f"{change:8} {path}  {size}".rstrip(), file=sys.stderr)
    print(f"dry run: {len(changes)} changes, nothing was pushed", file=sys.stderr)
    return url


def _retried(call: Any, repo_id: str, max_tries: int, wait_s: float = 0.2) -> Any:
    for tries in range(1, max_tries + 1):
        try:
            return call()
        except HFValidationError as error:
            raise InputError(f"'{repo_id}' is no name of a repo: {error}") from None
        except OfflineModeIsEnabled:
            raise InputError("HF_HUB_OFFLINE is set, so nothing can be pushed; unset it and try again.") from None
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status not in _TRANSIENT:
                raise InputError(_refusal(repo_id, status, error)) from None
            reason = f"HTTP {status}"
        except OSError as error:  # dropped and refused connections, timeouts
            reason = type(error).__name__
        except Exception as error:  # the client's transport errors have no common public base
            if type(error).__module__.split(".")[0] not in ("httpx", "httpx2", "httpcore", "httpcore2"):
                raise
            reason = type(error).__name__
        if tries < max_tries:
            time.sleep(min(wait_s * 2**tries, 10.0))
    raise RunError(
        f"The Hub failed {max_tries} times while {repo_id} was pushed (the last time: {reason}); the repo is as it was, "
        "or complete. Try again later."
    )


def _refusal(repo_id: str, status: int, error: HfHubHTTPError) -> str:
    if status == 401:  # noqa: PLR2004
        return f"The Hub does not accept the token for {repo_id} (HTTP 401); run `hf auth login` or set HF_TOKEN."
    if status == 403:  # noqa: PLR2004
        return f"The token may not write to {repo_id} (HTTP 403); use a token with write access to that namespace."
    return f"The Hub refused {repo_id} (HTTP {status}: {error.server_message or 'no reason given'})."
