"""What a method's body may use besides + − × ÷ and comparisons: the same function on symbols, NumPy arrays, torch
tensors and plain numbers.

The definitions are those of the engine (``csrc/program.h``, ``csrc/stages.h``), spelled out where NumPy and torch
differ or leave something open: which zero a minimum gives, what becomes of a NaN, the order of a sum.

A reduction gives one float64 number for the whole tensor, or one for each row along the last axis (``axis=-1``), for
each column along the first (``axis=0``), for each output channel (``axis="channel"``: along all axes but the first).
What it gives is used like a number: in expressions, which are evaluated in
float64, and beside tensors, where it is rounded once to their arithmetic.
"""

from __future__ import annotations

from .elementwise import (
    clip,
    copysign,
    exp,
    flag,
    floor,
    fma,
    is_nan,
    lerp,
    lerp_by,
    log,
    maximum,
    minimum,
    multiply_add,
    pow,
    sign,
    sqrt,
    where,
)
from .generated import bernoulli, index, normal, uniform
from .numbers import acos, cos, of_numbers, rounded, sin, single
from .reductions import axes, count, dot, mean, mean_of_products, norm, size, sum, variance
from .selection import kth_largest, largest, quantile
from .tensors import rank, whole

__all__ = [
    "acos", "axes", "bernoulli", "clip", "copysign", "cos", "count", "dot", "exp", "flag", "floor", "fma",
    "index", "is_nan", "kth_largest", "largest", "lerp", "lerp_by", "log", "maximum", "mean", "mean_of_products",
    "minimum", "multiply_add", "norm", "normal", "of_numbers", "pow", "quantile", "rank", "rounded", "sign",
    "sin", "single", "size", "sqrt", "sum", "uniform", "variance", "where", "whole",
]  # fmt: skip
