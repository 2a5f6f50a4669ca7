"""Quantised, sparse, meta and complex tensors in torch files: refused by name where a verb needs them, else ignored."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sdsurgery
from cli_support import Raw, done, read_raw, refused, sds
from sdsurgery.layouts import LayoutTensor, get
from sdsurgery.testing import write_checkpoint
from torch_support import np, saved, torch

EMA, VAE, JUNK = "model_ema.no_twin", "first_stage_model.quant_conv.bias", "nobody.knows"
TWIN, WEIGHT = "model_ema.diffusion_modelout2bias", "model.diffusion_model.out.2.bias"
KINDS: dict[str, Callable[[], Any]] = {
    "quantised": lambda: torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8),
    "sparse": lambda: torch.eye(4).to_sparse(),
    "meta": lambda: torch.empty(4, device="meta"),
    "complex": lambda: torch.ones(4, dtype=torch.complex128),
    "NumPy array f8 [100]": lambda: np.zeros(100),
}


def few(tensor: LayoutTensor) -> bool:
    """Some of the U-Net and its EMA, and all else: a thousand more of them show nothing that these do not."""
    within = re.search(r"diffusion_model\.?(.+)", tensor.key)
    some = ("out.", "out0", "out2", "time_embed")
    return not within or get("sd1").is_evidence(tensor.key) or within[1].startswith(some)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``good`` and ``other`` are sound; ``bad-KEY`` is ``good`` with an unreadable tensor under that key. ``whole`` and
    ``whole-KEY`` are the same with every tensor that a loader asks for."""
    folder = tmp_path_factory.mktemp("unreadable")
    for seed, name in enumerate(("good", "other", "whole")):
        keep = None if name == "whole" else few
        write_checkpoint(folder / f"{name}.ckpt", "sd1", size="tiny", seed=seed, ema=True, keep=keep)
    values, whole = (torch.load(folder / f"{name}.ckpt", weights_only=True)["state_dict"] for name in ("good", "whole"))
    for kind, key in zip(KINDS.values(), (EMA, VAE, JUNK, TWIN, WEIGHT), strict=True):
        (folder / f"bad-{key}.ckpt").write_bytes(saved({"state_dict": {**values, key: kind()}}))
    (folder / f"whole-{JUNK}.ckpt").write_bytes(saved({"state_dict": {**whole, JUNK: KINDS["meta"]()}}))
    (folder / "junk-vae.ckpt").write_bytes(saved({**values, JUNK: KINDS["sparse"]()}))
    return folder


# verb and options -> {good} is also run as {bad}, the file with the unreadable tensor, and must give the same tensors
IGNORED = {
    "ema": (EMA, "ema {bad}"),
    "prune no-ema": (EMA, "prune {bad} --preset no-ema"),
    "prune ema-only": (EMA, "prune {bad} --preset ema-only"),
    "prune a component": (VAE, "prune {bad} --drop vae"),
    "prune by name": (JUNK, "prune {bad} --drop-keys ^nobody"),
    "prune strictly": (JUNK, "prune {bad} --strict"),
    "prune for inference": (JUNK, "prune {bad} --preset inference --strict"),
    "extract": (VAE, "extract {bad} --component unet"),
    "merge, EMA of A": (EMA, "merge {bad} {other} --method weighted-sum"),
    "merge, EMA of B": (EMA, "merge {other} {bad} --method weighted-sum"),
    "merge, only in B": (JUNK, "merge {other} {bad} --method weighted-sum"),
    "replace, the part replaced": (VAE, "replace {bad} --component vae --with {other}"),
    "replace, another part of the donor": (JUNK, "replace {other} --component vae --with {bad}"),
    "replace, the donor's EMA": (EMA, "replace {other} --component vae --with {bad}"),
}
NEEDED = {
    "cast": (JUNK, "cast {bad} --dtype bf16"),
    "convert": (EMA, "convert {bad}"),
    "fix-clip": (VAE, "fix-clip {bad}"),
    "compare": (VAE, "compare {bad} {other}"),
    "ema, a twin": (TWIN, "ema {bad}"),
    "ema, a weight that stays": (VAE, "ema {bad}"),
    "to-ema": (EMA, "ema {bad} --to-ema"),
    "prune, kept": (JUNK, "prune {bad}"),
    "prune, kept by name": (VAE, "prune {bad} --drop vae --keep-keys quant_conv"),
    "prune ema-only, a twin": (TWIN, "prune {bad} --preset ema-only"),
    "prune for inference": (WEIGHT, "prune {bad} --preset inference"),
    "extract": (VAE, "extract {bad} --component vae"),
    "merge, A": (JUNK, "merge {bad} {other} --method weighted-sum"),
    "merge, B": (WEIGHT, "merge {other} {bad} --method weighted-sum"),
    "merge, added from B": (JUNK, "merge {other} {bad} --method weighted-sum --add-missing"),
    "merge, EMA that is used": (TWIN, "merge {other} {bad} --method weighted-sum --use-ema B"),
    "replace, another part": (JUNK, "replace {bad} --component vae --with {other}"),
    "replace, from the donor": (VAE, "replace {other} --component vae --with {bad}"),
}


def command(folder: Path, line: str, bad: str) -> list[str]:
    paths = {"bad": folder / f"{bad}.ckpt", "other": folder / "other.ckpt"}
    return [word.format(**paths) for word in line.split(" ")]


def tensors(path: Path) -> dict[str, Raw]:
    return read_raw(path)[0]


@pytest.mark.parametrize("case", IGNORED)
def test_what_is_not_needed_is_ignored(case: str, folder: Path, tmp_path: Path) -> None:
    key, line = IGNORED[case]
    good, bad = ("whole", "whole") if "--preset inference" in line else ("good", "bad")
    want, got = tmp_path / "want.safetensors", tmp_path / "got.safetensors"
    done(sds(*command(folder, line, good), "--no-sync", "-o", want))
    report = done(sds(*command(folder, line, f"{bad}-{key}"), "--no-sync", "-o", got))
    assert tensors(got) == tensors(want)
    assert key in report.err, "the report says what was left out"


@pytest.mark.parametrize("case", NEEDED)
def test_what_is_needed_is_refused_by_name(case: str, folder: Path, tmp_path: Path) -> None:
    key, line = NEEDED[case]
    target = () if line.startswith("compare") else ("-o", tmp_path / "o.safetensors")
    refused(sds(*command(folder, line, f"bad-{key}"), *target), 3, f"'{key}' is needed but cannot be read", "prune")
    assert not (tmp_path / "o.safetensors").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_the_refusal_says_what_the_tensor_is(kind: str, tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").write_bytes(saved({"w": torch.ones(2), "x": KINDS[kind](), "y": KINDS[kind]()}))
    refused(sds("cast", "a.ckpt", "-o", "b.safetensors", cwd=tmp_path), 3, "'x'", kind, "(and 1 more)")
    assert kind in done(sds("inspect", "a.ckpt", cwd=tmp_path)).out


def test_dropped_ones_are_counted(folder: Path, tmp_path: Path) -> None:
    report = sdsurgery.prune(folder / f"bad-{JUNK}.ckpt", strict=True, out=tmp_path / "o.safetensors")
    assert report.counts["dropped"] == 1
    assert report.dropped_components == {"other": {"tensors": 1, "bytes": 0}}


def test_an_unreadable_part_is_found_under_other_names_too(folder: Path, tmp_path: Path) -> None:
    """The tensor that B needs is one of A's under its old name: it must not pass for one that only B has."""
    values = torch.load(folder / "good.ckpt", weights_only=True)["state_dict"]
    old = {name.replace(".text_model.", "."): value for name, value in values.items()}
    key = "cond_stage_model.transformer.final_layer_norm.bias"
    (tmp_path / "old.ckpt").write_bytes(saved({**old, key: KINDS["complex"]()}))
    asked = ("merge", folder / "other.ckpt", tmp_path / "old.ckpt", "--method", "weighted-sum", "--dry-run")
    refused(sds(*asked), 3, key)
    refused(sds(*asked, "--fix-names"), 3, key.replace("transformer.", "transformer.text_model."))
