"""The verb `try`: type a query and see the nearest texts of a corpus, in the terminal or on a page with a map."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from sentence_transformers.util import semantic_search
from sklearn.decomposition import PCA  # type: ignore[import-untyped]
from sklearn.manifold import TSNE  # type: ignore[import-untyped]

from dataset_builder.errors import InputError
from dataset_builder.languages import LANGUAGES
from dataset_builder.progress import Steps
from dataset_builder.schema import instruct
from model_card.batches import TokenBatches
from model_card.candidates import load_trained, read_trained
from model_card.card import render, title
from model_card.config import EvaluationArguments, TryArguments
from trainer.data import dataset_subgroups, load_split, negatives_of
from trainer.export import INSTRUCTIONS

PAGE = "try.html"
_WIDTH = 100
_MIN_FOR_TSNE, _PERPLEXITY = 50, 30.0


@dataclass(frozen=True)
class Text:
    """A text of the corpus; `subgroup` and `language` are '' for a plain file."""

    text: str
    subgroup: str = ""
    language: str = ""


@dataclass(frozen=True)
class Hit:
    """A text near a query: its place in the corpus, and their cosine similarity."""

    place: int
    similarity: float


def try_model(arguments: EvaluationArguments, search: TryArguments) -> str | None:
    """Search the corpus for each query and print what is near; return the path of the page, if one is wanted.

    Raises:
        InputError: if model or corpus cannot be read.
    """
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    trained = read_trained(arguments)
    corpus = list(read_corpus(arguments, search))
    steps = Steps("encode", len(corpus))
    model = TokenBatches(load_trained(trained.folder), arguments.eval_batch_tokens, steps.add)
    vectors = _encode(model, [text.text for text in corpus])
    model.on_texts = lambda num_texts: None  # queries are no part of it
    print(f"{len(corpus):,} texts; a query and Enter shows the nearest", file=sys.stderr)
    asked: list[tuple[str, list[Hit]]] = []
    for query in _queries(search):
        text = instruct(search.instruction or INSTRUCTIONS["query"], query)
        hits = nearest(_encode(model, [text]), vectors, search.top_k)[0]
        asked.append((query, hits))
        print(format_hits(query, hits, corpus), flush=True)
    if not search.html:
        return None
    page = arguments.run_dir / PAGE
    page.write_text(_page(title(arguments, trained.record), corpus, vectors, asked, search.top_k), encoding="utf-8")
    return str(page)


def read_corpus(arguments: EvaluationArguments, search: TryArguments) -> Iterator[Text]:
    """Yield the distinct texts to search, at most `max_texts`: lines of a file, or the documents of the dataset.

    Raises:
        InputError: if there are none.
    """
    found = _lines(Path(search.corpus)) if search.corpus else _documents(arguments)
    seen = set[str]()
    for text in found:
        if text.text not in seen and len(seen) < search.max_texts:
            seen.add(text.text)
            yield text
    if not seen:
        raise InputError(
            f"{search.corpus or arguments.dataset} has no texts to search; give --corpus FILE, one text a line."
        )


def _lines(path: Path) -> Iterator[Text]:
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.strip():
                yield Text(line.strip())
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8"
        raise InputError(
            f"`corpus` is '{path}', which cannot be read: {reason}; give a text file, one text a line."
        ) from None


def _documents(arguments: EvaluationArguments) -> Iterator[Text]:
    for subgroup in dataset_subgroups(arguments.dataset, arguments.dataset_revision):
        for split in ("train", "test"):
            rows: Any = load_split(arguments.dataset, split, subgroup=subgroup, revision=arguments.dataset_revision)
            for row in rows if rows is not None else ():
                for text in (row["positive"], *negatives_of(row)):
                    if text:
                        yield Text(text, subgroup, row["positive_language"])


def _encode(model: TokenBatches, texts: list[str]) -> torch.Tensor:
    """Return unit vectors (texts, dim), float32, on the CPU."""
    found: torch.Tensor = model.encode(texts, prompt="", convert_to_tensor=True, normalize_embeddings=True)
    return found.float().cpu()


def nearest(queries: torch.Tensor, corpus: torch.Tensor, top_k: int) -> list[list[Hit]]:
    """Return the `top_k` nearest texts of each query, the nearest first.

    Args:
        queries: (queries, dim), unit vectors.
        corpus: (texts, dim), unit vectors.
        top_k: at most all texts.
    """
    rows: list[list[dict[str, Any]]] = semantic_search(queries, corpus, top_k=top_k)
    return [[Hit(int(row["corpus_id"]), float(row["score"])) for row in found] for found in rows]


def _queries(search: TryArguments) -> Iterable[str]:
    if search.query is not None:
        yield from search.query
    elif sys.stdin.isatty():
        while query := _typed():
            yield query
    else:
        yield from (line.strip() for line in sys.stdin if line.strip())


def _typed() -> str:
    try:
        return input("query> ").strip()
    except EOFError:
        return ""


def format_hits(query: str, hits: list[Hit], corpus: list[Text]) -> str:
    """Return a query with its nearest texts, for a terminal."""
    lines = [f"Query: {query}"]
    for hit in hits:
        found = corpus[hit.place]
        text = " ".join(found.text.split())
        where = f" [{found.subgroup}, {found.language}]" if found.subgroup else ""
        lines.append(f"  {hit.similarity:+.3f} {text if len(text) <= _WIDTH else text[: _WIDTH - 1] + '…'}{where}")
    return "\n".join(lines) + "\n"


def plane(vectors: torch.Tensor) -> np.ndarray[Any, Any]:
    """Return a place in the plane (texts, 2) for each text, from -1 to 1: t-SNE of the vectors, PCA for a few texts."""
    array = vectors.numpy()
    if len(array) < 3:
        return np.zeros((len(array), 2)) + np.arange(len(array))[:, None] * 0.5
    if len(array) < _MIN_FOR_TSNE:
        places = PCA(2, random_state=0).fit_transform(array)
    else:
        perplexity = min(_PERPLEXITY, len(array) / 4)
        places = TSNE(2, metric="cosine", init="random", perplexity=perplexity, random_state=0).fit_transform(array)
    places = places - (places.max(axis=0) + places.min(axis=0)) / 2
    largest: float = np.abs(places).max()
    return np.asarray(places / (largest or 1.0))


def _page(name: str, corpus: list[Text], vectors: torch.Tensor, asked: list[tuple[str, list[Hit]]], top_k: int) -> str:
    print("map: placing the texts in the plane", file=sys.stderr)
    around = nearest(vectors, vectors, top_k + 1)
    data = {
        "texts": [asdict(text) for text in corpus],
        "places": np.round(plane(vectors), 4).tolist(),
        # a text's nearest others; it is itself the nearest
        "near": [
            [[hit.place, round(hit.similarity, 3)] for hit in hits if hit.place != i][:top_k]
            for i, hits in enumerate(around)
        ],
        "languages": {code: LANGUAGES[code].name for code in sorted({t.language for t in corpus}) if code in LANGUAGES},
        "queries": [{"text": q, "hits": [[h.place, round(h.similarity, 3)] for h in hits]} for q, hits in asked],
    }
    text = json.dumps(data, ensure_ascii=False).replace("</", "<\\/")
    return render("try.html.jinja", {"name": name, "data": text})
