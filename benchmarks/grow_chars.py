"""A character-level GPT that grows while it trains, against the same model trained from scratch, at equal FLOPs.

    python benchmarks/grow_chars.py [--quick] [--json FILE] [--only NAME ...] [--threads N]

The text is the standard library's own source code (3 MB; the last 0.2 MB are held out). A small model trains for a share of the budget, grows, and
the large one trains for the rest; the state of AdamW grows along. FLOPs are six times the multiply-accumulates of the traced graph. All models see
the same batches at the same steps, with one constant learning rate after a warm-up, so that every point of a curve may be compared. What is
reported is the FLOPs at which a run reaches the loss that training from scratch ends with; the small model trained alone for the whole budget stands
beside, since growing has to beat that too.

The timing that "Stacking Your Transformers" (arXiv 2405.15319) fits for models of 0.4 to 7 billion parameters says nothing at this size (it asks
for more tokens than there are), so the share of the budget that the small model gets is varied for G_stack instead. There are two settings: a short
budget (two blocks grown to eight) that leaves the large model far from trained, and one long enough that the large model overtakes the small one.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from char_drawing import draw_curves
from char_model import char_graph
from char_text import Text, standard_library
from measure import Aim, Report, arguments
from torch import nn

import suture.passes.growth.ligo  # noqa: F401  # registers the pass that the comparison asks for by name
from suture import Graph
from suture.drivers.growing import train_growing
from suture.passes.growth.depth.stacking import set_masks
from suture.passes.growth.schedules import Schedule, Surgery

DRAWINGS = Path(__file__).parent.parent / "docs"
SAVING = 0.05  # clearly fewer FLOPs: at least this share of the scratch run's


@dataclass(frozen=True)
class Setting:
    """Sizes and lengths; `steps` is how many the large model takes from scratch."""

    title: str
    operators: tuple[str, ...]
    width: int = 64
    depth: int = 8
    small: int = 2
    context: int = 64
    batch: int = 12
    steps: int = 1000
    warmup: int = 100
    rate: float = 4e-3
    evaluations: int = 40
    seeds: tuple[int, ...] = (0,)
    share: float = 0.15
    shares: tuple[float, ...] = ()


EVERY = (
    "G_stack", "interpolation", "identity blocks", "masked random blocks", "random blocks", "LiGO", "width splitting",
)  # fmt: skip
SETTINGS = (
    Setting("short", EVERY, shares=(0.3,)),
    Setting("long", ("G_stack", "identity blocks"), depth=4, small=1, steps=2500, evaluations=50),
)
QUICK = (
    Setting("quick", EVERY, width=32, depth=4, small=2, context=32, batch=16, steps=60, warmup=10, evaluations=10),
)


@dataclass
class Curve:
    """One run: the held-out loss against the FLOPs spent, and the loss on either side of the growth."""

    name: str
    points: list[tuple[float, float]] = field(default_factory=list)
    jump: float | None = None
    seconds: float = 0.0

    @property
    def final(self) -> float:
        """The loss at the end, as the mean of the last three evaluations."""
        return statistics.mean(loss for _, loss in self.points[-3:])

    def reaches(self, loss: float) -> float | None:
        """The FLOPs at which the loss is reached, between two evaluations by a straight line."""
        for (x0, y0), (x1, y1) in zip(self.points, self.points[1:], strict=False):
            if y1 <= loss:
                return x1 if y0 <= y1 else x0 + (x1 - x0) * max(0.0, (y0 - loss) / (y0 - y1))
        return None


@dataclass
class Laboratory:
    """What all runs share: the text, the settings, the cost of a step at each size, the small models trained so far."""

    setting: Setting
    text: Text
    seed: int
    costs: dict[int, float] = field(default_factory=dict)
    trained: dict[tuple[int, int], tuple[dict[str, Any], dict[str, Any], list[tuple[float, float]]]] = field(
        default_factory=dict
    )

    def graph(self, width: int, depth: int) -> Graph:
        graph = char_graph(self.text.vocabulary, self.setting.context, width, depth, seed=self.seed)
        self.costs[graph.stats().parameters] = 6.0 * graph.stats().macs * self.setting.batch
        return graph

    def cost(self, module: nn.Module) -> float:
        return self.costs[sum(parameter.numel() for parameter in module.parameters())]

    def loss(self, module: Callable[[torch.Tensor], torch.Tensor], step: int) -> torch.Tensor:
        x, y = self.text.batch(step, self.setting.batch, self.setting.context, seed=self.seed)
        return F.cross_entropy(module(x).flatten(0, 1), y.flatten())

    @torch.no_grad()
    def held_out(self, module: nn.Module) -> float:
        x, y = self.text.evaluation(128, self.setting.context)
        return float(F.cross_entropy(module.eval()(x).flatten(0, 1), y.flatten()))

    def optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=self.setting.rate, betas=(0.9, 0.95), weight_decay=0.1)

    @property
    def budget(self) -> float:
        return self.setting.steps * max(self.costs.values())


class Recorder:
    """The training function of one run: it counts FLOPs and draws the curve."""

    def __init__(self, laboratory: Laboratory, name: str) -> None:
        self.laboratory, self.curve, self.flops = laboratory, Curve(name), 0.0

    def __call__(self, module: nn.Module, optimizer: torch.optim.Optimizer, start: int, stop: int) -> None:
        laboratory = self.laboratory
        key = (sum(parameter.numel() for parameter in module.parameters()), stop)
        if start == 0 and key in laboratory.trained:
            state, moments, points = laboratory.trained[key]
            module.load_state_dict(state)
            optimizer.load_state_dict(copy.deepcopy(moments))
            self.curve.points, self.flops = list(points), points[-1][0]
            return
        if start and self.curve.jump is None:
            self.curve.jump = laboratory.held_out(_as_grown(module, self.curve.name)) - self.curve.points[-1][1]
        self._train(module, optimizer, start, stop)
        if start == 0:
            state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
            laboratory.trained[key] = (state, copy.deepcopy(optimizer.state_dict()), list(self.curve.points))

    def _train(self, module: nn.Module, optimizer: torch.optim.Optimizer, start: int, stop: int) -> None:
        laboratory, setting = self.laboratory, self.laboratory.setting
        cost, between = laboratory.cost(module), laboratory.budget / setting.evaluations
        for step in range(start, stop):
            for group in optimizer.param_groups:
                group["lr"] = setting.rate * min(1.0, (step + 1) / setting.warmup)
            loss = laboratory.loss(module.train(), step)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            self.flops += cost
            if self.flops // between > (self.flops - cost) // between or (step == stop - 1 and start == 0):
                self.curve.points.append((self.flops, laboratory.held_out(module)))


def _as_grown(module: nn.Module, name: str) -> nn.Module:
    """The module as the growth left it: a mask has begun to open for the first stretch of training already."""
    if not name.startswith("masked"):
        return module
    hidden = copy.deepcopy(module)
    set_masks(hidden, 0.0)
    return hidden


@dataclass(frozen=True)
class Growth:
    """An operator of the comparison: the small model's size and the surgery that makes the large one of it."""

    surgery: Callable[[Laboratory], tuple[str, Mapping[str, Any]]]
    depth: bool = True
    ramp: float = 0.0  # of the budget
    extra: int = 0  # steps of the large model's cost that the growth itself takes


def _even(laboratory: Laboratory) -> tuple[int, ...]:
    setting = laboratory.setting
    return tuple(block for block in range(setting.small) for _ in range(setting.depth // setting.small - 1))


def _site(laboratory: Laboratory) -> str:
    """A single block is named itself; several are a stack."""
    return "layers.0" if laboratory.setting.small == 1 else "layers"


def _stacked(laboratory: Laboratory, how: str) -> tuple[str, Mapping[str, Any]]:
    return "stack", {"at": _site(laboratory), "to": laboratory.setting.depth, "how": how}


def _inserted(laboratory: Laboratory, name: str, **options: Any) -> tuple[str, Mapping[str, Any]]:
    return name, {"at": _site(laboratory), "after": _even(laboratory), **options}


def _ligo(laboratory: Laboratory) -> tuple[str, Mapping[str, Any]]:
    order = tuple(k % laboratory.setting.small for k in range(laboratory.setting.depth))
    return "ligo", {"order": order, "loss": laboratory.loss, "steps": LIGO_STEPS}


LIGO_STEPS = 30
OPERATORS = {
    "G_stack": Growth(lambda laboratory: _stacked(laboratory, "stack")),
    "interpolation": Growth(lambda laboratory: _stacked(laboratory, "interpolate")),
    "identity blocks": Growth(lambda laboratory: _inserted(laboratory, "insert_identity")),
    "masked random blocks": Growth(lambda laboratory: _inserted(laboratory, "insert_masked"), ramp=0.1),
    "random blocks": Growth(lambda laboratory: _inserted(laboratory, "insert_masked", mask=1.0), ramp=1e-9),
    "LiGO": Growth(_ligo, extra=LIGO_STEPS),
    "width splitting": Growth(lambda laboratory: ("widen", {"factor": 2.0}), depth=False),
}


def scratch(laboratory: Laboratory) -> Curve:
    """Train the large model alone."""
    setting = laboratory.setting
    graph = laboratory.graph(setting.width, setting.depth)
    return _run(laboratory, "scratch", graph, Schedule(setting.steps))


def small_alone(laboratory: Laboratory) -> Curve:
    """Train the small model for the whole budget: what growing has to beat."""
    setting = laboratory.setting
    graph = laboratory.graph(setting.width, setting.small)
    steps = round(laboratory.budget / laboratory.costs[graph.stats().parameters])
    return _run(laboratory, "small model alone", graph, Schedule(steps))


def grown(laboratory: Laboratory, name: str, share: float) -> Curve:
    """Train the small model for a share of the budget, grow it, train on."""
    setting, growth = laboratory.setting, OPERATORS[name]
    laboratory.graph(setting.width, setting.depth)
    small = (
        laboratory.graph(setting.width, setting.small)
        if growth.depth
        else laboratory.graph(setting.width // 2, setting.depth)
    )
    large, little = max(laboratory.costs.values()), laboratory.costs[small.stats().parameters]
    at_step = round(share * laboratory.budget / little)
    left = (laboratory.budget - at_step * little) / large - growth.extra
    surgery, options = growth.surgery(laboratory)
    ramp = max(1, round(growth.ramp * setting.steps)) if growth.ramp else 0
    schedule = Schedule(at_step + round(left), (Surgery(at_step, surgery, options, ramp=ramp),))
    title = name if share == setting.share else f"{name}, {share:.0%} small"
    return _run(laboratory, title, small, schedule, extra=growth.extra * large, growth=at_step)


def _run(
    laboratory: Laboratory,
    name: str,
    graph: Graph,
    schedule: Schedule,
    *,
    extra: float = 0.0,
    growth: int | None = None,
) -> Curve:
    recorder = Recorder(laboratory, name)

    def train(module: nn.Module, optimizer: torch.optim.Optimizer, start: int, stop: int) -> None:
        if start == growth:
            recorder.flops += extra
        recorder(module, optimizer, start, stop)

    begin = time.perf_counter()
    train_growing(graph, schedule, train, laboratory.optimizer, check=False)
    recorder.curve.seconds = time.perf_counter() - begin
    print(
        f"{name}, seed {laboratory.seed}: {recorder.curve.final:.4f} in {recorder.curve.seconds:.0f} s",
        file=sys.stderr,
        flush=True,
    )
    return recorder.curve


def compare(setting: Setting, only: list[str] | None) -> dict[str, list[Curve]]:
    """All runs: scratch and the first operator with every seed, the others with the first seed."""
    text = standard_library()
    curves: dict[str, list[Curve]] = {}
    names = [name for name in setting.operators if not only or name in only]
    for seed in setting.seeds:
        laboratory = Laboratory(setting, text, seed)
        first = seed == setting.seeds[0]
        curves.setdefault("scratch", []).append(scratch(laboratory))
        if first:
            curves["small model alone"] = [small_alone(laboratory)]
        for name in names if first else names[:1]:
            curves.setdefault(name, []).append(grown(laboratory, name, setting.share))
        for share in setting.shares if first and "G_stack" in names else ():
            curve = grown(laboratory, "G_stack", share)
            curves[curve.name] = [curve]
    return curves


def judge(setting: Setting, curves: Mapping[str, list[Curve]], report: Report) -> None:
    """The figures: final losses, FLOPs saved, the jump of the loss at the growth."""
    for name, runs in curves.items():
        report.add(f"{setting.title}: {name}: final loss", statistics.mean(run.final for run in runs), "nats")
    for name, runs in curves.items():
        if name == "scratch":
            continue
        saved = []
        for run, base in zip(runs, curves["scratch"], strict=False):
            saved.append(_saved(run, base) or 0.0)
            report.rows.append(_row(setting, name, run, base))
        aim = Aim("at least", SAVING) if name == "G_stack" and setting.title == "short" else None
        report.add(
            f"{setting.title}: {name}: share of FLOPs saved to the scratch loss", statistics.mean(saved), "", aim
        )
    for name in ("identity blocks", "masked random blocks", "width splitting"):
        if name in curves:
            moved = abs(curves[name][0].jump or 0.0)
            report.add(f"{setting.title}: {name}: loss moved by the growth", moved, "nats", Aim("at most", 1e-3))
    for run in curves["scratch"]:
        report.rows.append(_row(setting, "scratch", run, run))


def _saved(run: Curve, base: Curve) -> float | None:
    """Which share of the FLOPs at which the other run first has its final loss is not needed; nothing if the loss is not reached."""
    total, reached = base.reaches(base.final), run.reaches(base.final)
    return None if reached is None or total is None else 1 - reached / total


def _row(setting: Setting, name: str, run: Curve, base: Curve) -> dict[str, Any]:
    return {
        "setting": setting.title, "operator": name, "final loss": run.final, "scratch loss": base.final, "flops to it": run.reaches(base.final),
        "saved": _saved(run, base), "jump": run.jump, "seconds": run.seconds, "curve": [[x, round(y, 5)] for x, y in run.points],
    }  # fmt: skip


def markdown(curves: Mapping[str, list[Curve]], text: Text, setting: Setting) -> str:
    """Lay the runs out as a table for people."""
    total = curves["scratch"][0].points[-1][0]
    lines = [
        f"{setting.title}: width {setting.width}, {setting.small} of {setting.depth} blocks at first, the FLOPs of {setting.steps} steps "
        f"from scratch ({total:.3g}), batches of {setting.batch} x {setting.context}, text {text.digest}",
        "",
        "| operator | seed | loss moved by the growth | final loss | scratch's | FLOPs saved to it | speed-up |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, runs in curves.items():
        for seed, run, base in zip(setting.seeds, runs, curves["scratch"], strict=False):
            saved = _saved(run, base) if name != "scratch" else None
            jump = "" if run.jump is None else f"{run.jump:+.3f}"
            saving = ("", "") if saved is None else (f"{saved:.0%}", f"{1 / (1 - saved) - 1:.0%}")
            cells = [name, str(seed), jump, f"{run.final:.4f}", f"{base.final:.4f}", *saving]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    options = arguments(__doc__ or "")
    torch.set_num_threads(options.threads)
    report = Report("a character GPT grown in training, against training from scratch", options.quick)
    tables = []
    for setting in QUICK if options.quick else SETTINGS:
        curves = compare(setting, options.only)
        judge(setting, curves, report)
        tables.append(markdown(curves, standard_library(), setting))
        if options.json is not None and not options.quick:
            drawing = draw_curves({name: runs[0].points for name, runs in curves.items()})
            (DRAWINGS / f"growth_{setting.title}.svg").write_text(drawing, encoding="utf-8")
    code = report.finish(options.json)
    print("\n".join(tables))
    if options.json is not None:
        Path(options.json).with_suffix(".md").write_text("\n".join(tables), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
