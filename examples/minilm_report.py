"""What the surgery of `minilm_edge.suture` cost and bought: one table, measured on real sentences in ONNX Runtime.

    suture run examples/minilm_edge.suture
    python examples/minilm_report.py [--svg FILE]

Three models run here: the original in PyTorch (the reference for every embedding), and the two exported files, before
and after, in ONNX Runtime on the CPU. Latencies are medians over turns in which both files run one after the other, so
that a busy machine slows both down.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import minilm
import numpy as np
import torch

import suture

HERE = Path(__file__).parent
BEFORE, AFTER, GRAPH = HERE / "minilm.onnx", HERE / "minilm_edge.onnx", HERE / "minilm_edge.suture-graph"
CAPTION = (
    "Cosines compare each embedding with the original's; the rank correlation compares the order in which both "
    "put the pairs, which is what a search cares for. Nothing was trained after the surgery. Half of the original's "
    "parameters are the vocabulary's embedding, which stays; so do softmax, layer norm and the stream's width."
)
LABELS = {"paraphrase": "paraphrases", "related": "related sentences", "unrelated": "unrelated sentences"}


@dataclass(frozen=True)
class Fidelity:
    """How well embeddings agree with the original's, and the similarities of pairs with the original's similarities."""

    mean_cosine: float
    worst_cosine: float
    rank_correlation: float
    similarities: np.ndarray


def session(path: Path) -> Callable[[Mapping[str, torch.Tensor]], np.ndarray]:
    """Open an ONNX file in ONNX Runtime and return it as a function from tokens to embeddings."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    opened = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(inputs: Mapping[str, torch.Tensor]) -> np.ndarray:
        (embeddings,) = opened.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        return np.asarray(embeddings)

    return run


def embed(model: Callable[[Mapping[str, torch.Tensor]], np.ndarray], sentences: list[str]) -> np.ndarray:
    """Embed sentences in batches of 32, as a service would."""
    batches = [sentences[start : start + 32] for start in range(0, len(sentences), 32)]
    return np.concatenate([model(minilm.tokenize(batch)) for batch in batches])


def ranks(values: np.ndarray) -> np.ndarray:
    """Return the rank of each value, ties sharing the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Return the rank correlation: 1 if both put the pairs in the same order."""
    return float(np.corrcoef(ranks(first), ranks(second))[0, 1])


def fidelity(embeddings: np.ndarray, reference: np.ndarray) -> Fidelity:
    """Compare embeddings with the reference's; both hold all first sentences, then all second ones, at unit length."""
    cosine = (embeddings * reference).sum(axis=1)
    half = len(embeddings) // 2
    own, wanted = ((e[:half] * e[half:]).sum(axis=1) for e in (embeddings, reference))
    return Fidelity(float(cosine.mean()), float(cosine.min()), spearman(own, wanted), own)


def latencies(
    models: Mapping[str, Callable[[Mapping[str, torch.Tensor]], np.ndarray]],
    inputs: Mapping[str, torch.Tensor],
    rounds: int,
) -> dict[str, float]:
    """Return the median milliseconds of each model, run in turn."""
    taken: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(rounds + 3):
        for name, model in models.items():
            start = time.perf_counter()
            model(inputs)
            if turn >= 3:
                taken[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in taken.items()}


def measure(rounds: int) -> list[tuple[str, str, str, str]]:
    """Run everything and return the table's rows: what, original, edge, how they relate."""
    module = minilm.encoder()
    dynamic = {name: {0: "batch", 1: "sequence"} for name in ("input_ids", "attention_mask")}
    example = torch.ones(2, 16, dtype=torch.int64)  # the sizes the script traces with
    original = suture.trace(module, (), {name: example.clone() for name in dynamic}, dynamic=dynamic)
    edge = suture.load(GRAPH)
    pairs = minilm.pairs()
    sentences = [first for _, first, _ in pairs] + [second for _, _, second in pairs]

    @torch.no_grad()
    def reference(inputs: Mapping[str, torch.Tensor]) -> np.ndarray:
        return module(**inputs).numpy()

    wanted = embed(reference, sentences)
    models = {"before": session(BEFORE), "after": session(AFTER)}
    found = {name: fidelity(embed(model, sentences), wanted) for name, model in models.items()}
    rows = counts(original.stats(), edge.stats())
    rows.append(row("ONNX file, MB", BEFORE.stat().st_size / 1e6, AFTER.stat().st_size / 1e6, "{:.1f}"))
    for label, batch, turns in (("one sentence", sentences[:1], rounds), ("32 sentences", sentences[:32], rounds // 4)):
        taken = latencies(models, minilm.tokenize(batch), max(turns, 1))
        rows.append(row(f"latency, {label}, ms", taken["before"], taken["after"], "{:.2f}"))
    before, after = found["before"], found["after"]
    rows.append(("", "", "", ""))
    rows.append(
        ("mean cosine to the original's embedding", f"{before.mean_cosine:.4f}", f"{after.mean_cosine:.4f}", "")
    )
    rows.append(("worst cosine", f"{before.worst_cosine:.4f}", f"{after.worst_cosine:.4f}", ""))
    rows.append(
        ("rank correlation of the pairs", f"{before.rank_correlation:.4f}", f"{after.rank_correlation:.4f}", "")
    )
    relations = np.array([relation for relation, _, _ in pairs])
    for relation, label in LABELS.items():
        means = [one.similarities[relations == relation].mean() for one in (before, after)]
        rows.append(
            (f"mean similarity of {label}", f"{means[0]:.3f}", f"{means[1]:.3f}", f"{means[1] - means[0]:+.3f}")
        )
    return rows


def counts(original: Any, edge: Any) -> list[tuple[str, str, str, str]]:
    """Return the rows that need no run: parameters and multiply-accumulates, for one sentence of 16 tokens."""
    return [
        row("parameters, millions", original.parameters / 1e6, edge.parameters / 1e6, "{:.2f}"),
        row("MACs (16 tokens), millions", original.macs / 1e6, edge.macs / 1e6, "{:.1f}"),
    ]


def row(label: str, before: float, after: float, layout: str) -> tuple[str, str, str, str]:
    """Return a row whose last cell is after over before."""
    return (label, layout.format(before), layout.format(after), f"{after / before:.0%}")


def main() -> int:
    """Measure and print."""
    from rich._export_format import CONSOLE_SVG_FORMAT
    from rich.console import Console
    from rich.table import Table

    parser = argparse.ArgumentParser(description="What the surgery of minilm_edge.suture cost and bought.")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="also draw the table here")
    parser.add_argument("--rounds", type=int, default=60, help="turns of the latency measurement")
    options = parser.parse_args()
    missing = [path.name for path in (BEFORE, AFTER, GRAPH) if not path.exists()]
    if missing:
        print(f"{missing[0]} is not there yet: run `suture run examples/minilm_edge.suture` first", file=sys.stderr)
        return 2
    console = Console(record=options.svg is not None, width=None if sys.stdout.isatty() and not options.svg else 100)
    title = f"all-MiniLM-L6-v2 on {len(minilm.pairs())} pairs of English sentences, ONNX Runtime on the CPU"
    table = Table("", "original", "edge", "edge / original", title=title, caption=CAPTION, caption_justify="left")
    for cells in measure(options.rounds):
        table.add_row(*cells)
    for column in table.columns[1:]:
        column.justify = "right"
    console.print(table)
    if options.svg is not None:
        # Without the web fonts of rich's own layout: a picture in a repository fetches nothing.
        layout = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
        console.save_svg(str(options.svg), title="make demo", code_format=layout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
