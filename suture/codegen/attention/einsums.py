"""Attention whose two products are einsums: its operands in the order that attention takes, and its result in the order that was asked for.

`blgrd,bsgd->bgrls`, a softmax over s, and `bgrls,bsge->blgre`: batch letters b and g, one key head for r heads of queries, l queries, s keys.
"""

from __future__ import annotations

from dataclasses import dataclass

from suture.ir.graph import Graph, Node, Value
from suture.ir.sizes import product


@dataclass(frozen=True)
class Letters:
    """The letters of an attention.

    :param batch: of queries, keys and values alike
    :param rows: what the queries have besides: the queries, or heads that share a key head and then the queries
    """

    q: str
    k: str
    v: str
    result: str
    batch: str
    rows: str
    key: str
    channel: str
    width: str

    def arranged(self, graph: Graph, node: Node, q: Value, k: Value, v: Value) -> tuple[Value, Value, Value]:
        """Queries, keys and values with heads, rows and channels last; heads that share a key head are as one dimension with it.

        :param node: what they are put in front of
        """
        queries = _permuted(graph, node, q, self.q, self.batch + self.rows + self.channel)
        if self.grouped:
            heads = len(self.batch) - 1
            shape = queries.shape
            joined = (*shape[:heads], product(shape[heads : heads + 2]), *shape[heads + 2 :])
            queries = graph.add("reshape", [queries], shapes=[joined], path=node.path, before=node).output
        keys = _permuted(graph, node, k, self.k, self.batch + self.key + self.channel)
        return queries, keys, _permuted(graph, node, v, self.v, self.batch + self.key + self.width)

    def back(self, graph: Graph, node: Node, made: Value) -> Value:
        """The result of an attention over what was arranged, as the second einsum gives it."""
        own = self.batch + self.rows + self.width
        if self.grouped:
            sizes = dict(zip(self.result, node.output.shape, strict=True))
            shape = tuple(sizes[letter] for letter in own)
            made = graph.add("reshape", [made], shapes=[shape], path=node.path, before=node).output
        return _permuted(graph, node, made, own, self.result)

    @property
    def grouped(self) -> bool:
        """Whether several heads share a key head."""
        return len(self.rows) > 1


def read_letters(scores: Node, mixed: Node) -> Letters | None:
    """The letters of two einsums around a softmax over the last dimension, if they are an attention's.

    :param scores: what multiplies queries with keys
    :param mixed: what multiplies the weights with values
    """
    first, second = _equation(scores), _equation(mixed)
    if first is None or second is None:
        return None
    (left, right, scored), (weights, v, result) = first, second
    if len(scored) != len(weights):
        return None
    names = dict(zip(scored, weights, strict=True))
    fresh = iter(chr(ord("A") + k) for k in range(26) if chr(ord("A") + k) not in weights + v + result)
    for letter in left + right:  # the first equation in the letters of the second
        if letter not in names:
            names[letter] = next(fresh)
    left, right = ("".join(names[letter] for letter in term) for term in (left, right))
    key = weights[-1]
    q, k = (left, right) if key in right else (right, left)
    batch = "".join(letter for letter in weights if letter in v and letter != key)
    rows = "".join(letter for letter in weights if letter not in v)
    channel, width = set(q) & set(k) - set(weights), set(v) - set(weights)
    if (
        len(channel) != 1
        or len(width) != 1
        or weights != batch + rows + key
        or not 1 <= len(rows) <= (2 if batch else 1)
    ):
        return None
    [channel_letter], [width_letter] = channel, width
    terms = ((q, batch + rows + channel_letter), (k, batch + key + channel_letter), (v, batch + key + width_letter))
    if any(set(term) != set(wanted) for term, wanted in (*terms, (result, batch + rows + width_letter))):
        return None
    return Letters(q, k, v, result, batch, rows, key, channel_letter, width_letter)


def operands_of(scores: Node) -> tuple[Value, Value]:
    """Queries and keys of the first einsum."""
    left, right = scores.inputs[:2]
    assert left is not None and right is not None
    equation = _equation(scores)
    assert equation is not None
    key = equation[2][-1]
    return (left, right) if key in equation[1] else (right, left)


def _equation(node: Node) -> tuple[str, str, str] | None:
    """Two terms and the result of an einsum, each letter at most once in each."""
    equation = node.attributes.get("equation")
    if node.operator.name != "einsum" or not isinstance(equation, str) or "->" not in equation:
        return None
    terms, result = equation.replace(" ", "").split("->")
    parts = terms.split(",")
    if len(parts) != 2 or any(len(set(each)) != len(each) or not each.isalpha() for each in (*parts, result)):
        return None
    return parts[0], parts[1], result


def _permuted(graph: Graph, node: Node, value: Value, have: str, want: str) -> Value:
    order = tuple(have.index(letter) for letter in want)
    if order == tuple(range(len(have))):
        return value
    return graph.add("permute", [value], {"dims": order}, path=node.path, before=node).output
