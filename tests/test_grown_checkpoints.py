"""A model grown in depth loads into its library's own class of the larger configuration, and computes the same there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn
from zoo import declare_torchvision_operators, randomise

import suture

declare_torchvision_operators()


@dataclass(frozen=True)
class Family:
    """A library's class: how to build it at a depth, what it takes, and how to grow it to that depth."""

    build: Callable[[int], nn.Module]
    inputs: Callable[[], dict[str, Any]]
    grow: list[dict[str, Any]]
    depth: tuple[int, int] = (2, 4)
    call: Callable[[Any], torch.Tensor] = field(default=lambda result: result[0])
    keywords: bool = True


def _transformers(name: str, layers: str = "num_hidden_layers", **config: Any) -> Callable[[int], nn.Module]:
    def build(depth: int) -> nn.Module:
        import transformers

        configuration = getattr(transformers, name.split(".")[0] + "Config")(
            **config, **dict.fromkeys(layers.split(), depth)
        )
        return getattr(transformers, name.replace(".", ""))(configuration)

    return build


def _timm(name: str, option: str, **options: Any) -> Callable[[int], nn.Module]:
    def build(depth: int) -> nn.Module:
        import timm

        chosen = {option: [2, depth, 2, 2] if option == "layers" else depth}
        return timm.create_model(name, pretrained=False, **chosen, **options)

    return build


def _torchvision_vit(depth: int) -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(
        image_size=16, patch_size=8, num_layers=depth, num_heads=4, hidden_dim=32, mlp_dim=48, num_classes=5
    )


def _tokens() -> dict[str, Any]:
    return {"input_ids": torch.randint(0, 60, (2, 9))}


def _masked_tokens() -> dict[str, Any]:
    mask = torch.ones(2, 9, dtype=torch.int64)
    mask[0, 7:] = 0
    return {**_tokens(), "attention_mask": mask}


def _image(name: str, size: int) -> Callable[[], dict[str, Any]]:
    return lambda: {name: torch.randn(2, 3, size, size)}


_TINY: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
_TEXT: dict[str, Any] = {**_TINY, "vocab_size": 64, "max_position_embeddings": 32}
_DECODER: dict[str, Any] = {**_TEXT, "num_key_value_heads": 2, "use_cache": False, "bos_token_id": 1, "eos_token_id": 2}
_GPT2: dict[str, Any] = {
    "vocab_size": 64,
    "n_positions": 32,
    "n_embd": 32,
    "n_head": 4,
    "use_cache": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_T5: dict[str, Any] = {
    "vocab_size": 64,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_heads": 4,
    "use_cache": False,
    "decoder_start_token_id": 0,
}

FAMILIES = {
    "bert": Family(_transformers("Bert.Model", **_TEXT), _masked_tokens, [{}]),
    "bert for masked words": Family(_transformers("Bert.ForMaskedLM", **_TEXT), _masked_tokens, [{"how": "interpolate"}]),
    "gpt2": Family(_transformers("GPT2.LMHeadModel", "n_layer", **_GPT2), _tokens, [{}]),
    "llama": Family(_transformers("Llama.ForCausalLM", **_DECODER), _tokens, [{"how": "interpolate"}]),
    "llama, tied head": Family(_transformers("Llama.ForCausalLM", tie_word_embeddings=True, **_DECODER), _tokens, [{"to": 3}], depth=(2, 3)),
    "qwen2": Family(_transformers("Qwen2.ForCausalLM", **_DECODER), _tokens, [{}]),
    "vit": Family(
        _transformers("ViT.ForImageClassification", image_size=16, patch_size=8, num_labels=7, **_TINY), _image("pixel_values", 16), [{}]
    ),
    "t5": Family(
        _transformers("T5.ForConditionalGeneration", "num_layers num_decoder_layers", **_T5),
        lambda: {**_tokens(), "decoder_input_ids": torch.randint(0, 60, (2, 5))}, [{"at": "encoder.block"}, {"at": "decoder.block"}],
    ),
    "timm vit": Family(
        _timm("vit_tiny_patch16_224", "depth", img_size=32, embed_dim=24, num_heads=3, num_classes=5), _image("x", 32), [{}], depth=(12, 24),
        call=lambda result: result, keywords=False,
    ),
    "timm resnet": Family(
        _timm("resnet18", "layers", num_classes=5), _image("x", 32), [{"at": "layer2.1", "times": 3}], call=lambda result: result, keywords=False
    ),
    "torchvision vit": Family(_torchvision_vit, _image("x", 16), [{}], depth=(6, 12), call=lambda result: result, keywords=False),
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_a_grown_model_is_the_larger_configuration_of_its_class(name):
    family = FAMILIES[name]
    torch.manual_seed(0)
    small, inputs = randomise(family.build(family.depth[0])).eval(), family.inputs()
    args, kwargs = ((), inputs) if family.keywords else (tuple(inputs.values()), {})
    graph = suture.trace(small, args, kwargs)
    for options in family.grow:
        graph = suture.passes.stack(graph, check=False, **options)
    module = suture.to_torch(graph).eval()
    large = family.build(family.depth[1]).eval()
    large.load_state_dict(module.state_dict(), strict=True)
    with torch.no_grad():
        expected, received = large(*args, **kwargs), module(*args, **kwargs)
    torch.testing.assert_close(family.call(received), family.call(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama", "vit"])
def test_a_model_with_identity_blocks_is_the_larger_configuration_too(name):
    family = FAMILIES[name]
    torch.manual_seed(0)
    small, inputs = randomise(family.build(2)).eval(), family.inputs()
    graph = suture.passes.insert_identity(suture.trace(small, (), inputs), check=False)
    large = family.build(4).eval()
    large.load_state_dict(suture.to_torch(graph).state_dict(), strict=True)
    with torch.no_grad():
        expected, received = small(**inputs), large(**inputs)
    torch.testing.assert_close(family.call(received), family.call(expected), rtol=1e-5, atol=1e-5)
