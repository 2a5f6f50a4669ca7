"""Refusals: one line that starts with "sdsurgery: ", the right code, nothing written, nothing left."""

from __future__ import annotations

import os
import random
import struct
import unicodedata
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from cli_support import Result, done, f32, listing, plain, read_raw, refused, sds, started, unprivileged, write_raw
from layout_tools import BASES
from sdsurgery.testing import write_checkpoint

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX files")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for family in BASES:
        write_checkpoint(folder / f"{family}.safetensors", family, size="tiny", keep=_small)
    return folder


def _small(tensor: object) -> bool:
    """Enough of a family to recognise it: the U-Net's first blocks and the rest's first tensors."""
    key: str = tensor.key  # type: ignore[attr-defined]
    return not any(part in key for part in ("output_blocks", "resblocks.1", "resblocks.2", "layers.1"))


def _nothing_happens(folder: Path, command: Callable[[], Result], code: int, *words: str) -> str:
    """Run a command that must be refused, and require that the folder is as it was, byte for byte."""
    before = listing(folder)
    line = refused(command(), code, *words)
    assert listing(folder) == before
    return line


# ---- inputs


def _missing(folder: Path) -> Path:
    return folder / "missing.safetensors"


def _folder(folder: Path) -> Path:
    (folder / "bad").mkdir()
    return folder / "bad"


def _fifo(folder: Path) -> Path:
    os.mkfifo(folder / "bad")
    return folder / "bad"


def _device(folder: Path) -> Path:
    return Path("/dev/zero")


def _loop(folder: Path) -> Path:
    (folder / "bad").symlink_to(folder / "loop")
    (folder / "loop").symlink_to(folder / "bad")
    return folder / "bad"


def _empty(folder: Path) -> Path:
    (folder / "bad").write_bytes(b"")
    return folder / "bad"


def _truncated(folder: Path) -> Path:
    path = plain(folder / "bad", *range(100))
    path.write_bytes(path.read_bytes()[:-1])
    return path


def _cut_header(folder: Path) -> Path:
    path = plain(folder / "bad", *range(100))
    path.write_bytes(path.read_bytes()[:20])
    return path


def _trailing(folder: Path) -> Path:
    path = plain(folder / "bad", *range(100))
    path.write_bytes(path.read_bytes() + b"\0")
    return path


def _random(folder: Path) -> Path:
    (folder / "bad").write_bytes(random.Random(5).randbytes(5000))
    return folder / "bad"


def _huge_header(folder: Path) -> Path:
    (folder / "bad").write_bytes(struct.pack("<Q", 1 << 60) + b"{" * 100)
    return folder / "bad"


def _under_a_file(folder: Path) -> Path:
    (folder / "bad").write_bytes(b"x")
    return folder / "bad" / "model.safetensors"


BAD_INPUTS = [
    (_missing, "missing.safetensors"),
    (_folder, "folder"),
    (_fifo, "FIFO"),
    (_device, "device"),
    (_loop, "symbolic links"),
    (_empty, "bad"),
    (_truncated, "bad"),
    (_cut_header, "bad"),
    (_trailing, "bad"),
    (_random, "bad"),
    (_huge_header, "bad"),
    (_under_a_file, "bad"),
]


@posix
@pytest.mark.parametrize(("make", "word"), BAD_INPUTS, ids=[make.__name__.strip("_") for make, _ in BAD_INPUTS])
def test_a_bad_input_is_refused_by_every_verb(tmp_path: Path, make: Callable[[Path], Path], word: str) -> None:
    bad, good = make(tmp_path), plain(tmp_path / "good.safetensors", 1.0)
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"old")
    for command in (
        ("inspect", bad),
        ("verify", bad),
        ("cast", bad, "--force", "-o", out),
        ("merge", "--method", "weighted-sum", good, bad, "--force", "-o", out),
        ("merge", "--method", "weighted-sum", bad, good, "--dry-run"),
    ):
        _nothing_happens(tmp_path, lambda command=command: sds(*command), 3, word)


@posix
def test_an_unreadable_input_is_refused(tmp_path: Path) -> None:
    path = plain(tmp_path / "a.safetensors", 1.0)
    path.chmod(0)
    refused(started("inspect", path, preexec_fn=unprivileged), 3, "ermission")


# ---- families, shapes, numbers of inputs, parameters


@pytest.mark.parametrize("pair", list(pairwise((*BASES, BASES[0]))), ids=" ".join)
def test_different_families_are_named_with_the_tensor_that_differs(
    models: Path, tmp_path: Path, pair: tuple[str, str]
) -> None:
    for a, b in (pair, pair[::-1]):
        paths = [models / f"{name}.safetensors" for name in (a, b)]
        for extra in ((), ("--force",)):
            line = _nothing_happens(
                tmp_path,
                lambda paths=paths, extra=extra: sds(
                    "merge", "--method", "weighted-sum", *paths, *extra, "-o", tmp_path / "out.safetensors"
                ),
                3,
                f"({a})",
                f"({b})",
            )
            tensors = set(read_raw(paths[0])[0]) | set(read_raw(paths[1])[0])
            assert any(name in line for name in tensors), line


def test_the_third_input_of_another_family_is_refused_too(models: Path, tmp_path: Path) -> None:
    a, c = models / "sd1.safetensors", models / "sdxl-base.safetensors"
    merge = ("merge", "--method", "add-diff", a, a, c, "-o", tmp_path / "out.safetensors")
    _nothing_happens(tmp_path, lambda: sds(*merge), 3, "(sd1)", "(sdxl-base)")


def test_a_wrong_shape_is_refused_with_both_shapes(tmp_path: Path) -> None:
    a = write_raw(tmp_path / "a.safetensors", {"w": ("F32", [2, 3], f32(*range(6))), "v": ("F32", [1], f32(1))})
    b = write_raw(tmp_path / "b.safetensors", {"w": ("F32", [3, 2], f32(*range(6))), "v": ("F32", [1], f32(1))})
    merge = ("merge", "--method", "weighted-sum", a, b, "-o", tmp_path / "out.safetensors")
    _nothing_happens(tmp_path, lambda: sds(*merge), 3, "'w'", "[3, 2]", "[2, 3]", "b.safetensors")


def test_the_same_number_of_elements_in_another_rank_is_refused(tmp_path: Path) -> None:
    a = write_raw(tmp_path / "a.safetensors", {"w": ("F32", [4], f32(*range(4)))})
    b = write_raw(tmp_path / "b.safetensors", {"w": ("F32", [1, 4], f32(*range(4)))})
    merge = ("merge", "--method", "weighted-sum", a, b, "-o", tmp_path / "out.safetensors")
    _nothing_happens(tmp_path, lambda: sds(*merge), 3, "'w'", "[1, 4]", "[4]")


def test_files_with_nothing_in_common_are_refused(tmp_path: Path) -> None:
    a = plain(tmp_path / "a.safetensors", 1.0, names=("x",))
    b = plain(tmp_path / "b.safetensors", 1.0, names=("y",))
    merge = ("merge", "--method", "weighted-sum", a, b, "-o", tmp_path / "out.safetensors")
    _nothing_happens(tmp_path, lambda: sds(*merge), 3, "0 of 1", "common")
    _nothing_happens(tmp_path, lambda: sds(*merge, "--allow-unlike"), 3, "0 of 1")


def test_files_with_little_in_common_need_an_option_of_their_own(tmp_path: Path) -> None:
    a = plain(tmp_path / "a.safetensors", 1.0, names=("x", "p", "q"))
    b = plain(tmp_path / "b.safetensors", 3.0, names=("x",))
    merge = ("merge", "--method", "weighted-sum", a, b, "-o", tmp_path / "out.safetensors")
    _nothing_happens(tmp_path, lambda: sds(*merge, "--force"), 3, "1 of 3", "--allow-unlike")
    done(sds(*merge, "--allow-unlike"))


@pytest.mark.parametrize(
    ("method", "count", "options", "words"),
    [
        ("weighted-sum", 1, "", ("2 inputs", "1 given")),
        ("weighted-sum", 3, "", ("2 inputs", "3 given", "--weights")),
        ("add-diff", 2, "", ("3 inputs", "2 given")),
        ("add-diff", 4, "", ("3 inputs", "4 given")),
        ("weighted-sum", 3, "--weights 0.5,0.5", ("2 numbers", "3 inputs")),
        ("add-diff", 3, "--weights 1,1,1", ("add-diff", "weights")),
        ("weighted-sum", 2, "--alpha nan", ("alpha", "finite")),
        ("weighted-sum", 2, "--alpha inf", ("alpha", "finite")),
        ("weighted-sum", 2, "--alpha=-inf", ("alpha", "finite")),
        ("weighted-sum", 2, "--alpha 1e999", ("alpha", "finite")),
        ("weighted-sum", 2, "--alpha half", ("--alpha", "half")),
        ("weighted-sum", 2, "--weights 0.5,nan", ("weights", "finite")),
        ("weighted-sum", 2, "--weights 0.5;0.5", ("0.5;0.5", "0.5,0.3,0.2")),
        ("weighted-sum", 2, "--weights 0.5,", ("--weights",)),
        ("copy", 1, "", ("copy", "unknown method")),
        ("identity", 1, "", ("identity", "unknown method")),
        ("weighted-sum", 2, "--dtype int8", ("int8", "fp16")),
        ("weighted-sum", 2, "--threads 100000", ("--threads",)),
    ],
)
def test_wrong_requests_are_code_2(
    tmp_path: Path, method: str, count: int, options: str, words: tuple[str, ...]
) -> None:
    paths = [plain(tmp_path / f"{i}.safetensors", 1.0) for i in range(count)]
    merge = ("merge", "--method", method, *paths, *options.split(), "-o", tmp_path / "out.safetensors")
    _nothing_happens(tmp_path, lambda: sds(*merge), 2, *words)


def test_an_unknown_sds_cpu_is_refused_and_named(tmp_path: Path) -> None:
    path = plain(tmp_path / "a.safetensors", 1.0)
    cast = ("cast", path, "--dtype", "fp16", "-o", tmp_path / "out.safetensors")
    _nothing_happens(tmp_path, lambda: started(*cast, env={"SDS_CPU": "nonsense"}), 2, "nonsense", "scalar")
    assert "nonsense" in done(started("info", env={"SDS_CPU": "nonsense"})).out


# ---- values


def test_on_nonfinite_error_refuses_and_names_the_tensor(tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"old")
    for value in ("nan", "inf", "-inf"):
        path = plain(tmp_path / "a.safetensors", 1.0, float(value), 2.0)
        for command in (
            ("cast", path, "--dtype", "fp16", "--force", "-o", out),
            ("merge", "--method", "weighted-sum", path, path, "--force", "-o", out),
        ):
            _nothing_happens(
                tmp_path,
                lambda command=command: sds(*command, "--on-nonfinite", "error"),
                3,
                "'w'",
                "--on-nonfinite keep",
            )


def test_on_nonfinite_error_sees_values_that_would_only_be_copied(tmp_path: Path) -> None:
    path = plain(tmp_path / "a.safetensors", 1.0, float("nan"), 2.0)
    cast = ("cast", path, "--dtype", "keep", "-o", tmp_path / "out.safetensors", "--on-nonfinite", "error")
    _nothing_happens(tmp_path, lambda: sds(*cast), 3, "'w'")


@pytest.mark.parametrize("dtype", ["fp16", "fp8_e4m3", "fp8_e5m2"])
def test_overflow_error_refuses_and_names_the_tensor(tmp_path: Path, dtype: str) -> None:
    path, out = plain(tmp_path / "a.safetensors", 1.0, 1e6), tmp_path / "out.safetensors"
    out.write_bytes(b"old")
    cast = ("cast", path, "--dtype", dtype, "--overflow", "error", "--force", "-o", out)
    _nothing_happens(tmp_path, lambda: sds(*cast), 1, "'w'", "--overflow")


# ---- outputs


@posix
def test_a_target_that_is_not_a_file_is_refused(tmp_path: Path) -> None:
    path = plain(tmp_path / "a.safetensors", 1.0)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    for target in ("folder", "fifo", "link"):
        for extra in ((), ("--force",)):
            cast = ("cast", path, "--dtype", "fp16", *extra, "-o", tmp_path / target)
            line = _nothing_happens(tmp_path, lambda cast=cast: sds(*cast), 2, target)
            assert "--force" not in line, "force would not help"
    assert list((tmp_path / "folder").iterdir()) == []
    _nothing_happens(tmp_path, lambda: sds("cast", path, "--force", "-o", "/dev/null"), 2, "/dev/null")
    _nothing_happens(tmp_path, lambda: sds("cast", path, "--force", "-o", f"{tmp_path}/folder/"), 2, "folder")
    _nothing_happens(tmp_path, lambda: sds("cast", path, "--force", "-o", ""), 2)


@posix
def test_a_symlink_loop_as_target_is_refused(tmp_path: Path) -> None:
    path, loop = plain(tmp_path / "a.safetensors", 1.0), _loop(tmp_path)
    line = _nothing_happens(tmp_path, lambda: sds("cast", path, "--force", "-o", loop), 1)
    assert "symbolic links" in line


@posix
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    path = plain(tmp_path / "a.safetensors", 1.0)
    merge = ("merge", "--method", "weighted-sum", path, path, "--no-hash")
    for folder in (tmp_path / "missing", path):  # no such folder; a file isn't a folder
        for dry in ((), ("--dry-run",)):
            command = (*merge, *dry, "-o", folder / "out.safetensors")
            _nothing_happens(tmp_path, lambda command=command: sds(*command), 1, folder.name)
    if Path("/proc/self").is_dir():  # refuses even root
        _nothing_happens(tmp_path, lambda: sds(*merge, "-o", "/proc/self/out.safetensors"), 1, "/proc/")
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    if not os.access(locked, os.W_OK):
        _nothing_happens(tmp_path, lambda: sds(*merge, "-o", locked / "out.safetensors"), 1, "locked")


# ---- hostile names

HOSTILE = "evil\x1b]0;owned\x07\x1b[31m\r\n\t\x00\x7f\x85\u202egnp.\u2066\u200b\ufeff\U000e0041\u2028."


def _raw_characters(result: Result) -> list[str]:
    """Characters on either stream that a terminal could act on."""
    text = (result.out + result.err).replace("\n", "")
    return sorted({char for char in text if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")})


def test_hostile_names_never_reach_the_terminal(tmp_path: Path) -> None:
    hostile = {HOSTILE + str(i): ("F32", [2], f32(float("nan"), 1e9)) for i in range(6)}
    a = write_raw(tmp_path / "a.safetensors", {**hostile, "w": ("F32", [1], f32(1))}, {HOSTILE: HOSTILE, "k": HOSTILE})
    b = write_raw(tmp_path / "b.safetensors", {**dict(list(hostile.items())[:5]), HOSTILE: ("F32", [1], f32(1))})
    bad = write_raw(tmp_path / "c.safetensors", {name: ("F32", [1], f32(1)) for name in hostile})
    out = tmp_path / "o.safetensors"
    merge = ("merge", "--method", "weighted-sum", a, b, "--force", "-o", out)
    for command in (
        ("inspect", a), ("inspect", a, "-v"), ("inspect", a, "--json"),
        ("verify", a), ("verify", a, "--json"),
        (*merge, "--dry-run", "-v"), (*merge, "--dry-run", "--json"), (*merge, "-v"), (*merge, "--json"),
        (*merge, "--add-missing", "-v"),
        ("cast", a, "--dtype", "fp16", "--force", "-v", "-o", out), ("inspect", out, "-v"),
    ):  # fmt: skip
        result = done(sds(*command))
        assert _raw_characters(result) == [], command
        assert "evil" in result.out + result.err
    for command in (
        ("merge", "--method", "weighted-sum", a, bad, "-o", tmp_path / "p.safetensors"),
        ("cast", a, "--dtype", "fp16", "--overflow", "error", "-o", tmp_path / "p.safetensors"),
        ("cast", a, "--dtype", "fp16", "--on-nonfinite", "error", "-o", tmp_path / "p.safetensors"),
    ):
        result = sds(*command)
        assert result.rc in (1, 3)
        assert _raw_characters(result) == [], command
        assert "evil" in refused(result, result.rc)


def test_a_recipe_with_hostile_text_is_escaped(tmp_path: Path) -> None:
    import json

    recipe = json.dumps({"type": "sdsurgery", "method": HOSTILE, HOSTILE: [HOSTILE, {HOSTILE: HOSTILE}]})
    path = write_raw(tmp_path / "a.safetensors", {"w": ("F32", [1], f32(1))}, {"sd_merge_recipe": recipe})
    assert _raw_characters(done(sds("inspect", path, "-v"))) == []


def test_hostile_arguments_are_escaped(tmp_path: Path) -> None:
    for command in (
        ("inspect", "no\x1b[31m\u202efile"),
        ("merge", "--method", "no\x1b[31m\u202e", "a", "b", "-o", "c"),
        ("cast", "a", "--dtype", "no\x1b[31m\u202e", "-o", "c"),
        ("cast", "a", "--backend", "no\x1b[31m\u202e", "-o", "c"),
        ("info", "--no\x1b[31m\u202e"),
        ("no\x1b[31m\u202e",),
        ("cast", "a", "--threads", "no\x1b[31m\u202e", "-o", "c"),
        ("merge", "--method", "weighted-sum", "a", "b", "--alpha", "no\x1b[31m\u202e", "-o", "c"),
    ):
        result = sds(*command, cwd=tmp_path)
        refused(result, result.rc)
        assert result.rc in (2, 3)
        assert _raw_characters(result) == [], command
    assert list(tmp_path.iterdir()) == []


@posix
def test_file_names_that_are_not_text_work_and_are_escaped(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path)
    source = plain(tmp_path / "a.safetensors", 1.0)
    try:
        os.rename(source, folder + b"/in\xff\x1b.safetensors")
    except OSError:
        pytest.skip("this file system takes only text as names")
    result = done(
        sds(
            "cast", folder + b"/in\xff\x1b.safetensors", "--dtype", "fp16", "-v", "-o", folder + b"/out\xfe.safetensors"
        )
    )
    assert _raw_characters(result) == []
    assert os.path.exists(folder + b"/out\xfe.safetensors")
    assert _raw_characters(done(sds("inspect", folder + b"/out\xfe.safetensors", "--json"))) == []
