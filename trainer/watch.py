"""What ends a training loudly instead of letting it waste hours, and its one progress line."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dataset_builder.errors import RunError
from dataset_builder.progress import duration

_COLLAPSED = 0.999  # mean cosine of a query with texts that are none of its own
_PATIENCE = 3  # logs in a row


class ProgressLine(TrainerCallback):
    """One line on stderr at each log: step, loss, recall@1, similarities, speed and ETA."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._first_step = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock; a resumed run has steps behind it that took no time now."""
        self._start, self._first_step = time.monotonic(), state.global_step

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Print the line."""
        if not logs or "loss" not in logs or not state.is_world_process_zero:
            return
        done = max(state.global_step - self._first_step, 1)
        left_s = (time.monotonic() - self._start) / done * (state.max_steps - state.global_step)
        speed = f"{logs['tokens_per_s']:,.0f} tok/s" + (f", MFU {logs['mfu']:.0f}%" if "mfu" in logs else "")
        print(
            f"train {state.global_step:,}/{state.max_steps:,} ({state.global_step / state.max_steps:.1%})"
            f" | loss {logs['loss']:.3f} | recall@1 {logs['recall_at_1']:.2f}"
            f" | cosine {logs['positive_similarity']:.2f} positive, {logs['negative_similarity']:.2f} negative"
            f" | {speed} | eta {duration(left_s)}",
            file=sys.stderr,
            flush=True,
        )


class Watch(TrainerCallback):
    """Stops a training that cannot come to anything.

    Raises:
        RunError: if gradients are not finite, if all embeddings have become the same, or if LoRA's adapters still are what
            they were at the start although the warm-up is over.
    """

    def __init__(self) -> None:
        self._num_collapsed = 0

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Look at what was logged."""
        if not logs or "loss" not in logs:
            return
        # float16's loss scaling skips steps whose gradients overflow
        if not args.fp16 and not math.isfinite(float(logs.get("grad_norm", 0.0))):
            raise RunError(
                f"The gradients are {logs['grad_norm']} at step {state.global_step}; lower --learning_rate, or train in "
                "float32 or bfloat16."
            )
        is_late = state.global_step > args.get_warmup_steps(state.max_steps)
        collapsed = is_late and logs.get("negative_similarity", 0.0) >= _COLLAPSED
        self._num_collapsed = self._num_collapsed + 1 if collapsed else 0
        if self._num_collapsed >= _PATIENCE:
            raise RunError(
                f"All embeddings have become the same (mean cosine of unrelated texts {logs['negative_similarity']:.4f} at "
                f"step {state.global_step}); lower --learning_rate, or look whether the dataset's texts differ at all."
            )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Look at LoRA's adapters, once."""
        # the first step of a warm-up has learning rate 0
        if state.global_step != max(args.get_warmup_steps(state.max_steps), 1) + 1:
            return
        adapters = [weight for name, weight in model.named_parameters() if "lora_B" in name]
        if adapters and not any(bool(weight.any()) for weight in adapters):
            raise RunError(
                f"LoRA's adapters still do nothing after {state.global_step} steps: all their B matrices are zero, so that no "
                "gradient reaches them. Check --learning_rate and --lora_target_modules."
            )
