"""ONNX: a graph becomes a file that a runtime loads."""

from __future__ import annotations

from suture.backends.onnx.export import export_onnx
from suture.backends.onnx.summary import Summary, summarise_onnx

__all__ = ["Summary", "export_onnx", "summarise_onnx"]
