"""What the tests' Hub answers: one method for each request that huggingface_hub 2.4 and datasets 5.2 make."""

from __future__ import annotations

import json
import re
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from email.message import Message
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.hub_cards import as_list, card_errors, card_tags, front_matter
from tests.hub_store import Commit, HubError, Repo, is_lfs, tree_ids

if TYPE_CHECKING:
    from tests.hub_server import Hub


@dataclass(frozen=True)
class Caller:
    """Who a token belongs to, and where they may write."""

    name: str
    namespaces: tuple[str, ...]


@dataclass
class Answer:
    """An answer; its body is a file on disk, or something for JSON."""

    body: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


_ROUTES: list[tuple[str, re.Pattern[str], bool, Callable[..., Any]]] = []
_PARTS = {
    "API": "/api/(?P<kind>model|dataset)s/(?P<repo_id>[^/]+/[^/]+)",
    "PAGE": "(/(?P<kind>dataset)s)?/(?P<repo_id>[^/]+/[^/]+)",
    "COMMIT": "(?P<revision>[^/]+)",
    "NAME": "(?P<name>[^/]+)",
    "PATH": "(?P<path>.+)",
    "OID": "(?P<oid>[0-9a-f]{64})",
}


def _route(method: str, pattern: str, *, write: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        parts = re.sub("<([A-Z]+)>", lambda match: _PARTS[match[1]], pattern)
        _ROUTES.append((method, re.compile(parts), write, function))
        return function

    return add


class Request:
    """A request; `repo` and `commit` are those its path names, if it names them."""

    repo: Repo
    commit: Commit

    def __init__(self, hub: Hub, method: str, target: str, headers: Message, body: bytes) -> None:
        url = urlsplit(target)
        self.hub, self.store, self.method, self.path = hub, hub.store, method, url.path
        self.query = {key: values[-1] for key, values in parse_qs(url.query, keep_blank_values=True).items()}
        self.headers, self.body = headers, body

    def answer(self) -> Answer:
        """Answer the request.

        Raises:
            HubError: if the answer is an error.
        """
        with self.store.lock:  # so that no other request changes what this one has seen
            for method, pattern, write, function in _ROUTES:
                match = pattern.fullmatch(self.path)
                if match and method == ("GET" if self.method == "HEAD" else self.method):
                    found = {key: unquote(value or "") for key, value in match.groupdict().items()}
                    if "repo_id" in found:
                        self.repo = self.find(found.pop("kind") or "model", found.pop("repo_id"), write=write)
                    if "revision" in found:
                        self.commit = self.store.at(self.repo, found.pop("revision") or "main")
                    body = function(self, **found)
                    return body if isinstance(body, Answer) else Answer(body)
            if re.match(r"/api/(models|datasets)/[^/]+(/(revision|tree|commits|refs).*)?$|/[^/]+/resolve/", self.path):
                raise HubError(404 if self.caller() else 401, "Repository not found", "RepoNotFound")  # no namespace
        raise HubError(404, f"no such route: {self.method} {self.path}")

    def json(self) -> Any:
        """Return the body's JSON."""
        return json.loads(self.body or b"{}")

    def caller(self) -> Caller | None:
        """Return who asks, None if it is nobody."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.hub.callers:
            raise HubError(401, "Invalid credentials in Authorization header")
        return self.hub.callers[token] if token else None

    def user(self) -> Caller:
        """Return who asks; somebody must."""
        if caller := self.caller():
            return caller
        raise HubError(401, "Invalid username or password.")

    def find(self, kind: str, repo_id: str, *, write: bool) -> Repo:
        """Return a repo that the caller may see, or write to. A private repo is missing to all who may not write."""
        caller, repo = self.caller(), self.store.repo(kind, repo_id)
        writer = caller is not None and repo is not None and repo.id.split("/")[0] in caller.namespaces
        if repo is None or (repo.private and not writer):
            raise HubError(404 if caller else 401, "Repository not found", "RepoNotFound")
        if write and not writer:
            raise HubError(403 if caller else 401, f"You don't have the rights to write to {repo_id}")
        return repo

    def page(self) -> str:
        """Return the address of the repo's page."""
        return f"{self.hub.url}/{'datasets/' if self.repo.kind == 'dataset' else ''}{self.repo.id}"

    @_route("GET", "/api/whoami-v2")
    def whoami(self) -> dict[str, Any]:
        name, namespaces = self.user().name, self.user().namespaces
        orgs = [{"type": "org", "name": org} for org in namespaces if org != name]
        token = {"displayName": "tests", "role": "write" if namespaces else "read"}
        return {"type": "user", "name": name, "orgs": orgs, "auth": {"type": "access_token", "accessToken": token}}

    @_route("POST", "/api/repos/create")
    def create(self) -> Answer:
        wanted, user = self.json(), self.user()
        kind, namespace = wanted.get("type") or "model", wanted.get("organization") or user.name
        if namespace not in user.namespaces:
            raise HubError(403, f"You don't have the rights to create a repo under the namespace {namespace!r}")
        repo_id, private = f"{namespace}/{wanted['name']}", wanted.get("visibility") == "private"
        old = self.store.repo(kind, repo_id)
        self.repo = old or self.store.create(kind, repo_id, user.name, private=private)
        body = {"url": self.page(), "name": self.repo.id}  # clients read the url of a 409, too
        return Answer({**body, "error": f"You already created this {kind} repo"}, 409) if old else Answer(body)

    @_route("DELETE", "/api/repos/delete")
    def delete(self) -> dict[str, Any]:
        wanted = self.json()
        repo_id = f"{wanted.get('organization') or self.user().name}/{wanted['name']}"
        shutil.rmtree(self.find(wanted.get("type") or "model", repo_id, write=True).home)
        return {}

    @_route("POST", "/api/validate-yaml")
    def validate_yaml(self) -> Answer:
        text = self.json().get("content", "")
        errors = [{"message": message} for message in card_errors(text)]
        warnings = [] if errors or front_matter(text) else [{"message": "empty or missing yaml metadata in repo card"}]
        return Answer({"errors": errors, "warnings": warnings}, 400 if errors else 200)

    @_route("GET", "<API>/auth-check/write", write=True)
    def auth_check_write(self) -> dict[str, Any]:
        """Tell that the caller may write; others get an error."""
        return {}

    @_route("GET", "<API>/auth-check")
    def auth_check(self) -> dict[str, Any]:
        return {}

    @_route("GET", "<API>(/revision/<COMMIT>)?")
    def info(self) -> dict[str, Any]:
        repo, files, text = self.repo, self.commit.files, self.store.text(self.commit.files, "README.md")
        card = {} if card_errors(text) else front_matter(text) or {}
        info = {"id": repo.id, "author": repo.id.split("/")[0], "sha": self.commit.sha, "private": repo.private}
        info |= {"lastModified": self.commit.date, "createdAt": repo.created, "gated": False, "cardData": card}
        blobs, tags = "blobs" in self.query, card_tags(card)
        siblings = [{"rfilename": path, **(files[path].described if blobs else {})} for path in sorted(files)]
        if repo.kind == "model":
            guess = "sentence-transformers" if "modules.json" in files else "transformers"
            library = card.get("library_name", guess if "config.json" in files else None)
            info |= {"modelId": repo.id, "pipeline_tag": card.get("pipeline_tag"), "library_name": library}
            tags += as_list(library) + ["safetensors"] * any(path.endswith(".safetensors") for path in files)
        return {**info, "siblings": siblings, "tags": list(dict.fromkeys(tags))}

    @_route("GET", "<API>/tree/<COMMIT>(/<PATH>)?")
    def tree(self, path: str) -> Answer:
        path, files, deep = path.strip("/"), self.commit.files, self.query.get("recursive", "").lower() == "true"
        if path not in tree_ids(files):
            raise HubError(404, f"{path} does not exist", "EntryNotFound", {"X-Repo-Commit": self.commit.sha})
        prefix = f"{path}/" if path else ""
        names = [name for name in [*sorted(tree_ids(files)), *sorted(files)] if name and name.startswith(prefix)]
        names = [name for name in names if deep or "/" not in name[len(prefix) :]]
        start, limit = int(self.query.get("cursor", 0)), self.hub.page_size
        more = f'<{self.hub.url}{self.path}?recursive={deep}&cursor={start + limit}>; rel="next"'
        rows = self.commit.entries(names[start : start + limit])
        return Answer(rows, headers={"Link": more} if start + limit < len(names) else {})

    @_route("POST", "<API>/paths-info/<COMMIT>")
    def paths_info(self) -> list[dict[str, Any]]:
        form = self.json() if "json" in self.headers.get("Content-Type", "") else parse_qs(self.body.decode())
        return self.commit.entries([path.strip("/") for path in form.get("paths", [])])

    @_route("GET", "<API>/commits/<COMMIT>")
    def commits(self) -> list[dict[str, Any]]:
        return [
            {"id": c.sha, "title": c.title, "message": c.message, "date": c.date, "authors": [{"user": c.user}]}
            for c in self.store.history(self.repo, self.commit.sha)
        ]

    @_route("GET", "<PAGE>/resolve/<COMMIT>/<PATH>")
    def resolve(self, path: str) -> Answer:
        headers = {"X-Repo-Commit": self.commit.sha}  # on a 404, too: clients then remember that the file is not there
        file = self.commit.files.get(path)
        if file is None:
            raise HubError(404, "Entry not found", "EntryNotFound", headers)
        headers |= {"ETag": f'"{file.etag}"', "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        headers["Content-Disposition"] = f"inline; filename*=UTF-8''{quote(path.rsplit('/', 1)[-1])}"
        if file.sha256:
            headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.size)}
        return Answer(self.store.content(file), headers=headers)

    @_route("GET", "<API>/refs")
    def refs(self) -> dict[str, Any]:
        groups: dict[str, list[dict[str, str]]] = {"heads": [], "tags": []}
        for ref, sha in sorted(self.repo.refs.items()):
            _, group, name = ref.split("/", 2)
            groups[group].append({"name": name, "ref": ref, "targetCommit": sha})
        return {"branches": groups["heads"], "tags": groups["tags"], "converts": []}

    @_route("POST", "<API>/(?P<group>branch|tag)/<NAME>", write=True)
    def add_ref(self, group: str, name: str) -> dict[str, Any]:
        wanted, branch = self.json(), group == "branch"
        name, start = (name, wanted.get("startingPoint") or "main") if branch else (wanted["tag"], name)
        commit = self.store.at(self.repo, start)
        if not re.fullmatch(r"(?!refs/)[\w.+@-][\w.+@/-]*", name):
            raise HubError(400, f"Invalid reference for a {group}: {name}")
        ref = f"refs/{'heads' if branch else 'tags'}/{name}"
        if ref in self.repo.refs:
            raise HubError(409, f"Reference {ref} already exists")
        self.repo.refs[ref] = self.repo.pins.get(commit.sha, commit.sha)
        self.store.save(self.repo)
        return {}

    @_route("DELETE", "<API>/(?P<group>branch|tag)/<NAME>", write=True)
    def delete_ref(self, group: str, name: str) -> dict[str, Any]:
        ref = f"refs/{'heads' if group == 'branch' else 'tags'}/{name}"
        if ref == "refs/heads/main":
            raise HubError(403, f"Cannot delete {ref}")
        if self.repo.refs.pop(ref, None) is None:
            raise HubError(404, f"Invalid rev id: {ref}", "RevisionNotFound")
        self.store.save(self.repo)
        return {}

    @_route("POST", "<API>/preupload/<COMMIT>", write=True)
    def preupload(self) -> dict[str, Any]:
        attributes, rows = self.store.text(self.commit.files, ".gitattributes").splitlines(), []
        patterns = [line.split()[0] for line in attributes if "filter=lfs" in line]
        for new in self.json()["files"]:
            path, old = new["path"], self.commit.files.get(new["path"])
            mode = "lfs" if is_lfs(path, new["size"], patterns) else "regular"
            # By the oid the client sees that a file is unchanged, and leaves it out.
            rows.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": old.etag if old else None})
        return {"files": rows}

    @_route("POST", "<PAGE>[.]git/info/lfs/objects/batch", write=True)
    def lfs_batch(self) -> dict[str, Any]:
        rows = []
        for wanted in self.json()["objects"]:
            oid, row = wanted["oid"], {"oid": wanted["oid"], "size": wanted["size"]}
            if not self.store.has_lfs(oid):
                key = secrets.token_hex(16)
                self.hub.uploads[key] = oid
                upload, verify = f"{self.hub.url}/_upload/{oid}?key={key}", f"{self.hub.url}/_verify/{oid}"
                row["actions"] = {"upload": {"href": upload, "header": {}}, "verify": {"href": verify, "header": {}}}
            rows.append(row)
        return {"transfer": "basic", "objects": rows}

    @_route("PUT", "/_upload/<OID>")
    def upload(self, oid: str) -> dict[str, Any]:
        if self.hub.uploads.get(self.query.get("key", "")) != oid:
            raise HubError(403, "no such upload")
        self.store.lfs(oid, self.body)
        return {}

    @_route("POST", "/_verify/<OID>")
    def verify(self, oid: str) -> dict[str, Any]:
        if self.store.lfs(oid).size != self.json()["size"]:
            raise HubError(404, "The LFS object has another size")
        return {}

    @_route("POST", "<API>/commit/<NAME>", write=True)
    def make_commit(self, name: str) -> dict[str, Any]:
        header, *lines = [json.loads(line) for line in self.body.splitlines() if line.strip()]
        title, parent, ref = header["value"].get("summary"), header["value"].get("parentCommit"), f"refs/heads/{name}"
        if header["key"] != "header" or not title:
            raise HubError(400, "a commit needs a header with a summary")
        head = self.repo.refs.get(ref)
        if head is None:
            raise HubError(404, f"Invalid rev id: {name}", "RevisionNotFound")
        if parent and not head.startswith(self.repo.pins.get(parent, parent)):
            raise HubError(412, "The branch was updated since you opened this page. Please refresh and try again.")
        files = self.store.at(self.repo, head).files
        for line in lines:
            files = self.store.changed(files, line["key"], line["value"])
        if clash := set(files) & set(tree_ids(files)):
            raise HubError(400, f"both a file and a folder: {min(clash)}")
        message = header["value"].get("description", "")
        sha = self.store.commit(self.repo, ref, files, title, message=message, user=self.user().name)
        return {"success": True, "commitOid": sha, "commitUrl": f"{self.page()}/commit/{sha}"}
