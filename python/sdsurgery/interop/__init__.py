"""NumPy and torch at the edges: views of checkpoints, and the native kernels on arrays.

With gpu/ and the GPU backends the only place that imports torch, and only when it is handed a tensor or asked for one.
"""

from .calls import apply, apply_many
from .saving import save
from .views import numpy_view, torch_view

__all__ = ["apply", "apply_many", "numpy_view", "save", "torch_view"]
