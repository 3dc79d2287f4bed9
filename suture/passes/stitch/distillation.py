"""The loss that trains a stitch towards a teacher: the largest anchor, as the other routes are to come near it."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def distillation_loss(
    outputs: torch.Tensor,
    targets: torch.Tensor,
    teacher: torch.Tensor,
    *,
    share: float = 0.5,
    temperature: float | None = None,
) -> torch.Tensor:
    """Cross entropy with the targets, mixed with the distance to the teacher's outputs.

    Without a temperature the distillation is hard: the teacher's decision is a second target (DeiT, Touvron et al. 2021, section 4; used by SN-Net).
    With one it is the divergence between softened distributions, times the temperature's square (Hinton et al. 2015).

    :param outputs: class scores of the stitch, [batch, classes]
    :param targets: the right classes, [batch], or their probabilities, [batch, classes]
    :param teacher: class scores of the teacher, [batch, classes]; no gradient flows there
    :param share: how much of the loss is distillation
    """
    truth = F.cross_entropy(outputs, targets)
    fixed = teacher.detach()
    if temperature is None:
        return (1 - share) * truth + share * F.cross_entropy(outputs, fixed.argmax(dim=-1))
    soft = F.kl_div(
        F.log_softmax(outputs / temperature, dim=-1), F.log_softmax(fixed / temperature, dim=-1),
        reduction="batchmean", log_target=True,
    )  # fmt: skip
    return (1 - share) * truth + share * temperature**2 * soft
