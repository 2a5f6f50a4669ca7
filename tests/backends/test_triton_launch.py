"""The Triton kernel's launch as on a GPU, up to the driver: what its arguments ask for is compiled for a GPU that isn't
there. (What the kernel computes: tests/backends/test_triton_kernel.py and tests/backends/test_gpu.py.)"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from test_ptx import faults
from triton_support import require_triton

SCRIPT = """
import sys
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver


class NoGpu:
    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=0):
        return 0


driver.set_active(NoGpu())
from sdsurgery.dtypes import BF16, F8_E4M3, F16, F32, F64
from sdsurgery.kernels import aot, elementwise

kernel, compiled = elementwise.elementwise, []


class Compiled:  # instead of launched
    def __getitem__(self, grid):
        return lambda *given, **settings: compiled.append(kernel.warmup(*given, grid=grid, **settings))


elementwise.elementwise = Compiled()
counts = torch.zeros(2, dtype=torch.int64)
formula = aot.formulas()["add-diff"]
mixtures = ((F16, F16, F16, F16), False), ((F8_E4M3, F32, BF16, F8_E4M3), True), ((F64, F32, F16, F32), False)
for kinds, wide in mixtures:
    for size, shift, counted in ((5000, 0, counts), (1, 0, None), (5000, 1, None)):
        rooms = [torch.zeros(size + 1, dtype=getattr(torch, f"int{kind.bits}")) for kind in kinds]
        *given, out = [room[shift : size + shift] for room in rooms]
        elementwise.launch(formula, list(zip(given, kinds)), out, kinds[-1], wide=wide, counts=counted)
for number, item in enumerate(compiled):
    with open(f"{sys.argv[1]}/{number}.ptx", "w") as file:
        file.write(item.asm["ptx"])
"""


def test_what_a_launch_asks_for_is_compiled_as_the_rules_say(tmp_path: Path) -> None:
    require_triton()
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path / "cache")
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ran.returncode == 0, ran.stderr
    texts = [path.read_text(encoding="utf-8") for path in sorted(tmp_path.glob("*.ptx"))]
    assert len(texts) == 9 and not [fault for text in texts for fault in faults(text)]
    wide_loads = ["ld.global.v4.b32" in text or "ld.global.v2.b64" in text for text in texts]
    assert wide_loads[0] and not wide_loads[2], "16 bytes at a time, where the memory is aligned for it"
