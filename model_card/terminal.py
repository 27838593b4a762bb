"""Scores and neighbours for a terminal."""

from __future__ import annotations

from model_card.scores import Evaluation


def summary_table(evaluation: Evaluation) -> str:
    """Return the held-out scores as a table for a terminal."""
    short = {"base": "as published", "base_eos": "EOS, untrained", "trained": "trained"}
    models, scores = evaluation.models_of(held_out=True), evaluation.of(held_out=True)
    heads = ["held-out task", "metric", "queries", *(short.get(m["key"], m["label"]) for m in models)]
    rows = [
        [
            f"  {score.subset}" if score.subset else score.task.removeprefix("HeldOut"),
            score.metric,
            str(score.num_queries),
            *(f"{score.values[m['key']]:.3f}" if m["key"] in score.values else "-" for m in models),
        ]
        for score in scores
    ]
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    lines = []
    for row in [heads, *rows]:
        names, numbers = row[:2], row[2:]
        cells = [c.ljust(w) for c, w in zip(names, widths, strict=False)]
        lines.append("  ".join(cells + [c.rjust(w) for c, w in zip(numbers, widths[2:], strict=True)]))
    base = next(model["label"] for model in models if model["key"] == "base_eos").split(",")[0]
    note = f"EOS, untrained: {base} with the pooling and instructions of the trained model, where training started from"
    if any(model["key"] == "base" for model in models):
        note = f"as published: {base} with its own pooling\n{note}"
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], note])


def summary_neighbours(evaluation: Evaluation, width: int = 96) -> str:
    """Return the example queries with their nearest documents before and after training, for a terminal."""
    before, after = evaluation.neighbours.get("base_eos", []), evaluation.neighbours.get("trained", [])
    marks = {"positive": "+", "hard negative": "-", "other": " "}
    lines: list[str] = []
    for old, new in zip(before, after, strict=True):
        lines += [f"Query: {old['query']}", f"  task: {old['instruction']}"]
        for name, found in (("before", old), ("after", new)):
            lines.append(f"  {name} training (the positive is number {found['rank']} of {found['num_documents']}):")
            for document in found["nearest"]:
                text = " ".join(document["text"].split())
                text = text if len(text) <= width else text[: width - 1] + "…"
                lines.append(f"    {document['similarity']:+.3f} {marks[document['kind']]} {text}")
        lines.append("")
    return "\n".join([*lines, "+ positive, - hard negative; the number is the cosine similarity"])
