"""Places, and random numbers: what no input holds."""

from __future__ import annotations

from typing import Any

from ..program import ALL, FIRST, LAST, SECOND
from ..program.symbols import TENSOR, Scalar
from .dispatch import tracer_of


def index(x: Any, axis: int) -> Any:
    """The element's index along axis 0, 1 or −1 of x: 0, 1, 2, …. A tensor of one axis is a row, whose axis 1 is its
    only one."""
    if axis not in (0, 1, -1):
        raise TypeError(f"an index runs along axis 0, 1 or -1, not {axis!r}")
    along = {0: FIRST, 1: SECOND, -1: LAST}[axis]
    tracer = tracer_of(x)
    if tracer is not None:
        return tracer.make("index", along)
    from ..definitions.reductions import index_of

    return index_of(x, along)


def uniform(x: Any, seed: Any, draw: int = 0) -> Any:
    """A random number in [0, 1) for each element of x, keyed by the seed, the tensor's name, the element and the number
    of the draw (docs/numerics.md): the same on every backend, in any order."""
    return _drawn("uniform", x, seed, draw)


def normal(x: Any, seed: Any, draw: int = 0) -> Any:
    """A normally distributed random number of mean 0 and deviation 1 for each element of x, keyed as ``uniform``."""
    return _drawn("normal", x, seed, draw)


def bernoulli(x: Any, p: Any, seed: Any, draw: int = 0) -> Any:
    """1 with probability p (a number, or one for each element), else 0, for each element of x: ``uniform(…) < p``."""
    return uniform(x, seed, draw) < p


def _drawn(kind: str, x: Any, seed: Any, draw: int) -> Any:
    from ..definitions.keys import key_word

    key = [Scalar(key_word, seed, TENSOR, word) for word in (0, 1)]
    tracer = tracer_of(x)
    if tracer is not None:
        return tracer.make(
            kind,
            ALL,
            *(tracer.once(("key", id(seed) if isinstance(seed, Scalar) else seed, word), key[word]) for word in (0, 1)),
            draw,
        )
    from ..definitions.reductions import drawn

    return drawn(kind, x, (key_word(seed, "", 0), key_word(seed, "", 1)), draw)
