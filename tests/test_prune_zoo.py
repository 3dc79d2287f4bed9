"""Every architecture of the zoo prunes without a hint: the verdicts hold on numbers, the result runs at another batch size and trains."""

from __future__ import annotations

import functools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo

import suture
from suture.passes.plan import Plan
from suture.passes.proof import zero_then_cut
from suture.passes.prune import plan_prune

# float64 convolutions in groups are slow on a CPU, so these run on small images; the graph is the same.
SMALL = dict.fromkeys(
    (
        "convnext_tiny",
        "efficientnet_b0",
        "ghostnet_100",
        "mobilenetv3_large_100",
        "regnety_008",
        "densenet121",
        "hrnet_w18_small",
        "resnet50",
        "shufflenet_v2_x1_0",
        "deeplabv3_mobilenet_v3_large",
    ),
    32,
)


@functools.lru_cache(maxsize=1)
def traced(name: str) -> tuple[suture.Graph, dict[str, torch.Tensor]]:
    entry = zoo.ENTRIES[name]
    made: dict[str, Any] = entry.inputs(2, 9)
    if name in SMALL:
        made = {"x": torch.randn(2, 3, SMALL[name], SMALL[name])}
    module = zoo.randomise(entry.module())
    args, kwargs = (tuple(made.values()), {}) if entry.positional else ((), made)
    graph = suture.trace(module, args, kwargs, dynamic=entry.dynamic)
    return graph, dict(zip((value.name for value in graph.inputs), made.values(), strict=True))


@pytest.mark.parametrize("name", list(zoo.ENTRIES))
def test_verdicts_hold_and_the_result_runs_exports_and_trains(
    name: str, tmp_path: Path, record_property: pytest.RecordProperty
) -> None:
    graph, inputs = traced(name)
    plan = plan_prune(graph, every=True, by="random", seed=1)
    assert plan.cuts
    levels = Counter(cut.verdict.split(":")[0] for cut in plan.cuts)
    record_property(
        "verdicts",
        f"{name}: {len(plan.cuts)} axes, " + ", ".join(f"{n} {level}" for level, n in sorted(levels.items())),
    )

    certain = Plan(tuple(cut for cut in plan.cuts if not cut.verdict.startswith("approximate")))
    one = {key: tensor[:1] for key, tensor in inputs.items()}
    proof = zero_then_cut(graph, certain, one)
    assert proof.exact(1e-10), proof
    doubtful = [cut for cut in plan.cuts if cut.verdict.startswith("approximate")]
    for cut in doubtful[:2]:
        shown = zero_then_cut(graph, Plan((cut,)), one)
        assert max(shown.all_zeroed, shown.writers_zeroed) > 1e-8, f"{cut} is exact after all"

    slim = suture.passes.prune(graph, keep=0.5, check=False)
    chosen = plan_prune(graph, keep=0.5)
    assert all(len(cut.keep) == (cut.size + 1) // 2 for cut in chosen.cuts)
    assert slim.stats().parameters < 0.7 * graph.stats().parameters
    assert slim.stats().macs < 0.7 * graph.stats().macs
    file = suture.export_onnx(slim, tmp_path / "slim.onnx")
    assert suture.compare(slim, file, inputs).relative < 1e-5
    module = suture.to_torch(slim).train()
    output = _leaf(
        module(*inputs.values()) if graph.structure is None or zoo.ENTRIES[name].positional else module(**inputs)
    )
    before = [parameter.detach().clone() for parameter in module.parameters()]
    output.float().pow(2).mean().backward()
    optimiser = torch.optim.SGD(module.parameters(), lr=1e-3)
    optimiser.step()
    moved = sum(bool((a != b).any()) for a, b in zip(before, module.parameters(), strict=True))
    assert moved >= 0.8 * len(before)
    assert all(parameter.grad is None or bool(parameter.grad.isfinite().all()) for parameter in module.parameters())


def _leaf(result: Any) -> torch.Tensor:
    leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]
    return leaves[0]
