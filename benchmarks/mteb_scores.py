"""Does `embedsmith evaluate` give all-MiniLM-L6-v2 the scores that are published for it on mteb's own tasks?

    python benchmarks/mteb_scores.py FOLDER

FOLDER holds data of mteb tasks as dataset repos, `<org>__<name>/<revision>/`, which a local Hub serves under those names and
revisions, so that mteb's unmodified tasks find them. Tasks whose data are not there are left out. Prints a table and fails if
a score is off by more than 0.005.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.hub_server import Hub

PUBLISHED: dict[tuple[str, str], tuple[list[str], float]] = {
    ("STS13", ""): ([], 0.8060),
    ("STS16", ""): ([], 0.7899),
    ("KorSTS", ""): ([], 0.4230),
    ("BornholmBitextMining", ""): ([], 0.2968),
    ("Tatoeba", "deu-eng"): (["deu"], 0.0789),
    ("Tatoeba", "tur-eng"): (["tur"], 0.0359),
    ("PoemSentimentClassification", "test"): ([], 0.4721),
    ("NusaX-senti", "eng ind"): (["eng", "ind"], 0.6167),
    ("CDSC-E", ""): ([], 0.4727),
    ("XQuADRetrieval", "en"): (["eng"], 0.9436),
    ("XQuADRetrieval", "es"): (["spa"], 0.6323),
    ("LegalQuAD", ""): ([], 0.1181),
    ("MBPPRetrieval", ""): ([], 0.7460),
    ("CodeRAGProgrammingSolutions", ""): ([], 0.6203),
    ("EightTagsClustering.v2", ""): ([], 0.0437),
}
"""{(task, subset or split): (languages, main score)}, of the model as published, with mean pooling."""
TOLERANCE = 0.005


def main() -> int:
    """Judge and compare; return the exit code."""
    folder = Path(sys.argv[1])
    work = Path(tempfile.mkdtemp())
    hub = Hub.start(work / "hub", tokens={})
    for repo in sorted(path for path in folder.iterdir() if path.is_dir()):
        for revision in repo.iterdir():
            hub.put_folder("dataset", repo.name.replace("__", "/", 1), revision, revision.name)
    os.environ |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(work / "hf"), "HF_HUB_DISABLE_XET": "1", "TQDM_DISABLE": "1"}
    return _compare(work)


def _compare(work: Path) -> int:
    import mteb
    from mteb.cache import ResultCache

    from model_card.candidates import published
    from model_card.evaluation import official_tasks
    from model_card.judge import Judge, plan_work
    from trainer.base_model import PACKAGED, resolve_base_model

    judge = Judge(published(resolve_base_model(PACKAGED), "all-MiniLM-L6-v2"), ResultCache(work), {}, None)
    print("| task | type | of it | here | published |\n|---|---|---|---:|---:|")
    worst = 0.0
    for (name, part), (languages, published_score) in PUBLISHED.items():
        task = official_tasks([name], [], languages or None)[0]
        if name == "Tatoeba":
            task.hf_subsets = [part]
        plan_work([judge], [task])
        judge.progress.every_s = 1e9
        judge.judge(task)
        result = judge.cache.load_task_result(name, judge.candidate.name, judge.candidate.revision)
        assert result is not None
        wanted = task.hf_subsets
        rows = [s for split, found in result.scores.items() if part != "test" or split == "test" for s in found]
        values = [s["main_score"] for s in rows if s["hf_subset"] in wanted]
        score = sum(values) / len(values)
        worst = max(worst, abs(score - published_score))
        kind = mteb.get_task(name).metadata.type
        print(f"| {name} | {kind} | {part} | {score:.4f} | {published_score:.4f} |", flush=True)
    print(f"\nlargest difference: {worst:.4f}")
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
