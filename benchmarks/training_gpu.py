"""One batch of the paper's size through Mistral-7B with LoRA on one GPU, by embedsmith and by its peers: `training_gpu.py`.

The weights are random (speed does not depend on them), bfloat16, adapters of rank 16 on all linear layers; the batch is that
of the mix `mixed` of `training_methods.py`. Each method adds the gradients of one batch to the same adapters, after a
warm-up on a part of it, and nothing else: no optimizer, no tokenizer. As in training with `--bf16`, the adapters are float32
and the forward pass runs under autocast. MFU counts what LoRA needs (four operations a weight and useful token: there are no
gradients of frozen weights) against the GPU's peak. Prints JSON, one line a row.
"""

from __future__ import annotations

import argparse
import gc
import inspect
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import Tensor, nn
from torch.nn import functional
from training_methods import TEMPERATURE, Columns, columns, padded
from transformers import MistralConfig, MistralModel
from trl.trainer.utils import get_peak_flops

from trainer.budget import budget
from trainer.encoding import EosEncoder
from trainer.gradient_cache import Encode, GradientCache
from trainer.loss import Texts, contrastive_loss

Step = Callable[[Columns], Tensor]


def mistral(num_layers: int, *, liger: bool = False) -> PeftModel:
    """Return Mistral-7B-v0.1 with random weights and LoRA, on the GPU, under autocast as accelerate would put it."""
    config = MistralConfig(num_hidden_layers=num_layers, sliding_window=4_096, use_cache=False)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = MistralModel(config)
    torch.set_default_dtype(torch.float32)
    if liger:
        from liger_kernel.transformers import apply_liger_kernel_to_mistral

        apply_liger_kernel_to_mistral(
            rope=True, rms_norm=True, swiglu=True, fused_linear_cross_entropy=False, model=model
        )
    lora = LoraConfig(task_type="FEATURE_EXTRACTION", r=16, lora_alpha=32, target_modules="all-linear")
    lora.init_lora_weights = False  # else the gradients of A would be zero
    wrapped: Any = get_peft_model(model, lora).train()
    wrapped.forward = torch.autocast("cuda", dtype=torch.bfloat16)(wrapped.forward)
    typed: PeftModel = wrapped
    return typed


def embedsmith(model: PeftModel, encode: Encode, chunk_tokens: int | None, kept_tokens: int | None) -> Step:
    """The engine of `ContrastiveTrainer.training_step`, with what its memory allows."""
    device = torch.device("cuda")
    tokens = budget(encode, device, chunk_tokens, kept_tokens, 0)

    def step(texts: Columns) -> Tensor:
        ids, sizes = (tensor.cuda() for tensor in padded([text for column in texts for text in column]))
        num = len(texts[0])
        cache = GradientCache(encode, ids, sizes, **tokens._asdict())
        keys = torch.arange(3 * num, device="cuda").tensor_split(3)
        known = torch.zeros((0, 2), dtype=torch.int64, device="cuda")
        queries, positives, negatives = cache.embeddings.tensor_split(3)
        texts_ = Texts(queries, positives, negatives, keys[0], keys[1], keys[2], known)
        result = contrastive_loss(texts_, temperature=TEMPERATURE)
        result.loss.backward()  # type: ignore[no-untyped-call]
        cache.backward()
        step.padding = cache.num_padded / int(sizes.sum())  # type: ignore[attr-defined]
        return result.loss.detach()

    step.tokens = tokens  # type: ignore[attr-defined]
    return step


class _Backbone(nn.Module):
    """What sentence-transformers' `Transformer` does with features, around a model that is in memory already."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.auto_model = model

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        hidden = self.auto_model(
            input_ids=features["input_ids"], attention_mask=features["attention_mask"]
        ).last_hidden_state
        return features | {"token_embeddings": hidden}


def cached_mnrl(model: PeftModel, mini_batch_size: int) -> Step:
    """sentence-transformers' `CachedMultipleNegativesRankingLoss`."""
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

    pooling = Pooling(model.config.hidden_size, pooling_mode="lasttoken")
    sentence_transformer = SentenceTransformer(modules=[_Backbone(model), pooling], device="cuda").train()
    loss = CachedMultipleNegativesRankingLoss(
        sentence_transformer, scale=1 / TEMPERATURE, mini_batch_size=mini_batch_size
    )

    def step(texts: Columns) -> Tensor:
        features = []
        for column in texts:
            ids, sizes = (tensor.cuda() for tensor in padded(column))
            mask = (torch.arange(ids.shape[1], device="cuda") < sizes[:, None]).long()
            features.append({"input_ids": ids, "attention_mask": mask})
        value: Tensor = loss(features, torch.zeros(0))
        value.backward()  # type: ignore[no-untyped-call]
        return value.detach()

    return step


def grad_cache(model: PeftModel, chunk_size: int) -> Step:
    """The loop of the GradCache paper: chunks of consecutive rows, column by column, each computed twice."""

    def encode(texts: list[Tensor]) -> Tensor:
        ids, sizes = (tensor.cuda() for tensor in padded(texts))
        mask = (torch.arange(ids.shape[1], device="cuda") < sizes[:, None]).long()
        hidden: Tensor = model(input_ids=ids, attention_mask=mask).last_hidden_state
        return functional.normalize(hidden[torch.arange(len(sizes)), sizes - 1].float(), dim=-1)

    def step(texts: Columns) -> Tensor:
        num = len(texts[0])
        chunks = [column[i : i + chunk_size] for column in texts for i in range(0, num, chunk_size)]
        with torch.no_grad():
            parts = [encode(chunk) for chunk in chunks]
        leaf = torch.cat(parts).requires_grad_()
        loss = functional.cross_entropy(leaf[:num] @ leaf[num:].T / TEMPERATURE, torch.arange(num, device="cuda"))
        loss.backward()  # type: ignore[no-untyped-call]
        assert leaf.grad is not None
        for chunk, gradient in zip(chunks, torch.split(leaf.grad, [len(part) for part in parts]), strict=True):
            (encode(chunk) * gradient).sum().backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    return step


def varlen(model: Any) -> Encode:
    """Packed texts without any padding, by torch's varlen attention: what that would add to chunks sorted by length."""
    from torch.nn.attention.varlen import varlen_attn
    from transformers import AttentionInterface, AttentionMaskInterface

    state: dict[str, Any] = {}

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **_: Any
    ) -> tuple[Tensor, None]:
        groups = query.shape[1] // key.shape[1]
        # (tokens, heads, head_dim)
        q, k, v = (
            states[0].transpose(0, 1).repeat_interleave(times, dim=1)
            for states, times in ((query, 1), (key, groups), (value, groups))
        )
        edges, longest = state["edges"], state["longest"]
        mixed: Any = varlen_attn(q, k, v, edges, edges, longest, longest, **state["causal"])
        return mixed.unsqueeze(0), None

    names = inspect.signature(varlen_attn).parameters
    state["causal"] = {"is_causal": True} if "is_causal" in names else {"window_size": (-1, 0)}
    AttentionInterface.register("varlen", attend)
    AttentionMaskInterface.register("varlen", lambda *args, **kwargs: None)
    model.base_model.model.set_attn_implementation("varlen")

    def encode(ids: Tensor, lengths: Tensor) -> Tensor:
        positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        is_token = positions < lengths[:, None]
        edges = functional.pad(lengths.cumsum(0), (1, 0)).int()
        state.update(edges=edges, longest=int(lengths.max()))
        hidden = model(input_ids=ids[is_token][None], position_ids=positions[is_token][None], attention_mask=None)
        embeddings: Tensor = hidden.last_hidden_state[0, edges[1:].long() - 1]
        return embeddings

    return encode


def measure(name: str, model: PeftModel, make: Callable[[], Step], texts: Columns) -> dict[str, Any]:
    """Return the row of one method: pairs/s, MFU, peak memory, and loss and gradient to compare."""
    num_weights = sum(w.numel() for n, w in model.named_parameters() if "embed_tokens" not in n and "lora_" not in n)
    num_tokens = sum(len(text) for column in texts for text in column)
    row: dict[str, Any] = {"method": name, "batch": len(texts[0]), "useful_tokens": num_tokens}
    model.zero_grad()
    gc.collect()
    torch.cuda.empty_cache()
    try:
        step = make()
        step([column[:48] for column in texts])
        model.zero_grad()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        loss = step(texts)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    except torch.OutOfMemoryError:
        return row | {"error": "out of memory"}
    except (ImportError, RuntimeError, TypeError, ValueError) as error:
        return row | {"error": f"{type(error).__name__}: {str(error)[:300]}"}
    gradients = [w.grad.float().norm() for w in model.parameters() if w.grad is not None]
    peak_flops = get_peak_flops(torch.cuda.get_device_name(), "bfloat16") or float("nan")
    return row | {
        "seconds": round(seconds, 2),
        "pairs_per_s": round(len(texts[0]) / seconds, 2),
        "tokens_per_s": round(num_tokens / seconds),
        "mfu": round(100 * 4 * num_weights * num_tokens / seconds / peak_flops, 1),
        "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 1),
        "loss": round(float(loss), 4),
        "gradient": round(float(torch.stack(gradients).norm()), 3),
        "padding": round(getattr(step, "padding", float("nan")), 3),
        "budget": getattr(step, "tokens", None),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_layers", type=int, default=32)
    parser.add_argument("--batch", type=int, default=256, help="pairs for the comparison")
    parser.add_argument("--large_batch", type=int, default=2_048, help="pairs for embedsmith alone; 0: none")
    parser.add_argument("--mini_batch_sizes", type=int, nargs="+", default=[8, 16])
    arguments = parser.parse_args()
    torch.manual_seed(0)
    texts, large = (columns("mixed", num, 32_000) for num in (arguments.batch, max(arguments.large_batch, 1)))
    print(json.dumps({"device": torch.cuda.get_device_name(), "torch": torch.__version__}), flush=True)

    def show(name: str, model: PeftModel, make: Callable[[], Step], of: Columns) -> None:
        print(json.dumps(measure(name, model, make, of)), flush=True)

    model = mistral(arguments.num_layers)
    encode = partial(EosEncoder(model), model)
    show("embedsmith", model, lambda: embedsmith(model, encode, None, None), texts)
    for size in arguments.mini_batch_sizes:
        name = f"sentence-transformers cached, mini-batch {size}"
        show(name, model, lambda size=size: cached_mnrl(model, size), texts)  # type: ignore[misc]
    show("GradCache loop, chunks of 16", model, lambda: grad_cache(model, 16), texts)
    show("embedsmith, again", model, lambda: embedsmith(model, encode, None, None), texts)
    show("embedsmith, varlen attention", model, lambda: embedsmith(model, varlen(model), None, None), texts)
    fused = mistral(arguments.num_layers, liger=True)
    encode_fused = partial(EosEncoder(fused), fused)
    show("embedsmith, Liger kernels", fused, lambda: embedsmith(fused, encode_fused, None, None), texts)
    if arguments.large_batch:
        show("embedsmith, Liger kernels", fused, lambda: embedsmith(fused, encode_fused, None, None), large)


if __name__ == "__main__":
    main()
