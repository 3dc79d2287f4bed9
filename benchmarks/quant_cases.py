"""What `quant_peer.py` quantises: networks trained on digits, a sentence encoder, and two image networks with random weights."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from digits_models import CLASSES, Digits, ViT, load_digits, train_alone
from torch import Tensor, nn

import suture
from suture.ir.graph import Graph

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

Feed = Mapping[str, Tensor]
Run = Callable[[Feed], Tensor]
CALIBRATION = 128  # images of digits


@dataclass(frozen=True)
class Case:
    """One network in floats: how it is made, what it is calibrated on, what it is timed on, and what counts as quality (more is better).

    :param make: the traced network of a seed, ready to quantise
    :param quality: figures by name, of a way to run the network and of the float network's
    :param timed: whether its latency is an aim
    """

    name: str
    make: Callable[[int], Graph]
    calibration: Callable[[], Feed]
    quality: Callable[[Run, Run], dict[str, float]]
    inputs: Callable[[], Feed]
    timed: bool = False
    seeds: Sequence[int] = (0,)
    observers: Sequence[str] = field(default=("MinMax",))


class Residual(nn.Module):
    """Two convolutions with batch norm beside the identity."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.down: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.down = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.down(x))


class CNN(nn.Module):
    """Two stages of two residual blocks."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(
            Residual(width, width),
            Residual(width, width),
            Residual(width, 2 * width, 2),
            Residual(2 * width, 2 * width),
        )
        self.head = nn.Linear(2 * width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.adaptive_avg_pool2d(self.blocks(self.stem(x)), 1).flatten(1))


@cache
def digits() -> Digits:
    return load_digits()


@cache
def trained(kind: str, seed: int, steps: int) -> nn.Module:
    """A network trained on digits; the seed is that of the weights and of the order of the examples."""
    make: Callable[[], nn.Module] = CNN if kind == "cnn" else lambda: ViT(48, 4)
    return train_alone(make, digits(), steps, seed, 3e-3)


def prepared(graph: Graph) -> Graph:
    """What every side starts from: Suture's own float network, batch norms merged."""
    return suture.passes.canonicalise(suture.passes.fold(graph, check=False), check=False)


def _digits_graph(kind: str, seed: int, steps: int) -> Graph:
    return prepared(
        suture.trace(trained(kind, seed, steps), digits().images[:2], dynamic={"x": {0: "batch"}}, name=kind)
    )


def _digits_quality(run: Run, floats: Run) -> dict[str, float]:
    scores, exact = run({"x": digits().test_images}), floats({"x": digits().test_images})
    right = (scores.argmax(1) == digits().test_classes).double().mean()
    same = (scores.argmax(1) == exact.argmax(1)).double().mean()
    cosine = float(F.cosine_similarity(scores, exact).mean())
    return {"accuracy": 100 * float(right), "agreement with the floats": 100 * float(same), "cosine": cosine}


def _of_digits(kind: str, steps: int) -> Case:
    return Case(
        f"digits {kind}", lambda seed: _digits_graph(kind, seed, steps), lambda: {"x": digits().images[:CALIBRATION]}, _digits_quality,
        lambda: {"x": digits().test_images[:64]}, seeds=(0, 1, 2), observers=("MinMax", "Entropy", "Percentile"),
    )  # fmt: skip


def _image(name: str) -> Case:
    def make(seed: int) -> Graph:
        import zoo

        zoo.declare_torchvision_operators()
        import timm

        torch.manual_seed(seed)
        module = timm.create_model(name).eval()
        return prepared(suture.trace(module, torch.zeros(1, 3, 224, 224), name=name))

    def images(count: int, seed: int) -> Feed:
        return {"x": torch.randn(count, 3, 224, 224, generator=torch.Generator().manual_seed(seed))}

    def quality(run: Run, floats: Run) -> dict[str, float]:
        batch = images(4, 1)["x"]
        pairs = [(run({"x": image[None]}), floats({"x": image[None]})) for image in batch]
        return {"cosine": float(torch.stack([F.cosine_similarity(a, b).mean() for a, b in pairs]).mean())}

    return Case(name, make, lambda: images(8, 0), quality, lambda: images(1, 2), timed=True)


def _sentences() -> Case:
    import minilm

    def make(seed: int) -> Graph:
        inputs = minilm.tokenize(["one sentence", "and another one"])
        sizes = {0: "batch", 1: "sequence"}
        return prepared(suture.trace(minilm.encoder(), (inputs["input_ids"], inputs["attention_mask"]),
                                     dynamic={"input_ids": sizes, "attention_mask": sizes}, name="minilm"))  # fmt: skip

    def quality(run: Run, floats: Run) -> dict[str, float]:
        pairs = minilm.pairs()
        sides = [[pair[k] for pair in pairs] for k in (1, 2)]
        coded = [[way(minilm.tokenize(side)) for side in sides] for way in (run, floats)]
        similar = [F.cosine_similarity(a, b) for a, b in coded]
        cosine = torch.cat([F.cosine_similarity(a, b) for a, b in zip(*coded, strict=True)]).mean()
        return {"cosine": float(cosine), "rank correlation": _rank_correlation(*similar)}

    return Case("minilm", make, minilm.calibration, quality, lambda: _eight(minilm.calibration()), timed=True,
                observers=("MinMax", "Percentile"))  # fmt: skip


def _eight(feed: Feed) -> Feed:
    return {name: tensor[:8] for name, tensor in feed.items()}


def _rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's: the correlation of the ranks."""
    ranks = torch.stack([x.argsort().argsort().double() for x in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])


CASES: Mapping[str, Callable[[], Case]] = {
    "digits cnn": lambda: _of_digits("cnn", 300),
    "digits vit": lambda: _of_digits("vit", 600),
    "minilm": _sentences,
    "resnet50": lambda: _image("resnet50"),
    "vit_tiny_patch16_224": lambda: _image("vit_tiny_patch16_224"),
}
"""The cases by name, made when they are asked for."""
