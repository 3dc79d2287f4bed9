"""The peer: Torch-Pruning 1.6.1, driven as its documentation says, without hints (auto) and with them (assisted).

Assisted means what its official examples do by hand for each architecture: the number of heads of every attention
projection before the cut, and the head sizes that the modules keep as numbers repaired after it.
"""

from __future__ import annotations

import copy
import time
import warnings
from dataclasses import dataclass, field

import torch
from prune_cases import Case
from torch import Tensor, nn


@dataclass
class Pruned:
    """What came out of one run: a module or an error, the seconds it took, and which elements were removed."""

    seconds: float
    module: nn.Module | None = None
    error: str = ""
    removed: dict[str, Tensor] = field(default_factory=dict)  # parameter name -> mask over the original's elements


def prune(case: Case, original: nn.Module, inputs: Tensor, assisted: bool, track: bool = False) -> Pruned:
    """Build the dependency graph and take one step at 50 %, classifier left alone; only these two are timed."""
    import torch_pruning

    module = copy.deepcopy(original)
    if track:
        # The peer cuts gradients along with their parameters: numbered gradients tell which elements survive.
        for parameter in module.parameters():
            parameter.grad = torch.arange(parameter.numel(), dtype=parameter.dtype).reshape(parameter.shape)
    hints = _heads(module) if assisted else {}
    options = {
        "num_heads": hints,
        "in_channel_groups": {},
        "out_channel_groups": {},
    }  # its defaults are shared, mutable
    if assisted and case.name.startswith("llama"):
        options |= {"prune_num_heads": True, "prune_head_dims": False, "head_pruning_ratio": 0.5}
    importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)
    start = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pruner = torch_pruning.pruner.BasePruner(
                module,
                (inputs,),
                importance=importance,
                pruning_ratio=0.5,
                ignored_layers=[module.get_submodule(case.head)],
                **options,
            )
            pruner.step()
    except Exception as error:  # what the peer raises is the finding
        return Pruned(time.perf_counter() - start, error=_line(error))
    seconds = time.perf_counter() - start
    if assisted:
        _repair(module)
    return Pruned(seconds, module, removed=_removed(original, module) if track else {})


def _heads(module: nn.Module) -> dict[nn.Module, int]:
    heads: dict[nn.Module, int] = {}
    for part in module.modules():
        if isinstance(getattr(part, "qkv", None), nn.Linear):
            heads[part.qkv] = part.num_heads
        elif hasattr(part, "q_proj"):
            heads[part.q_proj] = part.config.num_attention_heads
            heads[part.k_proj] = heads[part.v_proj] = part.config.num_key_value_heads
    return heads


def _repair(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(getattr(part, "qkv", None), nn.Linear) and hasattr(part, "head_dim"):
            part.head_dim = part.qkv.out_features // (3 * part.num_heads)
            if hasattr(part, "attn_dim"):
                part.attn_dim = part.head_dim * part.num_heads


def _removed(original: nn.Module, pruned: nn.Module) -> dict[str, Tensor]:
    masks = {}
    survivors = dict(pruned.named_parameters())
    for name, parameter in original.named_parameters():
        mask = torch.ones(parameter.numel(), dtype=torch.bool)
        kept = survivors.get(name)
        if kept is not None and kept.grad is not None:
            mask[kept.grad.flatten().long()] = False
        masks[name] = mask.reshape(parameter.shape)
    return masks


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:120]


def exactness(original: nn.Module, pruned: Pruned, inputs: Tensor) -> float:
    """Zero what was removed in a copy of the original and compare: relative deviation, in the modules' own dtype."""
    zeroed = copy.deepcopy(original)
    with torch.no_grad():
        for name, parameter in zeroed.named_parameters():
            parameter.masked_fill_(pruned.removed[name], 0)
        wanted = zeroed(inputs)
        assert pruned.module is not None
        found = pruned.module(inputs)
    return float((wanted - found).abs().max() / wanted.abs().max())


def forward(pruned: Pruned, inputs: Tensor) -> str:
    """Say how running the pruned module ends."""
    if pruned.module is None:
        return pruned.error
    try:
        with torch.no_grad():
            pruned.module(inputs)
    except Exception as error:
        return _line(error)
    return "runs"
