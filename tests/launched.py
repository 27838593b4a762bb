"""`embedsmith train` in one of several processes: `accelerate launch ... -m tests.launched KIND OUT FLAGS ...`.

KIND is `ddp` or `fsdp2`. accelerate 1.15 uses FSDP on accelerators alone and falls back to DDP on CPUs, although torch's own
FSDP2 works there with gloo; so this tells accelerate's state that it is FSDP. Everything else is the real thing. The gradients
of the token embeddings at each step go to OUT, from the first process.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainerCallback

import embedsmith


def use_fsdp2() -> None:
    """Let accelerate shard by FSDP2 on CPUs."""
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    original = AcceleratorState.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.FSDP
            self.fsdp_plugin = FullyShardedDataParallelPlugin(
                fsdp_version=2,
                auto_wrap_policy="transformer_based_wrap",
                reshard_after_forward=True,
                state_dict_type="SHARDED_STATE_DICT",
            )

    AcceleratorState.__init__ = init


class Gradients(TrainerCallback):
    """Keeps the gradients of the token embeddings at each step, and how the weights are held."""

    def __init__(self) -> None:
        self.found: dict[str, torch.Tensor] = {}
        self.is_sharded = False

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Called with the gradients of the whole batch."""
        weight = next(w for name, w in model.named_parameters() if "embed_tokens" in name)
        self.is_sharded = isinstance(weight, DTensor)
        if weight.grad is None:  # LoRA leaves them as they are
            return
        gradient = weight.grad.full_tensor() if isinstance(weight.grad, DTensor) else weight.grad
        self.found[f"step {state.global_step}"] = gradient.detach().clone()


def main() -> int:
    """Train, and write the gradients."""
    kind, out, gradients = sys.argv[1], Path(sys.argv[2]), Gradients()
    torch.set_num_threads(1)
    if kind == "fsdp2":
        use_fsdp2()
    original = Trainer.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.add_callback(gradients)

    Trainer.__init__ = init  # type: ignore[method-assign]
    code = embedsmith.main(sys.argv[3:])
    if int(os.environ.get("RANK", "0")) == 0:
        save_file(gradients.found | {"is_sharded": torch.tensor(gradients.is_sharded)}, out)
    return code


if __name__ == "__main__":
    sys.exit(main())
