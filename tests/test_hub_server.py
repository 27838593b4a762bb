"""The tests' own Hub, seen through the real clients."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile, RepoFolder

from tests.hub_server import Hub

# huggingface_hub 2.4 uploads LFS files in a way that httpx2 finds old-fashioned.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

PIN = "0123456789abcdef" * 2 + "01234567"
CARD = b"---\nlicense: apache-2.0\nlanguage: [de, en]\ntags: [synthetic]\n---\n# Card\n"


@pytest.fixture
def api(hub: Hub) -> HfApi:
    return HfApi(hub.url)


def commit(api: HfApi, repo_id: str, files: dict[str, bytes | None], **more: Any) -> CommitInfo:
    operations: list[Any] = [
        CommitOperationDelete(path, is_folder=False) if data is None else CommitOperationAdd(path, data)
        for path, data in files.items()
    ]
    done: CommitInfo = api.create_commit(repo_id, operations, commit_message="test", **more)
    return done


def status(error: pytest.ExceptionInfo[HfHubHTTPError]) -> int:
    return error.value.response.status_code


def test_repos_are_created_once_and_private_ones_are_hidden(hub: Hub, api: HfApi) -> None:
    assert api.whoami()["name"] == "tester"
    url = api.create_repo("acme/secret", private=True)
    assert str(url) == f"{hub.url}/acme/secret"
    assert api.create_repo("Acme/Secret".lower(), exist_ok=True).repo_id == "acme/secret"
    with pytest.raises(HfHubHTTPError, match="already created") as error:
        api.create_repo("acme/secret")
    assert status(error) == 409
    assert api.repo_info("acme/secret").private
    for token, expected in (("hf_reader", 404), (False, 401)):
        with pytest.raises(RepositoryNotFoundError) as missing:
            api.repo_info("acme/secret", token=token)
        assert status(missing) == expected
    api.delete_repo("acme/secret")
    assert not api.repo_exists("acme/secret")


def test_commits_are_read_back(api: HfApi, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo_id = api.create_repo("tester/read").repo_id
    files: dict[str, bytes | None] = {
        "README.md": CARD,
        "1_Pooling/config.json": b"{}",
        "model.safetensors": b"abc" * 99,
    }
    first = commit(api, repo_id, files)
    info = api.model_info(repo_id, files_metadata=True)
    assert info.sha == first.oid
    assert info.tags == ["synthetic", "license:apache-2.0", "language:de", "language:en", "safetensors"]
    sizes = {sibling.rfilename: sibling.size for sibling in info.siblings or []}
    assert {path: sizes[path] for path in files} == {path: len(data or b"") for path, data in files.items()}
    monkeypatch.setattr(hub, "page_size", 2)
    tree = {entry.path: entry for entry in api.list_repo_tree(repo_id, recursive=True)}
    assert list(tree) == ["1_Pooling", ".gitattributes", "1_Pooling/config.json", "README.md", "model.safetensors"]
    large, small = tree["model.safetensors"], tree["README.md"]
    assert isinstance(large, RepoFile) and isinstance(small, RepoFile)  # noqa: PT018
    assert large.lfs is not None
    assert small.lfs is None
    folder = Path(api.snapshot_download(repo_id, local_dir=tmp_path / "copy"))
    assert all((folder / path).read_bytes() == data for path, data in files.items())
    commit(api, repo_id, {"1_Pooling/config.json": None})
    assert [entry.path for entry in api.get_paths_info(repo_id, ["README.md", "1_Pooling"])] == ["README.md"]
    assert [row.title for row in api.list_repo_commits(repo_id)] == ["test", "test", "initial commit"]
    assert hub.commits("model", repo_id) == ["test", "test", "initial commit"]
    old = api.hf_hub_download(repo_id, "1_Pooling/config.json", revision=first.oid)
    assert Path(old).parts[-3] == first.oid


def test_a_commit_of_equal_content_is_none(api: HfApi, hub: Hub) -> None:
    repo_id = api.create_repo("tester/equal").repo_id
    files: dict[str, bytes | None] = {"a.txt": b"text", "b.onnx": b"binary"}
    assert commit(api, repo_id, files).oid == commit(api, repo_id, files).oid
    assert hub.commits("model", repo_id) == ["test", "initial commit"]


@pytest.mark.skipif(shutil.which("git") is None, reason="compares with git")
def test_ids_are_those_of_git(api: HfApi, tmp_path: Path) -> None:
    repo_id = api.create_repo("tester/git").repo_id
    for path in ("in/a/b.txt", "in/a.txt", "in/a-b/c.txt", "in/z"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(f"text of {path}\n")
    commit(
        api, repo_id, {p.relative_to(tmp_path).as_posix(): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    )
    for command in (["init", "-q"], ["add", "in"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    tree = subprocess.run(
        ["git", "write-tree", "--prefix=in/"], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    (folder,) = (entry for entry in api.list_repo_tree(repo_id) if isinstance(entry, RepoFolder))
    assert folder.tree_id == tree.stdout.strip()


def test_a_stale_parent_is_refused(api: HfApi, hub: Hub) -> None:
    repo_id = api.create_repo("tester/stale").repo_id
    head = api.repo_info(repo_id).sha
    commit(api, repo_id, {"a.txt": b"1"}, parent_commit=head)
    with pytest.raises(HfHubHTTPError, match="branch was updated") as error:
        commit(api, repo_id, {"a.txt": b"2"}, parent_commit=head)
    assert status(error) == 412
    assert len(hub.commits("model", repo_id)) == 2


def test_what_is_not_allowed_has_its_own_error(api: HfApi) -> None:
    repo_id = api.create_repo("tester/errors").repo_id
    commit(api, repo_id, {"a.txt": b"1"})
    for token, expected in (("hf_unknown", 401), ("hf_reader", 403), (False, 401)):
        with pytest.raises(HfHubHTTPError) as error:
            commit(api, repo_id, {"a.txt": b"2"}, token=token)
        assert status(error) == expected
    with pytest.raises(HfHubHTTPError, match="namespace 'google'") as error:
        api.create_repo("google/mine")
    assert status(error) == 403
    with pytest.raises(RepositoryNotFoundError):
        api.repo_info("tester/nothing")
    with pytest.raises(RepositoryNotFoundError):
        api.repo_info("no-namespace")
    with pytest.raises(RevisionNotFoundError):
        api.repo_info(repo_id, revision=PIN)
    with pytest.raises(RemoteEntryNotFoundError):
        api.hf_hub_download(repo_id, "b.txt")
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(repo_id, "folder"))
    assert api.hf_hub_download(repo_id, "a.txt", token="hf_reader")


@pytest.mark.parametrize(
    ("yaml", "problem"),
    [
        ("license: apache", '"license" must be one of'),
        ("language: German", '"language" must be'),
        ("base_model: a/b/c", '"base_model" must be'),
        ("model-index: [{name: x, results: [{task: {}}]}]", '"model-index" is not valid'),
    ],
)
def test_cards_are_checked(api: HfApi, hub: Hub, yaml: str, problem: str) -> None:
    repo_id = api.create_repo("tester/cards", exist_ok=True).repo_id
    with pytest.raises(ValueError, match=problem):
        commit(api, repo_id, {"README.md": f"---\n{yaml}\n---\n".encode()})
    ModelCard(CARD.decode()).validate()
    assert hub.commits("model", repo_id) == ["initial commit"]


def test_paths_lead_nowhere_else(hub: Hub, api: HfApi) -> None:
    repo_id = api.create_repo("tester/paths").repo_id
    header, line = (
        '{"key": "header", "value": {"summary": "x"}}',
        '{"key": "file", "value": {"path": "%s", "content": ""}}',
    )
    for path in ("../x", "a/../x", "/x", ".git/config", "a//b", r"a\\b"):
        url, headers = f"{hub.url}/api/models/{repo_id}/commit/main", {"Authorization": "Bearer hf_writer"}
        assert httpx2.post(url, content=f"{header}\n{line % path}", headers=headers).status_code == 422
    for path in ("/api/models/../lfs", "/api/models/..%2F../x", "/tester/paths/resolve/main/..%2Frepo.json"):
        assert httpx2.get(hub.url + path).status_code in (400, 401, 404)
    assert httpx2.put(f"{hub.url}/_upload/{'0' * 64}?key=guess", content=b"").status_code == 403


def test_branches_and_tags(api: HfApi) -> None:
    repo_id = api.create_repo("tester/refs").repo_id
    first = commit(api, repo_id, {"a.txt": b"1"})
    api.create_tag(repo_id, tag="v1")
    api.create_branch(repo_id, branch="next")
    second = commit(api, repo_id, {"a.txt": b"2"}, revision="next")
    refs = api.list_repo_refs(repo_id)
    assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": first.oid, "next": second.oid}
    assert {ref.name: ref.target_commit for ref in refs.tags} == {"v1": first.oid}
    assert Path(api.hf_hub_download(repo_id, "a.txt", revision="v1")).read_text() == "1"
    assert Path(api.hf_hub_download(repo_id, "a.txt", revision="next")).read_text() == "2"
    with pytest.raises(HfHubHTTPError) as error:
        api.create_tag(repo_id, tag="v1")
    assert status(error) == 409
    api.delete_tag(repo_id, tag="v1")
    api.delete_branch(repo_id, branch="next")
    assert [ref.ref for ref in api.list_repo_refs(repo_id).branches] == ["refs/heads/main"]


def test_a_folder_answers_under_a_foreign_revision(api: HfApi, hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1")
    sha = hub.put_folder("dataset", "mteb/toy", tmp_path, pin=PIN)
    assert hub.put_folder("dataset", "mteb/toy", tmp_path) == sha
    assert hub.commits("dataset", "mteb/toy") == [f"Import {tmp_path.name}", "initial commit"]
    assert api.dataset_info("mteb/toy", revision=PIN).sha == PIN
    path = api.hf_hub_download("mteb/toy", "a.txt", revision=PIN, repo_type="dataset")
    assert Path(path).parts[-2] == PIN
    with pytest.raises(RevisionNotFoundError):
        api.dataset_info("mteb/toy", revision=PIN[::-1])


def test_datasets_are_loaded_by_config_and_revision_and_streamed(api: HfApi, tmp_path: Path) -> None:
    from datasets import Dataset, load_dataset

    repo_id = api.create_repo("tester/rows", repo_type="dataset").repo_id
    configs = "".join(f"- {{config_name: {name}, data_files: {name}/train.parquet}}\n" for name in ("sts", "bitext"))
    for name, rows in (("sts", ["a", "b"]), ("bitext", ["c"])):
        (tmp_path / name).mkdir()
        Dataset.from_dict({"query": rows}).to_parquet(tmp_path / name / "train.parquet")
    (tmp_path / "README.md").write_text(f"---\nlicense: mit\nconfigs:\n{configs}---\n")
    sha = api.upload_folder(repo_id=repo_id, repo_type="dataset", folder_path=tmp_path).oid
    assert load_dataset(repo_id, "sts", split="train")["query"][:] == ["a", "b"]
    assert load_dataset(repo_id, "bitext", revision=sha)["train"]["query"][:] == ["c"]
    assert list(load_dataset(repo_id, "sts", split="train", streaming=True)) == [{"query": "a"}, {"query": "b"}]


@pytest.mark.parametrize("kind", ["500", "503", "409", "412", "401", "403", "404"])
def test_a_fault_is_a_status(api: HfApi, hub: Hub, kind: str) -> None:
    repo_id = api.create_repo("tester/faults", exist_ok=True).repo_id
    hub.fail("POST .*/commit/main", kind, after=1)
    commit(api, repo_id, {"a.txt": f"before {kind}".encode()})
    num_commits = len(hub.commits("model", repo_id))
    with pytest.raises(HfHubHTTPError) as error:
        commit(api, repo_id, {"a.txt": f"after {kind}".encode()})
    assert status(error) == int(kind)
    assert len(hub.commits("model", repo_id)) == num_commits
    assert [(row["status"], row["fault"]) for row in hub.log if row["fault"]] == [(int(kind), kind)]
    commit(api, repo_id, {"a.txt": f"after {kind}".encode()})
    assert len(hub.commits("model", repo_id)) == num_commits + 1


@pytest.mark.parametrize(("kind", "num_commits"), [("reset", 1), ("cut", 1), ("lost", 2)])
def test_a_fault_is_a_broken_connection(api: HfApi, hub: Hub, kind: str, num_commits: int) -> None:
    repo_id = api.create_repo(f"tester/{kind}").repo_id
    hub.fail("POST .*/commit/main", kind)
    with pytest.raises(httpx2.TransportError):
        commit(api, repo_id, {"a.txt": b"1"})
    assert len(hub.commits("model", repo_id)) == num_commits
    assert [(row["status"], row["fault"]) for row in hub.log if row["fault"]] == [(0, kind)]


def test_clients_resume_a_download_that_was_cut(api: HfApi, hub: Hub) -> None:
    repo_id, data = api.create_repo("tester/resumed").repo_id, bytes(range(256)) * 1000
    commit(api, repo_id, {"a.bin": data})
    hub.fail("GET .*/resolve/.*a[.]bin", "cut")
    assert Path(api.hf_hub_download(repo_id, "a.bin")).read_bytes() == data
    assert [row["fault"] for row in hub.log if row["path"].endswith("a.bin") and row["method"] == "GET"] == ["cut", ""]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("bytes=2-3", (206, "cd", "bytes 2-3/6")),
        ("bytes=4-", (206, "ef", "bytes 4-5/6")),
        ("bytes=-1", (206, "f", "bytes 5-5/6")),
        ("bytes=6-", (416, "", "bytes */6")),
        ("letters", (200, "abcdef", None)),
    ],
)
def test_parts_of_files(hub: Hub, tmp_path: Path, wanted: str, expected: tuple[int, str, str | None]) -> None:
    (tmp_path / "a.txt").write_text("abcdef")
    hub.put_folder("model", "tester/ranges", tmp_path)
    answer = httpx2.get(f"{hub.url}/tester/ranges/resolve/main/a.txt", headers={"Range": wanted})
    assert (answer.status_code, answer.text, answer.headers.get("Content-Range")) == expected


def test_the_hub_takes_known_faults_only(hub: Hub) -> None:
    with pytest.raises(ValueError, match="unknown fault '418'; known are 500"):
        hub.fail("GET", "418")
