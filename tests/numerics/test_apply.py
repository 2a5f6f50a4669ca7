"""The native kernels on NumPy arrays and torch tensors: every dtype, strides, results in place, errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import sdsurgery
import torch
from numeric_tools import CASES, CODE, FLOATS, TARGETS, Case, expected, label, plain, spread, wild
from sdsurgery.dtypes import BF16, F8_E4M3, F8_E5M2, F16, F32, F64, DType
from sdsurgery.errors import RunFailed, UsageError

NUMPY = {F64: np.float64, F32: np.float32, F16: np.float16}
TORCH = {
    F64: torch.float64, F32: torch.float32, F16: torch.float16, BF16: torch.bfloat16,
    F8_E4M3: torch.float8_e4m3fn, F8_E5M2: torch.float8_e5m2,
}  # fmt: skip


def tensor(codes: np.ndarray, dtype: DType) -> Any:
    return torch.from_numpy(codes.view(np.uint8).copy()).view(TORCH[dtype])


def codes_of(value: Any, dtype: DType) -> np.ndarray:
    if isinstance(value, np.ndarray):
        assert value.dtype == NUMPY[dtype]
        return np.ascontiguousarray(value).reshape(-1).view(CODE[dtype])
    assert value.dtype == TORCH[dtype]
    return value.contiguous().reshape(-1).view(torch.uint8).numpy().view(CODE[dtype])


def given(
    case: Case, dtypes: tuple[DType, ...], count: int = 20000, values: Any = wild
) -> list[tuple[np.ndarray, DType]]:
    """Codes with every sort of value, so that both the fast and the careful path run."""
    rng = np.random.default_rng(len(case.label))
    kinds = [dtypes[index % len(dtypes)] for index in range(case.count)]
    return [(values(dtype, count, rng), dtype) for dtype in kinds]


@pytest.mark.parametrize(
    ("name", "dtypes"),
    spread([*((dtype,) for dtype in FLOATS), (F16, F32), (F8_E5M2, BF16), (F32, F64)], few=True),
    ids=label,
)
def test_torch_tensors_of_every_dtype_and_mixture(name: str, dtypes: tuple[DType, ...]) -> None:
    case = CASES[name]
    inputs = given(case, dtypes)
    tensors = [tensor(codes, dtype) for codes, dtype in inputs]
    before = [codes_of(item, dtype).copy() for item, (_, dtype) in zip(tensors, inputs, strict=True)]
    result = sdsurgery.apply(case.method.name, *tensors, **case.given)
    wanted = expected(case.formula, inputs, dtypes[0])
    assert np.array_equal(codes_of(result, dtypes[0]), wanted.codes)
    for item, codes, (_, dtype) in zip(tensors, before, inputs, strict=True):
        assert np.array_equal(codes_of(item, dtype), codes), "an input was changed"
    for option, dtype in (("fp32", F32), ("fp16", F16), ("bf16", BF16), ("fp8_e4m3", F8_E4M3), ("fp8_e5m2", F8_E5M2)):
        result = sdsurgery.apply(case.method.name, *tensors, dtype=option, **case.given)
        assert np.array_equal(codes_of(result, dtype), expected(case.formula, inputs, dtype).codes)


@pytest.mark.parametrize(("name", "dtypes"), spread([(F64,), (F32,), (F16,), (F16, F32)], few=True), ids=label)
def test_numpy_arrays_of_every_dtype_and_mixture(name: str, dtypes: tuple[DType, ...]) -> None:
    case = CASES[name]
    inputs = given(case, dtypes)
    arrays = [codes.view(NUMPY[dtype]).reshape(100, 200) for codes, dtype in inputs]
    for compute in ("fp32", "fp64"):
        for overflow in ("default", "inf", "saturate"):
            wide = compute == "fp64"
            result = sdsurgery.apply(case.method.name, *arrays, compute=compute, overflow=overflow, **case.given)
            assert isinstance(result, np.ndarray) and result.shape == (100, 200)
            shaped = [(codes.reshape(100, 200), dtype) for codes, dtype in inputs]
            wanted = expected(case.formula, shaped, dtypes[0], overflow=overflow, wide=wide)
            assert np.array_equal(codes_of(result, dtypes[0]), wanted.codes)


def test_numpy_and_torch_may_be_mixed_and_the_result_is_of_the_first_ones_kind() -> None:
    case = CASES["add-diff"]
    inputs = given(case, (F32, F16, BF16))
    array, others = inputs[0][0].view(np.float32), [tensor(codes, dtype) for codes, dtype in inputs[1:]]
    wanted = expected(case.formula, inputs, F32).codes
    assert np.array_equal(codes_of(sdsurgery.apply("add-diff", array, *others), F32), wanted)
    result = sdsurgery.apply("add-diff", torch.from_numpy(array.copy()), *others)
    assert isinstance(result, torch.Tensor) and np.array_equal(codes_of(result, F32), wanted)


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2), (2, 3, 4, 5)])
def test_any_shape(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    a, b, c = (np.asarray(rng.normal(size=shape), np.float32) for _ in range(3))
    result = sdsurgery.apply("add-diff", a, b, c, alpha=0.3)
    assert result.shape == shape and np.array_equal(result, a + np.float32(0.3) * (b - c))
    result = sdsurgery.apply("add-diff", *(torch.from_numpy(np.array(item)) for item in (a, b, c)), alpha=0.3)
    assert tuple(result.shape) == shape and np.array_equal(result.numpy(), a + np.float32(0.3) * (b - c))


# ---- strides, results in place, overlaps


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_inputs_and_outputs_may_be_strided(kind: str) -> None:
    rng = np.random.default_rng(1)
    base = rng.normal(size=(3, 60, 80)).astype(np.float32)
    a, b, c = base[0].T, base[1].T[:, ::1], np.ascontiguousarray(base[2].T)
    wide = np.zeros((80, 180), np.float32)
    wanted = a + np.float32(0.7) * (b - c)
    out: Any = wide[:, ::3]
    if kind == "torch":
        whole = torch.from_numpy(wide)
        out = whole[:, ::3]
        result = sdsurgery.apply("add-diff", *(torch.from_numpy(base[i]).T for i in range(3)), alpha=0.7, out=out)
    else:
        result = sdsurgery.apply("add-diff", a, b, c, alpha=0.7, out=out)
    assert result is out
    assert np.array_equal(wide[:, ::3], wanted)
    assert not wide[:, 1::3].any() and not wide[:, 2::3].any(), "written between the elements of the output"
    reversed_rows = sdsurgery.apply("add-diff", a[::-1], b[::-1], c[::-1], alpha=0.7)
    assert np.array_equal(reversed_rows, wanted[::-1])
    broadcast = np.broadcast_to(np.float32(2), (80, 60))
    assert np.array_equal(sdsurgery.apply("add-diff", broadcast, b, c, alpha=0.7), 2 + np.float32(0.7) * (b - c))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("values", [plain, wild])
@pytest.mark.parametrize(("name", "dtype"), spread(FLOATS, few=True), ids=str)
def test_the_output_may_be_any_of_the_inputs(
    name: str, dtype: DType, values: Any, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With odd values the careful path reads the inputs a second time: they must still be there."""
    monkeypatch.setenv("SDS_CPU", target)
    case = CASES[name]
    inputs = given(case, (dtype,), values=values)
    wanted = expected(case.formula, inputs, dtype)
    assert values is plain or wanted.nonfinite
    for index in range(case.count):
        tensors = [tensor(codes, kind) for codes, kind in inputs]
        result = sdsurgery.apply(case.method.name, *tensors, out=tensors[index], **case.given)
        assert result is tensors[index]
        assert np.array_equal(codes_of(result, dtype), wanted.codes)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shift", [-20000, -513, -1, 0, 1, 16, 16384, 20001])
def test_the_output_may_overlap_an_input(shift: int, threads: int) -> None:
    case, count = CASES["add-diff"], 600000
    rng = np.random.default_rng(7)
    codes = [
        np.resize(wild(F32, 50000, rng), count + 40000),
        *(np.resize(wild(F32, 50021, rng), count) for _ in range(2)),
    ]
    memory = codes[0].view(np.float32).copy()
    source = memory[20000 : 20000 + count]
    out = memory[20000 + shift : 20000 + shift + count] if abs(shift) <= 20000 else memory[-count:]
    inputs = [(source.view(np.uint32).copy(), F32), (codes[1], F32), (codes[2], F32)]
    sdsurgery.apply("add-diff", source, codes[1].view(np.float32), codes[2].view(np.float32), out=out, threads=threads)
    assert np.array_equal(out.view(np.uint32), expected(CASES["add-diff"].formula, inputs, F32).codes), case


def test_the_output_may_share_memory_with_an_input_of_another_width() -> None:
    inputs = given(CASES["weighted-sum"], (F16, F32))
    for narrow_in in (True, False):
        memory = np.zeros(20000 * 4, np.uint8)
        place = memory[7 * 4 : 7 * 4 + 39000 * 2] if narrow_in else memory
        count = 19000 if narrow_in else 20000
        if narrow_in:  # a float16 input inside the float32 output
            source = place[: count * 2].view(np.float16)
            source[...] = inputs[0][0][:count].view(np.float16)
            out = memory[: count * 4].view(np.float32)
            mixed = [(inputs[0][0][:count], F16), (inputs[1][0][:count], F32)]
            other = inputs[1][0][:count].view(np.float32)
            sdsurgery.apply("weighted-sum", source, other, out=out)
            wanted = expected(CASES["weighted-sum"].formula, mixed, F32)
        else:  # a float32 input around the float16 output
            source = memory.view(np.float32)
            source[...] = inputs[1][0].view(np.float32)
            out = memory[20000:60000].view(np.float16)
            mixed = [(inputs[1][0], F32), (inputs[0][0], F16)]
            sdsurgery.apply("weighted-sum", source, inputs[0][0].view(np.float16), out=out)
            wanted = expected(CASES["weighted-sum"].formula, mixed, F16)
        assert np.array_equal(out.view(wanted.codes.dtype), wanted.codes)


def test_a_strided_output_may_be_a_view_of_an_input() -> None:
    x = np.arange(10000, dtype=np.float32).reshape(100, 100)
    y = x * 3
    wanted = x.T + np.float32(0.5) * (y.T - x)
    sdsurgery.apply("add-diff", x.T, y.T, x, alpha=0.5, out=x.T)
    assert np.array_equal(x.T, wanted)


def test_out_is_written_and_returned_in_its_own_dtype() -> None:
    case = CASES["weighted-sum"]
    inputs = given(case, (F16,))
    tensors = [tensor(codes, dtype) for codes, dtype in inputs]
    for dtype in FLOATS:
        out = torch.empty(20000, dtype=TORCH[dtype])
        assert sdsurgery.apply("weighted-sum", *tensors, out=out) is out
        assert np.array_equal(codes_of(out, dtype), expected(case.formula, inputs, dtype).codes)
    array = np.empty(20000, np.float32)  # out decides the kind, too
    assert sdsurgery.apply("weighted-sum", *tensors, out=array) is array


def test_a_tensor_that_requires_gradients_is_read() -> None:
    x, y = torch.ones(5, requires_grad=True), torch.full((5,), 3.0)
    assert sdsurgery.apply("weighted-sum", x, y).tolist() == [2.0] * 5


def test_threads_change_nothing() -> None:
    case = CASES["add-diff"]
    inputs = [(np.resize(codes, 700001), dtype) for codes, dtype in given(case, (BF16,))]
    tensors = [tensor(codes, dtype) for codes, dtype in inputs]
    wanted = expected(case.formula, inputs, BF16).codes
    for threads in (0, 1, 2, 5, 64):
        assert np.array_equal(codes_of(sdsurgery.apply("add-diff", *tensors, threads=threads), BF16), wanted)


@pytest.mark.parametrize("method", ["slerp", "model-stock", "add-cosine-b", "ties", "add-noise"])
def test_threads_change_nothing_where_a_body_asks_for_whole_tensors(method: str) -> None:
    rng = np.random.default_rng(1)
    count = {"add-noise": 1, "model-stock": 3, "ties": 3}.get(method, 2)
    arrays = [rng.normal(size=(3, 100, 1103)).astype(np.float16) for _ in range(count)]  # more than a chunk
    one = sdsurgery.apply(method, *arrays, threads=1)
    for threads in (2, 5):
        assert np.array_equal(sdsurgery.apply(method, *arrays, threads=threads).view(np.uint16), one.view(np.uint16))


# ---- the processor's mode


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("threads", [1, 2])
def test_subnormals_are_kept_when_torch_flushes_them(
    threads: int, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDS_CPU", target)
    codes = np.resize(np.arange(1, 4000, dtype=np.uint32) * 2, 600000)
    x = torch.from_numpy(codes.view(np.float32).copy())
    wide = torch.from_numpy(codes.view(np.float32).astype(np.float64))
    zero, wide_zero = torch.zeros_like(x), torch.zeros_like(wide)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor has no flush-to-zero mode")
    try:  # few elements: only this thread of torch's has the mode
        assert (x[:8] * 0.5).numpy().view(np.uint32).max() == 0, "the mode is not on"
        result = sdsurgery.apply("weighted-sum", x, zero, alpha=0.5, threads=threads)
        narrowed = sdsurgery.apply("weighted-sum", wide, wide_zero, alpha=0.5, threads=threads, dtype="fp32")
        assert (x[:8] * 0.5).numpy().view(np.uint32).max() == 0, "the caller's mode was changed"
    finally:
        torch.set_flush_denormal(False)
    assert np.array_equal(result.numpy().view(np.uint32), codes // 2)
    assert np.array_equal(narrowed.numpy().view(np.uint32), codes // 2)


# ---- errors

A = np.ones(4, np.float32)


def _frozen() -> np.ndarray:
    array = np.ones(4, np.float32)
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("method", "inputs", "options", "words"),
    [
        ("add-dif", (A, A, A), {}, "did you mean"),
        ("add-diff", (A, A), {}, "takes 3 inputs"),
        ("add-diff", (), {}, "takes 3 inputs"),
        ("add-diff", (A, A, A), {"alfa": 1}, "did you mean"),
        ("add-diff", (A, A, A), {"alpha": float("nan")}, "finite"),
        ("add-diff", (A, A, A[:3]), {}, "shapes differ"),
        ("add-diff", (A, A, A[0:1]), {}, "shapes differ"),
        ("weighted-sum", (A, A.astype(np.int32)), {}, "I32"),
        ("weighted-sum", (A, A.astype(np.complex64)), {}, "C64"),
        ("weighted-sum", (A, A.astype(object)), {}, "object"),
        ("weighted-sum", (A, A.astype(">f4")), {}, "byte order"),
        ("weighted-sum", (A, [1, 2, 3, 4]), {}, "list"),
        ("weighted-sum", (A, torch.ones(4, dtype=torch.int64)), {}, "I64"),
        ("weighted-sum", (A, torch.ones(4, dtype=torch.complex64)), {}, "C64"),
        ("weighted-sum", (A, torch.ones(4, device="meta")), {}, "different devices"),
        ("weighted-sum", (torch.ones(4, device="meta"),) * 2, {}, "CPU and CUDA tensors"),
        ("weighted-sum", (A, torch.ones(4).to_sparse()), {}, "sparse"),
        ("weighted-sum", (A, A), {"out": np.ones(3, np.float32)}, "shapes differ"),
        ("weighted-sum", (A, A), {"out": np.ones(4, np.int8)}, "I8"),
        ("weighted-sum", (A, A), {"out": _frozen()}, "read-only"),
        ("weighted-sum", (A, A), {"out": np.ones(4, np.float32), "dtype": "fp16"}, "out is F32"),
        ("weighted-sum", (A, A), {"dtype": "quarter"}, "known"),
        ("weighted-sum", (A, A), {"dtype": "bf16"}, "NumPy has no BF16"),
        ("weighted-sum", (A, A), {"overflow": "wrap"}, "known"),
        ("weighted-sum", (A, A), {"compute": "fp16"}, "did you mean"),
    ],
)
def test_mistakes_are_usage_errors_of_one_line(method: str, inputs: Any, options: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        sdsurgery.apply(method, *inputs, **options)
    assert "\n" not in str(caught.value)


def test_an_unknown_cpu_target_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDS_CPU", "z80")
    with pytest.raises(UsageError, match="unknown CPU target 'z80'"):
        sdsurgery.apply("weighted-sum", A, A)


def test_an_output_that_is_written_to_itself_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="out"):
        sdsurgery.apply("weighted-sum", A, A, out=np.lib.stride_tricks.as_strided(np.ones(1, np.float32), (4,), (0,)))
    with pytest.raises(UsageError, match="out"):
        sdsurgery.apply("weighted-sum", A, A, out=torch.ones(1).expand(4))


def test_overflow_error_raises_after_counting() -> None:
    big = np.full(7, 60000, np.float16)
    with pytest.raises(RunFailed, match="7 values do not fit F16"):
        sdsurgery.apply("weighted-sum", big, big, weights=[1, 1], overflow="error")
    assert np.isinf(sdsurgery.apply("weighted-sum", big, big, weights=[1, 1])).all()
    assert (sdsurgery.apply("weighted-sum", big, big, weights=[1, 1], overflow="saturate") == 65504).all()


# ---- dictionaries


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_apply_many_is_apply_for_every_name(kind: str) -> None:
    rng = np.random.default_rng(7)
    arrays = [{f"t{i}": rng.normal(size=(i, 5)).astype(np.float32) for i in range(4)} for _ in range(3)]
    given: Any = [{name: torch.from_numpy(item) for name, item in each.items()} for each in arrays]
    given = given if kind == "torch" else arrays
    found = sdsurgery.apply_many("add-diff", *given, alpha=0.3, dtype="fp16")
    for name, result in found.items():
        wanted = sdsurgery.apply("add-diff", *(each[name] for each in given), alpha=0.3, dtype="fp16")
        assert np.array_equal(np.asarray(result), np.asarray(wanted))
    assert list(found) == list(arrays[0])
    out = {"t1": given[0]["t1"]}  # in place, and new ones for the other names
    assert sdsurgery.apply_many("add-diff", *given, out=out) is out
    assert out["t1"] is given[0]["t1"] and list(out) == ["t1", "t0", "t2", "t3"]


def test_apply_many_names_the_tensor_that_is_wrong() -> None:
    a = {"x": np.ones(3, np.float32), "y\n": np.ones(3, np.float32)}
    with pytest.raises(UsageError, match=r"tensor 'y\\x0a' is missing in input 2"):
        sdsurgery.apply_many("weighted-sum", a, {"x": a["x"]})
    with pytest.raises(UsageError, match=r"tensor 'y\\x0a': shapes differ"):
        sdsurgery.apply_many("weighted-sum", a, {"x": a["x"], "y\n": np.ones(4, np.float32)})


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_tied_weights_are_evaluated_once_in_place(kind: str) -> None:
    one, other = np.full(5, 1.0, np.float32), np.full(5, 3.0, np.float32)
    a: Any = torch.from_numpy(one) if kind == "torch" else one
    b: Any = torch.from_numpy(other) if kind == "torch" else other
    tied = {"x": a, "y": a[:]}
    assert sdsurgery.apply_many("weighted-sum", tied, {"x": b, "y": b[:]}, alpha=0.5, out=tied) is tied
    assert (one == 2).all()
    sdsurgery.apply_many("weighted-sum", tied, {"x": b, "y": b + 2}, alpha=0.5, out=tied)  # tied in one model only
    assert (one == 3.75).all()
