"""Probe inputs from files: `.npz`, safetensors, or what `torch.save` wrote."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch

from suture.frontends.checkpoint import load_weights
from suture.ir.errors import Code, SutureError

_UNNAMED = re.compile(r"arr_(\d+)")


def load_arrays(path: str | Path) -> dict[str, torch.Tensor] | list[torch.Tensor]:
    """The arrays of a file by name; in order, if `numpy.savez` was given no names.

    :raises SutureError: FILE, CHECKPOINT or PICKLE
    """
    path = Path(path)
    if path.suffix != ".npz":
        return load_weights(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {
                name: torch.from_numpy(np.ascontiguousarray(file[name]).reshape(file[name].shape))
                for name in file.files
            }
    except FileNotFoundError:
        raise SutureError(
            Code.FILE, "there is no such file", where=str(path), remedy="give the path of an .npz file"
        ) from None
    except Exception as error:  # a damaged archive can fail in any way
        lines = str(error).splitlines() or [type(error).__name__]
        what = f"not a whole .npz file of numbers: {lines[0]}"
        raise SutureError(Code.CHECKPOINT, what, where=str(path), remedy="write it again with numpy.savez") from None
    positions = [_UNNAMED.fullmatch(name) for name in arrays]
    if arrays and all(positions):
        return [arrays[name] for name in sorted(arrays, key=lambda name: int(name[4:]))]
    return arrays
