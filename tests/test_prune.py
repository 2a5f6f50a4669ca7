"""prune: what stays, what goes, and that recognition survives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sdsurgery
from cli_support import done, f32, read_raw, refused, sds, write_raw
from sdsurgery.errors import UsageError
from sdsurgery.layouts import get
from sdsurgery.testing import write_checkpoint

V_PRED, STRANGE = "v_pred", "something.strange"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An sd1 file with EMA, a marker, training leftovers and a key that nobody knows."""
    folder = tmp_path_factory.mktemp("prune")
    write_checkpoint(folder / "tiny.safetensors", "sd1", size="tiny", ema=True)
    tensors, _ = read_raw(folder / "tiny.safetensors")
    one = ("F32", [2], f32(1, 2))
    more = {"optimizer_states.0.exp_avg": one, "callbacks.x": one, V_PRED: ("F32", [0], b""), STRANGE: one}
    return write_raw(folder / "trained.safetensors", {**tensors, **more}, {"note": "kept"})


def pruned(path: Path, out: Path, *options: object) -> dict[str, Any]:
    done(sds("prune", path, *options, "-o", out, "--no-sync"))
    before, after = read_raw(path)[0], read_raw(out)[0]
    assert read_raw(out)[1]["note"] == "kept"
    for name, raw in after.items():
        if "ema-only" not in options:
            assert raw == before[name], name
    return after


def is_training(name: str) -> bool:
    return name.startswith(("optimizer_states", "callbacks"))


def test_full_drops_training_leftovers_alone(trained: Path, tmp_path: Path) -> None:
    found = pruned(trained, tmp_path / "o.safetensors")
    assert set(found) == {name for name in read_raw(trained)[0] if not is_training(name)}


def test_no_ema_and_ema_only(trained: Path, tmp_path: Path) -> None:
    before = read_raw(trained)[0]
    wanted = {name for name in before if not is_training(name) and not name.startswith("model_ema.")}
    assert set(pruned(trained, tmp_path / "a.safetensors", "--preset", "no-ema")) == wanted
    swapped = pruned(trained, tmp_path / "b.safetensors", "--preset", "ema-only")
    assert set(swapped) == wanted
    for name, raw in swapped.items():
        source = "model_ema." + name[6:].replace(".", "") if name.startswith("model.diffusion_model.") else name
        assert raw == before[source], name


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl-base", "sd2-unclip-h"])
def test_inference_keeps_what_the_loader_fills_and_stays_recognised(family: str, tmp_path: Path) -> None:
    path, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    write_checkpoint(path, family, size="tiny")
    assert sdsurgery.prune(path, preset="inference", out=out, sync=False).family == family
    listed = get(family).tensors()
    schedule = {"betas", "alphas_cumprod", "sqrt_alphas_cumprod"}
    found = set(read_raw(out)[0])
    assert {row.key for row in listed if row.component != "buffers"} <= found
    assert not {name for name in found if name.rpartition(".")[2] in schedule}
    assert sdsurgery.inspect(out).family == family


def test_unknown_keys_are_kept_and_listed_unless_strict(trained: Path, tmp_path: Path) -> None:
    kept = sdsurgery.prune(trained, out=tmp_path / "a.safetensors")
    assert any(STRANGE in note for note in kept.notes)
    strict = sdsurgery.prune(trained, out=tmp_path / "b.safetensors", strict=True)
    assert STRANGE in read_raw(tmp_path / "a.safetensors")[0]
    assert STRANGE not in read_raw(tmp_path / "b.safetensors")[0]
    assert any("--strict" in reason for reason in strict.dropped)


def test_components_and_expressions(trained: Path, tmp_path: Path) -> None:
    options = ("--drop", "vae,ema", "--drop-keys", "^betas$", "--keep-keys", r"post_quant_conv\.bias")
    found = pruned(trained, tmp_path / "o.safetensors", *options)
    assert [name for name in found if name.startswith("first_stage_model")] == [
        "first_stage_model.post_quant_conv.bias"
    ]
    assert "betas" not in found
    assert "alphas_cumprod" in found


def test_recognition_and_markers_survive_any_expression(trained: Path, tmp_path: Path) -> None:
    found = pruned(trained, tmp_path / "o.safetensors", "--drop-keys", ".", "--keep-keys", "nothing")
    assert set(found) == {V_PRED, *get("sd1").discriminators()} & set(read_raw(trained)[0])


def test_training_leftovers_never_survive(trained: Path, tmp_path: Path) -> None:
    assert not [n for n in pruned(trained, tmp_path / "o.safetensors", "--keep-keys", ".") if is_training(n)]


def test_the_report_counts_the_bytes_saved_and_dropped_tensors_are_not_read(trained: Path) -> None:
    report = sdsurgery.prune(trained, preset="no-ema", dry_run=True)
    tensors = read_raw(trained)[0]
    gone = sum(len(r[2]) for n, r in tensors.items() if n.startswith("model_ema.") or is_training(n))
    assert any(f"{gone:,} saved" in note for note in report.notes)
    assert report.bytes_read == sum(len(raw[2]) for raw in tensors.values()) - gone


def test_refusals(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.safetensors"
    odd = write_raw(tmp_path / "odd.safetensors", {"w": ("F32", [1], f32(1))})
    refused(sds("prune", odd, "--preset", "inference", "-o", out), 3, "known family")
    refused(sds("prune", odd, "--drop-keys", "w", "-o", out), 3, "nothing would be left")
    refused(sds("prune", odd, "--preset", "ema-only", "-o", out), 3, "no EMA")
    refused(sds("prune", odd, "--preset", "small", "-o", out), 2, "no-ema")
    refused(sds("prune", odd, "--drop", "vea", "-o", out), 2, "'vae'")
    refused(sds("prune", odd, "--keep-keys", "(", "-o", out), 2, "regular expression")
    with pytest.raises(UsageError):
        sdsurgery.prune(trained, out=out, drop=["unet"])
