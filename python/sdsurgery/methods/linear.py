"""Linear combinations of checkpoints."""

from __future__ import annotations

from typing import Any

from .registry import Param, PerInput, method


@method(
    "weighted-sum",
    inputs="A B",
    alpha=Param(0.5, "weight of B; A gets 1 − alpha"),
    weights=PerInput("one weight for each of any number of inputs, instead of alpha", instead_of="alpha", weights=True),
)
def weighted_sum(*models: Any, alpha: float, weights: tuple[float, ...] | None) -> Any:
    """(1 − α)·A + α·B, or w₁·A + w₂·B + w₃·C + …

    The weighted sum of the AUTOMATIC1111 web UI (``modules/extras.py``, "Weighted sum"); with ``weights`` the sum is
    taken from left to right and the weights are used as given, not normalised.
    """
    each = weights or (1 - alpha, alpha)
    total = each[0] * models[0]
    for weight, model in zip(each[1:], models[1:], strict=True):
        total = total + weight * model
    return total


@method(
    "add-diff", inputs="A B C", differences="B C", alpha=Param(1.0, "how much of the difference B − C is added to A")
)
def add_difference(a: Any, b: Any, c: Any, alpha: float) -> Any:
    """A + α·(B − C): give A what B learned beyond C.

    The "Add difference" of the AUTOMATIC1111 web UI (``modules/extras.py``).
    """
    return a + alpha * (b - c)
