"""Overlap with the test sets of unmodified mteb tasks, which load small repos of the real layout from the local Hub."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from datasets import Dataset

from dataset_builder import contamination
from dataset_builder.checks import normalize
from dataset_builder.contamination import Overlap, TaskCount, report
from dataset_builder.errors import InputError
from dataset_builder.mteb_texts import tasks_named
from dataset_builder.words import words
from tests.conftest import HUB

LONG = "The spokesman said on Monday that the two companies had not yet agreed on a price for the harbour."
SHORT = "A man is playing the flute by the river."
PARAGRAPH = (
    "Der Käufer kann vom Vertrag zurücktreten, wenn der Verkäufer die Sache auch nach einer angemessenen Frist nicht "
    "in den vereinbarten Zustand versetzt hat."
)
QUERY = "How long do I have to wait for my new card before I should tell the bank that it is lost?"
CHINESE = "请问我的银行卡丢失以后应该在多长时间之内通知银行并且重新申请一张新的卡片呢"
FRENCH = "Je crois que nous devrions partir demain matin avant que la pluie ne recommence à tomber sur les collines."
SUMMARY = "The mayor promised that the bridge will be open again before the first snow falls in the high valleys."
PORTUGUESE = "Um grupo de crianças está brincando no quintal de uma casa velha enquanto o avô olha da janela da cozinha"
TITLE = "Gesetz über den Widerruf von Verträgen"

Repo = tuple[str, str, dict[str, list[dict[str, Any]]]]
REPOS: list[Repo] = [  # (repo, pinned revision, rows by "config/split")
    (
        "mteb/sts13-sts",
        "7e90230a92c190f1bf69ae9002b8cea547a64cca",
        {"default/test": [{"sentence1": LONG, "sentence2": SHORT, "score": 3.0}]},
    ),
    (
        "mteb/LegalQuAD",
        "37aa6cfb01d48960b0f8e3f17d6e3d99bf1ebc3e",
        {
            "corpus/test": [{"_id": "a long id that is no text at all", "title": TITLE, "text": PARAGRAPH}],
            "queries/test": [{"_id": "q1", "text": "Wann kann ein Käufer zurücktreten?"}],
            "default/test": [{"query-id": "q1", "corpus-id": "a long id that is no text at all", "score": 1}],
        },
    ),
    (
        "mteb/DiaBlaBitextMining",
        "c458e9bf4306d6380604462926a38c34861b4d3b",
        {
            "fr-en/test": [{"sentence1": FRENCH, "sentence2": "Yes."}],
            "en-fr/test": [{"sentence1": "Yes.", "sentence2": FRENCH}],
        },
    ),
    (
        "mteb/banking77",
        "0fd18e25b25c072e09e0d92ab615fda904d66300",
        {
            "default/train": [{"text": "Only for training: " + PARAGRAPH[::-1], "label": 1, "label_text": "joy"}],
            "default/test": [{"text": QUERY, "label": 0, "label_text": "lost card or stolen card"}],
        },
    ),
    (
        "C-MTEB/LCQMC",
        "17f9b096f80380fce5ed12a9be8be7784b337daf",
        {"default/test": [{"sentence1": CHINESE, "sentence2": "怎么办理", "score": 0}]},
    ),
    (
        "mteb/summeval",
        "cda12ad7615edc362dbf25a00fdd61d3b1eaf93c",
        {
            "default/test": [
                {"id": "s1", "text": "No.", "human_summaries": ["Open soon.", SUMMARY], "machine_summaries": ["Shut."]}
            ]
        },
    ),
    (
        "eduagarcia/sick-br",
        "0cdfb1d51ef339011c067688a3b75b82f927c097",
        {
            f"default/{split}": [
                {"sentence_A": text, "sentence_B": "Não.", "entailment_label": label} for label in (0, 2)
            ]
            for split, text in (("train", LONG), ("validation", LONG), ("test", PORTUGUESE))
        },
    ),
]
TASKS = ["STS13", "LegalQuAD", "DiaBlaBitextMining", "Banking77Classification", "LCQMC", "SummEvalSummarization.v2"]
TASKS.append("SICK-BR-PC")  # its data become lists within lists


def put(folder: Path, repo: str, revision: str, rows: dict[str, list[dict[str, Any]]]) -> None:
    configs: dict[str, list[dict[str, str]]] = {}
    for name, of_split in rows.items():
        config, split = name.split("/")
        path = folder / repo / config / f"{split}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_list(of_split).to_parquet(path)
        configs.setdefault(config, []).append({"split": split, "path": f"{config}/{split}.parquet"})
    front = {"configs": [{"config_name": config, "data_files": files} for config, files in configs.items()]}
    (folder / repo / "README.md").write_text(f"---\n{yaml.safe_dump(front)}---\n", encoding="utf-8")
    HUB.put_folder("dataset", repo, folder / repo, pin=revision)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> contamination.TestSets:
    folder = tmp_path_factory.mktemp("repos")
    for repo in REPOS:
        put(folder, *repo)
    return contamination.TestSets.of_tasks(TASKS)


def of_texts(*texts: str, ngram: int = 13) -> contamination.TestSets:
    return contamination.TestSets.of_texts([("Toy", texts)], ngram)


def found(index: contamination.TestSets, text: str) -> tuple[str, str] | None:
    return index.find(words(normalize(text)))


@pytest.mark.parametrize(
    ("task", "text"),
    [
        ("STS13", LONG),
        ("STS13", SHORT),
        ("LegalQuAD", PARAGRAPH),
        ("LegalQuAD", TITLE),
        ("DiaBlaBitextMining", FRENCH),
        ("Banking77Classification", QUERY),
        ("LCQMC", CHINESE),
        ("SummEvalSummarization.v2", SUMMARY),
        ("SICK-BR-PC", PORTUGUESE),
    ],
)
def test_a_copy_of_a_test_text_is_found(index: contamination.TestSets, task: str, text: str) -> None:
    for copy in (text, text.upper().replace(" ", "  ").replace(".", "!?"), f"„{text}“"):
        overlap = found(index, copy)
        assert overlap is not None
        assert overlap[0] == task
        assert overlap[1] in normalize(text)


def test_what_a_model_is_not_judged_by_is_not_looked_for(index: contamination.TestSets) -> None:
    ordinary = [
        "Only for training: " + PARAGRAPH[::-1],
        "lost card or stolen card",
        "a long id that is no text at all",
        "joy",
        "Yes.",
        "怎么办理",
        "The spokesman of the two companies said that the price for the harbour had not yet been agreed on by Monday.",
        "Was tun, wenn eine Sache nach einer angemessenen Frist nicht in den vereinbarten Zustand versetzt wurde?",
        "我的手机丢了，请问在哪里可以买到一部新的？",
        "",
    ]
    assert [found(index, text) for text in ordinary] == [None] * len(ordinary)


def test_the_counts_of_a_task(index: contamination.TestSets) -> None:
    counts = {count.task: count for count in index.counts}
    assert list(counts) == TASKS
    assert counts["STS13"] == TaskCount("STS13", num_texts=2, num_too_short=0, num_ngrams=19 - 12 + 1)
    assert counts["DiaBlaBitextMining"] == TaskCount("DiaBlaBitextMining", 2, 2, 19 - 12)
    assert counts["Banking77Classification"] == TaskCount("Banking77Classification", 1, 0, 21 - 12)
    assert np.array_equal(index.hashes, np.unique(index.hashes))
    assert index.hashes.shape == index.tasks.shape == (sum(count.num_ngrams for count in index.counts),)


def test_thirteen_words_in_a_row_are_an_overlap_and_twelve_are_none(index: contamination.TestSets) -> None:
    parts = words(normalize(LONG))
    snippet = " ".join(parts[3:16])
    assert found(index, f"It is known, {snippet} and so on") == ("STS13", snippet)
    assert found(index, f"It is known, {' '.join(parts[3:15])} and so on, with many words more") is None
    assert found(of_texts(LONG, ngram=8), f"It is known, {' '.join(parts[3:11])} and so on")


def test_a_short_text_counts_when_it_recurs_whole(index: contamination.TestSets) -> None:
    assert found(index, SHORT) == ("STS13", normalize(SHORT))
    assert found(index, f"{SHORT} {SHORT}") is None
    assert found(index, f"In this film, {SHORT} The river is the Loire, and it is a warm summer.") is None
    assert found(of_texts("He is dancing."), "He is dancing.") is None
    assert found(of_texts("He is dancing now."), "He is dancing now.")


def test_chinese_characters_are_weighed(index: contamination.TestSets) -> None:
    assert found(index, "你好。" + CHINESE[5:28] + "？") == ("LCQMC", CHINESE[5:28])
    assert found(index, "你好。" + CHINESE[5:27] + "？") is None  # 22 characters: less than 13 words
    assert found(index, "Please read: " + CHINESE[5:28] + " and answer") == ("LCQMC", CHINESE[5:28])
    thai = "คณะกรรมการจะประชุมอีกครั้งในเดือนหน้าเพื่อหารือเกี่ยวกับงบประมาณของเส้นทางรถไฟสายใหม่"
    assert found(of_texts(thai), f"ที่นี่ {thai} ที่นี่")
    assert found(of_texts(thai), thai[: len(thai) // 2]) is None
    label = "新闻报道栏"  # 5 characters: 3 words
    assert found(of_texts(label), label) is None


def test_zeros_and_bars_are_no_overlap() -> None:
    zeros, bars = "0 " * 40, "| a " * 10
    assert found(of_texts(zeros, bars), f"The answer is {zeros}") is None
    index = of_texts(zeros + LONG)
    overlap = found(index, zeros + LONG)
    assert overlap is not None
    assert "spokesman" in overlap[1]


def test_the_first_task_that_has_an_ngram_is_named() -> None:
    index = contamination.TestSets.of_texts([("A", [LONG]), ("B", [LONG, FRENCH]), ("C", [])])
    assert [found(index, text) for text in (LONG, FRENCH)] == [
        ("A", " ".join(words(normalize(LONG))[:13])),
        ("B", " ".join(words(normalize(FRENCH))[:13])),
    ]
    assert index.counts[2] == TaskCount("C", 0, 0, 0)


def test_no_test_sets_find_nothing() -> None:
    assert found(contamination.TestSets.of_texts([]), LONG) is None
    assert found(contamination.TestSets.of_texts([]), SHORT) is None


def test_many_texts_are_sorted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"{number} {LONG} {number + 1}" for number in range(200)]
    at_once = of_texts(*texts)
    monkeypatch.setattr(contamination, "_CHUNK", 50)
    assert np.array_equal(of_texts(*texts).hashes, at_once.hashes)


@pytest.mark.parametrize("mmap", [True, False])
def test_what_is_saved_is_loaded(index: contamination.TestSets, tmp_path: Path, mmap: bool) -> None:
    index.save(tmp_path / "index")
    loaded = contamination.TestSets.load(tmp_path / "index", mmap=mmap)
    assert isinstance(loaded.hashes, np.memmap) == mmap
    assert np.array_equal(loaded.hashes, index.hashes)
    assert np.array_equal(loaded.tasks, index.tasks)
    assert (loaded.counts, loaded.ngram) == (index.counts, index.ngram)
    assert found(loaded, CHINESE) == found(index, CHINESE)


def test_a_line_a_task_is_printed(index: contamination.TestSets, capfd: pytest.CaptureFixture[str]) -> None:
    contamination.TestSets.of_tasks(["STS13", "LCQMC"])
    lines = capfd.readouterr().err.splitlines()
    assert [line.rsplit(" | ", 1)[0] for line in lines if line.startswith("test sets")] == [
        "test sets 1/2 | STS13 | 2 texts | 8 n-grams",
        "test sets 2/2 | LCQMC | 1 texts | 25 n-grams",
    ]


def test_an_unknown_name_is_met_by_the_nearest_one() -> None:
    with pytest.raises(InputError, match=r"`contamination_tasks` has 'STS133'.* Did you mean 'STS13'\?"):
        contamination.TestSets.of_tasks(["STS133"])
    with pytest.raises(InputError, match=r"has 'MTEB\(eng, v3\)'.* Did you mean 'MTEB\(eng, v2\)'\?"):
        contamination.TestSets.of_tasks(["MTEB(eng, v3)"])


def test_data_out_of_reach_are_an_error(index: contamination.TestSets) -> None:
    with pytest.raises(
        InputError, match=r"has 'STS14', whose data cannot be loaded \(.*sts14-sts.*leave this task out"
    ):
        contamination.TestSets.of_tasks(["STS13", "STS14"])


def test_a_benchmark_stands_for_its_tasks_in_its_languages() -> None:
    tasks = tasks_named(["STS13", "MTEB(eng, v2)", "STS17"])
    assert next(iter(tasks)) == "STS13"
    assert len(tasks) == 41
    assert len(tasks["STS13"]) == 1
    assert tasks["STS17"][0].hf_subsets == ["en-en"]
    assert len(tasks["STS17"][1].hf_subsets) > 1
    assert "CQADupstackAndroidRetrieval" in tasks_named(["CQADupstackRetrieval"])


def overlaps(*rows: str) -> Iterable[Overlap]:
    return [Overlap(*row.split("/")) for row in rows]


def test_the_report_is_the_same_for_any_order() -> None:
    index = contamination.TestSets.of_texts([("STS13", [LONG, SHORT]), ("B_1", []), ("C", ["x y z"])])
    rows = [
        "STS13/sts/query/a man is/1",
        "STS13/sts/query/a man is/2",
        "STS13/bitext/positive/x | y < z/3",
        "STS13/sts/query/b/4",
        "STS13/sts/query/c/5",
        "STS13/sts/query/d/5",
    ]
    text = report(overlaps(*rows), index)
    assert text == report(overlaps(*reversed(rows)), index)
    assert "compared with 2 test texts of mteb (3 tasks). 5 were rejected: 13 words in a row" in text
    assert text.splitlines()[-3:] == [
        "| STS13 | 2 | 8 | 5 | “x \\| y \\< z” (bitext, positive)<br>“a man is” (sts, query)<br>“b” (sts, query) |",
        "| B\\_1 | none | 0 | 0 |  |",
        "| C | none | 0 | 0 |  |",
    ]
