"""What one looks at while training: similarities, ranks, masks, padding, speed; means since the last log."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainingArguments
from trl.trainer.utils import compute_mfu, get_peak_flops

from trainer.loss import InfoNCE


def flops_per_token(model: nn.Module) -> float:
    """Return the floating-point operations that training needs for one token, without attention scores.

    Two a weight for the forward pass, two for the gradients of activations, two a trained weight for its own gradient. What is
    computed twice to save memory counts once; embeddings are looked up and count nothing.
    """
    looked_up = {
        id(weight) for module in model.modules() if isinstance(module, nn.Embedding) for weight in module.parameters()
    }
    weights = [weight for weight in model.parameters() if id(weight) not in looked_up]
    num, num_trained = (
        sum(weight.numel() for weight in weights if weight.requires_grad or not trained) for trained in (False, True)
    )
    return 4.0 * num + 2.0 * num_trained


class Meter:
    """Collects figures on the device, and reads them only when they are logged.

    Args:
        model: the model in training.
        args: the training arguments; they know the device and the number of processes.
    """

    def __init__(self, model: nn.Module, args: TrainingArguments) -> None:
        self._flops_per_token = flops_per_token(model)
        self._num_processes = args.world_size
        self._peak_flops: float | None = None
        if args.device.type == "cuda":
            dtype = "bfloat16" if args.bf16 else "float16" if args.fp16 else str(next(model.parameters()).dtype)[6:]
            self._peak_flops = get_peak_flops(torch.cuda.get_device_name(args.device), dtype)
        self._training: list[InfoNCE] = []
        self._held_out: list[tuple[InfoNCE, int]] = []
        self._useful: list[Tensor] = []
        self._padded = 0
        self._since = time.monotonic()

    def add(self, result: InfoNCE, lengths: Tensor, num_padded: int) -> None:
        """Add a training batch.

        Args:
            result: its loss and figures.
            lengths: (texts,) tokens of this process's texts.
            num_padded: tokens that were computed for them, padding included.
        """
        self._training.append(InfoNCE(*(value.detach() for value in result)))
        self._useful.append(lengths.sum())
        self._padded += num_padded

    def add_held_out(self, result: InfoNCE, num_queries: int) -> None:
        """Add a held-out batch with so many queries."""
        self._held_out.append((InfoNCE(*(value.detach() for value in result)), num_queries))

    def training(self) -> dict[str, float]:
        """Return the figures since the last call.

        `padding_ratio` is padded tokens by useful ones, `tokens_per_s` the useful tokens of all processes (reckoned from
        this one) a second of wall-clock time, `mfu` in per cent of the devices' peak where that is known.
        """
        if not self._training:
            return {}
        figures = _means(self._training, [1] * len(self._training))
        del figures["loss"]  # the trainer's own
        useful = float(torch.stack(self._useful).sum())
        now = time.monotonic()
        tokens_per_s = useful * self._num_processes / max(now - self._since, 1e-9)
        figures |= {"padding_ratio": self._padded / max(useful, 1.0), "tokens_per_s": tokens_per_s}
        if self._peak_flops:
            flops: Any = self._flops_per_token
            figures["mfu"] = compute_mfu(flops, tokens_per_s, self._num_processes, self._peak_flops)
        self._training, self._useful, self._padded, self._since = [], [], 0, now
        return figures

    def held_out(self, prefix: str) -> dict[str, float]:
        """Return loss and figures of the held-out batches since the last call, means over the queries.

        Args:
            prefix: stands before the names, with an underscore.
        """
        results, sizes = zip(*self._held_out, strict=True) if self._held_out else ((), ())
        self._held_out, self._since = [], time.monotonic()  # evaluating is no training
        figures = _means(list(results), list(sizes)) if results else {}
        return {f"{prefix}_{name}": value for name, value in figures.items()}


def _means(results: list[InfoNCE], weights: list[int]) -> dict[str, float]:
    """Return the weighted mean of every field; those that are NaN throughout, as without hard negatives, are left out."""
    # (results, fields)
    values = torch.stack([torch.stack([value.double() for value in result]) for result in results])
    weight = torch.tensor(weights, dtype=torch.float64, device=values.device)[:, None] * ~values.isnan()
    means = ((values.nan_to_num() * weight).sum(dim=0) / weight.sum(dim=0)).tolist()
    return {name: mean for name, mean in zip(InfoNCE._fields, means, strict=True) if not math.isnan(mean)}
