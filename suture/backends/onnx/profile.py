"""What a file is written for: which operators it may use, whether its sizes are numbers, and which of several emissions is taken.

A profile is a set of limits that no rule may overstep (`contrib`, `static`) and a set of choices among emissions that say the same. The
limits are the profile's; single choices can be replaced, by hand or by what measured fastest.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, TypeAlias

from suture.ir.errors import Code, SutureError, nearest

CONTRIB = "com.microsoft"
"""The domain of ONNX Runtime's own operators, all at version 1."""

ProfileName: TypeAlias = Literal["portable", "onnxruntime", "mobile"]


@dataclass(frozen=True)
class Choices:
    """One field per operator that ONNX can say in several ways, and the way that is taken."""

    # a linear layer with a bias on more than two dimensions: MatMul and Add, or one Gemm on the matrix of rows, which neighbours then keep to
    linear: Literal["matmul", "gemm"] = "gemm"
    # heads of queries, keys and values that one layer makes: taken apart each for itself, or all by one Transpose (fewer nodes, a little slower)
    heads: Literal["apart", "together"] = "apart"
    # attention: MatMul, Softmax, MatMul; the operator Attention of opset 23; or the contributed MultiHeadAttention
    attention: Literal["plain", "operator", "contrib"] = "plain"
    # GELU: the operator of opset 20 (written out before it), always written out, or the contributed Gelu and FastGelu
    gelu: Literal["operator", "written_out", "contrib"] = "operator"
    # SiLU: x * sigmoid(x), or the contributed QuickGelu with a factor of 1
    silu: Literal["product", "contrib"] = "product"
    # RMS norm: the operator of opset 23 (written out before it), or always written out
    rms_norm: Literal["operator", "written_out"] = "operator"
    # the mean over all of an image: GlobalAveragePool, or ReduceMean
    mean: Literal["pool", "reduce"] = "pool"
    # a fused operator that ONNX has no name for: the contributed one, or its body
    fused: Literal["expand", "contrib"] = "expand"

    def needs_contrib(self) -> tuple[str, ...]:
        """The fields that ask for contributed operators."""
        return tuple(item.name for item in fields(self) if getattr(self, item.name) == "contrib")


@dataclass(frozen=True)
class Profile:
    """A target.

    :param contrib: whether operators of the domain com.microsoft may be used
    :param static: whether every size must be a number
    :param choices: what is taken where ONNX can say the same in several ways
    """

    name: str
    contrib: bool = False
    static: bool = False
    choices: Choices = field(default_factory=Choices)

    def with_choices(self, given: Mapping[str, str]) -> Profile:
        """The profile with single choices replaced.

        :raises SutureError: OPTION, for a choice that does not exist; PROFILE, for one that the profile has no operators for
        """
        hints = typing.get_type_hints(Choices)
        for name, value in given.items():
            if name not in hints:
                raise SutureError(
                    Code.OPTION, f"there is no choice {name!r}", remedy=nearest(name, hints, what="choice")
                )
            allowed = typing.get_args(hints[name])
            if value not in allowed:
                raise SutureError(
                    Code.OPTION,
                    f"the choice {name} cannot be {value!r}",
                    remedy=f"one of {', '.join(map(repr, allowed))} would be right",
                )
        replaced: dict[str, Any] = dict(given)
        made = replace(self, choices=replace(self.choices, **replaced))
        asked = made.choices.needs_contrib()
        if asked and not self.contrib:
            raise SutureError(
                Code.PROFILE,
                f"the choice {asked[0]}=contrib is an operator of {CONTRIB}, which the profile {self.name} does not have",
                remedy="the profile onnxruntime has it",
            )
        return made


PROFILES: Mapping[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile("portable"),
        Profile("onnxruntime", contrib=True, choices=Choices(silu="contrib", fused="contrib")),
        Profile("mobile", static=True, choices=Choices(heads="together")),
    )
}


def find_profile(profile: str | Profile) -> Profile:
    """The profile of a name.

    :raises SutureError: PROFILE, with the nearest name, if there is none
    """
    if isinstance(profile, Profile):
        return profile
    if profile not in PROFILES:
        raise SutureError(
            Code.PROFILE, f"there is no profile {profile!r}", remedy=nearest(profile, PROFILES, what="profile")
        )
    return PROFILES[profile]
