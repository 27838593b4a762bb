"""What the stages agree on: subgroups, columns, instructions, and the JSON that the LLM is asked for.

This module imports nothing but pydantic, so that a trainer or an evaluation can read a dataset without stage 1.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple, get_args

from pydantic import BaseModel, StringConstraints

from dataset_builder.errors import InputError, suggestion

Subgroup = Literal["short-long", "long-short", "short-short", "long-long", "sts", "bitext"]
Step = Literal["brainstorm", "generate"]

SUBGROUPS: tuple[Subgroup, ...] = get_args(Subgroup)
BRAINSTORMED: tuple[Subgroup, ...] = ("short-long", "long-short", "short-short", "long-long")
"""Subgroups whose tasks are brainstormed; sts and bitext have one fixed task each (paper, section 3.1)."""
SYMMETRIC: tuple[Subgroup, ...] = ("sts", "bitext")
"""Subgroups whose two sides play the same role: both carry the instruction and both are queries of the loss."""
FIXED_INSTRUCTIONS: dict[Subgroup, str] = {
    "sts": "Retrieve semantically similar text.",
    "bitext": "Retrieve parallel sentences.",
}

TEXT_COLUMNS = ("query", "positive", "negative")
TRAIN_COLUMNS = (*TEXT_COLUMNS, "instruction", "language", "positive_language")
PROVENANCE_COLUMNS = ("id", "task_id", "model", "prompt", "attributes")
COLUMNS = (*TRAIN_COLUMNS, *PROVENANCE_COLUMNS)
"""Columns of every config of the dataset, in this order; all strings, `negative` may be null."""
TASK_COLUMNS = ("task_id", "subgroup", "task", "split", "num_examples", "model", "prompt")

Text = Annotated[str, StringConstraints(strict=True, strip_whitespace=True, min_length=1)]


class Texts(NamedTuple):
    """The three texts of an example; `negative` is the hard negative, if there is one."""

    query: str
    positive: str
    negative: str | None


class TasksReply(BaseModel):
    """Reply to a brainstorm request: one sentence per task."""

    tasks: list[Text]


class ShortLongReply(BaseModel):
    """A query, the passage that answers it, and a passage that nearly does (paper, table 7)."""

    user_query: Text
    positive_document: Text
    hard_negative_document: Text

    def texts(self) -> Texts:
        """Return the texts under the dataset's column names."""
        return Texts(self.user_query, self.positive_document, self.hard_negative_document)


class LongShortReply(BaseModel):
    """A text, its label, and a label that misleads (paper, table 8)."""

    input_text: Text
    label: Text
    misleading_label: Text

    def texts(self) -> Texts:
        """Return the texts under the dataset's column names."""
        return Texts(self.input_text, self.label, self.misleading_label)


class MatchReply(BaseModel):
    """A text and one that matches it (paper, tables 9 and 10)."""

    input: Text
    positive_document: Text

    def texts(self) -> Texts:
        """Return the texts under the dataset's column names; there is no negative."""
        return Texts(self.input, self.positive_document, None)


class HardMatchReply(BaseModel):
    """`MatchReply` when the request asked for a hard negative."""

    input: Text
    positive_document: Text
    hard_negative_document: Text

    def texts(self) -> Texts:
        """Return the texts under the dataset's column names."""
        return Texts(self.input, self.positive_document, self.hard_negative_document)


class TripleReply(BaseModel):
    """S1 and S2 mean the same, S3 only nearly (paper, tables 11 and 12)."""

    S1: Text
    S2: Text
    S3: Text

    def texts(self) -> Texts:
        """Return the texts under the dataset's column names."""
        return Texts(self.S1, self.S2, self.S3)


ExampleReply = ShortLongReply | LongShortReply | MatchReply | HardMatchReply | TripleReply

_EXAMPLE_REPLIES: dict[Subgroup, type[ExampleReply]] = {
    "short-long": ShortLongReply,
    "long-short": LongShortReply,
    "short-short": MatchReply,
    "long-long": MatchReply,
    "sts": TripleReply,
    "bitext": TripleReply,
}


def example_reply(subgroup: Subgroup, *, hard_negative: bool = True) -> type[ExampleReply]:
    """Return the pydantic model of a generate reply of `subgroup`, with or without an asked hard negative."""
    model = _EXAMPLE_REPLIES[subgroup]
    return HardMatchReply if model is MatchReply and hard_negative else model


def check_subgroup(name: str) -> Subgroup:
    """Return `name` as a subgroup.

    Raises:
        InputError: if there is no such subgroup.
    """
    for subgroup in SUBGROUPS:
        if name == subgroup:
            return subgroup
    raise InputError(
        f"`subgroups` has '{name}'; known subgroups are {', '.join(SUBGROUPS)}.{suggestion(name, SUBGROUPS)}"
    )


def instruct(instruction: str, text: str) -> str:
    """Return the text that the model sees for a query (paper, equation 1); documents stay bare."""
    return f"Instruct: {instruction}\nQuery: {text}"
