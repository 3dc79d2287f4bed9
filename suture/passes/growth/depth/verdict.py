"""Whether another order of a stack's blocks keeps the function, and what is to blame if not."""

from __future__ import annotations

from suture.ir.regions import Stack
from suture.passes.growth.depth.identity import IdentityForm, identity_form
from suture.passes.growth.depth.order import Order


def judge_order(stack: Stack, order: Order) -> str:
    """The verdict: exact where the blocks that act, identities aside, stay in their order; else the first block that does not, and what it adds."""
    forms = [identity_form(block) for block in stack.blocks]
    names = [block.name for block in stack.blocks]
    idle = {index for index, form in enumerate(forms) if form.holds()}
    acting = [index for index in order if index not in idle]
    expected = [index for index in range(len(stack)) if index not in idle]
    if acting == expected:
        return (
            f"exact: the blocks that are copied are the identity ({', '.join(names[index] for index in sorted(idle))})"
        )
    for index in expected:
        if index not in acting:
            return f"approximate: {names[index]} is gone{_reason(forms[index])}"
    for index in expected:
        if acting.count(index) > 1:
            return f"approximate: {names[index]} acts {acting.count(index)} times{_reason(forms[index])}"
    return f"approximate: {names[acting[0]]} acts in another place{_reason(forms[acting[0]])}"


def _reason(form: IdentityForm) -> str:
    if form.blame:
        return f", and {form.blame}"
    return f", and what {form.layers[0]} adds does not vanish" if form.layers else ""
