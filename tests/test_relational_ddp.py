"""Mini-batches on two processes give the losses that they give on one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed
from message_graphs import EXAMPLES

sys.path.insert(0, str(EXAMPLES))

import train_distributed

SCRIPT = """
import json, os, sys
import torch, torch.distributed as dist
sys.path.insert(0, os.environ["EXAMPLES"])
torch.set_num_threads(1)
from train_distributed import train
dist.init_process_group("gloo")
losses = train(dist.get_rank(), dist.get_world_size(), epochs=2)
if dist.get_rank() == 0:
    open(sys.argv[1], "w").write(json.dumps(losses))
dist.destroy_process_group()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")
def test_two_processes_have_the_losses_of_one(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    with torch.random.fork_rng():
        expected = train_distributed.train(0, 1, epochs=2)
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    result = tmp_path / "losses.json"
    done = subprocess.run(
        [*run, str(tmp_path / "script.py"), str(result)], capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "EXAMPLES": str(EXAMPLES)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    losses = json.loads(result.read_text())
    assert len(losses) == 14
    assert losses == pytest.approx(expected, rel=1e-4)
    assert losses[-1] < 0.8 * losses[0]
