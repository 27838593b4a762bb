"""The verb `browse`: the page holds what the run holds, a sample if that is much, and nothing of it as HTML."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataset_builder.config import CurationArguments, PlanArguments
from dataset_builder.dataset import REJECTED_COLUMNS, curate
from dataset_builder.plan import generate_requests
from dataset_builder.schema import COLUMNS, SUBGROUPS
from dataset_builder.survey import sample
from tests.replies import SENTENCES, answers, ask_recorded, completion, read_parquet
from tests.runs import embedsmith

ATTACK = "</script><script>alert(1)</script><img src=x onerror=alert(2)><!-- Überfall"
REASONS = ("json", "language", "duplicate")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A curated run in five languages, with one reply that is an attack and one refused."""
    plan = PlanArguments(
        output_dir=str(tmp_path_factory.mktemp("browse")),
        num_examples=120,
        languages=["en", "de", "ar", "he", "zh"],
        tasks_per_brainstorm=8,
        examples_per_task=1,
    )
    first, second, *_ = (request.id for request in generate_requests(plan))
    refused = completion(None)
    refused["choices"][0]["message"]["refusal"] = "I cannot."
    ask_recorded(plan, answers(plan) | {first: completion(ATTACK), second: refused})
    curate(plan, CurationArguments(test_size=0.3, max_length_factor=0))
    assert embedsmith("browse", "--output_dir", plan.output_dir, "--dataset_title", "Deer & <b>Boar</b>") == 0
    return plan.run_dir


def page_of(run: Path) -> str:
    return (run / "browse.html").read_text(encoding="utf-8")


def data_of(page: str) -> dict[str, Any]:
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert match
    data: dict[str, Any] = json.loads(match[1])
    return data


def write_table(path: Path, rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, pa.schema([(name, pa.string()) for name in columns])), path)


def write_corpus(run: Path, num: int, query: str = "what is it", document: str | None = None) -> Counter[Any]:
    """Write `num` replies, one in ten rejected, in two shards a split; return how many each stratum has."""
    strata: Counter[Any] = Counter()
    shards: dict[Path, list[dict[str, Any]]] = {}
    rejected = []
    for i in range(num):
        subgroup, language = SUBGROUPS[i % 6], ("en", "en", "en", "en", "de", "ar", "zh")[i % 7]
        asked = {"language": language, "positive_language": language, "num_words": 50}
        row = {"id": f"{subgroup}-generate-{i:06}", "prompt": f"{subgroup}/generate/item"}
        outcome = REASONS[i % 3] if i % 10 == 0 else "kept"
        strata[subgroup, language, outcome] += 1
        if outcome != "kept":
            more = {"reason": outcome, "detail": "so it is", "reply": f"no {i}", "attributes": json.dumps(asked)}
            rejected.append(row | more | {"subgroup": subgroup})
            continue
        row |= {"query": f"{query} {i}", "positive": document or SENTENCES[language], "instruction": "Find it."}
        row |= {"language": language, "positive_language": language, "task_id": f"{subgroup}-{i % 50}"}
        row |= {"model": "test-llm", "attributes": json.dumps({"num_words": 50})}
        split = "test" if i % 11 == 0 else f"train-0000{i % 2}-of-00002"
        name = split if split != "test" else "test-00000-of-00001"
        shards.setdefault(run / "dataset" / subgroup / f"{name}-abc.parquet", []).append(row)
    for path, rows in shards.items():
        write_table(path, rows, COLUMNS)
    write_table(run / "rejected" / "train-00000-of-00001.parquet", rejected, REJECTED_COLUMNS)
    return strata


def test_the_page_holds_the_whole_run(run_dir: Path) -> None:
    data = data_of(page_of(run_dir))
    rows = {row["id"]: row for row in data["rows"]}
    files = [path for path in (run_dir / "dataset").rglob("*.parquet") if path.parent.name != "tasks"]
    examples = read_parquet(*files)
    rejected = read_parquet(*(run_dir / "rejected").glob("*.parquet"))
    assert data["total"] == 120 == len(rows)
    assert rejected
    assert {id_ for id_, row in rows.items() if row["outcome"] == "kept"} == {row["id"] for row in examples}
    for example in examples:
        row = rows[example["id"]]
        assert row["task"] == example["instruction"]
        assert row["attributes"] == json.loads(example["attributes"])
        for name in ("language", "positive_language", "model", "prompt"):
            assert row.get(name) == example[name]
        for name in ("query", "positive", "negative"):
            assert (row.get(name) or "")[:1900] == (example[name] or "")[:1900]  # long texts are cut
    for reply in rejected:
        row = rows[reply["id"]]
        assert [row["outcome"], row["detail"], row["reply"]] == [reply[name] for name in ("reason", "detail", "reply")]
        assert row["language"] == json.loads(reply["attributes"])["language"]
    assert data["languages"]["ar"] == {"name": "Arabic", "script": "Arab", "tag": "ar", "dir": "rtl"}
    assert data["languages"]["zh"]["tag"] == "zh-Hans"
    assert f"<b>{len(examples)}</b>examples kept" in page_of(run_dir)
    assert f"<b>{len(rejected)}</b>replies rejected" in page_of(run_dir)
    assert "Showing all 120." in page_of(run_dir)


def test_nothing_is_loaded_and_nothing_is_interpreted(run_dir: Path) -> None:
    page = page_of(run_dir)
    assert any(row.get("reply") == ATTACK for row in data_of(page)["rows"])
    assert page.count("<script") == page.count("</script>") == 2
    assert "alert(1)</script>" not in page
    assert "<h1>Deer &amp; &lt;b&gt;Boar&lt;/b&gt;</h1>" in page
    own = re.sub(r'(<script type="application/json" id="data">).*?(</script>)', r"\1\2", page, flags=re.DOTALL)
    assert "default-src 'none'" in own
    assert all(target.startswith("#") for target in re.findall(r'(?:src|href|action)\s*=\s*"([^"]*)"', own))
    for word in ("//cdn", "http:", "https:", "@import", "url(", "fetch(", "XMLHttpRequest", "innerHTML", "import("):
        assert word not in own, word


def test_a_sample_says_so_and_has_every_stratum(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    strata = write_corpus(tmp_path, 3000)
    assert embedsmith("browse", "--output_dir", tmp_path, "--max_examples", 500) == 0
    output = capsys.readouterr()
    assert output.out.strip() == str(tmp_path / "browse.html")
    assert "500 of 3,000" in output.err
    page = page_of(tmp_path)
    rows = data_of(page)["rows"]
    shown = Counter((row["subgroup"], row["language"], row["outcome"]) for row in rows)
    assert len({row["id"] for row in rows}) == len(rows) == 500
    assert set(shown) == set(strata)
    for stratum, count in strata.items():
        assert shown[stratum] == pytest.approx(1 + (count - 1) * (500 - len(strata)) / (3000 - len(strata)), abs=1)
    assert "Showing 500 of 3,000:" in page
    assert "at least one of every combination" in page
    assert "<b>2,700</b>examples kept" in page
    assert "<b>300</b>replies rejected" in page
    for reason in REASONS:
        count = sum(n for (_, _, outcome), n in strata.items() if outcome == reason)
        assert re.search(rf'href="#outcome={reason}" title="0 kept, {count} rejected"', page)
    for subgroup in SUBGROUPS:
        kept = sum(n for (name, _, outcome), n in strata.items() if name == subgroup and outcome == "kept")
        assert f'href="#subgroup={subgroup}" title="{kept} kept, {500 - kept} rejected"' in page
    assert embedsmith("browse", "--output_dir", tmp_path, "--max_examples", 500) == 0
    assert page_of(tmp_path) == page


def test_more_strata_than_room_are_the_largest_ones(tmp_path: Path) -> None:
    strata = write_corpus(tmp_path, 3000)
    assert embedsmith("browse", "--output_dir", tmp_path, "--max_examples", 20) == 0
    shown = {(row["subgroup"], row["language"], row["outcome"]) for row in data_of(page_of(tmp_path))["rows"]}
    assert sorted(strata[stratum] for stratum in shown) == sorted(strata.values())[-20:]
    assert re.search(r"20 of the \d+ combinations", page_of(tmp_path))


def test_a_sample_takes_the_smallest_hashes() -> None:
    strata = np.array([0, 0, 0, 0, 1, 2], np.int64)
    hashes = np.array([9, 2, 4, 7, 5, 5], np.uint64)
    assert sample(strata, hashes, 4).tolist() == [False, True, True, False, True, True]
    for num in range(1, 8):
        assert sample(strata, hashes, num).sum() == min(num, 6)


def test_long_texts_are_cut_so_that_the_page_stays_small(tmp_path: Path) -> None:
    write_corpus(tmp_path / "few", 40, document="word " * 1000)
    assert embedsmith("browse", "--output_dir", tmp_path / "few") == 0
    row = next(row for row in data_of(page_of(tmp_path / "few"))["rows"] if row["outcome"] == "kept")
    assert row["positive"] == "word " * 400
    assert row["lengths"] == {"positive": 5000}
    assert "Texts are cut after 2,000 characters." in page_of(tmp_path / "few")
    write_corpus(tmp_path / "many", 8000, document="字" * 3000)
    assert embedsmith("browse", "--output_dir", tmp_path / "many") == 0
    assert 5e6 < (tmp_path / "many" / "browse.html").stat().st_size < 10e6
    assert "a smaller --max_examples" in page_of(tmp_path / "many")


def test_words_are_counted_in_all_scripts(tmp_path: Path) -> None:
    write_corpus(tmp_path, 420, query=" one\ntwo  three", document="字" * 30)
    assert embedsmith("browse", "--output_dir", tmp_path) == 0
    lengths = re.findall(
        r'title="10%: (\d+), median: (\d+), 90%: (\d+) words">\s*<span[^>]*>([\w ]+)<', page_of(tmp_path)
    )
    assert {row[3] for row in lengths} == {"query", "positive"}
    assert {row[1] for row in lengths if row[3] == "query"} == {"4"}
    assert {row[2] for row in lengths if row[3] == "positive"} == {"20"}  # where the language is Chinese


def test_a_run_of_which_nothing_was_kept_can_be_looked_at(tmp_path: Path) -> None:
    row = dict.fromkeys(REJECTED_COLUMNS) | {"id": "sts-brainstorm-0", "subgroup": "sts", "reason": "json"}
    write_table(tmp_path / "rejected" / "train.parquet", [row | {"attributes": '{"num_tasks": 3}'}], REJECTED_COLUMNS)
    assert embedsmith("browse", "--output_dir", tmp_path) == 0
    assert data_of(page_of(tmp_path))["rows"][0]["outcome"] == "json"
    assert "<b>0</b>examples kept" in page_of(tmp_path)


def test_what_cannot_be_shown_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refusal(*flags: object) -> str:
        assert embedsmith("browse", "--output_dir", tmp_path, *flags) == 2
        assert not (tmp_path / "browse.html").exists()
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    assert "no dataset" in refusal()
    assert "run `embedsmith curate` first" in refusal()
    assert "`max_examples` is 0" in refusal("--max_examples", 0)
    path = tmp_path / "dataset" / "sts" / "train-00000-of-00001.parquet"
    write_table(path, [], COLUMNS)
    assert "no replies" in refusal()
    write_table(path, [{"query": "x"}], ("query",))
    assert "no column 'positive'" in refusal()
    path.write_bytes(b"PAR1 and no more")
    assert "cannot be read" in refusal()


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def opened(page: Path, state: str, folder: Path) -> str:
    """Return the body as Chromium renders it, up to the data."""
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --window-size=1200,900 --virtual-time-budget=5000"
    command = [str(CHROMIUM), *flags.split(), f"--user-data-dir={folder}", "--dump-dom", f"{page.as_uri()}#{state}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    return done.stdout[done.stdout.index("<body>") : done.stdout.index('<script type="application/json"')]


def articles(body: str) -> list[str]:
    return re.findall(r"<article.*?</article>", body, re.DOTALL)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome is installed")
def test_a_browser_filters_searches_and_turns_pages(run_dir: Path, tmp_path: Path) -> None:
    page = run_dir / "browse.html"
    rows = data_of(page_of(run_dir))["rows"]

    def count(body: str) -> str:
        match = re.search(r'<p id="count"[^>]*>([^<]*)</p>', body)
        assert match
        return html.unescape(match[1])

    everything = opened(page, "", tmp_path)
    assert count(everything) == "1–50 of 120"
    assert len(articles(everything)) == 50
    assert count(opened(page, "page=3", tmp_path)) == "101–120 of 120"
    assert count(opened(page, "page=99", tmp_path)) == "101–120 of 120"

    arabic = [
        row for row in rows if "ar" in (row["language"], row["positive_language"]) and row["subgroup"] == "bitext"
    ]
    found = opened(page, "subgroup=bitext&language=ar", tmp_path)
    assert count(found) == f"1–{len(arabic)} of {len(arabic)} that match, out of 120"
    assert {row["id"] for row in arabic} == set(re.findall(r">(bitext-generate-[^<]+)</a>", found))
    assert re.search(rf'<option value="ar">Arabic \({len(arabic)}\)', found)
    for text in re.findall(r'<div class="text clip"[^>]*>', found):
        assert ('dir="rtl"' in text) == ('lang="ar"' in text or 'lang="he"' in text)
        assert re.search(r'lang="(ar|he|en|de|zh-Hans)"', text)
    hebrew = [row for row in rows if "he" in (row["language"], row["positive_language"])]
    assert f"of {len(hebrew)} that match" in count(opened(page, "script=Hebr", tmp_path))

    assert "1–1 of 1 that" in count(opened(page, f"q={rows[0]['id'].upper()}", tmp_path))
    decomposed = opened(page, "q=u%CC%88BERFALL", tmp_path)  # NFD and in another case
    assert "1–1 of 1 that" in count(decomposed)
    assert "<mark>Überfall</mark>" in decomposed
    assert count(opened(page, "q=%22no+such+phrase%22", tmp_path)) == "none that match, out of 120"

    rejected = opened(page, "outcome=rejected", tmp_path)
    assert len(articles(rejected)) == sum(row["outcome"] != "kept" for row in rows)
    assert html.escape(ATTACK, quote=False) in rejected  # text, where its elements would stand as such
    assert "<img" not in rejected
    refused = opened(page, "outcome=refusal", tmp_path)
    assert len(articles(refused)) == 1
    assert "the LLM refused: " in refused
    assert len(articles(opened(page, "outcome=kept&split=test", tmp_path))) == min(
        50, sum(row.get("split") == "test" for row in rows)
    )


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome is installed")
def test_a_large_corpus_is_written_and_opens_within_seconds(tmp_path: Path) -> None:
    write_corpus(tmp_path, 100_000, document=" ".join(SENTENCES.values())[:3000])
    started = time.process_time()  # of this process alone, whatever else the machine does
    assert embedsmith("browse", "--output_dir", tmp_path) == 0
    assert time.process_time() - started < 15
    started = time.monotonic()
    body = opened(tmp_path / "browse.html", "q=what", tmp_path / "profile")
    assert time.monotonic() - started < 30  # with the start of the browser
    assert "Showing 5,000 of 100,000:" in body
    assert len(articles(body)) == 50
