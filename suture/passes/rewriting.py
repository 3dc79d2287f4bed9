"""Rewriting to a fixed point: small rules, applied at nodes until none applies, each application counted, checked and named.

A rule is a function `(graph, node) -> text | Refusal | None` that edits the graph at one node: it returns what it did, or a refusal with
the reason why a site that it could have taken stays, or None where it has no business. The value that holds the same as before keeps its
name, a value that holds something new takes another: so each application can be checked where it happened (`suture.passes.proving`), and a
pass whose rewrites turn out wrong in the end can be replayed up to any of them (`Notes.limit`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from suture.ir.errors import Code, ContractError
from suture.ir.graph import Graph, Node
from suture.passes.proving import Proof
from suture.passes.registry import Notes


@dataclass(frozen=True)
class Refusal:
    """Why a rule leaves a site alone."""

    reason: str


_PER_NODE = 100  # rewrites a node, on average, after which rules are taken to undo each other

Apply: TypeAlias = Callable[[Graph, Node], "str | Refusal | None"]


@dataclass(frozen=True)
class Rule:
    """One kind of rewrite: its name, and the function that does it at one node."""

    name: str
    apply: Apply


def rewrite(graph: Graph, rules: Sequence[Rule], notes: Notes, *, proof: Proof | None = None) -> Mapping[str, str]:
    """Apply rules in place until none applies; earlier rules go first at a node.

    Each application is entered into `notes.rewrites`; the caller decides what becomes a note.

    :param proof: checks each application on probes as it happens
    :returns: the reasons of the last round for what stays, by rule and site
    :raises ContractError: naming the rewrite that changed a value which it should have kept
    """
    refused: dict[str, str] = {}
    changed, most = True, len(notes.rewrites) + _PER_NODE * (len(graph) + 1)
    while changed and notes.may_rewrite():
        changed, refused = False, {}
        for node in graph.nodes:
            for rule in rules:
                if node not in graph or not notes.may_rewrite():
                    break
                where = node.where()
                result = rule.apply(graph, node)
                if result is None:
                    continue
                if isinstance(result, Refusal):
                    refused[f"{rule.name} at {where}"] = result.reason
                    continue
                changed = True
                notes.rewritten(rule.name, where, result)
                if len(notes.rewrites) > most:
                    raise RuntimeError(f"rules undo each other without end: {notes.rewrites[-1]}")
                if proof is not None:
                    _prove(graph, proof, notes)
    graph.remove_dead()
    return refused


def _prove(graph: Graph, proof: Proof, notes: Notes) -> None:
    wrong = proof.first_difference(graph)
    if wrong is not None:
        raise ContractError(
            Code.CONTRACT,
            f"the rewrite {notes.rewrites[-1]} promises the same function, but the value {wrong.name} moves by {wrong.deviation:.2g}"
            f" (allowed {wrong.allowed:.1g})",
            where=wrong.where,
            remedy="the graph is left as it was",
        )
