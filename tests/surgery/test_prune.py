"""prune: what stays, what goes, and that recognition survives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sdsurgery
from cli_support import done, f32, read_raw, refused, sds, write_raw
from sdsurgery.errors import UsageError
from sdsurgery.layouts import all_layouts, get
from sdsurgery.testing import write_checkpoint

V_PRED, STRANGE = "v_pred", "something.strange"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An sd1 file with EMA, a marker, training leftovers and an unknown key."""
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


def test_full_drops_only_training_leftovers(trained: Path, tmp_path: Path) -> None:
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


FULL = [layout.name for layout in all_layouts() if layout.parts and layout.network and "diffusers" not in layout.name]


def computed(name: str) -> bool:
    """Noise schedules: the loader computes them, whatever the file says."""
    return "alphas_cumprod" in name or "posterior" in name or name.endswith(("betas", "denoiser.sigmas"))


@pytest.mark.parametrize("family", [*FULL, "vae-kl-f8"])
def test_inference_keeps_exactly_what_the_loader_fills(family: str, tmp_path: Path) -> None:
    path, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    write_checkpoint(path, family, size="tiny", ema=family in FULL)
    tensors = read_raw(path)[0]
    one = ("F32", [2], f32(1, 2))
    more = dict.fromkeys((STRANGE, "callbacks.x", "embedding_manager.x", "first_stage_model.loss.x", "logvar"), one)
    write_raw(path, {**tensors, **more, V_PRED: ("F32", [0], b"")})
    report = sdsurgery.prune(path, preset="inference", out=out, sync=False)
    assert report.family == family
    assert any(STRANGE in note for note in report.notes), "what nobody knows is kept, and said to be there"
    wanted = {row.key for row in get(family).tensors() if not computed(row.key)} | {V_PRED, STRANGE}
    found = read_raw(out)[0]
    assert set(found) == wanted
    assert sdsurgery.inspect(out).family == family
    gone = sum(len(raw[2]) for name, raw in read_raw(path)[0].items() if name not in wanted)
    assert report.bytes_saved == gone == sum(row["bytes"] for row in report.dropped_components.values())


def test_inference_of_sd1_has_the_size_of_the_usual_community_file() -> None:
    """DreamShaper_8_pruned.safetensors: 1131 tensors in fp16, 2,132,625,894 bytes, without metadata."""
    listed = [row for row in get("sd1").tensors() if not computed(row.key)]
    assert len(listed) == 1131


def test_inference_understands_old_names(trained: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    old = {name.replace(".text_model.", "."): raw for name, raw in read_raw(trained)[0].items()}
    write_raw(path, {f"state_dict.{name}": raw for name, raw in old.items()})
    sdsurgery.prune(path, preset="inference", out=out, sync=False, fix_names=True)
    wanted = {row.key for row in get("sd1").tensors() if not computed(row.key)}
    assert set(read_raw(out)[0]) == wanted | {V_PRED, STRANGE}


def test_inference_keeps_encoders_and_vae_under_the_names_of_forge_and_comfyui(tmp_path: Path) -> None:
    """Clip-l and clip-g in transformers' names, the VAE under ``vae.``, and an encoder that is not the family's."""
    write_checkpoint(tmp_path / "in.safetensors", "sdxl-base", size="tiny")
    tensors, _ = read_raw(tmp_path / "in.safetensors")
    places = (("conditioner.embedders.0.", "text_encoders.clip_l."), ("first_stage_model.", "vae."))
    renamed = dict(tensors)
    for old, new in places:
        renamed = {new + name[len(old) :] if name.startswith(old) else name: raw for name, raw in renamed.items()}
    foreign = {"text_encoders.t5xxl.transformer.shared.weight": ("F32", [2], f32(1, 2))}
    path = write_raw(tmp_path / "forge.safetensors", {**renamed, **foreign, "callbacks.x": ("F32", [1], f32(1))})
    sdsurgery.prune(path, preset="inference", out=tmp_path / "out.safetensors", sync=False)
    found = set(read_raw(tmp_path / "out.safetensors")[0])
    assert found == (set(renamed) | set(foreign)) - {"denoiser.sigmas"}
    listed = sdsurgery.inspect(path).components
    assert listed["text_encoder"].tensors == 197
    assert listed["vae"].tensors == 248
    sdsurgery.cast(path, fix_names=True, out=tmp_path / "own.safetensors", sync=False)
    assert set(tensors) < set(read_raw(tmp_path / "own.safetensors")[0])


def test_inference_of_a_model_that_lacks_tensors_is_refused_with_their_names(trained: Path, tmp_path: Path) -> None:
    lost = ["model.diffusion_model.output_blocks.2.1.conv.weight", "first_stage_model.encoder.conv_in.bias"]
    path = write_raw(tmp_path / "in.safetensors", {k: v for k, v in read_raw(trained)[0].items() if k not in lost})
    out = tmp_path / "out.safetensors"
    refused(sds("prune", path, "--preset", "inference", "-o", out), 3, *lost, "685 of 686", "--preset no-ema")
    done(sds("prune", path, "--preset", "no-ema", "-o", out))


def test_inference_keeps_what_makes_another_kind_of_a_network(tmp_path: Path) -> None:
    """A ControlNet's zero convolutions, the time layers of a video model, the guidance of an LCM."""
    one = ("F16", [4], bytes(8))
    unet = {"input_blocks.0.0.weight": ("F16", [320, 4, 3, 3], bytes(2 * 320 * 36)), "time_embed.0.weight": one}
    for beside in ("zero_convs.0.0.weight", "input_blocks.1.0.time_stack.in_layers.0.weight"):
        path, out = tmp_path / f"{beside}.safetensors", tmp_path / f"{beside}.out.safetensors"
        write_raw(path, {**unet, beside: one})
        done(sds("prune", path, "--preset", "inference", "-o", out))
        assert set(read_raw(out)[0]) == {*unet, beside}


def test_unknown_keys_are_kept_and_listed_unless_strict(trained: Path, tmp_path: Path) -> None:
    kept = sdsurgery.prune(trained, out=tmp_path / "a.safetensors")
    assert any(STRANGE in note for note in kept.notes)
    strict = sdsurgery.prune(trained, out=tmp_path / "b.safetensors", strict=True)
    assert STRANGE in read_raw(tmp_path / "a.safetensors")[0]
    assert STRANGE not in read_raw(tmp_path / "b.safetensors")[0]
    assert any("strict" in reason for reason in strict.dropped)


def test_components_and_expressions(trained: Path, tmp_path: Path) -> None:
    options = ("--drop", "vae,ema", "--drop-keys", "^betas$", "--keep-keys", r"post_quant_conv\.bias")
    found = pruned(trained, tmp_path / "o.safetensors", *options)
    assert [name for name in found if name.startswith("first_stage_model")] == [
        "first_stage_model.post_quant_conv.bias"
    ]
    assert "betas" not in found
    assert "alphas_cumprod" in found
    more = ["--drop", "vae", "--drop", "ema, buffers", "--drop-keys", "strange", "--drop-keys", "^v_"]
    more += ["--keep-keys", "^betas$", "--keep-keys", "^posterior_mean_coef1$"]
    found = pruned(trained, tmp_path / "more.safetensors", *more)
    left = [name for name in found if not name.startswith(("model.diffusion_model.", "cond_stage_model."))]
    assert left == ["betas", "posterior_mean_coef1", V_PRED], "given twice, an option means both"


U, C, X = "model.diffusion_model.", "cond_stage_model.model.", "conditioner.embedders."
# What AUTOMATIC1111's web UI (A) and diffusers (D) look at; the widths of the first convolution count for both.
PROGRAMS = {
    "sd1": [U + "output_blocks.11.0.skip_connection.weight"],
    "sd1-inpainting": [],
    "sd1-pix2pix": [],
    "sd2": [U + "input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"],
    "sd2-inpainting": [C + "transformer.resblocks.0.attn.in_proj_weight"],
    "sd2-depth": ["depth_model.model.pretrained.act_postprocess3.0.project.0.bias"],
    "sd2-unclip-h": ["embedder.model.ln_final.weight"],
    "sd2-x4-upscaler": [U + "input_blocks.10.0.skip_connection.bias"],
    "sdxl-base": [X + "1.model.ln_final.weight", X + "1.model.transformer.resblocks.9.mlp.c_proj.bias"],
    "sdxl-inpainting": [X + "1.model.ln_final.weight"],
    "sdxl-edit": [X + "1.model.ln_final.weight"],
    "sdxl-refiner": [X + "0.model.ln_final.weight", X + "0.model.transformer.resblocks.9.mlp.c_proj.bias"],
}  # fmt: skip


@pytest.mark.parametrize("family", FULL)
def test_what_programs_recognise_a_family_by_is_never_dropped(family: str, tmp_path: Path) -> None:
    path, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    write_checkpoint(path, family, size="tiny")
    components = ["vae", "text_encoder", "text_encoder_2", "image_encoder", "depth", "buffers", "other"]
    report = sdsurgery.prune(path, out=out, sync=False, drop=components, drop_keys=".", strict=True)
    found = read_raw(out)[0]
    assert {U + "input_blocks.0.0.weight", *PROGRAMS[family]} <= set(found)
    assert len(found) < 12, "and nothing more than a few tensors"
    assert sdsurgery.inspect(out).family == family
    assert any("recognise the family" in note for note in report.notes)


def test_recognition_and_markers_survive_any_expression(trained: Path, tmp_path: Path) -> None:
    found = pruned(trained, tmp_path / "o.safetensors", "--drop-keys", ".", "--keep-keys", "nothing")
    assert {V_PRED, *get("sd1").discriminators()} <= set(found)
    assert sdsurgery.inspect(tmp_path / "o.safetensors").family == "sd1"


@pytest.mark.parametrize("preset", ["full", "no-ema", "ema-only", "inference"])
def test_a_training_checkpoint_leaves_its_leftovers_behind(preset: str, tmp_path: Path) -> None:
    import torch

    write_checkpoint(tmp_path / "tiny.safetensors", "sd1", size="tiny", ema=True)
    from safetensors.torch import load_file

    state = load_file(tmp_path / "tiny.safetensors")
    moments = {0: {"exp_avg": torch.ones(1000), "exp_avg_sq": torch.ones(1000)}}
    torch.save(
        {
            "state_dict": state, "epoch": 3, "global_step": 7, "callbacks": {"x": {"best": torch.ones(500)}},
            "loops": {"fit": {"done": torch.ones(500)}}, "lr_schedulers": [],
            "optimizer_states": [{"state": moments, "param_groups": []}],
        },
        tmp_path / "in.ckpt",
    )  # fmt: skip
    report = sdsurgery.prune(tmp_path / "in.ckpt", preset=preset, out=tmp_path / "o.safetensors", sync=False)
    found = read_raw(tmp_path / "o.safetensors")[0]
    assert set(found) <= set(state)
    assert report.bytes_read <= sum(tensor.nbytes for tensor in state.values())


def test_training_leftovers_never_survive(trained: Path, tmp_path: Path) -> None:
    assert not [n for n in pruned(trained, tmp_path / "o.safetensors", "--keep-keys", ".") if is_training(n)]


def test_the_report_counts_the_bytes_saved_and_dropped_tensors_are_not_read(trained: Path) -> None:
    report = sdsurgery.prune(trained, preset="no-ema", dry_run=True)
    tensors = read_raw(trained)[0]
    gone = sum(len(r[2]) for n, r in tensors.items() if n.startswith("model_ema.") or is_training(n))
    assert report.bytes_saved == gone
    assert sum(row["bytes"] for row in report.dropped_components.values()) == gone
    assert report.dropped_components["ema"]["tensors"] == 688
    assert report.dropped_components["optimizer"]["tensors"] == 2
    printed = done(sds("prune", trained, "--preset", "no-ema", "--dry-run")).out
    assert f"{gone:,} bytes smaller" in printed
    assert report.bytes_read == sum(len(raw[2]) for raw in tensors.values()) - gone


def test_refusals(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.safetensors"
    odd = write_raw(tmp_path / "odd.safetensors", {"w": ("F32", [1], f32(1))})
    refused(sds("prune", odd, "--preset", "inference", "-o", out), 3, "known family")
    refused(sds("prune", odd, "--drop-keys", "w", "-o", out), 3, "nothing would be left")
    empty = write_raw(tmp_path / "empty.safetensors", {})
    assert "EMA" not in refused(sds("prune", empty, "-o", out), 3, "nothing would be left of its 0 tensors")
    refused(sds("prune", odd, "--preset", "ema-only", "-o", out), 3, "no EMA")
    refused(sds("prune", odd, "--preset", "small", "-o", out), 2, "no-ema")
    refused(sds("prune", odd, "--drop", "vea", "-o", out), 2, "'vae'")
    refused(sds("prune", odd, "--keep-keys", "(", "-o", out), 2, "regular expression")
    with pytest.raises(UsageError):
        sdsurgery.prune(trained, out=out, drop=["unet"])


@pytest.mark.parametrize("words", [("prune", "--drop", "vae"), ("cast", "--dtype", "bf16"), ("ema",)])
def test_many_files_go_into_a_folder_under_their_names(words: tuple[str, ...], tmp_path: Path) -> None:
    for seed in range(2):
        write_checkpoint(tmp_path / f"m{seed}.safetensors", "sd1", size="tiny", seed=seed, ema=True)
    (tmp_path / "bad.safetensors").write_bytes(bytes(100))
    files = [tmp_path / f"m{seed}.safetensors" for seed in range(2)]
    small = tmp_path / "small"
    done(sds(*words, *files, "--out-dir", small))
    for file in files:
        done(sds(*words, file, "-o", tmp_path / f"one-{file.name}"))
        assert read_raw(small / file.name)[0] == read_raw(tmp_path / f"one-{file.name}")[0]
    found = sds(*words, tmp_path / "bad.safetensors", files[0], "--out-dir", tmp_path / "other")
    assert found.rc == 3
    assert "1 of 2 files were not written" in found.err
    assert (tmp_path / "other" / files[0].name).exists(), "one that fails does not stop the others"
    refused(sds(*words, *files, "-o", tmp_path / "o.safetensors"), 2, "--out-dir")
