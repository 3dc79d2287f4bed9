"""Transformers in four and six bits, in simulation: RepQ beside plain percentile quantisation, on a vision transformer trained on digits.

Every pixel is a token, so that attention spreads over 65 of them as it does in large vision transformers, and noise is added to the images, so that
the classes are not trivially far apart. Gains and biases of norms learn at ten times the rate of the rest: after the few hundred steps that a
benchmark has time for, their channels then differ by factors of 6 to 40.

    python benchmarks/low_bit_cases.py --quick
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from digits_models import CLASSES, SIZE, Block, Digits, batches, load_digits
from measure import Aim, Report, arguments
from torch import Tensor, nn

import suture
from suture.ir.graph import Graph
from suture.ir.semantics import evaluate

NOISE = 0.1  # standard deviation; pixels are 0 to 1
CALIBRATION = 50  # images
BATCH = 50  # what the graphs are traced for

PLAIN = {"reparameterise": False, "clip": False, "rebuild": False}
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "plain percentiles": PLAIN,
    "plain, log2 softmax": {**PLAIN, "softmax": "log2"},
    "plain, log2, rebuilt": {"reparameterise": False, "softmax": "log2"},
    "repq, uniform softmax": {"clip": False, "rebuild": False},
    "repq": {"clip": False, "rebuild": False, "softmax": "log2"},
    "repq, dual clipping": {"rebuild": False, "softmax": "log2"},
    "repq, rebuilt": {"clip": False, "softmax": "log2"},
    "repq, both, uniform": {},
    "repq, both": {"softmax": "log2"},
}
"""What is tried, by name: options of the pass."""


class PixelViT(nn.Module):
    """A vision transformer with a token for every pixel and one for the class."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, width, 1)
        self.cls = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.pos = nn.Parameter(torch.randn(1, SIZE * SIZE + 1, width) * 0.02)
        self.blocks = nn.ModuleList([Block(width, width // 8) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), tokens], 1) + self.pos
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def noisy(images: Tensor, seed: int) -> Tensor:
    """Images with noise."""
    return images + NOISE * torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))


def trained(digits: Digits, *, width: int, depth: int, steps: int, rate: float = 4e-3) -> nn.Module:
    """The model, by AdamW."""
    torch.manual_seed(0)
    module = PixelViT(width, depth)
    named = dict(module.named_parameters())
    groups = {
        "norms": [p for name, p in named.items() if "norm" in name],
        "vectors": [p for name, p in named.items() if "norm" not in name and p.ndim == 1],
        "weights": [p for name, p in named.items() if "norm" not in name and p.ndim > 1],
    }
    rates, decays = {"norms": 10 * rate, "vectors": rate, "weights": rate}, {"weights": 0.05}
    optimizer = torch.optim.AdamW(
        [{"params": group, "lr": rates[name], "weight_decay": decays.get(name, 0.0)} for name, group in groups.items()]
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, list(rates.values()), total_steps=steps, pct_start=0.1)
    module.train()
    for step, chosen in enumerate(batches(digits, steps, 0)):
        optimizer.zero_grad()
        F.cross_entropy(module(noisy(digits.images[chosen], step)), digits.classes[chosen]).backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return module.eval()


class Score:
    """How well graphs do on held-out images: accuracy, and how far their answers are from the real model's."""

    def __init__(self, real: Graph, digits: Digits, draws: int) -> None:
        self.batches = [
            (images, classes)
            for draw in range(draws)
            for images, classes in zip(
                noisy(digits.test_images, -1 - draw).split(BATCH), digits.test_classes.split(BATCH), strict=True
            )
        ]
        self.expected = [self._answers(real, images) for images, _ in self.batches]

    def of(self, graph: Graph) -> tuple[float, float]:
        """Accuracy, and the mean Kullback-Leibler divergence of the classes' probabilities."""
        right, divergence, count = 0, 0.0, 0
        for (images, classes), expected in zip(self.batches, self.expected, strict=True):
            answers = self._answers(graph, images)
            right += int((answers.argmax(1) == classes).sum())
            divergence += float(F.kl_div(answers, expected, log_target=True, reduction="sum"))
            count += len(classes)
        return right / count, divergence / count

    @staticmethod
    def _answers(graph: Graph, images: Tensor) -> Tensor:
        with torch.no_grad():
            return evaluate(graph, [images])[0].log_softmax(1)


def low_bit_figures(report: Report, quick: bool) -> None:
    """Add the figures of W4A4 and W6A6: accuracy of each variant, and the share of plain quantisation's loss that RepQ recovers."""
    digits = load_digits()
    module = trained(digits, width=32, depth=2 if quick else 4, steps=200 if quick else 700)
    graph = suture.trace(module, digits.images[:BATCH])
    score = Score(graph, digits, 1 if quick else 3)
    data = {graph.inputs[0].name: noisy(digits.images[:CALIBRATION], 10**6)}
    real, _ = score.of(graph)
    report.add("digits ViT, float", real, "accuracy")
    for bits in (4, 6):
        found = {name: _row(report, graph, score, name, bits, data) for name in VARIANTS}
        plain, best = found["plain percentiles"], found["repq, both"]
        aim = Aim("at least", 0.5) if bits == 4 and not quick else None  # six bits lose next to nothing
        report.add(f"digits ViT W{bits}A{bits}, loss of plain percentiles", real - plain[0], "accuracy")
        report.add(f"digits ViT W{bits}A{bits}, loss recovered", _share(plain[0], best[0], real), "share", aim)
        report.add(f"digits ViT W{bits}A{bits}, divergence recovered", _share(plain[1], best[1], 0.0), "share")


def _row(
    report: Report, graph: Graph, score: Score, name: str, bits: int, data: Mapping[str, Tensor]
) -> tuple[float, float]:
    made = suture.passes.repq(
        graph, data=dict(data), weight_bits=bits, activation_bits=bits, check=False, **VARIANTS[name]
    )
    accuracy, divergence = score.of(made)
    report.add(f"digits ViT W{bits}A{bits}, {name}", accuracy, "accuracy")
    report.rows.append(
        {"case": "digits ViT", "bits": bits, "variant": name, "accuracy": accuracy, "divergence": divergence}
    )
    print(f"W{bits}A{bits} {name:24} accuracy {accuracy:.4f}  divergence {divergence:.4f}", flush=True)
    return accuracy, divergence


def _share(worse: float, better: float, best: float) -> float:
    """What part of the way from worse to best was made; all of it where there was none."""
    return (better - worse) / (best - worse) if best != worse else 1.0


def main() -> int:
    options = arguments("W4A4 and W6A6 in simulation on a vision transformer")
    torch.set_num_threads(options.threads)
    report = Report("Transformers in few bits", options.quick)
    low_bit_figures(report, options.quick)
    return report.finish(options.json)


if __name__ == "__main__":
    raise SystemExit(main())
