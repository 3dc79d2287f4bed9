"""What `torch.save` wrote, read without running code."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from suture.ir.errors import Code, SutureError

REMEDY_CUT = "download or write it again"


def load_pickle(path: Path, *, trust: bool, device: str) -> dict[str, torch.Tensor]:
    """The tensors of a file that `torch.save` wrote.

    :param trust: unpickle it even if that runs code in it
    :param device: on `meta`, a zip archive's tensor data stays unread
    :raises SutureError: PICKLE, if the file would run code; CHECKPOINT, if it is damaged or holds no state dict
    """
    try:
        mapped = zipfile.is_zipfile(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch warns of here fails just below
            content = torch.load(path, map_location=device, weights_only=not trust, mmap=mapped or None)
    except pickle.UnpicklingError as error:
        raise _pickle_error(path, str(error)) from None
    except Exception as error:  # a damaged file can make the unpickler fail in any way
        detail = str(error).strip().splitlines()
        raise SutureError(
            Code.CHECKPOINT,
            f"not a whole weights file: {detail[0] if detail else type(error).__name__}",
            where=str(path),
            remedy=REMEDY_CUT,
        ) from None
    return _state_dict(path, content)


def _pickle_error(path: Path, message: str) -> SutureError:
    found = re.search(r"(?:GLOBAL|class|global:?) ([A-Za-z_]\w*(?:\.\w+)+)", message)
    if found is None and not re.search(r"GLOBAL|Unsupported operand|Unsupported class", message):
        return SutureError(Code.CHECKPOINT, "not a whole weights file", where=str(path), remedy=REMEDY_CUT)
    wants = f": it calls {found[1]}" if found else ""
    remedy = "convert it to safetensors where it was made, or pass trust=True if you trust whoever made it"
    return SutureError(Code.PICKLE, f"loading this file may run code in it{wants}", where=str(path), remedy=remedy)


def _state_dict(path: Path, content: Any) -> dict[str, torch.Tensor]:
    """The tensors by name: the file's content itself, or the one state dict within a training checkpoint."""
    if isinstance(content, torch.nn.Module):
        content = content.state_dict()
    if not isinstance(content, Mapping):
        raise SutureError(
            Code.CHECKPOINT, f"the file holds a {type(content).__name__}", where=str(path), remedy="save a state dict"
        )
    if _holds_tensors(content):
        return dict(content)
    nested = [
        str(key) for key, value in content.items() if isinstance(value, Mapping) and value and _holds_tensors(value)
    ]
    if len(nested) == 1:
        return dict(content[nested[0]])
    named = [key for key in nested if key in ("state_dict", "model_state_dict", "model")]
    if len(named) == 1:
        return dict(content[named[0]])
    what = f"several state dicts: {', '.join(nested)}" if nested else "no state dict"
    raise SutureError(
        Code.CHECKPOINT, f"the file holds {what}", where=str(path), remedy="save one state dict of tensors by name"
    )


def _holds_tensors(content: Mapping[Any, Any]) -> bool:
    return all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in content.items())
