"""Losses of routers, for a user's training loop: balance among experts, and the choice that the dense activations would have made."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def balance_loss(logits: torch.Tensor, top: int = 1) -> torch.Tensor:
    """The number of experts times the sum over them of the share of positions that choose one and its mean probability; 1 if all are alike.

    Fedus et al., "Switch Transformers" (arXiv 2101.03961), equations 4 to 6, for `top` choices per position.

    :param logits: `[*b, experts]`
    """
    flat = logits.reshape(-1, logits.shape[-1])
    probabilities = flat.softmax(-1)
    chosen = torch.zeros_like(flat).scatter_(1, flat.topk(top, 1).indices, 1.0 / top)
    return flat.shape[1] * (chosen.mean(0) * probabilities.mean(0)).sum()


def routing_loss(logits: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """The cross-entropy of a router's choice with the shares of activation that the experts hold in the dense layers.

    :param logits: `[*b, experts]`
    :param shares: of as many positions, in order; rows sum to 1, as `suture.passes.experts.division.routing_shares` gives them
    """
    rows = logits.reshape(-1, logits.shape[-1])
    target = shares.reshape(rows.shape).to(rows.dtype)
    return -(target * F.log_softmax(rows, -1)).sum(-1).mean()
