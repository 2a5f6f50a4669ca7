"""merge, cast, ema, prune, extract and replace on files of the true size, compared with torch tensor by tensor.

One family at a time, at most 21 GB of disk at once, everything deleted at the end of each test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sdsurgery
from sdsurgery.testing import write_checkpoint

pytestmark = pytest.mark.slow

UNET, VAE, EMA = "model.diffusion_model.", "first_stage_model.", "model_ema."
FAST: dict[str, Any] = {"sync": False, "hash": False}


@contextmanager
def files(folder: Path, *names: str) -> Iterator[list[Path]]:
    paths = [folder / f"{name}.safetensors" for name in names]
    try:
        yield paths
    finally:
        for path in paths:
            path.unlink(missing_ok=True)


def is_weight(name: str, dtype: Any) -> bool:
    """What a cast rounds: no counters, no position_ids, no noise schedules."""
    return dtype.is_floating_point and "." in name and name != EMA + "decay" and not name.startswith("denoiser.")


def same(out: Path, wanted: Mapping[str, tuple[Path, str]], dtype: str | None = None) -> None:
    """Every tensor of ``out`` is the one of that file and name, rounded to the torch ``dtype``; there are no more."""
    import torch
    from safetensors import safe_open

    opened = {path: safe_open(path, "pt") for path in {path for path, _ in wanted.values()}}
    with safe_open(out, "pt") as found:
        assert set(found.keys()) == set(wanted)
        for name, (path, source) in wanted.items():
            right = opened[path].get_tensor(source)
            if dtype is not None and is_weight(name, right.dtype):
                vector = right.dim() < 2 and dtype.startswith("float8")  # readers take fp16 there
                right = right.to(torch.float16 if vector else getattr(torch, dtype))
            left = found.get_tensor(name)
            assert left.dtype == right.dtype, name
            assert left.shape == right.shape, name
            assert torch.equal(left.view(torch.uint8), right.view(torch.uint8)) if right.dim() else left == right, name


def evaluated(out: Path, inputs: list[Path], expression: Callable[..., Any], dtype: str) -> None:
    """Every weight of ``out`` is the float32 expression of the inputs' tensors, rounded once; all else is A's."""
    import torch
    from safetensors import safe_open

    opened = [safe_open(path, "pt") for path in inputs]
    with safe_open(out, "pt") as found:
        names = opened[0].keys()
        assert set(found.keys()) == set(names)
        for name in names:
            right = opened[0].get_tensor(name)
            if is_weight(name, right.dtype):
                right = expression(*(each.get_tensor(name).float() for each in opened)).to(getattr(torch, dtype))
            left = found.get_tensor(name)
            assert left.dtype == right.dtype, name
            assert torch.equal(left, right), name


def keys(path: Path, keep: Callable[[str], bool] = lambda name: True) -> dict[str, tuple[Path, str]]:
    from safetensors import safe_open

    with safe_open(path, "pt") as opened:
        return {name: (path, name) for name in opened.keys() if keep(name)}  # noqa: SIM118


def is_schedule(name: str) -> bool:
    return "." not in name or name == "denoiser.sigmas"


def bake(a: Path, vae: Path) -> dict[str, tuple[Path, str]]:
    return {name: (vae, name.removeprefix(VAE)) if name.startswith(VAE) else at for name, at in keys(a).items()}


def test_merge_and_cast_of_sd1(tmp_path: Path) -> None:
    with files(tmp_path, "a", "b", "c", "out") as (a, b, c, out):
        for seed, path in enumerate((a, b, c)):
            write_checkpoint(path, "sd1", seed=seed)
        sdsurgery.merge("weighted-sum", [a, b], alpha=0.3, out=out, **FAST)
        evaluated(out, [a, b], lambda x, y: (1 - 0.3) * x + 0.3 * y, "float16")
        sdsurgery.merge("add-diff", [a, b, c], alpha=0.7, out=out, overwrite=True, **FAST)
        evaluated(out, [a, b, c], lambda x, y, z: x + 0.7 * (y - z), "float16")
        sdsurgery.cast(a, dtype="bf16", out=out, overwrite=True, **FAST)
        evaluated(out, [a], lambda x: x, "bfloat16")


def test_merge_of_sdxl_base(tmp_path: Path) -> None:
    with files(tmp_path, "a", "b", "out") as (a, b, out):
        for seed, path in enumerate((a, b)):
            write_checkpoint(path, "sdxl-base", seed=seed)
        sdsurgery.merge("weighted-sum", [a, b], alpha=0.3, out=out, **FAST)
        evaluated(out, [a, b], lambda x, y: (1 - 0.3) * x + 0.3 * y, "float16")


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_prune_extract_and_replace(family: str, tmp_path: Path) -> None:
    with files(tmp_path, "a", "b", "vae", "out") as (a, b, vae, out):
        write_checkpoint(a, family)
        sdsurgery.prune(a, preset="inference", out=out, **FAST)
        same(out, keys(a, lambda name: not is_schedule(name)))
        for component, prefix in (("unet", UNET), ("text_encoder", "cond_stage_model.")):
            sdsurgery.extract(a, component, out=out, overwrite=True, **FAST)
            same(out, keys(a, lambda name, prefix=prefix: name.startswith(prefix)))  # type: ignore[misc]
        write_checkpoint(b, family, seed=1, dtype="fp32", keep=lambda row: row.component == "vae")
        sdsurgery.extract(b, "vae", strip_prefix=True, out=vae, **FAST)
        sdsurgery.replace(a, {"vae": vae}, out=out, overwrite=True, **FAST)
        same(out, bake(a, vae))


def test_ema_of_sd1(tmp_path: Path) -> None:
    """v1-5-pruned.ckpt's tensors: 7.7 GB in float32, of which the EMA half is taken."""
    with files(tmp_path, "a", "out") as (a, out):
        write_checkpoint(a, "sd1", dtype="fp32", ema=True)
        assert 7.70e9 < a.stat().st_size < 7.71e9
        kept = keys(a, lambda name: not name.startswith(EMA))
        twins = {
            name: (a, EMA + name[6:].replace(".", "")) if name.startswith(UNET) else at for name, at in kept.items()
        }
        report = sdsurgery.ema(a, dtype="fp16", out=out, sync=False)
        assert report.bytes_read < 4.27e9, "the weights that the twins replace are not read"
        same(out, twins, "float16")
        sdsurgery.prune(a, preset="ema-only", out=out, overwrite=True, **FAST)
        same(out, twins)
        sdsurgery.prune(a, preset="no-ema", dtype="bf16", out=out, overwrite=True, **FAST)
        same(out, kept, "bfloat16")


def test_sdxl_base(tmp_path: Path) -> None:
    """6.9 GB in fp16; whole outputs in fp8, so that both fit."""
    with files(tmp_path, "a", "b", "vae", "out") as (a, b, vae, out):
        write_checkpoint(a, "sdxl-base")
        sdsurgery.prune(a, preset="inference", dtype="fp8_e4m3", out=out, **FAST)
        same(out, keys(a, lambda name: not is_schedule(name)), "float8_e4m3fn")
        for component, prefix in (("vae", VAE), ("text_encoder_2", "conditioner.embedders.1.")):
            sdsurgery.extract(a, component, out=out, overwrite=True, **FAST)
            same(out, keys(a, lambda name, prefix=prefix: name.startswith(prefix)))  # type: ignore[misc]
        write_checkpoint(b, "sdxl-base", seed=1, keep=lambda row: row.component == "vae")
        sdsurgery.extract(b, "vae", strip_prefix=True, out=vae, **FAST)
        sdsurgery.replace(a, {"vae": vae}, dtype="fp8_e4m3", out=out, overwrite=True, **FAST)
        same(out, bake(a, vae), "float8_e4m3fn")
