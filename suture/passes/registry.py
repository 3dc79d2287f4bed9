"""The register of passes: what each is called, takes and promises.

A pass is a function `(graph, notes, *, option=default, ...) -> graph` that works on a copy of its graph. Registered once, it is a Python
function, a statement of the script language and a line of `suture passes`, with the same options and the same errors:

    @register(contract=Contract.EXACT)
    def fold(graph: Graph, notes: Notes, *, norms: bool = True) -> Graph:
        '''Merge what can be computed ahead of time.

        :param norms: merge batch norms into their neighbours
        '''
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast

import torch

from suture.ir.errors import Code, ContractError, SutureError, nearest
from suture.ir.graph import Graph, Record
from suture.ir.types import DTYPE_NAMES
from suture.passes.contract import Contract, Fingerprint, Interface, check_contract
from suture.passes.options import RESERVED, Option, check_options, read_options

Probes = Sequence[torch.Tensor] | Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Rewrite:
    """One application of a rule: the rule's name, the site, and what was done."""

    rule: str
    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.rule} at {self.where}"


@dataclass
class Notes:
    """What a pass says about its work: sites done, sites left alone and why.

    A pass made of rewrites enters each of them; `limit` lets it be replayed up to the first so many. Where `checked` is off nothing is computed
    on probes, neither after the pass nor at a rewrite.
    """

    texts: list[str] = field(default_factory=list)
    reason: str | None = None
    claimed: Contract | None = None
    interface: Interface = field(default_factory=Interface)
    rewrites: list[Rewrite] = field(default_factory=list)
    limit: int | None = None
    checked: bool = True

    def may_rewrite(self) -> bool:
        """Whether another rewrite may be applied; a pass asks before each."""
        return self.limit is None or len(self.rewrites) < self.limit

    def rewritten(self, rule: str, where: str, text: str) -> None:
        """Enter one rewrite."""
        self.rewrites.append(Rewrite(rule, where, text))

    def note(self, text: str) -> None:
        """Say one thing about one site."""
        self.texts.append(text)

    def not_applicable(self, reason: str) -> None:
        """Say why the pass does nothing at all."""
        self.reason = reason

    def claim(self, contract: Contract) -> None:
        """Promise more than the pass always does: this once, the contract is `contract`, and the result is held to it."""
        self.claimed = contract

    def gains_input(self, name: str) -> None:
        """Declare an input that the graph did not have: without that the contract refuses it."""
        self.interface = replace(self.interface, gained_inputs=(*self.interface.gained_inputs, name))

    def loses_input(self, name: str) -> None:
        """Declare that an input goes."""
        self.interface = replace(self.interface, lost_inputs=(*self.interface.lost_inputs, name))

    def gains_output(self, name: str) -> None:
        """Declare an output that the graph did not have."""
        self.interface = replace(self.interface, gained_outputs=(*self.interface.gained_outputs, name))

    def loses_output(self, name: str) -> None:
        """Declare that an output goes."""
        self.interface = replace(self.interface, lost_outputs=(*self.interface.lost_outputs, name))


class PassFunction(Protocol):
    """A pass as its users call it."""

    __name__: str

    def __call__(self, graph: Graph, /, **options: Any) -> Graph:
        """Apply the pass."""
        ...


@dataclass(frozen=True)
class Pass:
    """A registered pass: `function` is what its author wrote, `call` what users call."""

    name: str
    function: Callable[..., Graph]
    call: PassFunction
    contract: Contract
    options: tuple[Option, ...]
    summary: str

    def check(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options converted to their types.

        :raises SutureError: OPTION, for one that is unknown, of another type, or missing
        """
        return check_options(f"the pass {self.name}", self.options, options)

    def __str__(self) -> str:
        return f"{self.name}({', '.join(str(option) for option in self.options)})  [{self.contract}]  {self.summary}"


_REGISTRY: dict[str, Pass] = {}


def register(*, contract: Contract, name: str | None = None) -> Callable[[Callable[..., Graph]], PassFunction]:
    """Register a pass and wrap it: options are checked, what was done is recorded, and the contract is tested on probes.

    The wrapped function takes the pass's options and `probes`, `check` and `within` besides.
    """

    def wrap(function: Callable[..., Graph]) -> PassFunction:
        title = name or function.__name__
        summary = (inspect.getdoc(function) or title).splitlines()[0]
        wants_probes = "probes" in inspect.signature(function).parameters

        @functools.wraps(function)
        def call(
            graph: Graph,
            /,
            *,
            probes: Probes | None = None,
            check: bool = True,
            within: float | None = None,
            **options: Any,
        ) -> Graph:
            chosen = entry.check(options)
            return _run(entry, graph, chosen, probes=probes, check=check, within=within, wants_probes=wants_probes)

        call.__signature__ = _public_signature(function, call)  # type: ignore[attr-defined]
        entry = Pass(title, function, cast(PassFunction, call), contract, read_options(function), summary)
        _REGISTRY[title] = entry
        return entry.call

    return wrap


def registered(name: str) -> Pass | None:
    """The pass of that name among those registered so far."""
    return _REGISTRY.get(name)


def registered_names() -> tuple[str, ...]:
    """The names of the passes registered so far."""
    return tuple(_REGISTRY)


def passes() -> dict[str, Pass]:
    """All passes by name, sorted."""
    from suture.passes import load_all

    load_all()
    return dict(sorted(_REGISTRY.items()))


def find(name: str) -> Pass:
    """The pass of that name.

    :raises SutureError: PASS, with the nearest name, if there is none
    """
    known = passes()
    if name not in known:
        raise SutureError(Code.PASS, f"there is no pass {name!r}", remedy=nearest(name, known, what="pass"))
    return known[name]


def _run(
    entry: Pass,
    graph: Graph,
    options: dict[str, Any],
    *,
    probes: Probes | None,
    check: bool,
    within: float | None,
    wants_probes: bool,
) -> Graph:
    thorough = os.environ.get("SUTURE_VERIFY") == "1"
    notes = Notes(checked=check)
    before = Fingerprint.of(graph, text=thorough)
    result = entry.function(graph, notes, **options, **({"probes": probes} if wants_probes else {}))
    before.require_unchanged(graph, entry.name)
    if notes.reason is not None:
        result = graph.copy()
        return _recorded(result, entry, options, (*notes.texts, notes.reason), "not applicable", None)
    if result is graph:
        raise ContractError(
            Code.CONTRACT,
            f"the pass {entry.name} did nothing and gave no reason",
            remedy="a pass says why it is not applicable",
        )
    if thorough:
        from suture.ir.verify import verify

        verify(result)
    contract = notes.claimed or entry.contract
    deviation = None
    if check:
        try:
            deviation = check_contract(
                graph, result, contract, name=entry.name, probes=probes, within=within, interface=notes.interface
            )
        except ContractError as error:
            if not notes.rewrites:
                raise
            raise _blamed(error, entry, graph, options, notes.rewrites, probes, within, wants_probes) from None
    return _recorded(result, entry, options, tuple(notes.texts), "done", deviation, contract)


def _blamed(
    error: ContractError,
    entry: Pass,
    graph: Graph,
    options: Mapping[str, Any],
    rewrites: Sequence[Rewrite],
    probes: Probes | None,
    within: float | None,
    wants_probes: bool,
) -> ContractError:
    """The error of a pass that broke its contract, with the rewrite to blame: the last of the fewest that already break it."""

    def breaks(count: int) -> bool:
        notes = Notes(limit=count)
        result = entry.function(graph, notes, **options, **({"probes": probes} if wants_probes else {}))
        if notes.reason is not None or result is graph:
            return False
        contract = notes.claimed or entry.contract
        try:
            check_contract(
                graph, result, contract, name=entry.name, probes=probes, within=within, interface=notes.interface
            )
        except ContractError:
            return True
        return False

    right, wrong = 0, len(rewrites)
    while wrong - right > 1:
        middle = (right + wrong) // 2
        right, wrong = (right, middle) if breaks(middle) else (middle, wrong)
    blame = f"rewrite {wrong} of {len(rewrites)} is to blame, {rewrites[wrong - 1]}"
    return ContractError(error.code, f"{error.what}: {blame}", where=error.where, remedy=error.remedy)


def _recorded(
    graph: Graph,
    entry: Pass,
    options: Mapping[str, Any],
    notes: tuple[str, ...],
    outcome: str,
    deviation: float | None,
    contract: Contract | None = None,
) -> Graph:
    plain = {name: _plain(value) for name, value in options.items()}
    record = Record(entry.name, plain, (contract or entry.contract).value, outcome, notes, deviation)
    graph.record(record)
    return graph


def _plain(value: Any) -> Any:
    """An option as a record keeps it, so that it can be printed and stamped into files: numbers, texts, and names for the rest."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case list() | tuple():
            return tuple(_plain(item) for item in value)
        case torch.Tensor():
            return f"{DTYPE_NAMES[value.dtype]}{list(value.shape)}"
        case Graph():
            return value.name
        case Mapping():
            return {str(key): _plain(item) for key, item in value.items()}
    return getattr(value, "__name__", None) or " ".join(str(value).split())[:200]


def _public_signature(function: Callable[..., Graph], call: Callable[..., Graph]) -> inspect.Signature:
    """The pass's own signature without the notes, with the arguments every pass takes."""
    own = inspect.signature(function)
    graph, _, *options = own.parameters.values()
    options = [option.replace(kind=option.KEYWORD_ONLY) for option in options if option.name not in RESERVED]
    added = [
        item for item in inspect.signature(call, follow_wrapped=False).parameters.values() if item.name in RESERVED
    ]
    return own.replace(parameters=[graph.replace(kind=graph.POSITIONAL_ONLY), *options, *added])
