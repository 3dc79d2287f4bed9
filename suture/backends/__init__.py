"""How a model runs or leaves: torch modules, ONNX, ONNX Runtime."""
