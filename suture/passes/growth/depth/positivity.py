"""What an activation leaves as it is: a ReLU the results of a ReLU, a clamp those of the same clamp, a GELU nothing."""

from __future__ import annotations

from suture.ir.graph import Node, Value

_NOT_NEGATIVE = (
    "relu",
    "relu6",
    "abs",
    "sigmoid",
    "hardsigmoid",
    "softmax",
    "exp",
    "softplus",
    "sqrt",
    "vector_norm",
    "var",
)
_KEEP_SIGN = (
    "reshape", "permute", "expand", "repeat", "repeat_interleave", "split", "slice", "select", "roll", "flip", "index", "gather", "pixel_shuffle",
    "pixel_unshuffle", "max_pool", "adaptive_max_pool", "clone", "cast", "amax", "amin",
)  # fmt: skip
_KEEP_SIGN_ON_AVERAGE = ("avg_pool", "adaptive_avg_pool", "mean", "sum", "cumsum", "dropout", "interpolate", "pad")
_TOGETHER = ("add", "mul", "maximum", "concat")
_LEAVE_POSITIVE_ALONE = ("relu", "leaky_relu", "elu", "celu", "abs", "prelu")
_IDEMPOTENT = ("relu6", "clamp", "floor", "ceil", "round", "sign")


def leaves_alone(activation: Node, value: Value) -> bool:
    """Whether an activation maps a value, as its producers make it, to itself."""
    name = activation.operator.name
    if name in _LEAVE_POSITIVE_ALONE and is_not_negative(value):
        return True
    return name in _IDEMPOTENT and _is_made_by(value, activation)


def is_not_negative(value: Value) -> bool:
    """Whether the operators that make a value cannot make a negative element."""
    node = value.producer
    if node is None:
        return False
    name, scalar = node.operator.name, node.attributes.get("scalar")
    if name in _NOT_NEGATIVE:
        return True
    if name == "clamp":
        least = node.attributes["min"]
        return isinstance(least, int | float) and least >= 0
    if name == "pad" and isinstance(filled := node.attributes.get("value"), int | float) and filled < 0:
        return False
    if name == "interpolate" and node.attributes.get("mode") == "bicubic":
        return False
    if name in (*_KEEP_SIGN, *_KEEP_SIGN_ON_AVERAGE):
        return node.inputs[0] is not None and is_not_negative(node.inputs[0])
    if name in _TOGETHER:
        positive = scalar is None or (isinstance(scalar, int | float) and scalar >= 0)
        return positive and all(operand is None or is_not_negative(operand) for operand in node.inputs)
    return False


def _is_made_by(value: Value, activation: Node) -> bool:
    """Whether the value is a result of the same activation, its elements moved about at most."""
    node = value.producer
    while node is not None and node.operator.name in _KEEP_SIGN and node.operator.name != "cast":
        node = None if node.inputs[0] is None else node.inputs[0].producer
    return node is not None and node.operator is activation.operator and node.attributes == activation.attributes
