"""Early exits: inference modules and gates on intermediate streams, trained jointly, and the model that leaves where a gate says so.

After JEI-DNN (Regol, Chataoui, Coates: Jointly-Learned Exit and Inference for a Dynamic Neural Network, ICLR 2024).

    graph   = suture.passes.add_exits(graph, at="blocks.2", classes=10)
    module  = suture.to_torch(graph)                       # the result, then logits and gate of every exit
    loss    = exit_loss(exit_outputs(graph, module(x)), targets, exit_costs(graph), tradeoff=0.5).total
    chosen  = calibrate_thresholds(graph, {"x": x}, budget=0.6)
    dynamic = suture.passes.early_exit(graph, thresholds=chosen.values)
"""

from suture.passes.exits.attach import add_exits
from suture.passes.exits.cost import exit_costs
from suture.passes.exits.leave import early_exit, submodels
from suture.passes.exits.loss import ExitLoss, ExitOutputs, exit_loss, exit_outputs, exit_probabilities, warm_up_loss
from suture.passes.exits.sites import Exit, exits_of
from suture.passes.exits.thresholds import Thresholds, calibrate_thresholds

__all__ = [
    "Exit", "ExitLoss", "ExitOutputs", "Thresholds", "add_exits", "calibrate_thresholds", "early_exit", "exit_costs", "exit_loss", "exit_outputs",
    "exit_probabilities", "exits_of", "submodels", "warm_up_loss",
]  # fmt: skip
