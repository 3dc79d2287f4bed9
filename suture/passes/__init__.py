"""Surgery: each pass is a function `Graph -> Graph` that says what it promises, and is checked.

`suture.passes.fold(graph)` loads the pass when it is asked for; importing this package loads none. A family of passes is one module;
`_MODULES` says which module registers which pass.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from suture.passes.adapters.attaching import attach_adapters as attach_adapters
    from suture.passes.adapters.merging import merge_adapters as merge_adapters
    from suture.passes.assembly.assemble import assemble as assemble
    from suture.passes.assembly.compose import compose as compose
    from suture.passes.assembly.incubation import meta_model as meta_model
    from suture.passes.assembly.reuse import reuse as reuse
    from suture.passes.assembly.skip_layers import skip_layers as skip_layers
    from suture.passes.canonical.canonicalise import canonicalise as canonicalise
    from suture.passes.exits import add_exits as add_exits
    from suture.passes.exits import early_exit as early_exit
    from suture.passes.experts.collapse import collapse_experts as collapse_experts
    from suture.passes.experts.merge_experts import merge_experts as merge_experts
    from suture.passes.experts.split_experts import split_experts as split_experts
    from suture.passes.experts.upcycle import upcycle as upcycle
    from suture.passes.experts.weight_averaging import ewa as ewa
    from suture.passes.fold import fold as fold
    from suture.passes.fusion.expand import expand as expand
    from suture.passes.fusion.fuse import fuse as fuse
    from suture.passes.gradient import gradient as gradient
    from suture.passes.growth.depth.stacking import insert_identity as insert_identity
    from suture.passes.growth.depth.stacking import insert_masked as insert_masked
    from suture.passes.growth.depth.stacking import stack as stack
    from suture.passes.growth.ligo import ligo as ligo
    from suture.passes.growth.masking import unmask as unmask
    from suture.passes.growth.multilevel import coalesce as coalesce
    from suture.passes.growth.multilevel import decoalesce as decoalesce
    from suture.passes.growth.multilevel import interpolate as interpolate
    from suture.passes.growth.width.widen import widen as widen
    from suture.passes.low_rank.factorise import factorise as factorise
    from suture.passes.precompute import precompute as precompute
    from suture.passes.prune import prune as prune
    from suture.passes.quantise.post_training import quantise as quantise
    from suture.passes.quantise_weights import quantise_weights as quantise_weights
    from suture.passes.relational.compaction import compact as compact
    from suture.passes.relational.layout import lay_out as lay_out
    from suture.passes.relational.reordering import reorder as reorder
    from suture.passes.reparam import merge_factors as merge_factors
    from suture.passes.reparam import reparam as reparam
    from suture.passes.repq import repq as repq
    from suture.passes.sharing.recursive import recurse as recurse
    from suture.passes.sharing.shared_stages import expand_stages as expand_stages
    from suture.passes.sharing.shared_stages import share_stages as share_stages
    from suture.passes.sharing.untie import untie as untie
    from suture.passes.specialise import specialise as specialise
    from suture.passes.stitch import stitch as stitch
    from suture.passes.stitch.joining import join as join
    from suture.passes.stitch.updates import fold_updates as fold_updates
    from suture.passes.symmetry.absorb_bias import absorb_bias as absorb_bias
    from suture.passes.symmetry.centre import centre as centre
    from suture.passes.symmetry.equalise import equalise as equalise
    from suture.passes.symmetry.fold_gains import fold_gains as fold_gains
    from suture.passes.symmetry.fold_scale import fold_scale as fold_scale
    from suture.passes.symmetry.rotate import rotate as rotate
    from suture.passes.symmetry.rotate_heads import rotate_heads as rotate_heads

_MODULES = {
    "add_exits": "exits", "assemble": "assembly.assemble", "canonicalise": "canonical.canonicalise",
    "attach_adapters": "adapters.attaching",
    "coalesce": "growth.multilevel",
    "compact": "relational.compaction", "reorder": "relational.reordering",
    "collapse_experts": "experts.collapse",
    "compose": "assembly.compose", "decoalesce": "growth.multilevel", "early_exit": "exits",
    "ewa": "experts.weight_averaging",
    "expand": "fusion.expand", "expand_stages": "sharing.shared_stages", "fold": "fold", "fold_updates": "stitch.updates", "fuse": "fusion.fuse",
    "factorise": "low_rank.factorise",
    "gradient": "gradient", "insert_identity": "growth.depth.stacking", "insert_masked": "growth.depth.stacking",
    "interpolate": "growth.multilevel", "join": "stitch.joining", "lay_out": "relational.layout", "ligo": "growth.ligo",
    "merge_adapters": "adapters.merging",
    "merge_experts": "experts.merge_experts", "merge_factors": "reparam", "meta_model": "assembly.incubation",
    "precompute": "precompute", "prune": "prune",
    "quantise": "quantise", "quantise_weights": "quantise_weights.weight_only", "reparam": "reparam", "repq": "repq.low_bits",
    "recurse": "sharing.recursive", "replay": "prune", "reuse": "assembly.reuse",
    "fold_gains": "symmetry.fold_gains",
    "centre": "symmetry.centre",
    "fold_scale": "symmetry.fold_scale",
    "rotate": "symmetry.rotate",
    "rotate_heads": "symmetry.rotate_heads",
    "equalise": "symmetry.equalise",
    "absorb_bias": "symmetry.absorb_bias",
    "share_stages": "sharing.shared_stages", "skip_layers": "assembly.skip_layers", "specialise": "specialise",
    "split_experts": "experts.split_experts", "stack": "growth.depth.stacking", "stitch": "stitch",
    "unmask": "growth.masking", "untie": "sharing.untie", "upcycle": "experts.upcycle", "widen": "growth.width.widen",
}  # fmt: skip
"""Name of a pass -> the module here that registers it."""


def load_all() -> None:
    """Import every module that registers a pass."""
    for module in sorted(set(_MODULES.values())):
        importlib.import_module(f"{__name__}.{module}")


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _MODULES:
        importlib.import_module(f"{__name__}.{_MODULES[name]}")
    # the import system asks here for `registry` and other modules before it loads them, so none may be imported by `from`
    registry = importlib.import_module(f"{__name__}.registry")
    found = registry.registered(name)
    if found is None:
        from suture.ir.errors import nearest

        raise AttributeError(
            f"module {__name__!r} has no pass {name!r}; {nearest(name, [*_MODULES, *registry.registered_names()], what='pass')}"
        )
    return found.call


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])


class _Package(ModuleType):
    """Importing the module `fold` binds it to this package's attribute `fold`, which must stay the pass of that name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _MODULES and isinstance(value, ModuleType):
            value = getattr(value, name, value)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
