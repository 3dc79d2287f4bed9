"""Orthogonal matrices: randomised Hadamard, Haar random, and the principal axes of data."""

from __future__ import annotations

import torch

from suture.passes.counter import counter_bits, counter_normal


def hadamard(size: int, seed: int, name: str) -> torch.Tensor:
    """A Hadamard matrix over the square root of its size, its columns with random signs (QuaRot, Ashkboos et al. 2024, section 3).

    Where no Hadamard matrix of the size is known here, the largest power of two in it is one, times a random rotation of the odd rest.
    """
    known = _hadamard(size)
    if known is None:
        power = size & -size
        even = _sylvester(power) / power**0.5
        matrix = torch.kron(random_rotation(size // power, seed, f"{name}/rest"), even)
    else:
        matrix = known / size**0.5
    signs = (counter_bits(seed, f"{name}/signs", size) & 1).to(torch.float64) * 2 - 1
    return matrix * signs


def random_rotation(size: int, seed: int, name: str) -> torch.Tensor:
    """An orthogonal matrix, uniformly distributed: the QR factorisation of normal numbers, with a positive diagonal of R (Mezzadri 2007)."""
    q, r = torch.linalg.qr(counter_normal(seed, name, size * size).reshape(size, size))
    signed: torch.Tensor = q * torch.where(r.diagonal() < 0, -1.0, 1.0)
    return signed.contiguous()


def principal_axes(moment: torch.Tensor) -> torch.Tensor:
    """The eigenvectors of a symmetric matrix as rows, that of the largest eigenvalue first, each with its largest entry positive."""
    _, vectors = torch.linalg.eigh(moment)
    rows = vectors.flip(1).T
    largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    signed: torch.Tensor = rows * torch.where(largest < 0, -1.0, 1.0)
    return signed.contiguous()


def _hadamard(size: int) -> torch.Tensor | None:
    """A Hadamard matrix by Sylvester's and Paley's constructions, or None."""
    order, power = size, 1
    while True:
        core = _paley(order)
        if core is not None:
            return torch.kron(core, _sylvester(power))
        if order % 2:
            return None
        order, power = order // 2, power * 2


def _sylvester(size: int) -> torch.Tensor:
    matrix, step = torch.ones(1, 1, dtype=torch.float64), torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    while len(matrix) < size:
        matrix = torch.kron(step, matrix)
    return matrix


def _paley(order: int) -> torch.Tensor | None:
    """Paley's matrix of order q + 1 for a prime q = 3 mod 4, or 2 (q + 1) for a prime q = 1 mod 4 (Paley 1933); those of order 1 and 2."""
    if order <= 2:
        return _sylvester(order)
    q = order - 1
    if q % 4 == 3 and _is_prime(q):
        return torch.eye(order, dtype=torch.float64) + _bordered(q, -1.0)
    q = order // 2 - 1
    if order % 4 == 0 and q % 4 == 1 and _is_prime(q):
        core = _bordered(q, 1.0)
        one = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
        rest = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
        return torch.kron(core, one) + torch.kron(torch.eye(q + 1, dtype=torch.float64), rest)
    return None


def _bordered(q: int, corner: float) -> torch.Tensor:
    """Jacobsthal's matrix of quadratic residues, with a row of ones above and a column of `corner` beside it."""
    squares = {k * k % q for k in range(1, q)}
    residue = torch.tensor([0.0 if k == 0 else 1.0 if k in squares else -1.0 for k in range(q)], dtype=torch.float64)
    index = torch.arange(q)
    matrix = torch.zeros(q + 1, q + 1, dtype=torch.float64)
    matrix[0, 1:], matrix[1:, 0] = 1.0, corner
    matrix[1:, 1:] = residue[(index[:, None] - index[None, :]) % q]
    return matrix


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % k for k in range(2, int(number**0.5) + 1))
