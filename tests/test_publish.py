"""Publishing the model folder: whatever happens on the way, the repo is the old state or the new one."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd, HfApi

from dataset_builder.errors import EmbedsmithError, InputError, RunError
from dataset_builder.publish import HubArguments, differences, manifest, publish
from tests.hub_server import Hub
from tests.runs import embedsmith, folder_bytes


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return _folder(tmp_path / "old", seed=1)


@pytest.fixture
def new(tmp_path: Path) -> Path:
    return _folder(tmp_path / "new", seed=2)


def _folder(folder: Path, seed: int) -> Path:
    """A small model repo: weights (LFS), text files, one that only this seed has."""
    folder.mkdir()
    chance = random.Random(seed)
    (folder / "model.safetensors").write_bytes(chance.randbytes(60_000))
    (folder / "config.json").write_text(f'{{"seed": {seed}}}\n')
    (folder / "README.md").write_text(f"---\nlicense: apache-2.0\n---\n# Model {seed}\n")
    (folder / ".eval_results").mkdir()
    (folder / ".eval_results" / f"Task{seed}.yaml").write_text("[]\n")
    return folder


def state(repo: str, *folders: Path) -> int:
    """Return the place of the folder that is the whole content of the repo's main branch; -1 for none of them."""
    api = HfApi()
    sha = str(api.model_info(repo).sha)
    found = [i for i, folder in enumerate(folders) if not differences(api, repo, "model", sha, manifest(folder))]
    return found[0] if found else -1


def push(folder: Path, repo: str, max_tries: int = 12, **arguments: str | bool) -> str:
    return publish(folder, repo, "model", HubArguments(**arguments), message="Test", max_tries=max_tries)  # type: ignore[arg-type]


@pytest.fixture
def name(request: pytest.FixtureRequest) -> Iterator[str]:
    repo = "tester/" + "".join(c if c.isalnum() else "-" for c in request.node.name)[:80].strip("-")
    yield repo
    HfApi().delete_repo(repo, missing_ok=True)


@pytest.mark.parametrize("place", range(20))
def test_a_connection_that_breaks_at_any_byte_leaves_the_old_state_or_the_new(
    hub: Hub, old: Path, new: Path, name: str, place: int
) -> None:
    push(old, name)
    before = hub.num_received
    push(new, name + "-measure")
    total = hub.num_received - before
    HfApi().delete_repo(name + "-measure")
    hub.cut_after(random.Random(place).randrange(total))
    try:
        push(new, name, max_tries=1)
    except EmbedsmithError:
        assert state(name, old, new) == 0
    else:
        assert state(name, old, new) == 1
    push(new, name)
    assert state(name, old, new) == 1
    assert hub.commits("model", name)[:-1].count("Test") == 2


@pytest.mark.parametrize("call", ["commit", "preupload", "info/lfs/objects/batch", "tree", "repos/create"])
@pytest.mark.parametrize("kind", ["401", "403", "404", "409", "412", "429", "500", "503", "reset", "cut", "lost"])
def test_a_status_at_any_step_leaves_the_old_state_or_the_new(
    hub: Hub, old: Path, new: Path, name: str, kind: str, call: str
) -> None:
    push(old, name)
    hub.fail(f".*/{call}", kind)
    told = ""
    try:
        push(new, name, max_tries=1)
    except (InputError, RunError) as error:
        told = str(error)
    assert state(name, old, new) == (0 if told else 1) or (kind == "lost" and state(name, old, new) == 1)
    assert "\n" not in told
    hub.reset()
    push(new, name)
    assert state(name, old, new) == 1
    assert hub.commits("model", name).count("Test") == 2


def test_a_rival_commit_in_between_is_replaced_whole(hub: Hub, old: Path, new: Path, name: str) -> None:
    push(old, name)
    rival = HfApi()
    original: Any = HfApi.create_commit
    calls: list[int] = []

    class Late(HfApi):
        def create_commit(self, *args: object, **kwargs: object) -> object:  # type: ignore[override]
            if not calls:
                calls.append(1)
                operation = CommitOperationAdd("rival.txt", b"first")
                original(rival, name, [operation], commit_message="Rival")
            return original(self, *args, **kwargs)

    url = publish(new, name, "model", HubArguments(), message="Test", api=Late())
    assert state(name, old, new) == 1
    assert hub.commits("model", name)[:3] == ["Test", "Rival", "Test"]
    assert name in url


def test_two_publishers_at_once_end_with_the_content_of_one(hub: Hub, old: Path, new: Path, name: str) -> None:
    code = (
        "import sys; from pathlib import Path; from dataset_builder.publish import HubArguments, publish; "
        "publish(Path(sys.argv[1]), sys.argv[2], 'model', HubArguments(), message='Test')"
    )
    HfApi().create_repo(name)
    both = [subprocess.Popen([sys.executable, "-c", code, str(folder), name]) for folder in (old, new)]
    assert [one.wait(timeout=120) for one in both] == [0, 0]
    assert state(name, old, new) in (0, 1)


def test_a_branch_and_a_tag(hub: Hub, old: Path, new: Path, name: str) -> None:
    push(old, name)
    url = push(new, name, hub_revision="candidate", hub_tag="v1.0")
    api = HfApi()
    assert state(name, old, new) == 0
    assert api.model_info(name, revision="v1.0").sha == api.model_info(name, revision="candidate").sha
    assert url.endswith(str(api.model_info(name, revision="candidate").sha))
    assert push(new, name, hub_revision="candidate", hub_tag="v1.0") == url
    with pytest.raises(InputError, match=r"its tag 'v1\.0' stands at another commit"):
        push(old, name, hub_revision="candidate", hub_tag="v1.0")


def test_a_private_repo(hub: Hub, new: Path, name: str) -> None:
    push(new, name, hub_private_repo=True)
    assert HfApi().model_info(name).private
    public = name + "-public"
    push(new, public)
    with pytest.raises(InputError, match="exists and is public"):
        push(new, public, hub_private_repo=True)


def test_a_dataset_of_that_name_is_not_taken_for_the_model(hub: Hub, new: Path, name: str) -> None:
    HfApi().create_repo(name, repo_type="dataset")
    with pytest.raises(InputError, match="is a dataset on the Hub and no model"):
        push(new, name)
    HfApi().delete_repo(name, repo_type="dataset")


def test_write_access_is_checked_before_anything_is_read_or_sent(
    hub: Hub, judged: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    HfApi().create_repo("acme/foreign", exist_ok=True)
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    before = folder_bytes(judged / "model")
    assert embedsmith("push-model", "--output_dir", judged, "--hub_model_id", "acme/foreign") == 2
    error = capsys.readouterr().err
    assert "may not write to acme/foreign" in error
    assert "hf_reader" not in error
    assert not [row for row in hub.log if "preupload" in row["path"] or "commit" in row["path"]]
    assert folder_bytes(judged / "model") == before


@pytest.mark.parametrize(
    ("kind", "code", "message"),
    [
        ("401", 2, "does not accept the token"),
        ("403", 2, "may not write"),
        ("404", 2, "HTTP 404"),
        ("409", 1, "HTTP 409"),
        ("412", 1, "HTTP 412"),
        ("429", 1, "HTTP 429"),
        ("503", 1, "HTTP 503"),
        ("reset", 1, "failed 12 times"),
    ],
)
def test_a_hub_that_keeps_failing_is_one_sentence(
    hub: Hub,
    judged: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    code: int,
    message: str,
) -> None:
    monkeypatch.setattr("dataset_builder.publish.time.sleep", lambda seconds: None)
    hub.fail("POST .*/commit/", kind, times=100)
    repo = f"tester/keeps-{kind}"
    assert embedsmith("push-model", "--output_dir", judged, "--hub_model_id", repo) == code
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert hub.commits("model", repo) == ["initial commit"]


def test_a_hub_that_is_not_there_is_one_sentence(judged: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9"}
    code = (
        "import sys, dataset_builder.publish as p; p.time.sleep = lambda seconds: None; "
        "import embedsmith; sys.exit(embedsmith.main(sys.argv[1:]))"
    )
    flags = ["push-model", "--output_dir", str(judged), "--hub_model_id", "tester/nowhere"]
    done = subprocess.run(
        [sys.executable, "-c", code, *flags], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: The Hub failed 12 times while tester/nowhere")
    assert "Traceback" not in done.stderr


def test_a_full_disk_is_one_sentence_and_leaves_the_files(judged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = folder_bytes(judged / "model")
    (judged / "model" / "MTEB.md").unlink()
    shutil.copy("/dev/null", judged / "model" / "MTEB.md")
    import resource  # a limit on the size of files stands for a disk without room

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        code = embedsmith("report", "--output_dir", judged)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 1
    assert "error: File too large" in capsys.readouterr().err
    assert folder_bytes(judged / "model")["README.md"] == before["README.md"]
    assert not list((judged / "model").glob("*.partial"))
