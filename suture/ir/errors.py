"""Everything a user can do wrong has a code here, and reads as one line: what is wrong, where, and what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import StrEnum


class Code(StrEnum):
    """Stable error codes. A code keeps its meaning for ever; a new kind of error gets a new code."""

    # S1xx: the graph itself
    SHAPE = "S101"  # operand shapes do not fit the operator's index notation
    DTYPE = "S102"  # an operand has a type the operator cannot take
    GRAPH = "S103"  # the graph is malformed: a value used before it exists, two producers, an unknown name
    OPERATOR = "S104"  # no operator of that name, or attributes it does not have
    TEXT = "S105"  # graph text that does not parse
    SIZE = "S106"  # a symbolic size that cannot be evaluated, or does not parse
    INPUT = "S107"  # inputs that do not fit the graph's inputs
    NOTATION = "S108"  # index notation that does not parse
    REGION = "S109"  # a region that is none, has several streams, or is not like its neighbours
    CUT = "S110"  # no single value between two points of the graph
    SEAM = "S111"  # types that do not fit where two regions are joined
    KERNEL = "S112"  # a kernel that could read or write where it must not, or in which lanes could meet

    # S20x-S24x: tracing
    EXPORT = "S201"  # torch.export could not trace the module
    MODULE = "S202"  # not a module, or called with arguments it does not take
    DYNAMIC = "S203"  # a dynamic dimension that the module fixes, or that names no input

    # S25x-S29x: checkpoints
    CHECKPOINT = "S251"  # a weights file that is cut short or not what its name says
    PICKLE = "S252"  # a file that would run code when loaded
    PATH = "S253"  # a path that leaves the folder it may read or write
    WEIGHTS = "S254"  # weights that do not fit the model: missing, unexpected, of another shape
    FILE = "S255"  # a file that is missing or not readable

    # S3xx: the script language and the command line
    SCRIPT_SYNTAX = "S301"  # a script that does not parse
    SCRIPT_NAME = "S302"  # a name that is not bound, or bound twice
    SCRIPT_OPTION = "S303"  # an option that the pass does not have, of the wrong type, or missing
    SCRIPT_MODEL = "S304"  # a model that cannot be built
    SCRIPT_CHECK = "S305"  # a check that does not hold
    USAGE = "S306"  # the command line
    INTERRUPTED = "S307"  # stopped by the user: files are as they were

    # S4xx: passes
    PASS = "S401"  # no pass of that name
    OPTION = "S402"  # an option that the pass does not have, or of the wrong type
    CONTRACT = "S403"  # a pass that did not keep what it promised
    PROBE = "S404"  # probes that do not fit the graph
    SITE = "S451"  # a site query that matches nothing, or another number than expected
    KEEP = "S452"  # a ratio or count that leaves nothing
    CRITERION = "S453"  # an importance criterion that does not exist or returned the wrong shape
    PLAN = "S454"  # a plan that does not fit the graph
    GROWTH = "S455"  # a growth that cannot be: a factor, an order or a schedule that does not fit the model
    STITCH = "S456"  # anchors that cannot be stitched, or a stitch that does not exist
    RANK = "S457"  # a rank beyond the matrix, or none
    CALIBRATION = "S458"  # calibration data that are missing or too few
    ELASTIC = "S459"  # a sub-network that is not nested in its network, or does not exist
    EXIT = "S460"  # an exit, a gate or a threshold that does not fit the model
    TRAINING = "S461"  # a training function that does not do what its driver needs
    QUANTISER = "S462"  # a quantiser that cannot be: bits, a scheme or a site that integers cannot express
    SYMMETRY = "S463"  # a change of basis that the network does not allow at that place
    ADAPTER = "S464"  # an adapter that does not fit its layer, or is not there
    GRADIENT = "S465"  # an operator that has no derivative, or a value that nothing differentiable leads to
    RELATION = "S466"  # edges, types or weights of a relational graph that do not fit each other

    # S5xx: backends
    ONNX_EXPORT = "S501"  # an operator or attribute that the target opset cannot express
    ONNX_FILE = "S502"  # an ONNX file that is cut short or invalid
    RUNTIME = "S503"  # ONNX Runtime refused the model or its inputs
    WRITE = "S504"  # a file that could not be written: full disk, no permission
    COMPARE = "S505"  # things that cannot be compared
    PROFILE = "S506"  # a target that does not have an operator that the graph asks for
    COMPILER = "S507"  # no compiler, or one that refuses what was generated
    DEVICE = "S508"  # a tensor on another device than the code is for, or a device that is not there
    TORCH = "S551"  # a graph that cannot become a module


class SutureError(Exception):
    """A user's error: a stable code and one line.

    :param code: what kind of error it is
    :param what: the fact, as a clause without a full stop
    :param where: file:line:column, node or module path
    :param remedy: what would be right
    """

    def __init__(self, code: Code, what: str, *, where: str = "", remedy: str = "") -> None:
        self.code = code
        self.what = _one_line(what)
        self.where = _one_line(where)
        self.remedy = _one_line(remedy)
        place = f"{self.where}: " if self.where else ""
        cure = f"; {self.remedy}" if self.remedy else ""
        super().__init__(f"[{code.value}] {place}{self.what}{cure}")


class ContractError(SutureError):
    """A pass changed what it promised to keep."""


def _one_line(text: str) -> str:
    return " ".join(text.split())


def nearest(name: str, known: Iterable[str], *, what: str = "") -> str:
    """Say which known name comes nearest, as a remedy: `the nearest is 'prune'`."""
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return "the nearest is " + " or ".join(repr(item) for item in close)
    if not names:
        return f"there is no {what or 'name'} at all"
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"known {what + 's' if what else 'names'}: {shown}"
