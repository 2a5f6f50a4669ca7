"""Selection, exact: by rank among all elements of a tensor."""

from __future__ import annotations

from typing import Any

from ..program import ALL
from .dispatch import tracer_of
from .elementwise import floor, is_nan, minimum, where
from .reductions import size


def kth_largest(x: Any, k: Any) -> Any:
    """The k-th largest element, k from 1 and rounded down; Inf for k < 1, −Inf for k > n. A NaN counts as the
    largest."""
    tracer = tracer_of(x)
    if tracer is not None:
        return tracer.select("kth", tracer.lift(x), k)
    from ..definitions.reductions import selected

    return selected(x, k)[0]


def quantile(x: Any, q: Any, between: str = "lower") -> Any:
    """The element that a share q, from 0 to 1, of the others lies below: position q·(n − 1) of the sorted elements.

    ``between``: where that is no whole number, the element at the next lower position (``lower``), their middle
    (``midpoint``), or what lies between in that proportion (``linear``).
    """
    if isinstance(q, int | float) and not 0 <= q <= 1:
        raise TypeError(f"quantile takes a share from 0 to 1, not {q:g}")
    place = q * (size(x) - 1)
    lower = floor(place)
    low = kth_largest(x, size(x) - lower)
    if between == "lower":
        return low
    if between not in ("midpoint", "linear"):
        raise TypeError(f'quantile takes between="lower", "midpoint" or "linear", not {between!r}')
    high = kth_largest(x, size(x) - minimum(lower + 1, size(x) - 1))
    share = place - lower if between == "linear" else where(place > lower, 0.5, 0)
    return where(share == 0, low, low + share * (high - low))


def largest(x: Any, k: Any, ties: str = "first") -> Any:
    """1 for the k largest elements (k rounded down), else 0. Of elements equal to the k-th those of lower index come
    first, so that exactly k are chosen; with ``ties="all"`` all of them are. Every NaN is among the chosen."""
    if ties not in ("first", "all"):
        raise TypeError(f'largest takes ties="first" or "all", not {ties!r}')
    tracer = tracer_of(x)
    if tracer is None:
        from ..definitions.reductions import largest_of

        return largest_of(x, k, ties == "all")
    if ties == "all":
        return where(x >= kth_largest(x, k), 1, is_nan(x))
    least = tracer.select("top", tracer.lift(x), k)
    return where(x > least, 1, where(x == least, tracer.make("within", ALL, tracer.last_of(least)), is_nan(x)))
