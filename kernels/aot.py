"""Compiles the Triton kernel ahead of time for every formula and dtype, with no GPU: to PTX and to a cubin.

    python -m sdsurgery.kernels.aot [--arch 80,90,120] [--ptx FOLDER]

Prints a table of what was compiled; the exit code is 0 only when all was. (That nvcc compiles the CUDA kernels is
what building the package shows.)
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from sdsurgery.dtypes import BY_NAME, COMPUTABLE, F64, DType
from sdsurgery.methods import Method, PerInput, registered
from sdsurgery.methods.parameters import is_required
from sdsurgery.program import Formula, identity
from sdsurgery.program.tracing import trace

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
DTYPES = COMPUTABLE


def formulas(hot: bool = False) -> dict[str, Formula]:
    """A cast, and one formula for every method and number of inputs; methods that trace to the same one share it.
    ``hot``: only those that have a kernel of their own on the CPU."""
    from sdsurgery.backends.cpu import native_program

    found = {"cast": identity()}
    programs = {identity().program}
    for name, method in registered().items():
        for label, count, params in _bindings(name, method):
            formula = trace(method, count, params)
            if hot and not native_program(formula.program, False).fused:
                continue
            if formula.program.in_stages:  # the host's; their values are further constants of what is left
                left = formula.program.without_stages()
                formula = Formula(left, (1.0,) * left.constants)
            if formula.program not in programs:
                programs.add(formula.program)
                found[label] = formula
    return found


def _bindings(name: str, method: Method) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Numbers of inputs, and parameters: any that the method takes, since a program holds no numbers."""
    least = len(method.inputs)
    needed = {key: 0.5 for key, param in method.params.items() if is_required(param)}
    yield name, least, method.bind(least, needed)
    lists = {key: param for key, param in method.params.items() if isinstance(param, PerInput)}
    for count in (3, 4) if lists and method.variadic else ():
        given = {key: [0.5] * (count - param.after) for key, param in lists.items()}
        yield f"{name} of {count}", count, method.bind(count, {**needed, **given})


def compile_one(formula: Formula, dtype: DType, architecture: int) -> Any:
    """Inputs and output of one dtype, counting, 16-byte aligned: what Triton compiled, with ``asm["ptx"]`` and
    ``asm["cubin"]``."""
    import triton
    from sdsurgery.kernels import elementwise
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    wide = dtype is F64
    settings = elementwise.constants_of(
        formula, [dtype] * formula.program.inputs, dtype, overflow="default", wide=wide, count=True
    )
    pointer = elementwise.POINTERS[dtype.native or 0]
    signature = {
        "out": pointer,
        "inputs": (pointer,) * formula.program.inputs,
        "constants": ("i64" if wide else "fp32",) * len(formula.numbers),
        "counts": "*i64",
        "count": "i64",
        **dict.fromkeys(settings, "constexpr"),
    }
    aligned: list[tuple[int, ...]] = [(0,), *((1, k) for k in range(formula.program.inputs))]
    attrs = {place: [["tt.divisibility", 16]] for place in aligned}
    source = ASTSource(elementwise.elementwise, signature, constexprs=settings, attrs=attrs)
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options={"enable_fp_fusion": False})


def _task(task: tuple[str, Formula, str, int, str]) -> tuple[str, str, int, int, str]:
    label, formula, dtype, architecture, folder = task  # the dtype by name: one that was pickled is another object
    try:
        compiled = compile_one(formula, BY_NAME[dtype], architecture)
        if folder:
            name = f"{label.replace(' ', '-')}.{dtype}.sm_{architecture}.ptx"
            (Path(folder) / name).write_text(compiled.asm["ptx"], encoding="utf-8")
        return label, dtype, architecture, len(compiled.asm["cubin"]), ""
    except Exception as error:  # whatever the compiler says belongs in the table
        return label, dtype, architecture, 0, f"{type(error).__name__}: {error}".partition("\n")[0]


def _architectures(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a list like 80,90,120") from None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m sdsurgery.kernels.aot", description=__doc__.partition("\n")[0])
    parser.add_argument("--arch", type=_architectures, default=list(ARCHITECTURES), metavar="80,90,…")
    parser.add_argument("--ptx", default="", metavar="FOLDER", help="write every PTX there")
    parser.add_argument("--hot", action="store_true", help="only formulas with a kernel of their own on the CPU")
    args = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET is set: Triton's interpreter compiles nothing")
    if args.ptx:
        Path(args.ptx).mkdir(parents=True, exist_ok=True)
    from sdsurgery.kernels import elementwise

    tasks = [
        (label, formula, dtype.name, architecture, args.ptx)
        for label, formula in formulas(args.hot).items()
        for dtype in DTYPES
        if elementwise.unsupported(formula.program, dtype is F64) is None
        for architecture in args.arch
    ]
    print("cubin bytes".ljust(32) + "".join(f"sm_{architecture}".rjust(9) for architecture in args.arch))
    failures = []
    row: list[str] = []
    with ProcessPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
        for task, future in [(task, pool.submit(_task, task)) for task in tasks]:
            try:
                label, dtype, architecture, size, error = future.result()
            except BrokenProcessPool:  # LLVM ends the process when it does not know an architecture
                (label, _, dtype, architecture, _), size, error = task, 0, "the compiler crashed, here or before"
            row.append((str(size) if size else "FAILED").rjust(9))
            if error:
                failures.append(f"{label} {dtype} sm_{architecture}: {error}")
            if len(row) == len(args.arch):
                print(f"{label} {dtype}".ljust(32) + "".join(row), flush=True)
                row = []
    for line in failures:
        print(line, file=sys.stderr)
    print(f"{len(tasks) - len(failures)} of {len(tasks)} compiled")
    return 1 if failures or not tasks else 0


if __name__ == "__main__":
    sys.exit(main())
