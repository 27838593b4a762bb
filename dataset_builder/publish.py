"""Publishing a folder to the Hub as ONE commit, idempotently, and reading it back as a stranger would.

`huggingface_hub.upload_folder` makes several commits when Xet is on, and `create_commit` is not retried by the client
although it may have been applied when its answer was lost. So every try starts from what the Hub holds now: whatever went
wrong before, the repo ends as the old folder or the new one, and the same folder pushed twice makes no commit.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

from dataset_builder.errors import EmbedsmithError, InputError, RunError

T = TypeVar("T")

KEPT = (".gitattributes",)  # the Hub's own file
_TRANSIENT = (408, 409, 412, 429, 500, 502, 503, 504)


@dataclass
class HubArguments:
    """Where a folder is published."""

    hub_private_repo: bool = field(default=False, metadata={"help": "Create the repo as private."})
    hub_revision: str = field(default="main", metadata={"help": "Branch to push to; made if there is none."})
    hub_tag: str | None = field(default=None, metadata={"help": "Tag for the pushed commit, such as v1.0."})
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
    """Return the identities of all files below `folder` by their path in the repo; hidden ones (.git, .cache) stay out."""
    paths = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    hidden = {p for p in paths if any(part.startswith(".") and part != ".eval_results" for part in p.parts)}
    return {p.as_posix(): FileId.of(path) for p, path in paths.items() if p not in hidden}


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
        InputError: if the Hub refuses the name, the token or the content; nothing was changed then. Also if the tag is taken.
        RunError: if the Hub cannot be reached or keeps failing; the repo is as it was, or complete.
    """
    api, branch = api or HfApi(), arguments.hub_revision
    if arguments.dry_run:
        return _dry_run(api, repo_id, repo_type, branch, manifest(folder))
    # before gigabytes are read and sent: may we write there at all, and is the tag free?
    full_id = _retried(lambda: _prepare(api, repo_id, repo_type, arguments), repo_id, max_tries)
    mine = manifest(folder)

    def attempt() -> str:
        sha = api.repo_info(full_id, repo_type=repo_type, revision=branch).sha
        if sha is None:
            raise RunError(f"The Hub tells no commit of {full_id}; try again.")
        changes = differences(api, full_id, repo_type, sha, mine)
        if not changes:
            return str(sha)
        operations = [_operation(folder, path, change) for path, change in changes.items()]
        commit = api.create_commit(
            full_id, operations, commit_message=message, repo_type=repo_type, parent_commit=sha, revision=branch
        )
        return str(commit.oid)

    sha = _retried(attempt, repo_id, max_tries)
    try:
        left = _retried(lambda: differences(api, full_id, repo_type, sha, mine), repo_id, max_tries)
    except InputError as error:
        raise RunError(f"{full_id} was pushed as commit {sha[:12]} but cannot be read back: {error}") from None
    if left:
        raise RunError(f"{full_id} was pushed and, read back, differs in {', '.join(left)}; push again.")
    if arguments.hub_tag:
        _retried(lambda: _tag(api, full_id, repo_type, str(arguments.hub_tag), sha), repo_id, max_tries)
    print(f"{full_id}: {len(mine)} files at commit {sha[:12]}, each with the digest of ours", file=sys.stderr)
    return f"{_url(api, full_id, repo_type)}/tree/{sha}"


def _prepare(api: HfApi, repo_id: str, repo_type: str, arguments: HubArguments) -> str:
    """Create repo and branch where there are none, and return the repo's full name.

    Raises:
        InputError: if the repo is public and should be private, or only exists as one of the other type, or if the tag is
            taken; nothing was changed then.
    """
    other = "dataset" if repo_type == "model" else "model"
    if (
        "/" in repo_id
        and not api.repo_exists(repo_id, repo_type=repo_type)
        and api.repo_exists(repo_id, repo_type=other)
    ):
        raise InputError(
            f"{repo_id} is a {other} on the Hub and no {repo_type}; push under another name, or create the {repo_type} there "
            "yourself first if both are to have one name."
        )
    full_id = api.create_repo(repo_id, repo_type=repo_type, private=arguments.hub_private_repo, exist_ok=True).repo_id
    info = api.repo_info(full_id, repo_type=repo_type)
    if arguments.hub_private_repo and not info.private:
        raise InputError(f"{full_id} exists and is public; make it private on the Hub, or push elsewhere.")
    api.auth_check(full_id, repo_type=repo_type, write=True)
    refs = api.list_repo_refs(full_id, repo_type=repo_type)
    if arguments.hub_revision not in {ref.name for ref in refs.branches}:
        api.create_branch(full_id, branch=arguments.hub_revision, repo_type=repo_type, exist_ok=True)
    return str(full_id)


def _tag(api: HfApi, repo_id: str, repo_type: str, tag: str, sha: str) -> None:
    """Tag a commit; a tag that stands at this commit already is left there.

    Raises:
        InputError: if the tag stands at another commit.
    """
    tags = {ref.name: ref.target_commit for ref in api.list_repo_refs(repo_id, repo_type=repo_type).tags}
    if tag not in tags:
        api.create_tag(repo_id, tag=tag, revision=sha, repo_type=repo_type, exist_ok=True)
    elif api.repo_info(repo_id, repo_type=repo_type, revision=tag).sha != sha:
        raise InputError(
            f"{repo_id} is pushed as commit {sha[:12]}, but its tag '{tag}' stands at another commit; give another --hub_tag, "
            "or delete the old one on the Hub and push again."
        )


def publish_with_card(
    folder: Path,
    repo_id: str,
    repo_type: str,
    arguments: HubArguments,
    with_repo: Callable[[str, str], str],
    *,
    message: str,
) -> str:
    """`publish` a folder whose card names the repo in its examples; a push that fails leaves the card as it was."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8")
    try:
        if not arguments.dry_run:
            card.write_text(with_repo(text, repo_id), encoding="utf-8")
        return publish(folder, repo_id, repo_type, arguments, message=message)
    except BaseException:
        card.write_text(text, encoding="utf-8")
        raise


def _url(api: HfApi, repo_id: str, repo_type: str) -> str:
    return f"{api.endpoint}/{'datasets/' if repo_type == 'dataset' else ''}{repo_id}"


def _operation(folder: Path, path: str, change: str) -> CommitOperationAdd | CommitOperationDelete:
    return CommitOperationDelete(path, is_folder=False) if change == "gone" else CommitOperationAdd(path, folder / path)


def _dry_run(api: HfApi, repo_id: str, repo_type: str, branch: str, mine: dict[str, FileId]) -> str:
    try:
        changes = differences(api, repo_id, repo_type, branch, mine)
    except (RepositoryNotFoundError, RevisionNotFoundError):
        changes = dict.fromkeys(mine, "new")
    except Exception as error:
        if not _is_transport(error) and not isinstance(error, (HfHubHTTPError, OfflineModeIsEnabled)):
            raise
        print(f"the Hub cannot be asked ({type(error).__name__}), so everything counts as new", file=sys.stderr)
        changes = dict.fromkeys(mine, "new")
    for path, change in changes.items():
        size = f"{mine[path].size:,} bytes" if path in mine else ""
        print(f"{change:8} {path}  {size}".rstrip(), file=sys.stderr)
    print(f"dry run: {len(changes)} changes, nothing was pushed", file=sys.stderr)
    return _url(api, repo_id, repo_type)


def _is_transport(error: BaseException) -> bool:
    """Tell dropped connections and timeouts; the client's own transport errors have no public base class."""
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in ("httpx", "httpx2", "httpcore2")


def _retried(call: Callable[[], T], repo_id: str, max_tries: int, wait_s: float = 0.2) -> T:
    """Repeat what may be repeated: transient statuses and broken connections, as often as `max_tries` says."""
    reason = ""
    for tries in range(1, max_tries + 1):
        try:
            return call()
        except HFValidationError as error:
            raise InputError(f"'{repo_id}' is no name of a repo: {error}") from None
        except OfflineModeIsEnabled:
            raise InputError("HF_HUB_OFFLINE is set, so nothing can be pushed; unset it and try again.") from None
        except EmbedsmithError:
            raise
        except Exception as caught:
            # an upload that failed comes as a RuntimeError around the real one
            cause = caught.__cause__ if type(caught) is RuntimeError and caught.__cause__ else caught
            if isinstance(cause, HfHubHTTPError):
                status = cause.response.status_code
                if status not in _TRANSIENT:
                    raise InputError(_refusal(repo_id, status, cause)) from None
                reason = f"HTTP {status}"
            elif _is_transport(cause):
                reason = type(cause).__name__
            elif isinstance(cause, ValueError) and "README.md" in str(cause):
                raise InputError(f"The Hub refuses the card of {repo_id}: {' '.join(str(cause).split())}") from None
            else:
                raise
        if tries < max_tries:
            time.sleep(min(wait_s * 2**tries, 10.0))
    raise RunError(
        f"The Hub failed {max_tries} times while {repo_id} was pushed (the last time: {reason}); the repo is as it was, "
        "or complete. Try again later."
    )


def _refusal(repo_id: str, status: int, error: HfHubHTTPError) -> str:
    if status == 401:
        return f"The Hub does not accept the token for {repo_id} (HTTP 401); run `hf auth login` or set HF_TOKEN."
    if status == 403:
        return f"The token may not write to {repo_id} (HTTP 403); use a token with write access to that namespace."
    return f"The Hub refused {repo_id} (HTTP {status}: {error.server_message or 'no reason given'})."
