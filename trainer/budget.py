"""How many tokens a device computes at once, and of how many it keeps the graphs: as its memory allows."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from trainer.gradient_cache import Encode

_CPU_CHUNK_TOKENS = 1_024  # measured: `benchmarks/README.md`
_PROBE = (4, 128)  # texts and tokens
_MOST = 16_384  # tokens in a chunk; more make no device busier
_CHUNK_SHARE, _KEPT_SHARE = 0.3, 0.5
"""Of the memory that is free once weights, gradients and optimizer states are there; the rest is headroom."""


class Budget(NamedTuple):
    """Attributes: chunk_tokens, padded tokens in one forward pass; kept_tokens, padded tokens whose graphs are kept."""

    chunk_tokens: int
    kept_tokens: int


def budget(
    encode: Encode, device: torch.device, chunk_tokens: int | None, kept_tokens: int | None, reserved: int
) -> Budget:
    """Return what was asked for, and in place of None what the device has room for.

    On a GPU a short probe tells the bytes that a token's graph takes. Elsewhere memory is shared with other programs and
    large chunks make nothing faster: a small chunk it is, and twice as many tokens kept.

    Args:
        encode: computes the embeddings of a chunk.
        device: where the model is.
        chunk_tokens: padded tokens in one forward pass.
        kept_tokens: padded tokens whose graphs are kept.
        reserved: bytes that the optimizer will take in its first step.
    """
    if device.type != "cuda" or (chunk_tokens is not None and kept_tokens is not None):
        chunk_tokens = chunk_tokens or _CPU_CHUNK_TOKENS
        return Budget(chunk_tokens, 2 * chunk_tokens if kept_tokens is None else kept_tokens)
    per_token = _bytes_per_token(encode, device)
    torch.cuda.empty_cache()
    free = max(torch.cuda.mem_get_info(device)[0] - reserved, 0)
    room = int(free * _CHUNK_SHARE / per_token)
    chunk_tokens = chunk_tokens or max(min(room, _MOST), 1)
    return Budget(chunk_tokens, int(free * _KEPT_SHARE / per_token) if kept_tokens is None else kept_tokens)


def _bytes_per_token(encode: Encode, device: torch.device) -> float:
    ids = torch.zeros(_PROBE, dtype=torch.int64, device=device)
    lengths = torch.full((_PROBE[0],), _PROBE[1], device=device)
    with torch.enable_grad():
        encode(ids, lengths)  # what is made once, such as workspaces, is no part of a token
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        embeddings: Tensor = encode(ids, lengths)
        torch.cuda.synchronize(device)
        taken = torch.cuda.memory_allocated(device) - before
    del embeddings
    return max(taken / ids.numel(), 1.0)
