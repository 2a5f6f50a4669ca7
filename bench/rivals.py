"""What else one would use, as whole processes for end_to_end.py: a plain safetensors + torch loop, and sd-mecha.

    python bench/rivals.py torch|sd-mecha OPERATION ALPHA DTYPE OUT INPUT...

Prints the seconds of the work, without imports. Each is written the way its own documentation shows it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any


def torch_loop(operation: str, alpha: float, dtype: str, out: str, paths: Sequence[str]) -> float:
    """Key by key in float32, all results kept until they are saved: what most merge scripts do. Returns seconds."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    started = time.perf_counter()
    target = {"fp16": torch.float16, "fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    files = [safe_open(path, framework="pt") for path in paths]
    result = {}
    with torch.inference_mode():
        for key in files[0].keys():  # noqa: SIM118 (not a dict)
            tensors = [file.get_tensor(key) for file in files]
            if not tensors[0].is_floating_point():
                result[key] = tensors[0]
                continue
            result[key] = _formula(operation, alpha, [tensor.float() for tensor in tensors]).to(target)
    save_file(result, out, metadata={"format": "pt"})
    return time.perf_counter() - started


def _formula(operation: str, alpha: float, models: Sequence[Any]) -> Any:
    if operation == "weighted-sum":
        return (1 - alpha) * models[0] + alpha * models[1]
    if operation == "add-diff":
        return models[0] + alpha * (models[1] - models[2])
    return models[0]


def sd_mecha_merge(operation: str, alpha: float, dtype: str, out: str, paths: Sequence[str]) -> float:
    """The recipe of sd-mecha's README, with its defaults. Returns seconds."""
    import logging

    import sd_mecha
    import torch

    logging.disable(logging.WARNING)
    started = time.perf_counter()
    models = [sd_mecha.model(path) for path in paths]
    if operation == "weighted-sum":
        recipe = sd_mecha.weighted_sum(*models, alpha=alpha)
    elif operation == "add-diff":
        recipe = sd_mecha.add_difference(*models, alpha=alpha)
    else:
        recipe = models[0]
    target = {"fp16": torch.float16, "fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    sd_mecha.merge(recipe, output_dtype=target, output=out)
    return time.perf_counter() - started


RIVALS = {"torch": torch_loop, "sd-mecha": sd_mecha_merge}


def main(argv: Sequence[str]) -> int:
    if len(argv) < 6 or argv[0] not in RIVALS:
        print((__doc__ or "").strip(), file=sys.stderr)
        return 2
    name, operation, alpha, dtype, out, *paths = argv
    print(f"{RIVALS[name](operation, float(alpha), dtype, out, paths):.6f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
