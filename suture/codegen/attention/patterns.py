"""Attention that is written out is put together again, and its results lie in memory as their readers want them.

What is looked for is softmax(scale q k^T + mask) v after norms and softmaxes were written out: exp(x - max x) / sum, and the products around it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from suture.codegen.attention.einsums import Letters, operands_of, read_letters
from suture.codegen.step import Context
from suture.ir.graph import Graph, Node, Value

_ABSORBS = -1e30  # a score added to less than this is lost in it


def prefer_storage(graph: Graph, context: Context) -> None:
    """Let the result of an attention lie as the permutation that reads it orders it: heads side by side, mostly."""
    for node in graph.nodes:
        if node.operator.name != "attention" or node.output.is_graph_output():
            continue
        orders = {
            reader.attributes["dims"] if reader.operator.name == "permute" else None for reader, _ in node.output.uses
        }
        order = orders.pop() if len(orders) == 1 else None
        if isinstance(order, tuple):
            rank = node.output.rank
            context.storage[node.output] = tuple(dim % rank for dim in order if isinstance(dim, int))


def find_attention(graph: Graph, context: Context) -> int:
    """Put together what was written out: products around a softmax become `attention`, in place.

    A query that sees no key is 0 / 0 there, which `Context.undefined` remembers. Returns how many were found.
    """
    found = 0
    library = context.target == "cuda" and not context.alone
    for node in graph.nodes:
        written = _written_out(node)
        # a library's attention gives zeros where every key is masked, and so does torch where heads are of a symbol's size
        if written is None or (written.mask is not None and (library or not _has_sizes(written))):
            continue
        letters = written.letters
        if letters is not None:
            q, keys, v = letters.arranged(graph, node, written.q, written.k, written.v)
        else:
            q, v = written.q, written.v
            keys = graph.add("permute", [written.k], {"dims": _swapped(written.k)}, path=node.path, before=node).output
        grouped = letters is not None and letters.grouped
        attributes = {"scale": written.scale, "causal": False, "grouped": grouped, "dropout": 0.0}
        operands = [q, keys, v, *([_mask(graph, node, written)] if written.mask is not None else [])]
        made = graph.add("attention", operands, attributes, path=node.path, name=node.output.name, before=node)
        result = made.output if letters is None else letters.back(graph, node, made.output)
        graph.replace_uses(node.output, result)
        context.undefined.add(made)
        found += 1
    if found:
        graph.remove_dead()
    return found


@dataclass
class _Written:
    """An attention's parts; `k` is still transposed, or all are as einsums take them.

    :param mask: what is added to the scores, or says where they are replaced
    :param fill: what they are replaced by; None where the mask is added
    :param inverted: whether they are replaced where the mask does not hold
    :param letters: of the einsums
    """

    q: Value
    k: Value
    v: Value
    scale: float = 1.0
    mask: Value | None = None
    fill: float | None = None
    inverted: bool = False
    letters: Letters | None = None


def _written_out(node: Node) -> _Written | None:
    """The parts of an attention that ends in this node."""
    operands = _operands(node, "matmul", 2) or _operands(node, "einsum", 2)
    weights = _through(operands[0]) if operands is not None else None
    scores = _softmax_of(weights) if weights is not None else None
    if operands is None or weights is None or scores is None or not operands[1].dtype.is_floating_point:
        return None
    if any(len(each.uses) > 1 or each.is_graph_output() for each in (weights, operands[0])):
        return None  # the weights are wanted for themselves
    mask: Value | None = None
    fill: float | None = None
    inverted, scores = False, _through(scores)
    made = scores.producer
    if made is not None and made.operator.name == "where":
        chosen = _filled(made)
        if chosen is None:
            return None
        mask, fill, inverted, scores = chosen
    elif made is not None and (added := _operands(made, "add", 2)) is not None and _plain(made):
        products = [value for value in added if _is_product(value)]
        if len(products) != 1:
            return None
        [scores] = products
        mask = added[1] if scores is added[0] else added[0]
    found = _scaled_product(scores)
    if found is None or (mask is not None and not _fits(mask, scores)):
        return None
    dot, scale = found
    v = operands[1]
    if node.operator.name == "einsum" or dot.operator.name == "einsum":
        return _of_einsums(dot, node, v, _Written(v, v, v, scale, mask, fill, inverted))
    q, k = (value for value in dot.inputs[:2] if value is not None)
    if not (q.rank == k.rank == v.rank >= 2 and q.shape[:-2] == k.shape[:-2] == v.shape[:-2]):
        return None
    if not (q.dtype == k.dtype == v.dtype):
        return None
    return _Written(q, k, v, scale, mask, fill, inverted)


def _of_einsums(dot: Node, node: Node, v: Value, written: _Written) -> _Written | None:
    """The parts of an attention between two einsums.

    :param written: what stands between them
    """
    letters = read_letters(dot, node)
    if letters is None:
        return None
    q, k = operands_of(dot)
    found = replace(written, q=q, k=k, v=v, letters=letters)
    sizes = dict(zip(letters.q + letters.v, (*q.shape, *v.shape), strict=True))
    fixed = letters.channel + letters.width + ((letters.batch[-1] + letters.rows[0]) if letters.grouped else "")
    if (
        not all(isinstance(sizes[letter], int) and sizes[letter] for letter in fixed)
        or not q.dtype == k.dtype == v.dtype
    ):
        return None
    # a mask stands before heads that share a key head, or says nothing of heads
    return None if letters.grouped and written.mask is not None and written.mask.rank > 2 else found


def _softmax_of(value: Value) -> Value | None:
    """x, if a value is exp(x - max x) / sum exp(x - max x) over its last dimension."""
    product = value.producer
    factors = _operands(product, "mul", 2) if product is not None else None
    if factors is None:
        return None
    grown, inverse = factors
    total = _operand(inverse, "reciprocal")
    summed = _operand(total, "sum") if total is not None and _over_last(total) else None
    shifted = _operand(grown, "exp")
    if summed is not grown or shifted is None or shifted.producer is None:
        return None
    parts = _operands(shifted.producer, "sub", 2)
    if parts is None or not _over_last(parts[1]) or _operand(parts[1], "amax") is not parts[0]:
        return None
    return parts[0]


def _filled(node: Node) -> tuple[Value, float, bool, Value] | None:
    """The condition, the filling, whether it is where the condition does not hold, and the scores of a `where`."""
    inputs = [*node.inputs, *[None] * (3 - len(node.inputs))]
    condition, on_true, on_false = inputs[:3]
    kept = on_false if on_true is None else on_true
    fill = node.attributes.get("on_true" if on_true is None else "on_false")
    if condition is None or kept is None or (on_true is not None and on_false is not None):
        return None
    if condition.dtype != torch.bool or not isinstance(fill, int | float) or fill > _ABSORBS:
        return None
    return condition, float(fill), on_true is not None, kept


def _scaled_product(scores: Value) -> tuple[Node, float] | None:
    """A product of two, and what it is multiplied by."""
    node, scale = scores.producer, 1.0
    while node is not None and node.operator.name in ("mul", "div") and _is_scalar(node):
        number = node.attributes["scalar"]
        assert isinstance(number, int | float)
        if not math.isfinite(number) or not number:
            return None
        scale = scale * number if node.operator.name == "mul" else scale / number
        first = node.inputs[0]
        node = first.producer if first is not None else None
    if node is None or (_operands(node, "matmul", 2) is None and _operands(node, "einsum", 2) is None):
        return None
    return node, scale


def _mask(graph: Graph, node: Node, written: _Written) -> Value:
    """The mask as attention takes it: true where a key is seen, or what is added to the scores."""
    mask = written.mask
    assert mask is not None
    if written.fill is None or (math.isinf(written.fill) and written.inverted):
        return mask
    if math.isinf(written.fill):
        return graph.add("logical_not", [mask], path=node.path, before=node).output
    if written.inverted:
        mask = graph.add("logical_not", [mask], path=node.path, before=node).output
    wide = graph.add("cast", [mask], {"dtype": node.output.dtype}, path=node.path, before=node).output
    return graph.add("mul", [wide, None], {"scalar": written.fill}, path=node.path, before=node).output


def _fits(mask: Value, scores: Value) -> bool:
    """Whether a mask broadcasts to the scores, not the scores to it."""
    pairs = zip(reversed(mask.shape), reversed(scores.shape), strict=False)
    return mask.rank <= scores.rank and all(one in (1, other) for one, other in pairs)


def _through(value: Value) -> Value:
    """What a value is where nothing is dropped, and numbers are not rounded on the way."""
    while value.producer is not None and value.producer.operator.name in ("dropout", "cast"):
        first = value.producer.inputs[0]
        if first is None or not first.dtype.is_floating_point:
            break
        value = first
    return value


def _is_product(value: Value) -> bool:
    return _scaled_product(value) is not None


def _is_scalar(node: Node) -> bool:
    return isinstance(node.attributes.get("scalar"), int | float) and sum(each is not None for each in node.inputs) == 1


def _has_sizes(written: _Written) -> bool:
    return isinstance(written.q.shape[-1], int) and isinstance(written.v.shape[-1], int)


def _plain(node: Node) -> bool:
    """Whether a sum's second operand is not multiplied by anything."""
    return node.attributes.get("alpha", 1) == 1


def _operands(node: Node | None, operator: str, count: int) -> tuple[Value, ...] | None:
    """A node's operands, if it is of the operator and has just so many."""
    if node is None or node.operator.name != operator:
        return None
    found = tuple(value for value in node.inputs if value is not None)
    return found if len(found) == count else None


def _operand(value: Value, operator: str) -> Value | None:
    """The one operand of what made a value, if that is the operator."""
    found = _operands(value.producer, operator, 1)
    return None if found is None else found[0]


def _over_last(value: Value) -> bool:
    """Whether a reduction takes the last dimension alone, and keeps it."""
    node = value.producer
    if node is None or not node.attributes.get("keepdim"):
        return False
    dims = node.attributes.get("dims")
    return isinstance(dims, tuple) and len(dims) == 1 and dims[0] in (-1, value.rank - 1)


def _swapped(value: Value) -> tuple[int, ...]:
    rank = value.rank
    return (*range(rank - 2), rank - 1, rank - 2)
