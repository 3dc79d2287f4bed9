"""Templates: small graphs in which types are left out, and sizes and attributes are variables.

    q[b, l, h*d], k[b, s, h*d], v[b, s, h*d] -> y[b, l, h*d]
    q1 = reshape(q) as [b, l, h, d]
    q2 = permute(q1) dims=(0, 2, 1, 3)
    ...
    y1 = attention(q2, k2, v2) scale=$scale
    y2 = permute(y1) dims=(0, 2, 1, 3)
    y = reshape(y2) as [b, l, h*d]

The first line is index notation: what goes in (`?` where it may be absent), what comes out, and the letters of both. Each line below is one node;
`as` declares the shapes of its results in the letters, `$name` is an attribute that the template leaves open, or the size of a letter. A line that
begins with `given` is context: what it computes is read by others too, and stays.

One template is read in three ways: run on tensors it is the definition of a fused operator (`run`), written into a graph it is the body of a node
(`write`), and looked for in a graph it is a pattern (`suture.passes.fusion.matching`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from suture.ir.errors import Code, SutureError
from suture.ir.graph import Graph, Node, Value
from suture.ir.notation import Binding, Instance, OperandSpec, Signature, instantiate, letters_of, parse_signature
from suture.ir.operator import Operator, find
from suture.ir.reader import Reader
from suture.ir.semantics import takes_all_shapes
from suture.ir.sizes import Dim
from suture.ir.types import Attribute


@dataclass(frozen=True)
class Variable:
    """An attribute that a template leaves open: `$scale`."""

    name: str


@dataclass(frozen=True)
class Line:
    """One node of a template."""

    results: tuple[str, ...]
    operator: Operator
    operands: tuple[str | None, ...]
    attributes: Mapping[str, Attribute | Variable]
    shapes: tuple[OperandSpec, ...]
    given: bool = False

    def __str__(self) -> str:
        return f"{', '.join(self.results)} = {self.operator.name}({', '.join(name or '_' for name in self.operands)})"


@dataclass(frozen=True)
class Template:
    """A graph with variables: operands and results in index notation, and the lines in between, in order."""

    signature: Signature
    lines: tuple[Line, ...]

    @property
    def operands(self) -> tuple[str, ...]:
        """The names of what goes in."""
        return tuple(spec.name for spec in self.signature.operands)

    @property
    def results(self) -> tuple[str, ...]:
        """The names of what comes out."""
        return tuple(spec.name for spec in self.signature.results)

    @property
    def letters(self) -> tuple[str, ...]:
        """The letters of the shapes that its lines declare."""
        found = (
            letter
            for line in self.lines
            for spec in line.shapes
            for dim in spec.dims
            for letter in letters_of(dim.term)
        )
        return tuple(dict.fromkeys(found))

    def maker(self, name: str) -> Line | None:
        """The line that computes a value; None for an operand."""
        return next((line for line in self.lines if name in line.results), None)


_LINE = re.compile(r"(given )?([\w, ]+?) = (\w+)\(([^)]*)\)(.*)")
_ATTRIBUTE = re.compile(r"(\w+)=(\$\w+|\([^)]*\)|\S+)")
_SHAPE = re.compile(r"as (\[[^\]]*\](?: \[[^\]]*\])*)")


@lru_cache(maxsize=1024)
def parse_template(text: str) -> Template:
    """Read a template.

    :raises SutureError: NOTATION or TEXT, with the line that does not parse; OPERATOR, for an operator that does not exist
    """
    header, *lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return Template(parse_signature(header), tuple(_parse_line(line) for line in lines))


def _parse_line(text: str) -> Line:
    match = _LINE.fullmatch(text)
    if match is None:
        raise SutureError(Code.TEXT, f"{text!r} is no line of a template", remedy="write 'y = operator(x, z)'")
    given, names, operator, operands, rest = match.groups()
    shape = _SHAPE.search(rest)
    results = tuple(name.strip() for name in names.split(","))
    dims = [] if shape is None else re.findall(r"\[[^\]]*\]", shape[1])
    return Line(
        results,
        find(operator),
        tuple(None if name.strip() == "_" else name.strip() for name in operands.split(",") if name.strip()),
        {name: _parse_attribute(value) for name, value in _ATTRIBUTE.findall(rest[: shape.start()] if shape else rest)},
        tuple(
            OperandSpec(name, parse_signature(f"x{item} -> y[]").operands[0].dims)
            for name, item in zip(results, dims, strict=bool(dims))
        ),
        bool(given),
    )


def _parse_attribute(text: str) -> Attribute | Variable:
    return Variable(text[1:]) if text.startswith("$") else Reader(text, "template").attribute()


def sizes_of(
    template: Template,
    shapes: Sequence[Sequence[Dim] | None],
    bound: Mapping[str, Dim],
    *,
    inner: Mapping[str, Sequence[Dim]] | None = None,
    where: str = "",
) -> dict[str, Dim]:
    """The sizes of a template's letters.

    :param shapes: of the operands, None for one that is absent
    :param bound: sizes that are known beforehand
    :param inner: shapes of values inside, where the template is looked for in a graph
    :raises SutureError: SHAPE, if they do not fit
    """
    known = inner or {}
    declared = [spec for line in template.lines for spec in line.shapes if spec.name in known]
    # what is declared inside says most about single letters, so it goes first
    signature = Signature((*declared, *template.signature.operands), ())
    every = [
        *(tuple(known[spec.name]) for spec in declared),
        *(None if shape is None else tuple(shape) for shape in shapes),
    ]
    return dict(instantiate(signature, every, Binding(sizes=dict(bound)), where=where).sizes)


def write(
    template: Template,
    graph: Graph,
    operands: Mapping[str, Value | None],
    known: Mapping[str, Any],
    *,
    name: str,
    path: str = "",
    before: Node | None = None,
) -> dict[str, Value | None]:
    """Write a template into a graph.

    :param operands: what stands for its operands, by name
    :param known: attributes and sizes, by name
    :param name: what the names of the new values begin with
    :returns: every value of the template, by name
    """
    values = dict(operands)
    for line in template.lines:
        node = graph.add(
            line.operator,
            [None if operand is None else values.get(operand) for operand in line.operands],
            _filled(line, known),
            shapes=[_shape(spec, known) for spec in line.shapes] or None,
            path=path,
            name=[f"{name}_{result}" for result in line.results],
            before=before,
        )
        values.update(zip(line.results, node.outputs, strict=True))
    return values


def run(
    template: Template, operands: Sequence[torch.Tensor | None], known: Mapping[str, Any], *, training: bool = False
) -> tuple[torch.Tensor, ...]:
    """Compute a template's results from tensors.

    :param known: attributes and the sizes that they say, by name
    """
    given = [*operands, *[None] * (len(template.operands) - len(operands))]
    shapes = [None if tensor is None else tuple(int(size) for size in tensor.shape) for tensor in given]
    bound = {name: value for name, value in known.items() if isinstance(value, int)}
    sizes = {**sizes_of(template, shapes, bound), **known}
    values: dict[str, torch.Tensor | None] = dict(zip(template.operands, given, strict=True))
    for line in template.lines:
        keywords: dict[str, Any] = line.operator.complete(_filled(line, sizes))
        if line.operator.declared:
            made = [_shape(spec, sizes) for spec in line.shapes]
            keywords |= {"shapes": made} if takes_all_shapes(line.operator.name) else {"shape": made[0]}
        if line.operator.training:
            keywords["training"] = training
        made_values = line.operator.run(
            *(None if name is None else values.get(name) for name in line.operands), **keywords
        )
        results = made_values if isinstance(made_values, tuple | list) else (made_values,)
        values.update(zip(line.results, results, strict=True))
    return tuple(tensor for name in template.results if (tensor := values[name]) is not None)


def _filled(line: Line, known: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: known[value.name] if isinstance(value, Variable) else value for name, value in line.attributes.items()
    }


def _shape(spec: OperandSpec, sizes: Mapping[str, Any]) -> tuple[Dim, ...]:
    instance = Instance((), (), sizes, {})
    return tuple(instance.size(dim.term) for dim in spec.dims)
