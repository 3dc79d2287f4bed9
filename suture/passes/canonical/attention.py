"""Attention written out as products and a softmax is the operator attention."""

from __future__ import annotations

from dataclasses import dataclass, field

from suture.ir.graph import Graph, Node, Value
from suture.ir.sizes import Dim, product
from suture.passes.canonical.matching import dims_of, is_sole, maker, operands, reshaped, scaled, source, supersede
from suture.passes.rewriting import Refusal, Rule


@dataclass
class Scores:
    """What stands between the product of queries and keys and the softmax, from the softmax down."""

    value: Value
    scale: float = 1.0
    masks: list[tuple[Value, float]] = field(default_factory=list)  # what is added, and the factor on it
    apart: tuple[Dim, ...] | None = (
        None  # the leading sizes under which masks were added, where the scores were taken apart for it
    )


def gather_attention(graph: Graph, node: Node) -> str | Refusal | None:
    """softmax(scale q k^T + mask) v, also where the scores are taken apart to add a mask for each window."""
    if node.operator.name != "matmul" or node.output.rank < 2:
        return None
    weights, values = operands(node)
    dropout = maker(weights, "dropout")
    softmax = maker(source(dropout) if dropout is not None else weights, "softmax")
    if softmax is None or values is None or values.rank < 2:
        return None
    assert weights is not None
    if not is_sole(weights) or not is_sole(softmax.output):
        return Refusal("its weights are read elsewhere too")
    if _last(softmax) != softmax.output.rank - 1:
        return None
    scores = _peel(Scores(source(softmax)))
    dot = maker(scores.value, "matmul")
    if dot is None or not is_sole(dot.output) or dot.output.rank < 2:
        return None
    return _gather(graph, node, dot, values, scores, dropout)


def _gather(
    graph: Graph, node: Node, dot: Node, values: Value, scores: Scores, dropout: Node | None
) -> str | Refusal | None:
    queries, keys = operands(dot)
    assert queries is not None and keys is not None
    if queries.rank < 2 or keys.rank != queries.rank or values.rank != queries.rank:
        return Refusal("queries, keys and values are of different ranks")
    if queries.shape[:-2] != keys.shape[:-2] or queries.shape[:-2] != values.shape[:-2]:
        return Refusal("queries, keys and values have different leading sizes")
    masks = _masks(graph, scores, dot.output.shape, node)
    if masks is None:
        return Refusal("a mask does not broadcast to the scores")
    queries, factor = _unscaled(queries)
    keys, other = _unscaled(keys)
    given = [queries, _transposed(graph, keys, node), values]
    if scores.apart is not None:
        given = [reshaped(graph, value, (*scores.apart, *value.shape[-2:]), node) for value in given]
    mask = _sum_of_masks(graph, masks, node)
    scale = scores.scale * factor * other
    attributes = {"scale": scale, "dropout": dropout.attributes["p"] if dropout is not None else 0.0}
    name = f"{node.output.name}_attention"
    made = graph.add("attention", [*given, mask], attributes, path=node.path, name=name, before=node)
    result = made.output if scores.apart is None else reshaped(graph, made.output, node.output.shape, node)
    supersede(graph, node.output, result)
    graph.remove_dead()
    return f"attention with a scale of {scale:.4g}" + (" and a mask" if mask is not None else "")


def _last(softmax: Node) -> int:
    dim = softmax.attributes["dim"]
    assert isinstance(dim, int)
    return dim % max(softmax.output.rank, 1)


def _peel(scores: Scores) -> Scores:
    """Take off factors, masks, and a reshape that was there and back again, down to a product."""
    while is_sole(scores.value):
        node = scores.value.producer
        if node is None:
            break
        factor = scaled(node) if node.operator.name in ("mul", "div") else None
        if factor is not None and factor.right and node.attributes.get("rounding") is None:
            number = factor.number if node.operator.name == "mul" else 1 / factor.number if factor.number else 0.0
            if number == 0:
                break
            scores.scale *= number
            scores.value = factor.tensor
            continue
        if node.operator.name == "add" and scaled(node) is None:
            split = _mask_and_rest(node)
            if split is None:
                break
            rest, mask = split
            scores.masks.append((mask, scores.scale))
            scores.value = rest
            continue
        if node.operator.name == "reshape" and not _regroup(scores, node):
            break
        if node.operator.name != "reshape":
            break
    return scores


def _mask_and_rest(node: Node) -> tuple[Value, Value] | None:
    """The operand of a sum that leads to the product, and the other one."""
    left, right = operands(node)
    if left is None or right is None:
        return None
    for rest, mask in ((left, right), (right, left)):
        if rest.type == node.output.type and is_sole(rest) and _leads_to_product(rest):
            return rest, mask
    return None


def _leads_to_product(value: Value, depth: int = 8) -> bool:
    node = value.producer
    if node is None or depth == 0:
        return False
    if node.operator.name == "matmul":
        return True
    follows = node.operator.name in ("add", "mul", "div", "reshape")
    return follows and any(_leads_to_product(operand, depth - 1) for operand in node.inputs if operand is not None)


def _regroup(scores: Scores, node: Node) -> bool:
    """Follow a reshape that only joins leading dimensions (or takes them apart again): rows and columns of the scores stay what they are."""
    above, below = node.output.shape, source(node).shape
    if len(above) < 2 or len(below) < 2 or above[-2:] != below[-2:]:
        return False
    if scores.apart is None:
        if len(below) <= len(above) or scores.masks:
            return False
        scores.apart = below[:-2]
    elif len(below) >= len(above) or above[:-2] != scores.apart or product(below) != product(above):
        return False
    scores.value = source(node)
    return True


def _masks(graph: Graph, scores: Scores, shape: tuple[Dim, ...], node: Node) -> list[tuple[Value, float]] | None:
    """The masks, each as it broadcasts to the scores, also where these are taken apart; None where one does not."""
    lead, apart = shape[:-2], scores.apart or shape[:-2]
    shared = 0  # leading sizes, from the right, that are the same joined and apart
    while shared < min(len(lead), len(apart)) and lead[-1 - shared] == apart[-1 - shared]:
        shared += 1
    found: list[tuple[Value, float]] = []
    for mask, factor in scores.masks:
        if mask.dtype != scores.value.dtype or mask.rank > len(apart) + 2:
            return None
        beyond = max(mask.rank - 2 - shared, 0)
        if scores.apart is None or mask.rank == len(apart) + 2 or not beyond:
            found.append((mask, factor))
        elif any(size != 1 for size in mask.shape[:beyond]):
            return None
        else:
            found.append((reshaped(graph, mask, mask.shape[beyond:], node), factor))
    return found


def _unscaled(value: Value) -> tuple[Value, float]:
    """A value without the number that it is multiplied by, and that number."""
    node = maker(value, "mul", "div")
    found = scaled(node) if node is not None and is_sole(value) else None
    if (
        node is None
        or found is None
        or not found.right
        or not found.number
        or node.attributes.get("rounding") is not None
    ):
        return value, 1.0
    return found.tensor, float(found.number if node.operator.name == "mul" else 1 / found.number)


def _transposed(graph: Graph, keys: Value, node: Node) -> Value:
    """The keys as rows: without the permute that turned them, or with one that turns them back."""
    swap = (*range(keys.rank - 2), keys.rank - 1, keys.rank - 2)
    turn = maker(keys, "permute")
    if turn is not None and dims_of(turn) == swap:
        return source(turn)
    return graph.add("permute", [keys], {"dims": swap}, path=node.path, name=f"{keys.name}_rows", before=node).output


def _sum_of_masks(graph: Graph, masks: list[tuple[Value, float]], node: Node) -> Value | None:
    """All that is added to the scores, as one mask; the same for every layer that adds the same."""
    total: Value | None = None
    for mask, factor in reversed(masks):
        term = mask
        if factor != 1:
            name = f"{mask.name}_scaled"
            term = graph.add("mul", [mask], {"scalar": factor}, path=node.path, name=name, before=node).output
        if total is not None:
            name = f"{node.output.name}_mask"
            term = graph.add("add", [total, term], path=node.path, name=name, before=node).output
        total = term
    return total


RULES = (Rule("attention", gather_attention),)
