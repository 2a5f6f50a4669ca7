"""ema: the EMA-only checkpoint and its reverse, against a straightforward torch implementation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sdsurgery
from cli_support import done, f32, read_raw, refused, sds, write_raw
from sdsurgery.errors import InputRefused
from sdsurgery.layouts import all_layouts
from sdsurgery.testing import write_checkpoint

UNET, EMA = "model.diffusion_model.", "model_ema."


def tiny(path: Path, family: str = "sd1", **options: Any) -> Path:
    write_checkpoint(path, family, size="tiny", **{"ema": True, **options})
    return path


def load(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(path))


def twin(name: str) -> str:
    return EMA + name[len("model.") :].replace(".", "")


def straightforward(tensors: dict[str, Any]) -> dict[str, Any]:
    """What a script with everything in memory would do."""
    kept = {name: value for name, value in tensors.items() if not name.startswith(EMA)}
    return {name: tensors[twin(name)] if name.startswith(UNET) else value for name, value in kept.items()}


def same(left: dict[str, Any], right: dict[str, Any]) -> None:
    import torch

    assert set(left) == set(right)
    for name, value in left.items():
        assert value.dtype == right[name].dtype, name
        assert torch.equal(value, right[name]), name


WITH_EMA = [layout.name for layout in all_layouts() if layout.parts and layout.has_ema]


@pytest.mark.parametrize("family", WITH_EMA)
def test_ema_equals_a_straightforward_implementation(family: str, tmp_path: Path) -> None:
    path = tiny(tmp_path / "in.safetensors", family, metadata={"note": "kept"})
    report = sdsurgery.ema(path, out=tmp_path / "out.safetensors")
    same(load(tmp_path / "out.safetensors"), straightforward(load(path)))
    assert read_raw(tmp_path / "out.safetensors")[1]["note"] == "kept"
    assert report.family == family
    unet = sum(name.startswith(UNET) for name in load(path))
    assert unet == (686 if family.startswith("sd1") else unet)
    assert report.counts["dropped"] == report.dropped_components["ema"]["tensors"] == unet + 2  # and two counters


def test_ema_casts_weights_and_leaves_buffers_unchanged(tmp_path: Path) -> None:
    import torch

    path = tiny(tmp_path / "in.safetensors", dtype="fp32")
    done(sds("ema", path, "--dtype", "fp16", "-o", tmp_path / "out.safetensors"))
    wanted = straightforward(load(path))
    for name, value in wanted.items():
        if value.dtype == torch.float32 and name.startswith((UNET, "first_stage_model.", "cond_stage_model.")):
            wanted[name] = value.half()
    same(load(tmp_path / "out.safetensors"), wanted)


def test_keep_counters_keeps_the_two_counters(tmp_path: Path) -> None:
    path = tiny(tmp_path / "in.safetensors")
    done(sds("ema", path, "--keep-counters", "-o", tmp_path / "out.safetensors"))
    found = load(tmp_path / "out.safetensors")
    assert {name for name in found if name.startswith(EMA)} == {"model_ema.decay", "model_ema.num_updates"}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_keep_counters_with_a_dtype_leaves_the_counters_exact(dtype: str, tmp_path: Path) -> None:
    path = tiny(tmp_path / "in.safetensors")
    sdsurgery.ema(path, keep_counters=True, dtype=dtype, out=tmp_path / "out.safetensors")
    before, after = read_raw(path)[0], read_raw(tmp_path / "out.safetensors")[0]
    for name in ("model_ema.decay", "model_ema.num_updates"):
        assert after[name] == before[name]
    assert after[UNET + "out.2.bias"][0] == {"fp32": "F32", "bf16": "BF16"}[dtype]


def test_ema_names_of_a_bare_unet_are_understood(tmp_path: Path) -> None:
    path, out = tiny(tmp_path / "in.safetensors"), tmp_path / "out.safetensors"
    tensors = read_raw(path)[0]
    bare = {name.replace(EMA + "diffusion_model", EMA): raw for name, raw in tensors.items()}
    assert len(bare.keys() - tensors.keys()) == 686
    wanted = straightforward(tensors)
    write_raw(path, bare)
    assert sdsurgery.inspect(path).ema == "full"
    sdsurgery.ema(path, out=out)
    assert read_raw(out)[0] == wanted


def test_twins_and_weights_of_different_dtypes(tmp_path: Path) -> None:
    """A twin keeps its own dtype: what was trained in float32 is not rounded unless asked."""
    path, out = tiny(tmp_path / "in.safetensors"), tmp_path / "out.safetensors"
    tensors = read_raw(path)[0]
    name = UNET + "out.2.bias"
    tensors[twin(name)] = ("F32", tensors[name][1], f32(1.5, 2.5, 3.5, 4.5))
    write_raw(path, tensors)
    sdsurgery.ema(path, out=out)
    assert read_raw(out)[0][name] == tensors[twin(name)]


@pytest.mark.parametrize("kind", ["none", "partial", "counters", "full"])
def test_inspect_gives_the_state_of_the_ema(kind: str, tmp_path: Path) -> None:
    path = tiny(tmp_path / "in.safetensors")
    tensors = read_raw(path)[0]
    keep = {
        "none": lambda name: not name.startswith(EMA),
        "partial": lambda name: name != twin(UNET + "out.2.bias"),
        "counters": lambda name: not name.startswith(EMA + "diffusion"),
        "full": lambda name: True,
    }[kind]
    write_raw(path, {name: raw for name, raw in tensors.items() if keep(name)})
    assert sdsurgery.inspect(path).ema == kind


def test_dropped_weights_are_never_read(tmp_path: Path) -> None:
    path = tiny(tmp_path / "in.safetensors")
    report = sdsurgery.ema(path, dry_run=True)
    wanted = straightforward(load(path))
    assert report.bytes_read == sum(value.numel() * value.element_size() for value in wanted.values())


def test_to_ema_and_back_gives_the_same_tensors(tmp_path: Path) -> None:
    path = tiny(tmp_path / "in.safetensors", ema=False)
    done(sds("ema", path, "--to-ema", "-o", tmp_path / "with.safetensors"))
    found = load(tmp_path / "with.safetensors")
    assert found["model_ema.num_updates"].item() == 0
    assert found["model_ema.decay"].item() == pytest.approx(0.9999)
    assert sdsurgery.inspect(tmp_path / "with.safetensors").ema == "full"
    done(sds("ema", tmp_path / "with.safetensors", "-o", tmp_path / "back.safetensors"))
    same(load(tmp_path / "back.safetensors"), load(path))


def test_no_partial_and_misshapen_ema_are_refused_with_counts(tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    plain = tiny(tmp_path / "plain.safetensors", ema=False)
    refused(sds("ema", plain, "-o", out), 3, "0 found", "686 expected")
    lacking = twin(UNET + "out.2.bias")
    partial = tiny(tmp_path / "partial.safetensors", keep=lambda row: row.key != lacking)
    refused(sds("ema", partial, "-o", out), 3, "685 found", "686 expected", UNET + "out.2.bias")
    whole = tiny(tmp_path / "whole.safetensors")
    tensors, metadata = read_raw(whole)
    dtype, shape, data = tensors[lacking]
    bent = write_raw(tmp_path / "bent.safetensors", {**tensors, lacking: (dtype, [*shape, 1], data)}, metadata)
    refused(sds("ema", bent, "-o", out), 3, lacking, "shape")
    refused(sds("ema", whole, "--to-ema", "-o", out), 3, "688 found")
    refused(sds("ema", whole, "--to-ema", "--keep-counters", "-o", out), 2)
    assert not out.exists()


@pytest.mark.parametrize("to_ema", [False, True])
def test_a_file_without_a_unet_is_refused(to_ema: bool, tmp_path: Path) -> None:
    path = tiny(tmp_path / "vae.safetensors", ema=False, keep=lambda row: row.component == "vae")
    with pytest.raises(InputRefused, match="no U-Net"):
        sdsurgery.ema(path, out=tmp_path / "out.safetensors", to_ema=to_ema)


@pytest.mark.parametrize("family", ["sd1", "sd2"])
@pytest.mark.parametrize("wrapper", ["", "state_dict."])
def test_of_ema_weights_alone_the_u_net_is_made_that_they_shadow(family: str, wrapper: str, tmp_path: Path) -> None:
    whole, _ = read_raw(tiny(tmp_path / "whole.safetensors", family))
    alone = {wrapper + name: raw for name, raw in whole.items() if name.startswith(EMA)}
    path, out = write_raw(tmp_path / "alone.safetensors", alone), tmp_path / "unet.safetensors"
    done(sds("ema", path, "-o", out))
    assert read_raw(out)[0] == {name: whole[twin(name)] for name in whole if name.startswith(UNET)}


def test_pruning_ema_weights_alone_leaves_nothing_and_is_refused(tmp_path: Path) -> None:
    whole, _ = read_raw(tiny(tmp_path / "whole.safetensors"))
    alone = {name: raw for name, raw in whole.items() if name.startswith(EMA)}
    path, out = write_raw(tmp_path / "alone.safetensors", alone), tmp_path / "o.safetensors"
    for preset in ("inference", "no-ema", "ema-only"):
        refused(sds("prune", path, "--preset", preset, "-o", out), 3, "`ema` makes a U-Net")
        assert not out.exists()
    lacking = write_raw(tmp_path / "lacking.safetensors", dict(list(alone.items())[5:]))
    refused(sds("ema", lacking, "-o", out), 3, "no U-Net weights")
