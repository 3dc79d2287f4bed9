"""The architectures of the pruning benchmark: real definitions, random weights, the input each is meant for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import zoo


@dataclass(frozen=True)
class Case:
    """One architecture, the layer whose width is the task's own, and how much faster than the peer it should be."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    head: str
    faster: float

    def module(self) -> nn.Module:
        torch.manual_seed(0)
        return self.build().eval()


class Logits(nn.Module):
    """A language model from tokens to logits alone, as both sides can trace it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(input_ids=tokens, use_cache=False).logits


def _timm(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        zoo.declare_torchvision_operators()
        import timm

        return timm.create_model(name, pretrained=False)

    return build


def _llama() -> nn.Module:
    """Build LLaMA with grouped-query attention: 12 layers, 8 query heads over 2 key heads, halved evenly at 50 %."""
    zoo.declare_torchvision_operators()
    from transformers import LlamaConfig, LlamaForCausalLM

    shape: dict[str, Any] = {
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "vocab_size": 32000,
        "tie_word_embeddings": False,
    }
    return Logits(LlamaForCausalLM(LlamaConfig(**shape)))


def _image() -> Tensor:
    return torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))


def _tokens() -> Tensor:
    return torch.randint(0, 32000, (1, 32), generator=torch.Generator().manual_seed(1))


CASES = {
    case.name: case
    for case in (
        Case("resnet50", _timm("resnet50"), _image, "fc", 2),
        Case("densenet121", _timm("densenet121"), _image, "classifier", 10),
        Case("vit_tiny", _timm("vit_tiny_patch16_224"), _image, "head", 2),
        Case("swin_tiny", _timm("swin_tiny_patch4_window7_224"), _image, "head", 2),
        Case("llama_gqa", _llama, _tokens, "model.lm_head", 2),
    )
}
