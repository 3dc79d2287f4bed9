"""Which ranks layers get: from one number for all, an energy, a budget, or patterns."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from suture.ir.errors import Code, SutureError, nearest
from suture.ir.graph import Graph
from suture.passes.low_rank.allocation import allocate
from suture.passes.low_rank.candidate import Candidate, Count, Ranks
from suture.passes.low_rank.layers import Layer
from suture.passes.low_rank.ranks import require_share
from suture.passes.registry import Notes


@dataclass(frozen=True)
class Choice:
    """How ranks are chosen: by one number for all, by energy, by a budget, or by patterns; the names are those of the pass's options."""

    rank: int | float | None
    energy: float | None
    budget: float | None
    ranks: Mapping[str, float]
    count: Count
    always: bool

    def require(self) -> None:
        """:raises SutureError: RANK, if no rule is given, or several, or one that gives no rank"""
        rules = {"rank": self.rank, "energy": self.energy, "budget": self.budget}
        given = [name for name, value in rules.items() if value is not None]
        if len(given) > 1 or (not given and not self.ranks):
            what = f"{' and '.join(given)} exclude each other" if given else "there is no rule for ranks"
            raise SutureError(Code.RANK, what, remedy="give one of rank, energy, budget and ranks")
        for name, value in (("energy", self.energy), ("budget", self.budget)):
            if value is not None:
                require_share(value, name)
        for place, number in (("rank", self.rank), *self.ranks.items()):
            if number is not None and not _is_rank(number):
                raise SutureError(
                    Code.RANK, f"a rank of {number}", where=place,
                    remedy="1 or more, or a share of the full rank above 0 and at most 1.0, would be right",
                )  # fmt: skip

    def concerns(self, layer: Layer, notes: Notes) -> bool:
        """Whether there is a rule for a layer."""
        ruled = (
            self.rank is not None or self.energy is not None or self.budget is not None or self._own(layer) is not None
        )
        if not ruled:
            notes.note(f"{layer.name} left alone: no pattern of ranks matches it")
        return ruled

    def require_matches(self, graph: Graph, layers: Sequence[Layer]) -> None:
        """:raises SutureError: SITE, if a pattern of ranks matches no layer"""
        paths = list(dict.fromkeys(node.path for layer in layers for node in layer.nodes))
        for pattern in self.ranks:
            if not any(fnmatch.fnmatchcase(path, pattern) for path in paths):
                known = paths or [node.path for node in graph.nodes if node.path]
                raise SutureError(
                    Code.SITE,
                    f"the pattern {pattern!r} of ranks matches no layer",
                    remedy=nearest(pattern, known, what="layer"),
                )

    def decide(self, candidates: Iterator[Candidate], total: int, notes: Notes) -> Iterator[tuple[Candidate, Ranks]]:
        """The layers that are to be factorised, with their ranks."""
        if self.budget is not None:
            yield from self._within(list(candidates), total, notes)
            return
        widest, beyond = 0, True
        for candidate in candidates:
            asked = self._asked(candidate)
            most = max(candidate.full)
            widest, beyond = max(widest, most), beyond and isinstance(asked, int) and asked > most
            chosen = self._ranks(candidate, asked)
            if self.always or bool(candidate.saves(self.count)[tuple(r - 1 for r in chosen)]):
                yield candidate, chosen
            else:
                notes.note(
                    f"{candidate.layer.name} left alone: rank {sizes(chosen)} of {sizes(candidate.full)} saves no {self.count}"
                )
        if widest and beyond:
            raise SutureError(
                Code.RANK,
                f"a rank of {self.rank}, where the largest of a layer is {widest}",
                remedy=f"1 to {widest} would be right",
            )

    def _within(self, candidates: Sequence[Candidate], total: int, notes: Notes) -> Iterator[tuple[Candidate, Ranks]]:
        assert self.budget is not None
        rest = total - sum(candidate.dense_cost(self.count) for candidate in candidates)
        for candidate, chosen in zip(
            candidates, allocate(candidates, self.count, int(self.budget * total) - rest), strict=True
        ):
            if chosen is None:
                notes.note(f"{candidate.layer.name} left alone: the budget is better spent on it as it is")
            else:
                yield candidate, chosen

    def _own(self, layer: Layer) -> float | None:
        """The rank that a pattern gives a layer."""
        matches = (
            number for pattern, number in self.ranks.items()
            if any(fnmatch.fnmatchcase(node.path, pattern) for node in layer.nodes)
        )  # fmt: skip
        return next(matches, None)

    def _asked(self, candidate: Candidate) -> int | float | None:
        own = self._own(candidate.layer)
        number = self.rank if own is None else own
        return int(number) if isinstance(number, float) and number > 1 else number

    def _ranks(self, candidate: Candidate, asked: int | float | None) -> Ranks:
        if asked is None:
            assert self.energy is not None
            return _least(candidate, self.energy, self.count)
        if isinstance(asked, int):
            return tuple(min(asked, size) for size in candidate.full)
        return tuple(max(1, int(asked * size + 0.5)) for size in candidate.full)


def _is_rank(number: object) -> bool:
    """Whether it is 1, 2, ... or a share above 0 and at most 1."""
    if isinstance(number, bool) or not isinstance(number, int | float):
        return False
    if isinstance(number, int):
        return number >= 1
    return 0 < number <= 1 or (number > 1 and number.is_integer())


def _least(candidate: Candidate, energy: float, count: Count) -> Ranks:
    """The cheapest ranks that keep a share of the energy."""
    enough = candidate.shares >= min(energy, float(candidate.shares.max())) * (1 - 1e-15)
    cost = torch.where(enough, candidate.cost(count).to(torch.float64), torch.inf)
    place = torch.unravel_index(cost.argmin(), cost.shape)
    return tuple(int(index) + 1 for index in place)


def sizes(ranks: Ranks) -> str:
    """Ranks as messages say them."""
    return " by ".join(map(str, ranks))
