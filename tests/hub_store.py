"""What the tests' Hub holds: repos, commits and files, kept the way git keeps them.

Blobs, trees and commits carry the ids git would give them, large files are LFS pointers, and a commit becomes visible
by one `os.replace` of the repo's `repo.json`. On disk: `blobs/<sha1>`, `lfs/<sha256>`, and `<kind>/<namespace>/<name>/`
with `repo.json` and `commits/<sha>.json`. A pin makes a commit answer to a foreign 40-hex id, as mteb's tasks ask for.
"""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import json
import os
import re
import secrets
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.hub_cards import card_errors

LFS_THRESHOLD = 10 << 20  # bytes; larger files are LFS whatever their name
_LFS_PATTERNS = """
 *.7z *.arrow *.bin *.bin.* *.bz2 *.ckpt *.ftz *.gz *.h5 *.joblib *.lz4 *.mlmodel *.model *.msgpack
 *.npy *.npz *.onnx *.ot *.parquet *.pb *.pickle *.pkl *.pt *.pth *.rar *.safetensors *.tar.* *.tar *.tflite *.tgz
 *.wasm *.xz *.zip *.zst *tfevents*
"""
_GITATTRIBUTES = "".join(
    f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in _LFS_PATTERNS.split()
).encode()


class HubError(Exception):
    """A request the Hub refuses; `code` is what clients choose their error class by."""

    def __init__(self, status: int, message: str, code: str = "", headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        line = " ".join(message.split()).encode("ascii", "replace").decode()
        self.headers = {"X-Error-Message": line, **({"X-Error-Code": code} if code else {}), **(headers or {})}


@dataclass(frozen=True, slots=True)
class File:
    """A file of a commit: its git blob id (of the pointer, if it is LFS) and its real size."""

    oid: str
    size: int
    sha256: str | None = None  # of LFS files only

    @property
    def etag(self) -> str:
        return self.sha256 or self.oid

    @property
    def pointer(self) -> bytes:
        """What git keeps instead of an LFS file."""
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n".encode()

    @property
    def described(self) -> dict[str, Any]:
        """The file in JSON, with the keys both of a tree's rows and of a repo's siblings."""
        lfs = {"oid": self.sha256, "sha256": self.sha256, "size": self.size, "pointerSize": len(self.pointer)}
        return {"size": self.size, "blobId": self.oid, **({"lfs": lfs} if self.sha256 else {})}


Files = dict[str, File]  # by path


@dataclass(frozen=True, slots=True)
class Commit:
    """One state of a repo."""

    sha: str
    parent: str | None
    title: str
    message: str
    date: str
    user: str
    files: Files

    def entries(self, paths: Iterable[str]) -> list[dict[str, Any]]:
        """Return the tree's rows for some paths; unknown ones are left out."""
        trees, rows = tree_ids(self.files), []
        for path in paths:
            if path in self.files:
                rows.append({"type": "file", "path": path, "oid": self.files[path].oid, **self.files[path].described})
            elif path in trees:
                rows.append({"type": "directory", "path": path, "oid": trees[path], "size": 0})
        return rows


@dataclass(slots=True)
class Repo:
    """A repo and where its branches, tags and pins point to."""

    home: Path
    kind: str  # "model" or "dataset"
    id: str
    private: bool
    created: str
    refs: dict[str, str]
    pins: dict[str, str]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def git_id(kind: str, data: bytes) -> str:
    """Return the id git gives to a blob, tree or commit."""
    return hashlib.sha1(f"{kind} {len(data)}\0".encode() + data).hexdigest()


def is_lfs(path: str, size: int, patterns: Iterable[str]) -> bool:
    """Tell whether a file is kept as LFS."""
    names = (path, path.rsplit("/", 1)[-1])
    return size > LFS_THRESHOLD or any(fnmatch.fnmatch(name, pattern) for pattern in patterns for name in names)


def tree_ids(files: Files) -> dict[str, str]:
    """Return the git tree id of every folder; the root is ''."""
    folders: dict[str, dict[str, str]] = {"": {}}  # {folder: {name: blob id, or '' for a folder}}
    for path, file in files.items():
        parts = path.split("/")
        for depth in range(1, len(parts)):
            folders.setdefault("/".join(parts[:depth]), {})
            folders["/".join(parts[: depth - 1])][parts[depth - 1]] = ""
        folders["/".join(parts[:-1])][parts[-1]] = file.oid
    ids: dict[str, str] = {}
    for folder in sorted(folders, key=lambda path: -len(path.split("/")) if path else 1):  # the deepest first
        rows = b""
        for name, oid in sorted(folders[folder].items(), key=lambda row: row[0] + ("" if row[1] else "/")):
            mode = "100644" if oid else "40000"
            rows += f"{mode} {name}\0".encode() + bytes.fromhex(oid or ids[f"{folder}/{name}".lstrip("/")])
        ids[folder] = git_id("tree", rows)
    return ids


class Store:
    """All repos of a Hub, below one folder. Take `lock` around whatever reads and then writes."""

    def __init__(self, root: Path) -> None:
        self.root, self.lock = root, threading.RLock()
        for name in ("blobs", "lfs", "tmp"):
            (root / name).mkdir(parents=True, exist_ok=True)

    def _write(self, path: Path, data: bytes) -> None:
        tmp = self.root / "tmp" / secrets.token_hex(8)
        tmp.write_bytes(data)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(tmp, path)

    def repo(self, kind: str, repo_id: str) -> Repo | None:
        """Return a repo, None if there is no such."""
        path = self._home(kind, repo_id) / "repo.json"
        return Repo(home=path.parent, kind=kind, **json.loads(path.read_text())) if path.is_file() else None

    def _home(self, kind: str, repo_id: str) -> Path:
        if kind not in ("model", "dataset") or not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", repo_id):
            raise HubError(400, f"Invalid repo name: {kind} {repo_id}")
        known = (path for path in (self.root / kind).glob("*/*") if path.is_dir())  # names ignore case
        wanted = self.root / kind / repo_id
        return next((path for path in known if str(path).lower() == str(wanted).lower()), wanted)

    def create(self, kind: str, repo_id: str, user: str, *, private: bool = False) -> Repo:
        """Make a repo with the Hub's own first commit."""
        repo = Repo(self._home(kind, repo_id), kind, repo_id, private, _now(), refs={}, pins={})
        self.commit(repo, "refs/heads/main", {".gitattributes": self.blob(_GITATTRIBUTES)}, "initial commit", user=user)
        return repo

    def save(self, repo: Repo) -> None:
        """Make the repo's refs and pins what they are in `repo`, at once."""
        row = {name: getattr(repo, name) for name in ("id", "private", "created", "refs", "pins")}
        self._write(repo.home / "repo.json", json.dumps(row, indent=1).encode())

    def blob(self, data: bytes) -> File:
        """Keep the content of a file in git."""
        oid = git_id("blob", data)
        self._write(self.root / "blobs" / oid, data)
        return File(oid, len(data))

    def lfs(self, sha256: str, data: bytes | None = None) -> File:
        """Return the LFS file with this hash; keep its content if it is given.

        Raises:
            HubError: if the content is another, or was never uploaded.
        """
        path = self.root / "lfs" / sha256
        if data is not None:
            if hashlib.sha256(data).hexdigest() != sha256:
                raise HubError(400, f"the content is not that of {sha256}")
            self._write(path, data)
        elif not self.has_lfs(sha256):
            raise HubError(400, f"LFS pointer pointed to a file that does not exist: {sha256}")
        file = File("", path.stat().st_size, sha256)
        return replace(file, oid=git_id("blob", file.pointer))

    def has_lfs(self, sha256: str) -> bool:
        """Tell whether the content of an LFS file is there."""
        return bool(re.fullmatch("[0-9a-f]{64}", sha256)) and (self.root / "lfs" / sha256).is_file()

    def content(self, file: File) -> Path:
        """Return where the content of a file is."""
        return self.root / (f"lfs/{file.sha256}" if file.sha256 else f"blobs/{file.oid}")

    def text(self, files: Files, path: str) -> str:
        """Return the content of a text file, '' if it is not there."""
        return self.content(files[path]).read_text("utf-8", "replace") if path in files else ""

    def commit(self, repo: Repo, ref: str, files: Files, title: str, *, message: str = "", user: str) -> str:
        """Make `files` the content of a branch."""
        parent = repo.refs.get(ref)
        who = f"{user} <{user}@hub> {int(time.time())} +0000"
        head = f"tree {tree_ids(files)['']}\n" + (f"parent {parent}\n" if parent else "")
        sha = git_id("commit", f"{head}author {who}\ncommitter {who}\n\n{title}\n\n{message}\n".encode())
        commit = Commit(sha, parent, title, message, _now(), user, files)
        self._write(repo.home / "commits" / f"{sha}.json", json.dumps(asdict(commit)).encode())
        repo.refs[ref] = sha
        self.save(repo)  # the commit is visible from here on
        return sha

    def _load(self, repo: Repo, sha: str) -> Commit | None:
        path = repo.home / "commits" / f"{sha}.json"
        if not re.fullmatch("[0-9a-f]{40}", sha) or not path.is_file():
            return None
        row = json.loads(path.read_text())
        return Commit(**{**row, "files": {name: File(**file) for name, file in row["files"].items()}})

    def at(self, repo: Repo, revision: str) -> Commit:
        """Return the commit a branch, tag, (short) sha or pin names; under a pin it is called as it was asked for.

        Raises:
            HubError: if there is none: an unknown revision is never answered with main, or a wrong pin would go unseen.
        """
        names = (f"refs/heads/{revision}", f"refs/tags/{revision}", revision)
        sha = repo.pins.get(revision) or next((repo.refs[name] for name in names if name in repo.refs), revision)
        if re.fullmatch("[0-9a-f]{7,39}", sha):
            sha = next((path.stem for path in (repo.home / "commits").glob(f"{sha}*.json")), sha)
        commit = self._load(repo, sha)
        if commit is None:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return replace(commit, sha=revision) if revision in repo.pins else commit

    def history(self, repo: Repo, revision: str) -> Iterator[Commit]:
        """Yield the commits of a revision, newest first."""
        commit: Commit | None = self.at(repo, revision)
        while commit:
            yield commit
            commit = self._load(repo, commit.parent) if commit.parent else None

    def changed(self, files: Files, operation: str, value: dict[str, Any]) -> Files:
        """Return the files after one line of a commit request."""
        path = str(value["path"]).removesuffix("/")
        if any(part in ("", ".", "..", ".git") or "\\" in part for part in path.split("/")):
            raise HubError(422, f"Invalid path: {value['path']!r}")
        if operation == "file":
            coded = value.get("encoding") == "base64"
            data = base64.b64decode(value["content"]) if coded else value["content"].encode()
            if path == "README.md" and (errors := card_errors(data.decode("utf-8", "replace"))):
                raise HubError(400, "Invalid metadata in README.md: " + "; ".join(errors))
            return {**files, path: self.blob(data)}
        if operation == "lfsFile":
            return {**files, path: self.lfs(value["oid"])}
        if operation not in ("deletedFile", "deletedFolder"):
            raise HubError(400, f"unknown operation {operation!r}")
        left = {name: file for name, file in files.items() if name != path and not name.startswith(f"{path}/")}
        if len(left) == len(files):
            raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
        return left

    def put_folder(self, kind: str, repo_id: str, folder: Path, pin: str | None, user: str) -> str:
        """Make a local folder the content of main, creating the repo if need be, and pin that commit."""
        with self.lock:
            repo = self.repo(kind, repo_id) or self.create(kind, repo_id, user)
            files = {".gitattributes": self.blob(_GITATTRIBUTES)}
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                name, data = path.relative_to(folder).as_posix(), path.read_bytes()
                lfs = is_lfs(name, len(data), _LFS_PATTERNS.split())
                files[name] = self.lfs(hashlib.sha256(data).hexdigest(), data) if lfs else self.blob(data)
            sha = repo.refs["refs/heads/main"]
            if self.at(repo, sha).files != files:
                sha = self.commit(repo, "refs/heads/main", files, f"Import {folder.name}", user=user)
            if pin:
                repo.pins[pin] = sha
                self.save(repo)
            return sha
