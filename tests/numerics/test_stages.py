"""Methods that reduce: the same bits on every target, thread count, tile size, backend and from the body itself."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sdsurgery as sds
from numeric_tools import CODE, FLOATS, TARGETS, native_codes, native_tensor, plain, wild
from sdsurgery import _native, functions
from sdsurgery.backends import cpu
from sdsurgery.definitions.conversions import STORAGE
from sdsurgery.definitions.programs import evaluate_tensor
from sdsurgery.dtypes import F16, F32, F64, DType
from sdsurgery.functions import (
    acos,
    clip,
    cos,
    dot,
    exp,
    log,
    maximum,
    mean,
    minimum,
    norm,
    pow,
    sin,
    sqrt,
    sum,
    where,
)  # fmt: skip
from sdsurgery.methods import Method, Param
from sdsurgery.program import Formula
from sdsurgery.program.tracing import trace


def slerp(a: Any, b: Any, alpha: Any) -> Any:
    """Spherical interpolation as the design has it."""
    cosine = clip(dot(a, b) / (norm(a) * norm(b)), -1, 1)
    theta = acos(cosine)
    curved = (sin((1 - alpha) * theta) * a + sin(alpha * theta) * b) / sin(theta)
    return where(abs(cosine) > 0.9995, (1 - alpha) * a + alpha * b, curved)


def along_axes(a: Any, b: Any, alpha: Any) -> Any:
    """Rows and columns side by side."""
    rows = a / norm(a, axis=-1) * mean(b, axis=-1) + maximum(b, axis=-1)
    return rows - alpha * sum(a * b, axis=0) * minimum(a, axis=0) + mean(a, axis=0)


def in_stages(a: Any, b: Any, alpha: Any) -> Any:
    """Each stage needs what the one before found."""
    a, b = a - mean(a), b - mean(b)
    a, b = a / norm(a), b / norm(b)
    rest = b - dot(a, b) * a
    return a + alpha * rest / norm(rest)


def scalar_functions(a: Any, b: Any, alpha: Any) -> Any:
    """Every function of scalars."""
    x = dot(a, b) / (norm(a) * norm(b))
    scale = exp(-abs(x)) + cos(x) * sin(x) + log(1 + x * x) + pow(abs(x), alpha) + sqrt(2 + x) + acos(x / 2)
    return where(x < alpha, scale * a, minimum(x, 0.5) * b) + functions.sign(x) * (x != 0)


def extremes(a: Any, b: Any, alpha: Any) -> Any:
    """Smallest and largest elements of expressions."""
    return (a - minimum(a)) / (maximum(a - alpha * b) - minimum(a)) + where(maximum(b) > 2 * b, a, b)


BODIES = {body.__name__: body for body in (slerp, along_axes, in_stages, scalar_functions, extremes)}
SHAPES = [(10, 20), (3000, 7), (5,), (40, 4, 3, 3), (2, 40007), (1,), (4, 1030), (1025, 1), (17, 0), ()]


def formula_of(name: str, alpha: float = 0.3) -> Formula:
    return trace(Method(name, ("A", "B"), {"alpha": Param(0.3, "")}, BODIES[name]), 2, {"alpha": alpha})


def pair(shape: tuple[int, ...], seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(np.float32) for _ in range(2)]


def same(a: np.ndarray, b: np.ndarray) -> bool:
    number = ~np.isnan(a)
    equal = np.array_equal(a.view(np.uint32)[number], b.view(np.uint32)[number])
    return a.dtype == b.dtype and equal and np.array_equal(np.isnan(a), np.isnan(b))


# ---- one result


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", BODIES)
def test_every_target_gives_what_the_body_gives_on_numpy_arrays_and_torch_tensors(
    name: str, shape: tuple[int, ...]
) -> None:
    import torch

    arrays, formula = pair(shape), formula_of(name)
    with np.errstate(all="ignore"):
        body = np.asarray(BODIES[name](*arrays, 0.3))
    assert body.shape == shape and body.dtype == np.float32
    for target in TARGETS:
        assert same(native_tensor(formula, arrays, target), body), target
    expected, *_ = evaluate_tensor(formula, [(array, F32) for array in arrays], F32, "default", False)
    assert same(expected.reshape(shape), body)
    tensors = BODIES[name](*(torch.from_numpy(array) for array in arrays), 0.3)
    assert same(np.asarray(tensors), body)


@pytest.mark.parametrize("name", BODIES)
def test_wide_arithmetic_and_every_stored_dtype(name: str) -> None:
    shape = (33, 5, 7)
    for dtype in FLOATS:
        codes = [plain(dtype, math.prod(shape), np.random.default_rng(seed)).reshape(shape) for seed in (1, 2)]
        for wide in (False, True):
            formula = formula_of(name)
            stored = [(code.view(STORAGE[dtype]), dtype) for code in codes]
            expected, *counts = evaluate_tensor(formula, stored, dtype, "default", wide)
            for target in TARGETS:
                out, found = native_codes(formula, codes, dtype, target, wide)
                assert np.array_equal(out.reshape(-1), expected.view(CODE[dtype])), (dtype, wide, target)
                assert found == counts


@pytest.mark.parametrize("name", BODIES)
def test_values_that_are_not_finite_reach_the_result_as_ieee_754_says(name: str) -> None:
    for seed in range(8):
        rng = np.random.default_rng(seed)
        arrays = [wild(F32, 700, rng).view(np.float32).reshape(70, 10) for _ in range(2)]
        if seed % 2:
            arrays = [np.where(np.isnan(array), np.float32(1), array) for array in arrays]
        with np.errstate(all="ignore"):
            body = np.asarray(BODIES[name](*arrays, 0.3))
        for target in TARGETS:
            assert same(native_tensor(formula_of(name), arrays, target), body), (seed, target)


def test_zeros_and_equal_tensors_take_the_straight_line() -> None:
    a, _ = pair((30, 40))
    zero = np.zeros_like(a)
    for left, right in ((a, a), (a, -a), (zero, zero), (a, 1.001 * a)):
        arrays = [np.ascontiguousarray(left), np.ascontiguousarray(right)]
        with np.errstate(all="ignore"):
            body = slerp(*arrays, 0.3)
        assert same(native_tensor(formula_of("slerp"), arrays), body)
    straight = native_tensor(formula_of("slerp"), [a, a])
    assert same(straight, np.float32(0.7) * a + np.float32(0.3) * a)
    found = sds.apply("slerp", zero, zero)
    assert not found.any()


# ---- the order of sums


def ordered(terms: list[float]) -> float:
    """The table of docs/numerics.md over Python floats."""
    total = 0.0
    for first_of_chunk in range(0, len(terms), 1 << 18):
        chunk = 0.0
        for first in range(first_of_chunk, min(len(terms), first_of_chunk + (1 << 18)), 1024):
            lanes = [0.0] * 8
            for i, term in enumerate(terms[first : min(first + 1024, first_of_chunk + (1 << 18))]):
                lanes[i % 8] += term
            a, b, c, d, e, f, g, h = lanes
            chunk += ((a + e) + (c + g)) + ((b + f) + (d + h))
        total += chunk
    return total


@pytest.mark.parametrize("target", TARGETS)
def test_sums_are_added_in_the_documented_order(target: str) -> None:
    for shape in ((5, 1500), (2100, 3), (600001,)):
        a, b = pair(shape, seed=3)
        a *= np.float32(10) ** np.random.default_rng(4).integers(-18, 18, shape).astype(np.float32)
        wide = a.astype(np.float64)

        def found(body: Any, a: np.ndarray = a, b: np.ndarray = b) -> np.ndarray:
            """The value that the body adds to zeros, as float64 bits survive it: through a division of itself."""
            formula = trace(Method("x", ("A", "B"), {}, body), 2, {})
            out = np.empty(a.shape)
            _native.apply(
                cpu.native_program(formula.program, True), formula.numbers,
                [(array.ctypes.data, F32.native) for array in (a, b)], out.ctypes.data, F64.native, out.size,
                target=target, shape=a.shape,
            )  # fmt: skip
            return out

        assert found(lambda a, b: sum(a) + 0 * b).flat[0] == ordered(wide.ravel().tolist())
        products = (wide * b.astype(np.float64)).ravel().tolist()
        assert found(lambda a, b: dot(a, b) + 0 * b).flat[0] == ordered(products)
        assert found(lambda a, b: norm(a) + 0 * b).flat[0] == math.sqrt(ordered((wide * wide).ravel().tolist()))
        if len(shape) == 2:
            rows, columns = (found(lambda a, b, axis=axis: sum(a, axis=axis) + 0 * b) for axis in (-1, 0))
            assert rows[:, 0].tolist() == [ordered(row.tolist()) for row in wide]
            assert columns[0].tolist() == [ordered(column.tolist()) for column in wide.T]


@pytest.mark.parametrize("dtype", [F16, F32, F64], ids=str)
def test_products_of_stored_elements_and_differences_are_those_of_the_reference(dtype: DType) -> None:
    """Over the tensor, along lines and down columns, also of lines that one call begins and another one ends."""

    def body(a: Any, b: Any, c: Any) -> Any:
        d, e = b - a, c - a
        whole = dot(d, e) / norm(d) + sum(a) - dot(a, b) / norm(c)
        rows = dot(a, b, axis=-1) / norm(c, axis=-1) + dot(d, e, axis=-1) - sum(b, axis=-1)
        columns = dot(a, b, axis=0) / norm(c, axis=0) + dot(d, d, axis=0) - dot(a, c, axis=0) / 3 * dot(b, a, axis=0)
        return whole * a + rows * b + columns * c

    formula = trace(Method("x", ("A", "B", "C"), {}, body), 3, {})
    for shape in ((3, 70000), (70, 1030), (1100, 130), (9000, 8), (5, 64), (131,)):
        codes = [plain(dtype, math.prod(shape), np.random.default_rng(seed)).reshape(shape) for seed in (1, 2, 3)]
        stored = [(code.view(STORAGE[dtype]), dtype) for code in codes]
        expected, *_ = evaluate_tensor(formula, stored, F32, "default", False)
        for target in TARGETS:
            out = np.empty(shape, np.uint32)
            _native.apply(
                cpu.native_program(formula.program, False), formula.numbers,
                [(code.ctypes.data, dtype.native) for code in codes], out.ctypes.data, F32.native, out.size,
                target=target, shape=shape,
            )  # fmt: skip
            assert np.array_equal(out.reshape(-1), expected.view(np.uint32)), (shape, target)


# ---- files


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    from safetensors.numpy import load_file, save_file
    from sdsurgery.testing import write_checkpoint

    folder = tmp_path_factory.mktemp("stages")
    for seed in (1, 2, 3):
        whole = folder / "whole.safetensors"
        write_checkpoint(whole, size="tiny", seed=seed, dtype="fp16" if seed < 3 else "fp32", overwrite=True)
        tensors = load_file(whole)
        names = [*sorted(tensors)[::8], "model.diffusion_model.out.2.weight"]
        save_file({name: tensors[name] for name in names}, folder / f"{seed}.safetensors")
    return [folder / f"{seed}.safetensors" for seed in (1, 2, 3)]


def tensors(path: Path) -> dict[str, bytes]:
    from safetensors.numpy import load_file

    return {name: value.tobytes() for name, value in load_file(path).items()}


def test_threads_tiles_io_targets_and_backends_write_the_same_bytes(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "o.safetensors"
    sds.merge("slerp", files[:2], out=out, alpha=0.3, backend="reference")
    expected = tensors(out)
    for settings in (
        {}, {"threads": 1}, {"threads": 5, "tile_bytes": 4096}, {"tile_bytes": 12288}, {"io": "mmap"}, {"io": "pread"},
    ):  # fmt: skip
        sds.merge("slerp", files[:2], out=out, alpha=0.3, overwrite=True, **settings)
        assert tensors(out) == expected, settings
    for target in TARGETS:
        monkeypatch.setenv("SDS_CPU", target)
        sds.merge("slerp", files[:2], out=out, alpha=0.3, overwrite=True)
        assert tensors(out) == expected, target
    sds.merge("slerp", [files[0], files[2]], out=out, alpha=0.3, overwrite=True)
    mixed = tensors(out)
    sds.merge("slerp", [files[0], files[2]], out=out, alpha=0.3, overwrite=True, backend="reference")
    assert tensors(out) == mixed != expected


def test_a_merge_is_what_the_body_gives_for_each_tensor(files: list[Path], tmp_path: Path) -> None:
    from safetensors.numpy import load_file
    from sdsurgery.methods.spherical import slerp as body

    sds.merge("slerp", files[:2], out=tmp_path / "o.safetensors", alpha=0.3)
    a, b, found = (load_file(path) for path in (*files[:2], tmp_path / "o.safetensors"))
    for name, value in found.items():
        if value.dtype != np.float16:
            assert np.array_equal(value, a[name])
            continue
        with np.errstate(all="ignore"):
            expected = body(a[name].astype(np.float32), b[name].astype(np.float32), 0.3).astype(np.float16)
        assert np.array_equal(value.view(np.uint16), expected.view(np.uint16)), name


def test_reductions_see_what_a_recipe_has_made_so_far(files: list[Path], tmp_path: Path) -> None:
    from safetensors.numpy import load_file
    from sdsurgery.methods.spherical import slerp as body

    out = tmp_path / "o.safetensors"
    sds.slerp(sds.weighted_sum(files[0], files[1], alpha=0.25), files[2], alpha=0.4).save(out)
    a, b, c, found = (load_file(path) for path in (*files, out))
    name = "model.diffusion_model.out.2.weight"
    x, y, z = (each[name].astype(np.float32) for each in (a, b, c))
    expected = body(np.float32(0.75) * x + np.float32(0.25) * y, z, 0.4).astype(found[name].dtype)
    assert np.array_equal(found[name], expected)


def test_the_stages_of_a_tensor_follow_each_other_so_that_the_disk_is_read_once(tmp_path: Path) -> None:
    import os
    import subprocess
    import sys

    from safetensors.numpy import save_file

    if not os.path.exists("/proc/self/io"):
        pytest.skip("no /proc/self/io")
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        tensors = {f"t{i}": rng.normal(size=(1000, 4000)).astype(np.float32) for i in range(4)}
        save_file(tensors, tmp_path / f"{name}.safetensors")
    code = (
        "import os, sys, sdsurgery\n"
        "paths = sys.argv[1:3]\n"
        "for path in paths:\n"
        "    fd = os.open(path, os.O_RDONLY); os.fsync(fd); os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)\n"
        "def read(): return int(open('/proc/self/io').read().split('read_bytes: ')[1].split()[0])\n"
        "before = read()\n"
        "sdsurgery.merge('slerp', paths, out=sys.argv[3], hash=False)\n"
        "print(read() - before)\n"
    )
    paths = [tmp_path / f"{name}.safetensors" for name in ("a", "b", "o")]
    done = subprocess.run([sys.executable, "-c", code, *map(str, paths)], capture_output=True, text=True, check=True)
    size, read = paths[0].stat().st_size + paths[1].stat().st_size, int(done.stdout)
    if read < size // 2:
        pytest.skip("the files stay in the page cache here")
    assert read < 1.1 * size


# ---- what a body may not do


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (lambda a, b: a if dot(a, b) > 0 else b, "cannot branch on what it reduces"),
        (lambda a, b: a * float(norm(b)), "as a Python number"),
        (lambda a, b: a * sum(b, axis=1), "along axis 0 or -1"),
        (lambda a, b: sin(a), "a single number is needed .*, and this is a tensor"),
        (lambda a, b: a * (sum(b, axis=0) + sum(b, axis=-1)), "values of rows with values of columns"),
        (lambda a, b: a * norm(dot(a, b)), "a reduction needs a tensor"),
        (dot, "must return a combination of its inputs"),
        (lambda a, b: dot(a, "x"), "combines tensors with numbers, not with str"),
    ],
)
def test_a_body_that_cannot_be_traced_gets_one_line(body: Any, text: str) -> None:
    with pytest.raises(TypeError, match=text) as caught:
        trace(Method("x", ("A", "B"), {}, body), 2, {})
    assert "\n" not in str(caught.value)


def test_a_part_of_a_tensor_is_refused_where_the_method_needs_the_whole(tmp_path: Path) -> None:
    from sdsurgery.testing import write_checkpoint

    write_checkpoint(tmp_path / "wide.safetensors", "sd1-inpainting", size="tiny", seed=1)
    write_checkpoint(tmp_path / "plain.safetensors", "sd1", size="tiny", seed=2)
    with pytest.raises(sds.InputRefused, match="needs the whole tensor"):
        sds.merge(
            "slerp", [tmp_path / "wide.safetensors", tmp_path / "plain.safetensors"], out=tmp_path / "o.safetensors"
        )
    assert not (tmp_path / "o.safetensors").exists()


def test_equal_reductions_are_made_once() -> None:
    program = formula_of("slerp").program
    (stage,) = program.stages
    assert [op for op, *_ in stage.reductions] == ["dot", "dot", "dot"] and not stage.steps
