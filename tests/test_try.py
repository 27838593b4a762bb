"""The verb `try`: the nearest texts of a corpus, in the terminal and on a page."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
import torch

from model_card.try_model import nearest, plane
from tests.runs import embedsmith


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("A cat sleeps on the sofa.\n\nThe bank raises its rates.\nA cat sleeps on the sofa.\n</script>\n")
    return path


def test_queries_are_answered_by_the_nearest_texts(
    judged_once: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus.write_text("A cat sleeps on the sofa.\nThe bank raises its rates.\n")
    flags = ("--corpus", corpus, "--query", "a sleeping cat", "interest rates of banks", "--top_k", 1)
    assert embedsmith("try", "--output_dir", judged_once, *flags) == 0
    out = capsys.readouterr().out
    assert re.search(r"Query: a sleeping cat\n  \+0\.\d{3} A cat sleeps on the sofa\.\n", out)
    assert re.search(r"Query: interest rates of banks\n  \+0\.\d{3} The bank raises its rates\.\n", out)


def test_queries_come_from_standard_input(
    judged_once: Path, corpus: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("cats\n\nmoney\n"))
    assert embedsmith("try", "--output_dir", judged_once, "--corpus", corpus) == 0
    assert capsys.readouterr().out.count("Query: ") == 2


def test_the_documents_of_the_dataset_are_the_corpus(judged_once: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert embedsmith("try", "--output_dir", judged_once, "--query", "law", "--max_texts", 40) == 0
    told = capsys.readouterr()
    assert "40 texts" in told.err
    assert re.search(r"\[[a-z-]+, [a-z]{2,3}\]", told.out)


def test_the_page_holds_the_corpus_its_map_and_the_queries(
    judged: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--corpus", corpus, "--query", "cats", "--html")
    assert embedsmith("try", "--output_dir", judged, *flags) == 0
    assert capsys.readouterr().out.strip().endswith("try.html")
    page = (judged / "try.html").read_text()
    assert page.count("</script>") == 1  # the text of that name did not end the script
    data = json.loads(re.search(r"const data = (.*);\n", page)[1])  # type: ignore[index]
    assert [text["text"] for text in data["texts"]] == [
        "A cat sleeps on the sofa.",
        "The bank raises its rates.",
        "</script>",
    ]
    assert len(data["places"]) == 3
    assert all(len(near) == 2 and i not in [place for place, _ in near] for i, near in enumerate(data["near"]))
    assert data["queries"][0]["text"] == "cats"
    assert "http" not in page


@pytest.mark.parametrize("num", [1, 2, 10, 80])
def test_every_text_has_a_place_in_the_plane(num: int) -> None:
    vectors = torch.nn.functional.normalize(torch.randn(num, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    places = plane(vectors)
    assert places.shape == (num, 2)
    assert abs(places).max() <= 1.0
    assert (places == plane(vectors)).all()


def test_nearest_is_by_cosine() -> None:
    corpus = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]), dim=-1)
    hits = nearest(corpus[:1], corpus, 2)[0]
    assert [hit.place for hit in hits] == [0, 1]
    assert hits[1].similarity == pytest.approx(2**-0.5, abs=1e-6)


@pytest.mark.parametrize(
    ("flags", "message"),
    [(("--corpus", "nowhere.txt"), "cannot be read"), (("--top_k", "0"), "must be at least 1")],
)
def test_bad_input_is_one_sentence(
    judged_once: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], message: str
) -> None:
    assert embedsmith("try", "--output_dir", judged_once, "--query", "x", *flags) == 2
    assert message in capsys.readouterr().err


def test_an_empty_corpus_is_refused(judged_once: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.txt").write_text("\n\n")
    assert embedsmith("try", "--output_dir", judged_once, "--query", "x", "--corpus", tmp_path / "empty.txt") == 2
    assert "no texts to search" in capsys.readouterr().err
