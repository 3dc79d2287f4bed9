"""The models of the ONNX benchmark: real definitions, random weights with random norms, the input each is meant for."""

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

IMAGE = 224
ROWS = 128  # tokens of a text
VOCABULARY = 8192


@dataclass(frozen=True)
class Case:
    """One model, its input, and which of the peers' recipes of its own it has."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    recipe: str | None = None
    """What ONNX Runtime's transformers optimizer calls this kind of model; None if it has no recipe for it."""
    heads: int = 0
    width: int = 0
    classes: bool = False
    """Whether the model's own classes can rewrite themselves for deployment (timm's `reparameterize_model`)."""

    def module(self) -> nn.Module:
        torch.manual_seed(0)
        return zoo.randomise(self.build()).eval()


class First(nn.Module):
    """A text model from tokens to its first result alone, as every exporter can trace it."""

    def __init__(self, model: nn.Module, **fixed: Any) -> None:
        super().__init__()
        self.model = model
        self.fixed = fixed

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(input_ids=tokens, **self.fixed)[0]


def _timm(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        zoo.declare_torchvision_operators()
        import timm

        return timm.create_model(name, pretrained=False)

    return build


def _bert() -> nn.Module:
    zoo.declare_torchvision_operators()
    from transformers import BertConfig, BertModel

    shape = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    return First(BertModel(BertConfig(vocab_size=VOCABULARY, **shape), add_pooling_layer=False))


def _gpt2() -> nn.Module:
    zoo.declare_torchvision_operators()
    from transformers import GPT2Config, GPT2LMHeadModel

    return First(GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=384, n_layer=6, n_head=6)), use_cache=False)


def _llama() -> nn.Module:
    zoo.declare_torchvision_operators()
    from transformers import LlamaConfig, LlamaForCausalLM

    shape: dict[str, Any] = {
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
    }
    return First(LlamaForCausalLM(LlamaConfig(**shape)), use_cache=False)


def _image() -> Tensor:
    return torch.randn(1, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(0))


def _tokens() -> Tensor:
    return torch.randint(0, VOCABULARY, (1, ROWS), generator=torch.Generator().manual_seed(0))


CASES = (
    Case("resnet50", _timm("resnet50"), _image),
    Case("mobilenetv3", _timm("mobilenetv3_large_100"), _image),
    Case("efficientnet_b0", _timm("efficientnet_b0"), _image),
    Case("repvgg_a0", _timm("repvgg_a0"), _image, classes=True),
    Case("mobileone_s0", _timm("mobileone_s0"), _image, classes=True),
    Case("fastvit_t8", _timm("fastvit_t8"), _image, classes=True),
    Case("convnext_tiny", _timm("convnext_tiny"), _image),
    Case("vit_tiny", _timm("vit_tiny_patch16_224"), _image, recipe="vit", heads=3, width=192),
    Case("swin_tiny", _timm("swin_tiny_patch4_window7_224"), _image),
    Case("bert", _bert, _tokens, recipe="bert", heads=12, width=384),
    Case("gpt2", _gpt2, _tokens, recipe="gpt2", heads=6, width=384),
    Case("llama", _llama, _tokens),
)
