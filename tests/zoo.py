"""Architectures that tests and benchmarks trace: real model definitions with random weights.

`timm` and `transformers` import torchvision, whose wheel's compiled library loads beside one build of torch only: elsewhere its operators
are declared here, so that the pure Python part works. Nothing of this is needed by the package itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


def declare_torchvision_operators() -> None:
    """Import `torchvision`; where its compiled library does not fit this torch, declare the operators its Python part needs."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        torch.library.define("torchvision::nms", signature)
        torch.library.define("torchvision::qnms", signature)


@dataclass(frozen=True)
class Entry:
    """One architecture: how to build it, what it takes, and which input dimensions vary."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int, int], dict[str, Any]]  # (batch, sequence) -> keyword or positional arguments
    dynamic: Mapping[str, Mapping[int, str]]
    positional: bool = True
    image: bool = True

    def args(self, batch: int = 2, sequence: int = 12) -> tuple[tuple[Any, ...], dict[str, Any]]:
        made = self.inputs(batch, sequence)
        return (tuple(made.values()), {}) if self.positional else ((), made)

    def module(self, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        return self.build().eval()


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every affine parameter, bias, running statistic and zero-initialised weight a random value, so that constants and gates matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim <= 1 or name.endswith((".bias", "relative_position_bias_table")):
                parameter.copy_(
                    torch.randn(parameter.shape, generator=generator) * 0.2 + (1.0 if name.endswith("weight") else 0.0)
                )
            elif not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.1)
            elif name.endswith("running_var"):
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return module


def _timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        declare_torchvision_operators()
        import timm

        return timm.create_model(name, pretrained=False, **options)

    return build


def _torchvision(name: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        declare_torchvision_operators()
        import torchvision.models as models

        factory = getattr(models, name, None) or getattr(models.segmentation, name)
        return factory(weights=None, **options)

    return build


def _torchvision_vit() -> nn.Module:
    """ViT-Ti in the words of torchvision, whose own factories begin at the size of ViT-B."""
    declare_torchvision_operators()
    from torchvision.models import VisionTransformer

    return VisionTransformer(image_size=224, patch_size=16, num_layers=12, num_heads=3, hidden_dim=192, mlp_dim=768)


def _image(size: int) -> Callable[[int, int], dict[str, Any]]:
    return lambda batch, sequence: {"x": torch.randn(batch, 3, size, size)}


def _tokens(vocabulary: int, *names: str) -> Callable[[int, int], dict[str, Any]]:
    def make(batch: int, sequence: int) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for name in names:
            if name.endswith("attention_mask"):
                mask = torch.ones(batch, sequence, dtype=torch.int64)
                mask[0, sequence - 2 :] = 0
                made[name] = mask
            else:
                made[name] = torch.randint(0, vocabulary, (batch, sequence))
        return made

    return make


def _hugging_face(family: str, **config: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        declare_torchvision_operators()
        import transformers

        configuration = getattr(transformers, f"{family}Config")(**config)
        head = {
            "Bert": "BertModel", "GPT2": "GPT2LMHeadModel", "Llama": "LlamaForCausalLM", "Qwen2": "Qwen2ForCausalLM",
            "T5": "T5ForConditionalGeneration", "ViT": "ViTForImageClassification",
        }[family]  # fmt: skip
        return getattr(transformers, head)(configuration)

    return build


class LSTMClassifier(nn.Module):
    """Embedding, two bidirectional LSTM layers, mean over time, linear."""

    def __init__(self, vocabulary: int = 50, width: int = 16, hidden: int = 24, classes: int = 5) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, hidden, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(2 * hidden, classes)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        features, _ = self.lstm(self.embed(tokens))
        return self.head(features.mean(dim=1))


def _double_conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True),
    )  # fmt: skip


class UNet(nn.Module):
    """Three levels down and up, transposed convolutions, skip connections by concatenation."""

    def __init__(self, width: int = 16, classes: int = 3) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            [_double_conv(3, width), _double_conv(width, 2 * width), _double_conv(2 * width, 4 * width)]
        )
        self.pool = nn.MaxPool2d(2)
        self.bottom = _double_conv(4 * width, 8 * width)
        self.up = nn.ModuleList([nn.ConvTranspose2d(2 * c, c, 2, stride=2) for c in (4 * width, 2 * width, width)])
        self.merge = nn.ModuleList([_double_conv(2 * c, c) for c in (4 * width, 2 * width, width)])
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for block in self.down:
            x = block(x)
            skips.append(x)
            x = self.pool(x)
        x = self.bottom(x)
        for up, merge, skip in zip(self.up, self.merge, reversed(skips), strict=True):
            x = merge(torch.cat([skip, up(x)], dim=1))
        return self.head(x)


_BATCH = {"x": {0: "batch"}}
_TEXT = {0: "batch", 1: "sequence"}
_TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_DECODER = {**_TINY, "vocab_size": 64, "max_position_embeddings": 64, "use_cache": False}

_TIMM = {
    "resnet18": 64, "resnet50": 64, "mobilenetv3_large_100": 64, "efficientnet_b0": 64, "densenet121": 64, "regnety_008": 64,
    "convnext_tiny": 64, "vit_tiny_patch16_224": 224,
    "repvgg_a0": 64, "ghostnet_100": 64, "inception_v3": 128, "hrnet_w18_small": 64, "mixer_s32_224": 224,
}  # fmt: skip

ENTRIES: dict[str, Entry] = {name: Entry(name, _timm(name), _image(size), _BATCH) for name, size in _TIMM.items()}
ENTRIES |= {
    "shufflenet_v2_x1_0": Entry("shufflenet_v2_x1_0", _torchvision("shufflenet_v2_x1_0"), _image(64), _BATCH),
    "deeplabv3_mobilenet_v3_large": Entry(
        "deeplabv3_mobilenet_v3_large", _torchvision("deeplabv3_mobilenet_v3_large", weights_backbone=None), _image(64), _BATCH
    ),
    # half as wide as Swin-T: what is tested is its structure
    "swin_tiny_patch4_window7_224": Entry(
        "swin_tiny_patch4_window7_224", _timm("swin_tiny_patch4_window7_224", embed_dim=48), _image(224), _BATCH
    ),
    "torchvision_vit": Entry("torchvision_vit", _torchvision_vit, _image(224), _BATCH),
    "bert": Entry(
        "bert", _hugging_face("Bert", vocab_size=64, max_position_embeddings=64, **_TINY),
        _tokens(64, "input_ids", "attention_mask"), {"input_ids": _TEXT, "attention_mask": _TEXT}, positional=False, image=False,
    ),
    "gpt2": Entry(
        "gpt2", _hugging_face("GPT2", vocab_size=64, n_positions=64, n_embd=32, n_layer=2, n_head=4, use_cache=False),
        _tokens(64, "input_ids"), {"input_ids": _TEXT}, positional=False, image=False,
    ),
    "llama": Entry(
        "llama", _hugging_face("Llama", num_key_value_heads=2, **_DECODER),
        _tokens(64, "input_ids"), {"input_ids": _TEXT}, positional=False, image=False,
    ),
    "qwen2": Entry(
        "qwen2", _hugging_face("Qwen2", num_key_value_heads=2, **_DECODER),
        _tokens(64, "input_ids"), {"input_ids": _TEXT}, positional=False, image=False,
    ),
    "t5": Entry(
        "t5", _hugging_face("T5", vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, use_cache=False, decoder_start_token_id=0),
        _tokens(64, "input_ids", "decoder_input_ids"), {"input_ids": _TEXT, "decoder_input_ids": _TEXT}, positional=False, image=False,
    ),
    "hf_vit": Entry(
        "hf_vit", _hugging_face("ViT", image_size=32, patch_size=8, num_labels=7, **_TINY),
        lambda batch, sequence: {"pixel_values": torch.randn(batch, 3, 32, 32)}, {"pixel_values": {0: "batch"}}, positional=False,
    ),
    "lstm": Entry(
        "lstm", LSTMClassifier, lambda batch, sequence: {"tokens": torch.randint(0, 50, (batch, sequence))}, {"tokens": _TEXT}, image=False
    ),
    "unet": Entry("unet", UNet, _image(32), _BATCH),
}  # fmt: skip
