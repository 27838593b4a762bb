"""Two processes train what one does on the joined batch, and the same in both."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.tiny_models import (
    one_thread,  # noqa: F401  autouse
    save_tiny_model,
)
from tests.train_worker import SETTINGS, train

# peft 0.21 asks for it on each PeftModel, transformers 5.23 has renamed it
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int, int], dict[str, Tensor]]:
    """Weights by setting, number of processes and process."""
    base = save_tiny_model("qwen3", tmp_path_factory.mktemp("base"))
    out = tmp_path_factory.mktemp("out")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name, settings in SETTINGS.items():
        train(base, out, 8, name, **settings)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    command = [*launch, "tests.train_worker", str(base), str(out), "8"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return lambda name, num, rank: load_file(out / f"{name}-{rank}-of-{num}.safetensors")


@pytest.mark.parametrize("name", SETTINGS)
def test_two_processes_equal_one_and_each_other(
    trained: Callable[[str, int, int], dict[str, Tensor]], name: str
) -> None:
    alone, first, second = trained(name, 1, 0), trained(name, 2, 0), trained(name, 2, 1)
    for weight, expected in alone.items():
        assert torch.equal(first[weight], second[weight]), weight
        torch.testing.assert_close(first[weight], expected, atol=1e-6, rtol=1e-6)


def test_training_changed_the_weights(trained: Callable[[str, int, int], dict[str, Tensor]]) -> None:
    """Else the test above would say nothing."""
    losses = trained("float64", 1, 0)["losses"][:3]
    assert torch.unique(losses).numel() == 3
    one, other = (trained(name, 1, 0)["layers.0.mlp.up_proj.weight"].double() for name in ("float64", "float32"))
    assert (one - other).abs().max() > 1e-3
