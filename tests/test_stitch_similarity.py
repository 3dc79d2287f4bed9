"""Similarity of representations, against the kernels themselves."""

from __future__ import annotations

import importlib
import math

import pytest
import torch
from stitchable import StagedNet, ViT, images, make, traced, vit_graph

from suture import Code, SutureError, evaluate
from suture.passes.stitch.similarity import similarity


def kernel_cka(x: torch.Tensor, y: torch.Tensor, debiased: bool) -> float:
    """CKA by its definition, on kernels of rows by rows (Kornblith et al. 2019, section 3; Song et al. 2012 for the unbiased estimate)."""
    n = len(x)
    k, el = x @ x.T, y @ y.T

    def hsic(a: torch.Tensor, b: torch.Tensor) -> float:
        if not debiased:
            centre = torch.eye(n, dtype=a.dtype) - 1 / n
            return float((centre @ a @ centre * b).sum())
        a, b = a - a.diag().diag(), b - b.diag().diag()
        total = (a @ b).trace() + a.sum() * b.sum() / ((n - 1) * (n - 2)) - 2 * (a @ b).sum() / (n - 2)
        return float(total / (n * (n - 3)))

    return hsic(k, el) / math.sqrt(hsic(k, k) * hsic(el, el))


def values_of(graph, x):
    found = {}
    evaluate(graph, [x], watch=lambda value, tensor: found.__setitem__(value.name, tensor.detach()))
    return found


@pytest.mark.parametrize("debiased", [False, True])
def test_cka_is_that_of_the_kernels(debiased):
    front, back = vit_graph(8, 2), vit_graph(12, 2, seed=1)
    x = images(6)
    found = similarity(front, back, {"x": x}, debiased=debiased)
    ours, theirs = values_of(front, x), values_of(back, x)
    i, k = found.front.index("blocks_0_add_1"), found.back.index("blocks_1_add")
    rows = ours["blocks_0_add_1"].reshape(-1, 8).double(), theirs["blocks_1_add"].reshape(-1, 12).double()
    assert found.cka[i][k] == pytest.approx(kernel_cka(*rows, debiased), rel=1e-6)
    assert found.rows == 6 * 17


def test_a_model_is_like_itself():
    graph = vit_graph(8, 2)
    found = similarity(graph, graph, {"x": images(8)})
    for k in range(len(found.front)):
        assert found.cka[k][k] == pytest.approx(1.0)
        assert found.residual[k][k] < 1e-2
    assert found.best("blocks_0_add_1") == ("blocks_0_add_1", "blocks_0_add_1")


def test_rotated_features_are_alike():
    module = make(ViT, 8, 1)
    rotated = make(ViT, 8, 1)
    rotation = torch.linalg.qr(torch.randn(8, 8))[0]
    with torch.no_grad():
        rotated.patch.weight.copy_(torch.einsum("ij,jchw->ichw", rotation, module.patch.weight))
        rotated.patch.bias.copy_(rotation @ module.patch.bias)
    found = similarity(traced(module), traced(rotated), {"x": images(4)}, exits=["patch"], entries=["patch"])
    assert found.cka[0][0] == pytest.approx(1.0, abs=1e-6)
    assert found.residual[0][0] < 1e-3


def test_models_of_other_families_are_compared_at_resampled_positions():
    found = similarity(traced(make(StagedNet, 4)), vit_graph(8, 2), {"x": images(4)})
    i, k = found.front.index("stem"), found.back.index("blocks_1_add_1")
    assert 0 <= found.cka[i][k] <= 1
    assert 0 <= found.residual[i][k] <= 1 + 1e-9
    head = found.front.index("head")
    assert math.isnan(found.cka[head][k])  # scores have no positions


def test_many_pairs_take_several_passes_and_give_the_same(monkeypatch):
    front, back = vit_graph(8, 1), vit_graph(12, 1)
    at_once = similarity(front, back, {"x": images(3)})
    monkeypatch.setattr(importlib.import_module("suture.passes.stitch.similarity"), "_MOST_BYTES", 4000)
    in_groups = similarity(front, back, {"x": images(3)})
    assert str(at_once) == str(in_groups)


def test_the_table_names_both_sides():
    text = str(similarity(vit_graph(8, 1), vit_graph(8, 1), {"x": images(3)}))
    assert "b0  patch" in text
    assert "CKA" in text
    assert "least-squares residual, front to back" in text


def test_what_cannot_be_compared_is_said():
    graph = vit_graph(8, 1)
    with pytest.raises(SutureError, match="no value 'nowhere'") as caught:
        similarity(graph, graph, {"x": images(2)}, exits=["nowhere"])
    assert caught.value.code is Code.SITE
    with pytest.raises(SutureError, match="have no 'x'") as caught:
        similarity(graph, graph, {})
    assert caught.value.code is Code.CALIBRATION
    with pytest.raises(SutureError, match="debiased CKA of 1 rows"):
        similarity(graph, graph, {"x": images(1)}, exits=["head"], entries=["head"], debiased=True)
