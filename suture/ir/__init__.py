"""What a model is: types, graph, index notation, operators, axes, text, evaluator. Importing it declares the operators."""

from suture.ir import operators
from suture.ir.errors import Code, ContractError, SutureError
from suture.ir.graph import Graph, Node, Parameter, Record, Stats, Value
from suture.ir.semantics import evaluate
from suture.ir.sizes import Dim, Size, symbol
from suture.ir.types import TensorType

__all__ = [
    "Code",
    "ContractError",
    "Dim",
    "Graph",
    "Node",
    "Parameter",
    "Record",
    "Size",
    "Stats",
    "SutureError",
    "TensorType",
    "Value",
    "evaluate",
    "operators",
    "symbol",
]
