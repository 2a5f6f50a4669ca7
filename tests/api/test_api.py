"""The Python API: signatures, reports, views of an opened checkpoint, and errors of the public classes."""

from __future__ import annotations

import gc
import inspect
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sdsurgery
from cli_support import f32, floats, plain, read_raw, write_raw
from sdsurgery.testing import write_checkpoint


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return plain(tmp_path / "a.safetensors", 1.0, 2.0, 3.0), plain(tmp_path / "b.safetensors", 3.0, 4.0, 5.0)


def test_every_public_name_exists_and_is_documented() -> None:
    assert set(dir(sdsurgery)) >= set(sdsurgery.__all__)
    for name in sdsurgery.__all__:
        value = getattr(sdsurgery, name)
        if name != "__version__":
            assert inspect.getdoc(value), name
    with pytest.raises(AttributeError, match="nonsense"):
        _ = sdsurgery.nonsense
    assert Path(sdsurgery.__file__).with_name("py.typed").exists()
    assert Path(sdsurgery.__file__).with_name("_native.pyi").exists()


def test_methods_stays_callable_whatever_was_imported_before() -> None:
    import importlib

    importlib.import_module("sdsurgery.methods")
    found = sdsurgery.methods()
    assert found["add-diff"].inputs == ("A", "B", "C")
    assert found["add-diff"].params["alpha"].default == 1.0


def test_merge_returns_a_report(pair: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    report = sdsurgery.merge("weighted-sum", list(pair), alpha=0.25, out=out)
    assert isinstance(report, sdsurgery.Report)
    assert floats(read_raw(out)[0]["w"]) == [1.5, 2.5, 3.5]
    assert (report.verb, report.family, report.output) == ("merge", "unknown", str(out))
    assert report.counts["merged"] == 1
    assert report.bytes_written == out.stat().st_size
    assert report.recipe["parameters"] == {"alpha": 0.25}
    assert all(len(digest) == 64 for digest in report.sha256)
    assert len(report.body_sha256) == 64
    assert report.seconds >= 0


def test_paths_may_be_text_or_path_objects(pair: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = pair
    for number, kind in enumerate((str, Path)):
        out = tmp_path / f"out{number}.safetensors"
        sdsurgery.merge("weighted-sum", [kind(a), kind(b)], out=kind(out))
        assert out.exists()


def test_merge_takes_weights_and_a_progress_callback(pair: tuple[Path, Path], tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    sdsurgery.merge(
        "weighted-sum", [*pair, pair[0]], weights=[1, 1, -1], out=tmp_path / "o.safetensors",
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert floats(read_raw(tmp_path / "o.safetensors")[0]["w"]) == [3.0, 4.0, 5.0]
    assert seen
    assert seen[-1][0] == seen[-1][1]


def test_an_error_in_the_progress_callback_leaves_nothing(pair: tuple[Path, Path], tmp_path: Path) -> None:
    before = sorted(os.listdir(tmp_path))

    def broken(done: int, total: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        sdsurgery.merge("weighted-sum", list(pair), out=tmp_path / "o.safetensors", progress=broken)
    assert sorted(os.listdir(tmp_path)) == before


def test_cast_inspect_and_verify_return_what_they_found(tmp_path: Path) -> None:
    path, out = tmp_path / "a.safetensors", tmp_path / "o.safetensors"
    write_checkpoint(path, "sd1", size="tiny", ema=True)
    report = sdsurgery.cast(path, dtype="bf16", out=out)
    assert report.counts["cast"] == 1130 + 686
    found = sdsurgery.inspect(out)
    assert (found.family, found.ema, found.format) == ("sd1", "full", "safetensors")
    assert found.total.bytes + 8 < found.bytes == out.stat().st_size
    verified = sdsurgery.verify(out)
    assert verified.ok
    assert verified.nonfinite == {}
    assert verified.hashes.body_sha256 == report.body_sha256


def test_unknown_keywords_are_errors_and_not_ignored(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(sdsurgery.UsageError, match="no parameter 'treads'"):
        sdsurgery.merge("weighted-sum", list(pair), out=tmp_path / "o", treads=2)
    with pytest.raises(TypeError, match="alpha"):
        sdsurgery.cast(pair[0], out=tmp_path / "o", alpha=2)
    with pytest.raises(sdsurgery.UsageError, match="did you mean 'fp16'"):
        sdsurgery.cast(pair[0], out=tmp_path / "o", dtype="fp61")


def test_errors_are_the_public_classes(pair: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "o.safetensors"
    with pytest.raises(sdsurgery.UsageError, match="no output given"):
        sdsurgery.merge("weighted-sum", list(pair))
    with pytest.raises(sdsurgery.InputRefused, match="missing"):
        sdsurgery.cast(tmp_path / "missing.safetensors", out=out)
    with pytest.raises(sdsurgery.UsageError, match="overwrite=True"):
        sdsurgery.cast(pair[0], out=pair[1])
    with pytest.raises(sdsurgery.RunFailed, match="overflow"):
        sdsurgery.cast(plain(tmp_path / "big.safetensors", 1e9), dtype="fp16", overflow="error", out=out)
    with pytest.raises(sdsurgery.RunFailed):
        sdsurgery.cast(pair[0], out=tmp_path / "nowhere" / "o.safetensors")
    codes = {"RunFailed": 1, "UsageError": 2, "InputRefused": 3, "VerificationDiffers": 4, "Interrupted": 130}
    for name, code in codes.items():
        kind = getattr(sdsurgery, name)
        # Ctrl-C isn't an Exception: a loop over files must not swallow it.
        assert issubclass(kind, KeyboardInterrupt if name == "Interrupted" else sdsurgery.SdsError)
        assert issubclass(kind, Exception) == (name != "Interrupted")
        assert kind.exit_code == code
    assert not out.exists()


def test_merges_run_in_threads_of_the_caller(pair: tuple[Path, Path], tmp_path: Path) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(5):
                sdsurgery.merge("weighted-sum", list(pair), out=tmp_path / f"{number}-{turn}.safetensors", sync=False)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert all(
        floats(read_raw(tmp_path / f"{n}-{t}.safetensors")[0]["w"]) == [2.0, 3.0, 4.0]
        for n in range(4)
        for t in range(5)
    )


# ---- open


def test_open_is_a_context_manager_with_keys_metadata_and_info(tmp_path: Path) -> None:
    tensors = {"x": ("F32", [2, 3], f32(*range(6))), "y": ("F16", [2], b"\0<\0@"), "z": ("F32", [], f32(7))}
    path = write_raw(tmp_path / "a.safetensors", tensors, {"k": "v"})
    with sdsurgery.open(path) as opened:
        assert isinstance(opened, sdsurgery.Checkpoint)
        assert list(opened) == opened.keys() == ["x", "y", "z"]
        assert len(opened) == 3
        assert "x" in opened
        assert "w" not in opened
        assert opened.metadata() == {"k": "v"}
        info = opened.info("x")
        assert isinstance(info, sdsurgery.TensorInfo)
        assert (info.name, info.dtype.name, info.shape, info.nbytes, info.elements) == ("x", "F32", (2, 3), 24, 6)
        assert path.read_bytes()[info.offset : info.offset + 4] == f32(0)
        with pytest.raises(KeyError, match="no tensor 'xx'"):
            opened.info("xx")
        opened.metadata()["k"] = "changed"
        assert opened.metadata() == {"k": "v"}
        assert opened.numpy("x").tolist() == [[0, 1, 2], [3, 4, 5]]
        assert opened.numpy("y").tolist() == [1, 2]
        assert opened.numpy("z").shape == ()
        assert float(opened.numpy("z")) == 7


def test_numpy_views_are_zero_copy_and_read_only(tmp_path: Path) -> None:
    path = plain(tmp_path / "a.safetensors", *range(1000))
    with sdsurgery.open(path) as opened:
        view, again = opened.numpy("w"), opened.numpy("w")
    assert not view.flags.owndata
    assert np.shares_memory(view, again), "both are the same mapped pages"
    assert not view.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        view.flags.writeable = True
    # What is written to the file shows in the view: it is the file.
    with open(path, "r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(f32(-1))
    assert view[-1] == -1


def test_torch_views_are_copy_on_write_and_never_reach_the_file(tmp_path: Path) -> None:
    import torch

    path = plain(tmp_path / "a.safetensors", *range(1000))
    before = path.read_bytes()
    with sdsurgery.open(path) as opened:
        tensor, other = opened.torch("w"), opened.torch("w")
        view = opened.numpy("w")
        tensor.mul_(-1)
        assert float(tensor[999]) == -999
        assert float(other[999]) == 999
        assert view[999] == 999
    assert path.read_bytes() == before
    assert tensor.dtype == torch.float32


def test_torch_views_of_every_float_dtype(tmp_path: Path) -> None:
    import torch

    one = {"F64": "f03f", "F32": "803f", "F16": "003c", "BF16": "803f", "F8_E4M3": "38", "F8_E5M2": "3c"}
    size = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
    tensors = {
        dtype: (dtype, [3], bytes.fromhex(text).rjust(size[dtype], b"\0") * 3)
        for dtype, text in sorted(one.items(), key=lambda item: -size[item[0]])
    }
    with sdsurgery.open(write_raw(tmp_path / "a.safetensors", tensors)) as opened:
        for dtype in one:
            assert opened.torch(dtype).to(torch.float64).tolist() == [1.0, 1.0, 1.0], dtype
        with pytest.raises(TypeError, match="BF16"):
            opened.numpy("BF16")


def test_unaligned_and_empty_tensors_have_views(tmp_path: Path) -> None:
    import torch

    tensors = {"odd": ("U8", [1], b"\x05"), "w": ("F32", [2], f32(1, 2)), "none": ("F32", [0, 4], b"")}
    with sdsurgery.open(write_raw(tmp_path / "a.safetensors", tensors)) as opened:
        assert opened.numpy("w").tolist() == opened.torch("w").tolist() == [1, 2]
        assert opened.numpy("none").shape == tuple(opened.torch("none").shape) == (0, 4)
        assert opened.torch("odd").dtype == torch.uint8


def test_views_outlive_the_checkpoint_and_the_file(tmp_path: Path) -> None:
    import torch

    path = plain(tmp_path / "a.safetensors", *range(5000))
    opened = sdsurgery.open(path)
    view, tensor = opened.numpy("w"), opened.torch("w")
    opened.close()
    path.unlink()
    del opened
    gc.collect()
    assert view.sum() == sum(range(5000))
    assert tensor.sum(dtype=torch.float64) == sum(range(5000))
    part = view[10:20]
    del view
    gc.collect()
    assert part.tolist() == list(range(10, 20))


def test_a_closed_checkpoint_gives_an_error_instead_of_a_crash(tmp_path: Path) -> None:
    opened = sdsurgery.open(plain(tmp_path / "a.safetensors", *range(50)))
    opened.close()
    opened.close()
    for view in (opened.numpy, opened.torch):
        with pytest.raises(sdsurgery.UsageError, match="closed"):
            view("w")


UNWRITABLE = ["half a pair \ud800"] if os.name == "posix" else []  # on Windows it names a file as any other does


@pytest.mark.parametrize("name", ["", "a\0b", b"a\0b", *UNWRITABLE])
def test_what_cannot_name_a_file_is_refused(tmp_path: Path, name: str | bytes, pair: tuple[Path, Path]) -> None:
    with pytest.raises(sdsurgery.InputRefused, match="is not a valid file name"):
        sdsurgery.open(name)
    with pytest.raises(sdsurgery.UsageError, match="file"):
        sdsurgery.cast(pair[0], out=name, overwrite=True)


def test_inputs_may_be_any_iterable(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    out = tmp_path / "o.safetensors"
    assert sdsurgery.merge("weighted-sum", (path for path in pair), alpha=0.5, out=out).inputs == [str(p) for p in pair]


@pytest.mark.parametrize("threads", [-1, 1025, 2.5, "4", None])
def test_threads_are_a_whole_number(tmp_path: Path, threads: Any, pair: tuple[Path, Path]) -> None:
    with pytest.raises(sdsurgery.UsageError, match="threads= must be a whole number"):
        sdsurgery.cast(pair[0], out=tmp_path / "o.safetensors", threads=threads)
    assert not (tmp_path / "o.safetensors").exists()


# ---- apply


def test_apply_on_numpy_arrays() -> None:
    rng = np.random.default_rng(1)
    x, y, z = (rng.standard_normal((7, 33)).astype(np.float16) for _ in range(3))
    want = (x.astype(np.float32) + np.float32(0.7) * (y.astype(np.float32) - z.astype(np.float32))).astype(np.float16)
    got = sdsurgery.apply("add-diff", x, y, z, alpha=0.7)
    assert got.dtype == np.float16
    assert np.array_equal(got.view(np.uint16), want.view(np.uint16))
    out = np.empty_like(x)
    assert sdsurgery.apply("add-diff", x, y, z, alpha=0.7, out=out) is out
    assert np.array_equal(out, want)
    kept = x.copy()
    assert sdsurgery.apply("add-diff", x, y, z, alpha=0.7, out=x) is x
    assert np.array_equal(x, want)
    wide = sdsurgery.apply("add-diff", kept, y, z, alpha=0.7, dtype="fp32")
    assert wide.dtype == np.float32
    assert np.array_equal(wide.astype(np.float16), want)


def test_apply_on_torch_tensors() -> None:
    import torch

    x, y = torch.randn(5, 64).to(torch.bfloat16), torch.randn(64, 5).to(torch.bfloat16).T
    want = ((1 - 0.3) * x.float() + 0.3 * y.float()).to(torch.bfloat16)
    got = sdsurgery.apply("weighted-sum", x, y, alpha=0.3)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, want)
    out = torch.empty(64, 5, dtype=torch.bfloat16).T
    assert sdsurgery.apply("weighted-sum", x, y, alpha=0.3, out=out) is out
    assert torch.equal(out, want)


def test_apply_refuses_what_it_cannot_do() -> None:
    x = np.ones((2, 3), np.float32)
    for wrong in (
        lambda: sdsurgery.apply("nonsense", x),
        lambda: sdsurgery.apply("add-diff", x, x),
        lambda: sdsurgery.apply("add-diff", x, x, x[:1]),
        lambda: sdsurgery.apply("add-diff", x, x, x.astype(np.int32)),
        lambda: sdsurgery.apply("add-diff", x, x, x, beta=1),
        lambda: sdsurgery.apply("add-diff", x, x, x, alpha=float("nan")),
        lambda: sdsurgery.apply("add-diff", x, x, x, dtype="fp61"),
        lambda: sdsurgery.apply("add-diff", x, x, x, out=np.ones((3, 2), np.float32)),
        lambda: sdsurgery.apply("add-diff", x, x, [1, 2, 3]),
    ):
        with pytest.raises(sdsurgery.UsageError):
            wrong()


def test_one_file_in_the_place_of_a_list_is_one_line() -> None:
    for inputs in ("a.safetensors", b"a.safetensors", Path("a.safetensors")):
        with pytest.raises(sdsurgery.UsageError, match="a list of files"):
            sdsurgery.merge("add-diff", inputs, out="out.safetensors")  # type: ignore[arg-type]
