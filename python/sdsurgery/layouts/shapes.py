"""The few layer types from which every network here is built, as (name, shape) rows in module order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

Shape = tuple[int, ...]
Row = tuple[str, Shape]
"""Name of a tensor and its shape, outermost dimension first, as PyTorch stores it."""


def linear(name: str, out: int, inputs: int, bias: bool = True) -> Iterator[Row]:
    """A fully connected layer: weight ``[out, inputs]`` and bias ``[out]``."""
    yield f"{name}.weight", (out, inputs)
    if bias:
        yield f"{name}.bias", (out,)


def conv(name: str, out: int, inputs: int, kernel: int = 3, bias: bool = True) -> Iterator[Row]:
    """A square 2-D convolution: weight ``[out, inputs, kernel, kernel]`` and bias ``[out]``."""
    yield f"{name}.weight", (out, inputs, kernel, kernel)
    if bias:
        yield f"{name}.bias", (out,)


def norm(name: str, width: int) -> Iterator[Row]:
    """A group or layer norm: weight and bias ``[width]``."""
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def under(prefix: str, rows: Iterable[Row]) -> Iterator[Row]:
    """``rows`` with ``prefix`` put in front of every name."""
    for name, shape in rows:
        yield prefix + name, shape
