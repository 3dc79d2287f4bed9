"""The reader of graph text. `suture.ir.text` says what the text looks like."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from suture.ir.errors import Code, SutureError, nearest
from suture.ir.graph import Graph, Record, Structure, Value
from suture.ir.operator import find
from suture.ir.reader import DIGITS, WORD, Reader
from suture.ir.types import Attribute, TensorType
from suture.ir.verify import check_outputs, check_parameters, check_symbols


def parse_graph(text: str, parameters: Mapping[str, torch.Tensor] | None = None, *, file: str = "graph") -> Graph:
    """Read graph text.

    :param parameters: the tensors, by name or alias; all of them, or None for tensors on the meta device
    :param file: what to call the text in error messages
    :raises SutureError: TEXT with file:line:column if the text does not parse; the code of inference if a node does not
        fit its operands; WEIGHTS if a tensor is missing or does not have the printed type
    """
    graph = _Parser(text, parameters, file).graph()
    for check in (check_parameters, check_symbols, check_outputs):
        check(graph)
    return graph


class _Parser(Reader):
    """Reads statements into a graph."""

    def __init__(self, text: str, parameters: Mapping[str, torch.Tensor] | None, file: str) -> None:
        super().__init__(text, file)
        self.tensors = parameters
        self.made = Graph()
        self.values: dict[str, Value] = {}
        self.depth = 0  # how many bodies this stands in

    def graph(self) -> Graph:
        self.block()
        if self.space() != len(self.text):
            self.fail("the end of the text")
        return self.made

    def attribute(self) -> Attribute:
        """Take an attribute's value, a body among them."""
        return self.body() if self.word() == "graph" else super().attribute()

    def body(self) -> Graph:
        outer = self.made, self.values
        self.made, self.values, self.depth = Graph(), {}, self.depth + 1
        self.block()
        found = self.made
        (self.made, self.values), self.depth = outer, self.depth - 1
        check_outputs(found)
        return found

    def block(self) -> None:
        if not self.accept_word("graph"):
            self.fail("'graph'")
        self.made.name = self.name("the graph's name")
        self.expect("(")
        while not self.peek(")"):
            self.expect("%")
            start, name = self.at, self.name("an input's name")
            self.expect(":")
            self.fresh(name, start)
            self.values[name] = self.made.add_input(name, self.type())
            if not self.accept(","):
                break
        self.expect(")")
        self.expect("{")
        while self.statement():
            pass
        self.expect("}")

    def statement(self) -> bool:
        """Read one statement; False after the last one."""
        if self.peek("%") or self.peek("="):
            self.node()
            return True
        start, word = self.space(), self.word()
        self.at += len(word)
        match word:
            case "parameter" | "buffer" | "constant":
                if self.depth:
                    self.fail("a body without parameters: what it reads are inputs", start)
                self.parameter(word, start)
            case "source":
                self.made.source = self.string()
            case "hints":
                while (name := self.key()) is not None:
                    self.made.hints[name] = int(self.read(DIGITS, "a number")[0])
            case "structure":
                self.made.structure = self.fields(
                    start, lambda it: Structure(**{**it, "arguments": tuple(it["arguments"])})
                )
            case "history":
                record = self.fields(
                    start, lambda it: Record(**{**it, "notes": tuple(it["notes"]), "options": _frozen(it["options"])})
                )
                self.made.record(record)
            case "return":
                self.outputs()
                return False
            case _:
                self.at = start
                self.fail("a node such as '%y: f32[2] = relu(%x)', a parameter, or 'return'")
        return True

    def fields(self, start: int, make: Callable[[Any], Any]) -> Any:
        try:
            return make(self.json())
        except (KeyError, TypeError) as error:
            raise SutureError(
                Code.TEXT,
                f"wrong fields: {error}",
                where=self.place(start),
                remedy="expected those that a graph prints",
            ) from None

    def outputs(self) -> None:
        values, names = [], []
        while self.peek("%") or self.peek("@"):
            value = self.reference()
            values.append(value)
            names.append(self.name("the output's name") if self.accept_word("as") else value.name)
            if not self.accept(","):
                break
        self.made.set_outputs(values, names)

    def parameter(self, role: str, start: int) -> None:
        self.expect("@")
        name = self.name("a parameter's name")
        self.expect(":")
        type_ = self.type()
        if any(not isinstance(dim, int) for dim in type_.shape):
            self.fail("a parameter of fixed sizes", start)
        trained, persistent, aliases = role == "parameter", role != "constant", []
        while (word := self.word()) in ("trained", "frozen", "persistent", "transient"):
            self.at += len(word)
            trained = word == "trained" if word in ("trained", "frozen") else trained
            persistent = word == "persistent" if word in ("persistent", "transient") else persistent
        if self.accept_word("also"):
            aliases.append(self.name("another name"))
            while self.accept(","):
                aliases.append(self.name("another name"))
        tensor = self.tensor(name, tuple(aliases), type_, start)
        try:
            self.made.add_parameter(
                name, tensor, role, aliases=tuple(aliases), requires_grad=trained, persistent=persistent
            )
        except SutureError as error:
            raise self.located(error, start, name) from None

    def tensor(self, name: str, aliases: tuple[str, ...], type_: TensorType, start: int) -> torch.Tensor:
        if self.tensors is None:
            return torch.empty(
                [int(dim) for dim in type_.shape if isinstance(dim, int)], dtype=type_.dtype, device="meta"
            )
        found = next((self.tensors[key] for key in (name, *aliases) if key in self.tensors), None)
        if found is None:
            raise SutureError(
                Code.WEIGHTS,
                f"no tensor for @{name}",
                where=self.place(start),
                remedy=nearest(name, self.tensors, what="tensor"),
            )
        if TensorType(found.dtype, tuple(found.shape)) != type_:
            actual = f"{found.dtype} {list(found.shape)}"
            raise SutureError(
                Code.WEIGHTS,
                f"the tensor for @{name} is {actual}",
                where=self.place(start),
                remedy=f"{type_} would be right",
            )
        return found

    def fresh(self, name: str, start: int) -> None:
        if name in self.values:
            raise SutureError(
                Code.TEXT, f"%{name} is defined twice", where=self.place(start), remedy="take another name"
            )

    def reference(self) -> Value:
        start = self.space()
        known: Mapping[str, Value] = self.made.parameters if self.peek("@") else self.values
        if not (self.accept("@") or self.accept("%")):
            self.fail("a value such as %x or @weight")
        name = self.name("a value's name")
        if name not in known:
            mark = self.text[start]
            raise SutureError(
                Code.TEXT,
                f"{mark}{name} is not defined here",
                where=self.place(start),
                remedy=nearest(name, known, what="value"),
            )
        return known[name]

    def node(self) -> None:
        start = self.space()
        results: list[tuple[str, int, TensorType]] = []
        while not self.peek("="):
            self.expect("%")
            position, name = self.at, self.name("a value's name")
            self.expect(":")
            self.fresh(name, position)
            if any(name == other for other, _, _ in results):
                self.fail("another name: this one is taken", position)
            results.append((name, position, self.type()))
            if not self.accept(","):
                break
        self.expect("=")
        operator_at = self.space()
        operator = self.read(WORD, "an operator's name")[0]
        inputs: list[Value | None] = []
        self.expect("(")
        while not self.peek(")"):
            inputs.append(None if self.accept_word("_") else self.reference())
            if not self.accept(","):
                break
        self.expect(")")
        attributes, path = self.attributes()
        try:
            chosen = find(operator)
            shapes = [type_.shape for _, _, type_ in results] if chosen.declared else None
            node = self.made.add(
                chosen, inputs, attributes, shapes=shapes, path=path, name=[name for name, _, _ in results]
            )
        except SutureError as error:
            raise self.located(error, operator_at, operator) from None
        if len(node.outputs) != len(results):
            self.fail(f"{len(node.outputs)} results for {operator}", start)
        for value, (name, position, type_) in zip(node.outputs, results, strict=True):
            if value.type != type_:
                raise SutureError(
                    Code.TEXT,
                    f"%{name} is written as {type_}",
                    where=self.place(position),
                    remedy=f"{operator} gives {value.type}",
                )
            self.values[name] = value

    def attributes(self) -> tuple[dict[str, Attribute], str]:
        found: dict[str, Attribute] = {}
        start = self.space()
        while (name := self.key()) is not None:
            if name in found:
                self.fail(f"the attribute {name} once", start)
            found[name] = self.attribute()
            start = self.space()
        return found, self.name("a module path") if self.accept_word("at") else ""

    def located(self, error: SutureError, position: int, what: str) -> SutureError:
        """The same error of the graph, with its place in the text."""
        return SutureError(
            error.code, error.what, where=f"{self.place(position)}: {error.where or what}", remedy=error.remedy
        )


def _frozen(item: Any) -> Any:
    """JSON's lists as tuples, all the way down."""
    if isinstance(item, dict):
        return {key: _frozen(value) for key, value in item.items()}
    return tuple(map(_frozen, item)) if isinstance(item, list) else item
