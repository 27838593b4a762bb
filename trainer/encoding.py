"""From token ids to EOS embeddings, with as little work as the architecture allows.

What a model needs is not looked up by its name but tried on it once (`EosEncoder`): whether padding on the right changes
anything, so that causal models go without attention mask, and whether the last layer may be computed for the EOS only.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_PROBE_LENGTHS = (9, 7, 4)


def eos_embeddings(last_hidden_state: Tensor, attention_mask: Tensor) -> Tensor:
    """Return the last layer's hidden state at the EOS, the last token of each text (paper, section 3.2).

    Args:
        last_hidden_state: (texts, length, dim).
        attention_mask: (texts, length), 1 on tokens, 0 on padding; the padding may stand on either side.

    Returns:
        (texts, dim), in the dtype of the hidden state.
    """
    positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    last = (attention_mask * positions).argmax(dim=1)
    return last_hidden_state[torch.arange(len(last), device=last.device), last]


class EosEncoder:
    """Computes the EOS embeddings of right-padded texts.

    Args:
        model: the model that will be called, not yet wrapped for several devices; tried on three short texts.

    Attributes:
        needs_mask: whether right padding changes the embeddings of a text, as in bidirectional encoders.
        last_layer: the last decoder layer, if it gives the same EOS embeddings when computed for the EOS only. Its queries,
            its output projection and its MLP are then left out for all other tokens.
    """

    def __init__(self, model: nn.Module) -> None:
        self.needs_mask = True
        self.last_layer: nn.Module | None = None
        layer = _last_layer(model)
        # the probes are too short to see a sliding window; texts longer than one take the ordinary way
        self._window: float = getattr(_config(model), "sliding_window", None) or math.inf
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad():
                self._probe(model, layer)
        finally:
            model.train(was_training)

    def _probe(self, model: nn.Module, layer: nn.Module | None) -> None:
        device = next(model.parameters()).device
        lengths = torch.tensor(_PROBE_LENGTHS, device=device)
        vocab_size = int(_config(model).vocab_size)
        ids = torch.arange(int(lengths.sum()), device=device).reshape(1, -1) % vocab_size
        texts = ids[:, : lengths.max()].repeat(len(lengths), 1)
        with_mask = self(model, texts, lengths)
        self.needs_mask = False
        self.needs_mask = not _is_close(self(model, texts, lengths), with_mask)
        if layer is not None and not self.needs_mask:
            self.last_layer = layer
            try:
                same = _is_close(self(model, texts, lengths), with_mask)
            except (AttributeError, RuntimeError, TypeError, ValueError):  # built otherwise than its names suggest
                same = False
            if not same:
                self.last_layer = None

    def __call__(self, model: nn.Module, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """Return the EOS embeddings (texts, dim), not normalised.

        Args:
            model: the model or what wraps it for several devices; its output has `last_hidden_state`.
            input_ids: (texts, length) int64, padded on the right.
            lengths: (texts,) int64, tokens of each text, its EOS included; at least 1.
        """
        length, last = input_ids.shape[1], lengths - 1
        mask = None
        if self.needs_mask:
            mask = (torch.arange(length, device=lengths.device) < lengths[:, None]).to(input_ids.dtype)
        layer = self.last_layer
        if layer is None or length > self._window:
            hidden: Tensor = model(input_ids=input_ids, attention_mask=mask).last_hidden_state
            return hidden[torch.arange(len(last), device=last.device), last]
        with _for_eos_only(layer, last):
            # (texts, 1, dim)
            hidden = model(input_ids=input_ids, attention_mask=mask).last_hidden_state
        return hidden[:, 0]


def _config(model: Any) -> Any:
    return model.config.get_text_config()


def _is_close(one: Tensor, other: Tensor) -> bool:
    """Tell whether embeddings differ by rounding only; the probes' texts differ by far more where attention sees padding."""
    limit = 1e-4 if one.dtype in (torch.float32, torch.float64) else 3e-2
    return bool(((one - other).float().norm(dim=-1) <= limit * other.float().norm(dim=-1)).all())


def _last_layer(model: nn.Module) -> nn.Module | None:
    """Return the last decoder layer if it is built as Llama's; whether it works as one, the probe tells."""
    for module in model.modules():
        layers = getattr(module, "layers", None)
        if isinstance(layers, nn.ModuleList) and len(layers):
            layer = layers[-1]
            attention = getattr(layer, "self_attn", None)
            parts = [getattr(attention, name, None) for name in ("q_proj", "k_proj", "v_proj", "o_proj")]
            names = {name for name, _ in layer.named_children()}
            if all(parts) and names == {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}:
                return layer
    return None


@contextmanager
def _for_eos_only(layer: nn.Module, last: Tensor) -> Iterator[None]:
    """Let the layer return the hidden state at the positions `last` (texts,) only, as (texts, 1, dim)."""
    own = layer.__dict__.get("forward")
    layer.forward = lambda hidden_states, **kwargs: _eos_only(layer, hidden_states, last, **kwargs)
    try:
        yield
    finally:
        if own is None:
            del layer.forward
        else:
            layer.forward = own


def _eos_only(
    layer: Any, hidden: Tensor, last: Tensor, *, position_embeddings: tuple[Tensor, Tensor], **_: Any
) -> Tensor:
    """Return what a Llama-like decoder layer returns, (texts, 1, dim), for one query a text: the token at `last`.

    Args:
        layer: the decoder layer.
        hidden: (texts, length, dim), what the layer before it returned.
        last: (texts,) position of the EOS.
        position_embeddings: cosine and sine of the rotary embedding, each (1 or texts, length, head_dim).
    """
    attention = layer.self_attn
    num, length = hidden.shape[:2]
    rows = torch.arange(num, device=hidden.device)
    # (texts, 1, dim)
    eos = hidden[rows, last][:, None]
    normed = layer.input_layernorm(hidden)
    query, key, value = (
        projection(states).view(num, -1, projection.out_features // attention.head_dim, attention.head_dim)
        for projection, states in (
            (attention.q_proj, normed[rows, last][:, None]),
            (attention.k_proj, normed),
            (attention.v_proj, normed),
        )
    )
    query, key = (getattr(attention, name, _same)(states) for name, states in (("q_norm", query), ("k_norm", key)))
    # (texts, heads, 1 or length, head_dim)
    query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    rotate = sys.modules[type(attention).__module__].apply_rotary_pos_emb
    cos, sin = position_embeddings
    at_eos = [table.expand(num, -1, -1)[rows, last][:, None] for table in (cos, sin)]
    query, key = rotate(query, query, *at_eos)[0], rotate(key, key, cos, sin)[1]
    positions = torch.arange(length, device=hidden.device)
    # (texts, 1, 1, length): up to the EOS
    seen = (positions <= last[:, None])[:, None, None]
    dropout = attention.attention_dropout if layer.training else 0.0
    mixed = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=seen, dropout_p=dropout, scale=attention.scaling, enable_gqa=True
    )
    states = eos + attention.o_proj(mixed.transpose(1, 2).reshape(num, 1, -1))
    result: Tensor = states + layer.mlp(layer.post_attention_layernorm(states))
    return result


def _same(states: Tensor) -> Tensor:
    return states
