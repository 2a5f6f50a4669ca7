"""Every kernel as it is compiled, with no GPU: all formulas and dtypes compile, and the PTX rounds every operation by
itself: no fused multiply-add, no flush to zero, no approximate division or square root."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sdsurgery.kernels import aot
from triton_support import require_triton

ROOT = Path(__file__).resolve().parents[2]
FORBIDDEN = re.compile(r"\bfma\.|\bmad\.(?!lo|hi|wide|24)\S*|\S*\.ftz\S*|\S*\.approx\S*|\bdiv\.full\S*")
ARITHMETIC = re.compile(r"\b(?:add|sub|mul|div)\.(?:rn\.)?f(?:32|64)")


def faults(ptx: str) -> list[str]:
    """Instructions of a PTX text that break the numeric rule."""
    code = [line.partition("//")[0] for line in ptx.splitlines()]
    return [line.strip() for line in code if FORBIDDEN.search(line)]


def test_the_check_finds_what_it_looks_for() -> None:
    for line in (
        "fma.rn.f32 %f1, %f2, %f3, %f4;", "fma.rn.f64 %d1, %d2, %d3, %d4;", "mad.rn.f32 %f1, %f2, %f3, %f4;",
        "add.ftz.f32 %f1, %f2, %f3;", "div.approx.f32 %f1, %f2, %f3;", "div.full.f32 %f1, %f2, %f3;",
        "sqrt.approx.ftz.f32 %f1, %f2;", "fma.rn.f16x2 %r1, %r2, %r3, %r4;", "fma.rn.f32x2 %rd1, %rd2, %rd3, %rd4;",
    ):  # fmt: skip
        assert faults(f"\t{line}"), line
    for line in ("add.f32 %f1, %f2, %f3;", "div.rn.f32 %f1, %f2, %f3;", "mad.lo.s32 %r1, %r2, %r3, %r4;", "// fma."):
        assert not faults(f"\t{line}"), line


def compiled(folder: Path, architectures: str, *options: str) -> None:
    """Run the command of the documentation and look at what it wrote."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(folder / "cache")
    command = [sys.executable, "-m", "sdsurgery.kernels.aot", "--arch", architectures, "--ptx", str(folder / "ptx")]
    command += options
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    files = sorted((folder / "ptx").glob("*.ptx"))
    last = ran.stdout.splitlines()[-1]
    assert last == f"{len(files)} of {len(files)} compiled"
    formulas = {label.replace(" ", "-"): each for label, each in aot.formulas("--hot" in options).items()}
    assert {"weighted-sum", "add-diff"} <= formulas.keys()
    every = itertools.product(formulas, aot.DTYPES, architectures.split(","))
    expected = {f"{label}.{dtype.name}.sm_{number}.ptx" for label, dtype, number in every}
    assert {path.name for path in files} <= expected
    assert {path.name.rsplit(".", 3)[0] for path in files} == formulas.keys()
    for path in files:
        text = path.read_text(encoding="utf-8")
        if all(op != "fma" for op, _, _ in formulas[path.name.rsplit(".", 3)[0]].program.steps):
            assert not faults(text), f"{path.name}: {faults(text)[:3]}"
        if path.name.startswith("add-diff"):
            assert ARITHMETIC.search(text) or "f32x2" in text, path.name
            assert "ld.global.v4.b32" in text or "ld.global.v2.b64" in text, f"{path.name}: no 16-byte load"


def test_triton_compiles_every_formula_and_dtype_and_rounds_every_operation(tmp_path: Path) -> None:
    require_triton()
    compiled(tmp_path, "90", "--hot")


@pytest.mark.slow
def test_triton_compiles_for_every_architecture(tmp_path: Path) -> None:
    require_triton()
    compiled(tmp_path, "75,80,86,89,90,100,120")


def test_a_failing_compilation_sets_the_exit_code() -> None:
    require_triton()
    command = [sys.executable, "-m", "sdsurgery.kernels.aot", "--arch", "many"]
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ran.returncode == 2 and "is not a list like" in ran.stderr
    ran = subprocess.run([*command[:-1], "7"], capture_output=True, text=True, check=False, env=environment)
    assert ran.returncode == 1 and "FAILED" in ran.stdout and "\n0 of " in ran.stdout and "sm_7: " in ran.stderr
    assert "Traceback" not in ran.stderr


def nvcc_options() -> list[str]:
    """The options with which CMakeLists.txt builds the module."""
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    (options,) = re.findall(r"COMPILE_LANGUAGE:CUDA>:([^>]+)>", text)
    return [option for option in options.split(";") if not option.startswith("--threads")]


def nvcc_ptx(folder: Path, source: str, architecture: str) -> str:
    nvcc = shutil.which("nvcc") or pytest.skip("no nvcc")
    target = folder / "kernels.ptx"
    command = [nvcc, "-std=c++17", "-O3", *nvcc_options(), f"-arch=compute_{architecture}", "-ptx"]
    subprocess.run([*command, str(ROOT / "kernels" / source), "-o", str(target)], check=True)
    return target.read_text(encoding="utf-8")


def fused_formulas() -> set[str]:
    """The sums of csrc/formulas.h: each has a kernel for every size of pack."""
    text = (ROOT / "csrc" / "formulas.h").read_text(encoding="utf-8").partition("for_each_other")[0]
    return set(re.findall(r"^    visit\((\w+)\{\}\);", text, re.MULTILINE))


def kernels(ptx: str) -> set[tuple[str, str]]:
    """The entries of a PTX text: kernel or formula, arithmetic and elements of a pack (f8: eight in float32)."""
    found = set()
    for name in re.findall(r"^\s*(?:\.visible |\.weak )?\.entry (\w+)", ptx, re.MULTILINE):
        pack = re.search(r"([fd])Li(\d+)E", name)
        (kind,) = re.findall(r"formulas\d+([A-Z]\w*?)E?[fd]Li|(any_steps|(?:reduce|product)_[a-z]+?)(?=I|E|P)", name)[
            :1
        ]
        found.add(("".join(kind), "".join(pack.groups()) if pack else ""))
    return found


@pytest.mark.parametrize(
    "architecture", ["90", *(pytest.param(name, marks=pytest.mark.slow) for name in ("75", "80", "89", "100", "120"))]
)
def test_nvcc_rounds_every_operation(tmp_path: Path, architecture: str) -> None:
    text = nvcc_ptx(tmp_path, "elementwise.cu", architecture)
    assert kernels(text) == {
        *((name, pack) for name in fused_formulas() for pack in ("d2", "f4", "f8", "f16")),
        *(("any_steps", pack) for pack in ("d2", "f2", "f4", "f8")),
    }
    # The kernel for any program has fma as an operation, and functions that are no entries; no formula has.
    entries = re.split(r"^(?=\s*(?:\.visible |\.weak |\.func )*\.(?:entry|func) )", text, flags=re.MULTILINE)
    for entry in entries:
        operation = ("fma.rn.f32 ", "fma.rn.f64 ") if "formulas" not in entry[:400] else ()
        assert not [line for line in faults(entry) if not line.startswith(operation)], entry[:200]
    assert ARITHMETIC.search(text) and "div.rn.f32" in text and "ld.global.v4" in text and "st.global.v4" in text
    text = nvcc_ptx(tmp_path, "reduce.cu", architecture)
    assert kernels(text) == {
        (f"{what}_{part}", "") for what in ("reduce", "product") for part in ("lanes", "blocks", "chunks")
    }
    assert not faults(text) and re.search(r"add\.(rn\.)?f64", text)
    assert "--fmad=false" in nvcc_options()
