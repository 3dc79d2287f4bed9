"""`suture show MODEL --kernels`: what a model becomes when it is compiled, as a table or JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from suture.cli.display import print_json, print_rows
from suture.ir.graph import Graph

if TYPE_CHECKING:
    from suture.codegen.report import ProgramReport

_UNKNOWN = 2  # what a symbolic size is taken to be where neither the user nor the graph says
_SHOWN = 12  # nodes left to torch that are listed


def show_kernels(
    graphs: Mapping[str, Graph], *, target: str, sizes: Sequence[str], architectures: Sequence[int], json: bool
) -> None:
    """Print the kernels of some graphs.

    :param sizes: numbers for symbolic sizes, as `batch=8`
    :param architectures: for CUDA: compute capabilities, times ten, for which the kernels are compiled to see what they take
    :raises SutureError: KERNEL, SIZE or COMPILER
    """
    found = {name: _report(graph, target, sizes, tuple(architectures)) for name, graph in graphs.items()}
    if json:
        print_json({"ok": True, "models": {name: each.as_data() for name, each in found.items()}})
        return
    for name, each in found.items():
        if len(found) > 1:
            print(f"# {name}")
        _print(each)


def _report(graph: Graph, target: str, sizes: Sequence[str], architectures: tuple[int, ...]) -> ProgramReport:
    from suture.backends.onnx.export import numbers
    from suture.codegen.program import lower
    from suture.codegen.report import report_program
    from suture.drivers.exporting import prepare

    given = numbers(tuple(sizes))
    if all(parameter.data.device.type != "meta" for parameter in graph.parameters.values()):
        graph = prepare(graph, check=False)  # as suture.compile does
    chosen = {symbol: given.get(symbol, graph.hints.get(symbol, _UNKNOWN)) for symbol in graph.symbols()}
    return report_program(lower(graph, target), graph, chosen, architectures if target == "cuda" else ())


def _print(found: ProgramReport) -> None:
    titles = ["kernel", "calls", "reads", "writes", "lines", "schedule", "what it computes, and why so"]
    rows = [
        [each.name, str(each.calls), _size(each.reads), _size(each.writes), str(each.lines), each.schedule, each.why]
        for each in found.kernels
    ]
    print_rows(titles, rows, left=(0, 5, 6))
    taken = [each for kernel in found.kernels for each in kernel.resources]
    if taken:
        print()
        titles = ["kernel", "arch", "threads", "registers", "shared", "local", "spilled", "blocks", "occupancy"]
        print_rows(
            titles,
            [
                [
                    each.kernel, f"sm_{each.architecture}", str(each.threads), str(each.registers), str(each.shared), str(each.local),
                    str(each.spilled), str(each.blocks), f"{each.occupancy:.0%}",
                ]
                for each in taken
            ],
        )  # fmt: skip
    at = ", ".join(f"{name}={size}" for name, size in found.sizes.items())
    print(
        f"\narena: {_size(found.arena)} for values of {_size(found.together)}; what the graph's nodes make, one by one, takes "
        f"{_size(found.activations)}" + (f" (at {at})" if at else "")
    )
    if found.left:
        print(f"left to torch: {len(found.left)} node{'s' if len(found.left) > 1 else ''}")
        for node, why in found.left[:_SHOWN]:
            print(f"  {node}: {why}")
        if len(found.left) > _SHOWN:
            print(f"  ... and {len(found.left) - _SHOWN} more")


def _size(count: int) -> str:
    """Bytes as a person reads them."""
    for scale, unit in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"
