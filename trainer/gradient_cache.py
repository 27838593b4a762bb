"""Exact gradients of a loss over a large batch in bounded memory: gradient caching (Gao et al. 2021, arXiv 2101.06983).

The embeddings of all texts are computed first, without their graphs; the loss gives the gradient of each embedding; the
texts are then computed again, a chunk at a time, to carry these gradients on to the weights. Three things make it fast:

- texts of all columns are sorted by length and cut into chunks by a budget of padded tokens, so that hardly any padding
  is computed;
- the graphs of as many chunks as fit into a further budget are kept, and only the others are computed twice;
- a chunk is computed again with the random numbers of its first time, so that dropout is exact, too.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor
from torch.utils.checkpoint import get_device_states, set_device_states

Encode = Callable[[Tensor, Tensor], Tensor]
"""From right-padded ids (texts, length) and lengths (texts,) to embeddings (texts, dim)."""


@dataclass
class _Chunk:
    """Some texts of about equal length.

    Attributes:
        rows: (texts,) int64, which texts of the batch.
        length: of the longest, in tokens.
        embeddings: (texts, dim) with their graph, while it is kept.
        random_state: of all devices before the chunk was computed, to compute it again.
    """

    rows: Tensor
    length: int
    embeddings: Tensor | None = None
    random_state: tuple[Tensor, list[int], list[Tensor]] | None = field(default=None, repr=False)

    @property
    def num_tokens(self) -> int:
        """Padded tokens."""
        return len(self.rows) * self.length


def cut_into_chunks(lengths: Tensor, chunk_tokens: int) -> list[Tensor]:
    """Return which texts to encode together: sorted by length, the longest first, about `chunk_tokens` padded tokens each.

    Args:
        lengths: (texts,) int64.
        chunk_tokens: padded tokens in a chunk; a longer text makes a chunk of its own.
    """
    order = lengths.argsort(descending=True, stable=True)
    in_order = lengths[order].tolist()
    chunks, start = [], 0
    while start < len(in_order):
        num = max(1, chunk_tokens // max(in_order[start], 1))
        chunks.append(order[start : start + num])
        start += num
    return chunks


def embed(encode: Encode, input_ids: Tensor, lengths: Tensor, chunk_tokens: int) -> Tensor:
    """Return the embeddings (texts, dim) in the order of the texts, with their graph if gradients are enabled.

    Args:
        encode: computes the embeddings of a chunk.
        input_ids: (texts, length) int64, padded on the right.
        lengths: (texts,) int64.
        chunk_tokens: padded tokens in a chunk.
    """
    chunks = cut_into_chunks(lengths, chunk_tokens)
    parts = [encode(input_ids[rows, : lengths[rows[0]]], lengths[rows]) for rows in chunks]
    return torch.cat(parts)[torch.cat(chunks).argsort()]


class GradientCache:
    """The embeddings of one batch, and the way back from their gradients to the weights.

    Args:
        encode: computes the embeddings of a chunk; called twice for chunks whose graph is not kept.
        input_ids: (texts, length) int64, padded on the right.
        lengths: (texts,) int64.
        chunk_tokens: padded tokens in a chunk.
        kept_tokens: padded tokens whose graphs may be kept; the rest is computed twice.
        agree: called with (chunks, chunks to keep); returns how many of both all processes have. Where weights are sharded,
            all processes must compute equally often and in the same order. The chunks that a process lacks are made up by
            a text of one token whose gradient is zero.
        no_sync: a context in which gradients are not exchanged between processes.

    Attributes:
        embeddings: (texts, dim) without graph, in the order of the texts; a leaf that collects its gradient.
        num_padded: tokens of all chunks, padding included.
    """

    def __init__(
        self,
        encode: Encode,
        input_ids: Tensor,
        lengths: Tensor,
        *,
        chunk_tokens: int,
        kept_tokens: int,
        agree: Callable[[int, int], tuple[int, int]] = lambda num_chunks, num_kept: (num_chunks, num_kept),
        no_sync: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._encode, self._input_ids, self._lengths, self._no_sync = encode, input_ids, lengths, no_sync
        chunks = [_Chunk(rows, int(lengths[rows[0]])) for rows in cut_into_chunks(lengths, chunk_tokens)]
        self.num_padded = sum(chunk.num_tokens for chunk in chunks)
        from_the_end = accumulate(chunk.num_tokens for chunk in reversed(chunks))
        num_chunks, num_kept = agree(len(chunks), sum(tokens <= kept_tokens for tokens in from_the_end))
        no_rows = torch.empty(0, dtype=torch.int64, device=lengths.device)
        chunks[:0] = [_Chunk(no_rows, 1) for _ in range(num_chunks - len(chunks))]
        self._forgotten, self._kept = chunks[: len(chunks) - num_kept], chunks[len(chunks) - num_kept :]
        with no_sync():
            self.embeddings = self._forward()

    def _forward(self) -> Tensor:
        parts = []
        for chunk in self._forgotten:
            chunk.random_state = torch.get_rng_state(), *get_device_states(self._input_ids)
            with torch.no_grad():
                parts.append(self._embed(chunk))
        for chunk in self._kept:
            with torch.enable_grad():
                chunk.embeddings = self._embed(chunk)
            parts.append(chunk.embeddings.detach())
        order = torch.cat([chunk.rows for chunk in [*self._forgotten, *self._kept]]).argsort()
        return torch.cat(parts)[order].requires_grad_()

    def _embed(self, chunk: _Chunk) -> Tensor:
        if len(chunk.rows):
            return self._encode(self._input_ids[chunk.rows, : chunk.length], self._lengths[chunk.rows])
        ids = self._input_ids.new_zeros((1, 1))
        return self._encode(ids, torch.ones_like(ids[0]))[:0]

    def backward(self, scale: float = 1.0, backward: Callable[[Tensor], None] = Tensor.backward) -> None:
        """Add the gradients of the weights that follow from `embeddings.grad`; gradients are exchanged with the last chunk.

        Args:
            scale: factor of all gradients.
            backward: called with scalars whose gradients are to be added.
        """
        assert self.embeddings.grad is not None, "the loss comes before its gradient"
        gradient = self.embeddings.grad * scale
        chunks = [*reversed(self._kept), *self._forgotten]  # what is kept makes room first
        devices = get_device_states(self._input_ids)[0]
        with torch.random.fork_rng(devices, device_type=self._input_ids.device.type):
            for chunk in chunks:
                with nullcontext() if chunk is chunks[-1] else self._no_sync():
                    backward(self._surrogate(chunk, gradient))
        self._kept, self._forgotten = [], []

    def _surrogate(self, chunk: _Chunk, gradient: Tensor) -> Tensor:
        """Return a scalar whose gradient is that of the loss, as far as it goes through this chunk."""
        embeddings, chunk.embeddings = chunk.embeddings, None
        if embeddings is None:
            if chunk.random_state is not None:
                state, devices, device_states = chunk.random_state
                torch.set_rng_state(state)
                set_device_states(devices, device_states, device_type=self._input_ids.device.type)
            with torch.enable_grad():
                embeddings = self._embed(chunk)
        return (embeddings.to(gradient.dtype) * gradient[chunk.rows]).sum()
