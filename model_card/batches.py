"""Batches of about as many tokens each, from the longest texts to the shortest, for encoding whole corpora."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

CPU_TOKENS, GPU_TOKENS = 2048, 65536
"""Tokens of a batch, padding included, where no number is given; a CPU's caches hold little, a GPU wants to be filled."""


class TokenBatches:
    """A `SentenceTransformer` whose `encode` chooses its batches itself; everything else is the model's own.

    A batch of 32 long texts takes much memory, and 32 short ones leave a GPU idle. Texts of about one length are encoded
    together, as many as `max_tokens` allows, so that little of a batch is padding.

    Args:
        model: the model; it is called for each batch, with all the arguments that `encode` was given.
        max_tokens: tokens of a batch, padding included; None chooses by the device.
        on_texts: told after each batch how many texts were encoded.
        devices: encode on all of these at once, such as cuda:0 and cuda:1, by processes of sentence-transformers, each with
            a batch of its own; none: where the model is. `close` ends the processes.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        max_tokens: int | None = None,
        on_texts: Callable[[int], None] = lambda num_texts: None,
        devices: Sequence[str] = (),
    ) -> None:
        self.model, self.on_texts, self.devices = model, on_texts, list(devices)
        kinds = {torch.device(device).type for device in devices} or {model.device.type}
        self.max_tokens = max_tokens or (CPU_TOKENS if "cpu" in kinds else GPU_TOKENS)
        self._pool: Any = None

    def close(self) -> None:
        """End the processes on the devices, if there are any; `encode` starts them again."""
        if self._pool is not None:
            self.model.stop_multi_process_pool(self._pool)
            self._pool = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def encode(self, sentences: Sequence[str], *, prompt: str | None = None, **kwargs: Any) -> Any:
        """Return what the model's own `encode` returns, embeddings (texts, dim), in the order of `sentences`.

        `batch_size` is not looked at.
        """
        texts = list(sentences)
        kwargs.pop("batch_size", None)
        if not texts:
            return self.model.encode(texts, prompt=prompt, **kwargs)
        kwargs["show_progress_bar"] = False
        if self.devices and self._pool is None:
            self._pool = self.model.start_multi_process_pool(self.devices)
        num_devices = len(self.devices) or 1
        order, parts = [], []
        for batch in token_batches(self._num_tokens(texts, prompt), self.max_tokens * num_devices):
            size = math.ceil(len(batch) / num_devices)
            if self._pool is not None:
                kwargs |= {"pool": self._pool, "chunk_size": size}
            part = self.model.encode([texts[i] for i in batch], prompt=prompt, batch_size=size, **kwargs)
            order += batch
            parts.append(part)
            self.on_texts(len(batch))
        back = np.argsort(order)
        if isinstance(parts[0], torch.Tensor):
            return torch.cat(parts)[torch.from_numpy(back).to(parts[0].device)]
        return np.concatenate(parts)[back]

    def _num_tokens(self, texts: list[str], prompt: str | None) -> list[int]:
        """Return the length of each text in tokens, with its prompt and special tokens, as the model truncates it."""
        tokenizer, longest = self.model.tokenizer, self.model.max_seq_length or 1 << 20
        prefix = len(tokenizer(prompt, add_special_tokens=False)["input_ids"]) if prompt else 0
        # more bytes than that cannot survive the truncation, and would only cost time here
        heads = [text[: longest * 16] for text in texts]
        lengths = tokenizer(heads, add_special_tokens=True, return_attention_mask=False, verbose=False)["input_ids"]
        return [min(len(ids) + prefix, longest) for ids in lengths]


def token_batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Yield the places of the texts in batches of at most `max_tokens`, padding included, the longest texts first.

    Args:
        lengths: tokens of each text.
        max_tokens: a text that is longer by itself is a batch of one.
    """
    batch: list[int] = []
    longest = 0
    for place in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and longest * (len(batch) + 1) > max_tokens:
            yield batch
            batch = []
        longest = longest if batch else lengths[place]
        batch.append(place)
    if batch:
        yield batch
