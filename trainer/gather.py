"""One batch across processes: every process sees the embeddings of all and computes the loss of the whole batch.

That is a small matrix product computed in several places, and spares a reduction: what a process needs is the gradient
with respect to its own texts, and it has that whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from trainer.loss import Texts


def _gather(accelerator: Accelerator, tensor: Tensor) -> Tensor:
    gathered = accelerator.gather(tensor)
    assert isinstance(gathered, Tensor)
    return gathered


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, accelerator: Accelerator) -> Tensor:
        """Return the rows of all processes."""
        sizes = _gather(accelerator, torch.tensor([len(rows)], device=rows.device)).tolist()
        longest = max(sizes)
        padded = torch.cat([rows, rows.new_zeros((longest - len(rows), *rows.shape[1:]))])
        gathered = _gather(accelerator, padded)
        rank = accelerator.process_index
        ctx.start, ctx.end = sum(sizes[:rank]), sum(sizes[: rank + 1])
        return torch.cat([gathered[i * longest : i * longest + size] for i, size in enumerate(sizes)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of this process's rows."""
        return gradients[0][ctx.start : ctx.end], None


def gather_rows(accelerator: Accelerator, rows: Tensor) -> Tensor:
    """Return the rows of all processes, in the order of the processes; they may have unequally many.

    The gradient of a row comes back to the process that it is from. It is whole if every process computes the whole loss.

    Args:
        accelerator: knows the processes.
        rows: (rows of this process, ...).
    """
    if accelerator.num_processes == 1:
        return rows
    gathered: Tensor = _GatherRows.apply(rows, accelerator)  # type: ignore[no-untyped-call]
    return gathered


def gathered_texts(accelerator: Accelerator, embeddings: Tensor, inputs: dict[str, Tensor]) -> Texts:
    """Return the texts of the batch of all processes.

    Args:
        accelerator: knows the processes.
        embeddings: (texts, dim) of this process: its queries, its positives, its negatives.
        inputs: this process's batch of `trainer.collator.ContrastiveCollator`.
    """
    num_rows = len(inputs["query_keys"])
    columns = dict(
        zip(("queries", "positives", "negatives"), embeddings.tensor_split([num_rows, 2 * num_rows]), strict=True)
    )
    keys = {name: inputs[name] for name in ("query_keys", "positive_keys", "negative_keys")}
    known, symmetric = inputs["known_positives"], inputs["symmetric"].reshape(1)
    if accelerator.num_processes > 1:
        sizes = _gather(accelerator, torch.tensor([num_rows], device=known.device))
        shift = torch.stack([sizes[: accelerator.process_index].sum(), sizes.new_zeros(())])
        known = known + shift  # rows are counted over all processes
        symmetric = _gather(accelerator, symmetric)
    gathered = {name: gather_rows(accelerator, rows) for name, rows in {**columns, **keys, "known": known}.items()}
    return Texts(known_positives=gathered.pop("known"), symmetric=bool(symmetric.any()), **gathered)


def agree(accelerator: Accelerator, num_chunks: int, num_kept: int) -> tuple[int, int]:
    """Return how many chunks all processes compute, and how many of these keep their graphs.

    Of several processes none keeps all: the last chunk's forward pass announces the exchange of gradients.
    """
    if accelerator.num_processes == 1:
        return num_chunks, num_kept
    counts = _gather(accelerator, torch.tensor([[num_chunks, num_kept]], device=accelerator.device))
    most = max(int(counts[:, 0].max()), 1)
    return most, min(int(counts[:, 1].min()), most - 1)


@contextmanager
def no_sync(accelerator: Accelerator, model: nn.Module) -> Iterator[None]:
    """Keep gradients in each process, whatever spreads the model over them."""
    if (
        accelerator.distributed_type == DistributedType.DEEPSPEED
    ):  # its engine would make a step with each backward pass
        state = accelerator.gradient_state
        before = state.sync_gradients
        state._set_sync_gradients(False)
        try:
            yield
        finally:
            state._set_sync_gradients(before)
    else:
        with accelerator.no_sync(model):
            yield
