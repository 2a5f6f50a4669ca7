"""Inputs whose names differ by what stands in front or inside, or are those of diffusers, ComfyUI or a trainer."""

from __future__ import annotations

from pathlib import Path

import pytest
import sdsurgery
from cli_support import Raw, done, f32, read_raw, refused, sds, write_raw
from sdsurgery.layouts import get
from sdsurgery.layouts.diffusers import mapping
from sdsurgery.testing import write_checkpoint

UNET = "model.diffusion_model."
BLOCKS = ("input_blocks.1.0.norm.weight", "input_blocks.1.0.conv.weight", "output_blocks.1.0.conv.weight")


def net(prefix: str, value: float, keys: tuple[str, ...] = BLOCKS) -> dict[str, Raw]:
    return {prefix + key: ("F32", [2], f32(value, 2 * value)) for key in keys}


OF_PARTS = {UNET: "unet.", "cond_stage_model.transformer.": "encoder.", "conditioner.": "t.",
            "first_stage_model.": "autoencoder."}  # fmt: skip
WRAPPED = {"": "x.y."}
IN_FORGE = {"conditioner.embedders.0.": "text_encoders.clip_l.", "first_stage_model.": "vae."}


def renamed(tensors: dict[str, Raw], fronts: dict[str, str]) -> dict[str, Raw]:
    for old, new in fronts.items():
        tensors = {new + name[len(old) :] if name.startswith(old) else name: raw for name, raw in tensors.items()}
    return tensors


@pytest.mark.parametrize(
    "prefix",
    ["", "diffusion_model.", "module.", "model.module.", "_forward_module.", "_orig_mod." + UNET, "ema_model." + UNET,
     UNET + "_orig_mod.", "_orig_mod.", "net.", "any.thing."],
)  # fmt: skip
@pytest.mark.parametrize(
    "keys", [BLOCKS, ("double_blocks.0.img_attn.norm.key_norm.scale", "single_blocks.0.linear1.w")]
)
def test_a_constant_prefix_or_infix_is_seen_and_told_once(prefix: str, keys: tuple[str, ...], tmp_path: Path) -> None:
    a = write_raw(tmp_path / "a.safetensors", net(UNET, 1, keys))
    b = write_raw(tmp_path / "b.safetensors", net(prefix, 3, keys))
    for first, second, name in ((a, b, UNET), (b, a, prefix)):
        report = sdsurgery.merge(
            "weighted-sum", [first, second], alpha=0.5, out=tmp_path / "o.safetensors", overwrite=True
        )
        assert read_raw(tmp_path / "o.safetensors")[0] == net(name, 2, keys), "the output has A's names"
        assert sum("names" in note and "under" in note for note in report.notes) == 1


def test_under_any_front_a_name_means_what_it_means_without(tmp_path: Path) -> None:
    plain, wrapped = tmp_path / "plain.safetensors", tmp_path / "wrapped.safetensors"
    write_checkpoint(plain, "sd1", size="tiny", ema=True, seed=1)
    write_checkpoint(tmp_path / "b.safetensors", "sd1", size="tiny", seed=2)
    write_raw(wrapped, renamed(read_raw(plain)[0], WRAPPED))

    def same(verb: str, *given: object, **options: object) -> None:
        made = []
        for path in (plain, wrapped):
            arguments = [*given[:1], [path, *given[1:]]] if verb == "merge" else [path]
            getattr(sdsurgery, verb)(*arguments, out=tmp_path / "o.safetensors", overwrite=True, **options)
            made.append(read_raw(tmp_path / "o.safetensors")[0])
        assert made[1] in (made[0], renamed(made[0], WRAPPED))

    same("merge", "weighted-sum", tmp_path / "b.safetensors", alpha=0.5, blocks="IN04=1,BASE=0")
    same("merge", "cosine-a", tmp_path / "b.safetensors", alpha=0.3)  # which treats some tensors apart, by their names
    same("merge", "dare.density", tmp_path / "b.safetensors", density=0.5, seed=1)  # whose draws go by the name
    same("prune", preset="inference")
    same("prune", preset="ema-only")
    same("extract", component="vae", strip_prefix=True)
    same("cast", fix_names=True)


def test_a_donor_may_stand_under_any_front(tmp_path: Path) -> None:
    a, b, wrapped, out = (tmp_path / f"{name}.safetensors" for name in ("a", "b", "wrapped", "o"))
    write_checkpoint(a, "sd1", size="tiny", seed=1)
    write_checkpoint(b, "sd1", size="tiny", seed=2)
    write_raw(wrapped, renamed(read_raw(b)[0], WRAPPED))
    for component in ("vae", "unet", "text_encoder"):
        made = []
        for donor in (b, wrapped):
            sdsurgery.replace(a, {component: donor}, out=out, overwrite=True)
            made.append(read_raw(out)[0])
        assert made[0] == made[1]


@pytest.mark.parametrize(("old", "new"), [("", "any.thing."), ("cond_stage_model.", "text_encoders.clip_l.")])
def test_a_text_encoder_under_another_front_is_not_called_missing(old: str, new: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a.safetensors", "sd1", size="tiny")
    tensors, _ = read_raw(tmp_path / "a.safetensors")
    renamed = {new + name.removeprefix(old) if name.startswith(old) else name: raw for name, raw in tensors.items()}
    write_raw(tmp_path / "b.safetensors", renamed)
    report = sdsurgery.merge("weighted-sum", [tmp_path / "a.safetensors", tmp_path / "b.safetensors"], dry_run=True)
    assert report.counts["merged"] > 1000
    assert not [note for note in report.notes if note.startswith("text encoders:")]


def test_compiled_blocks_inside_are_understood_too(tmp_path: Path) -> None:
    inside = {key.replace("input_blocks.1.", "input_blocks.1._orig_mod."): raw for key, raw in net(UNET, 3).items()}
    a, b = write_raw(tmp_path / "a", net(UNET, 1)), write_raw(tmp_path / "b", inside)
    sdsurgery.merge("weighted-sum", [a, b], alpha=0.5, out=tmp_path / "o.safetensors")
    assert read_raw(tmp_path / "o.safetensors")[0] == net(UNET, 2)


def test_tensors_of_another_shape_are_no_reason_to_pair_names(tmp_path: Path) -> None:
    a = write_raw(tmp_path / "a", net("one.", 1))
    b = write_raw(tmp_path / "b", {key: ("F32", [1], f32(3)) for key in net("two.", 3)})
    refused(sds("merge", "--method", "weighted-sum", a, b, "-o", tmp_path / "o.safetensors"), 3, "little in common")


@pytest.mark.parametrize(
    ("family", "first", "second"),
    [("sd1", {}, OF_PARTS), ("sd1", WRAPPED, OF_PARTS), ("sdxl-base", OF_PARTS, WRAPPED),
     ("sdxl-base", IN_FORGE, OF_PARTS)],
)  # fmt: skip
def test_parts_under_names_of_their_own_are_matched_one_by_one(
    family: str, first: dict[str, str], second: dict[str, str], tmp_path: Path
) -> None:
    plain, own = [], []
    for name, fronts in (("a", first), ("b", second)):
        plain.append(tmp_path / f"{name}.safetensors")
        write_checkpoint(plain[-1], family, size="tiny", seed=ord(name))
        own.append(write_raw(tmp_path / f"{name}-own.safetensors", renamed(read_raw(plain[-1])[0], fronts)))
    sdsurgery.merge("weighted-sum", plain, out=tmp_path / "expected.safetensors")
    report = sdsurgery.merge("weighted-sum", own, out=tmp_path / "o.safetensors")
    assert read_raw(tmp_path / "o.safetensors")[0] == renamed(read_raw(tmp_path / "expected.safetensors")[0], first)
    assert len({note for note in report.notes if "read as names" in note}) == len(
        [note for note in report.notes if "read as names" in note]
    ), "each is told once"


def test_a_second_network_does_not_lend_what_the_first_lacks(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a.safetensors", "sd1", size="tiny", seed=1)
    write_checkpoint(tmp_path / "b.safetensors", "sd1", size="tiny", seed=2)
    tensors, _ = read_raw(tmp_path / "b.safetensors")
    teacher = {"teacher." + name[len(UNET) :]: raw for name, raw in tensors.items() if name.startswith(UNET)}
    lacking = [name for name in tensors if name.startswith(UNET + "input_blocks.4.")]
    left = {name: raw for name, raw in tensors.items() if name not in lacking}
    write_raw(tmp_path / "b.safetensors", {**left, **teacher})
    a, out = tmp_path / "a.safetensors", tmp_path / "o.safetensors"
    report = sdsurgery.merge("weighted-sum", [a, tmp_path / "b.safetensors"], out=out)
    before, after = read_raw(a)[0], read_raw(out)[0]
    assert report.counts["kept"] == len(lacking) > 20
    assert all(after[name] == before[name] for name in lacking)


def test_the_last_segment_of_a_name_alone_is_no_sign(tmp_path: Path) -> None:
    a = write_raw(tmp_path / "a", {**net(UNET, 1), "one.bias": ("F32", [2], f32(1, 1))})
    b = write_raw(tmp_path / "b", {**net(UNET, 3), "two.bias": ("F32", [2], f32(5, 5))})
    sdsurgery.merge("weighted-sum", [a, b], out=tmp_path / "o.safetensors")
    assert read_raw(tmp_path / "o.safetensors")[0]["one.bias"] == ("F32", [2], f32(1, 1))


def diffusers(tensors: dict[str, Raw], family: str, component: str) -> dict[str, Raw]:
    found = {}
    for row in mapping(get(family)):
        if row.component == component and row.key and row.ldm_key in tensors:
            dtype, shape, data = tensors[row.ldm_key]
            found[row.key] = (dtype, shape[:2] if row.transform.startswith("squeeze") else shape, data)
    return found


def test_a_network_or_vae_alone_in_diffusers_names_gets_the_original_ones(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a.safetensors", "sd1", size="tiny")
    tensors = read_raw(tmp_path / "a.safetensors")[0]
    for component, prefix, kept in (("unet", UNET, UNET), ("vae", "first_stage_model.", "")):
        path = write_raw(tmp_path / "part.safetensors", diffusers(tensors, "sd1", component))
        sdsurgery.cast(path, fix_names=True, out=tmp_path / "o.safetensors", overwrite=True)
        own = {kept + name[len(prefix) :]: raw for name, raw in tensors.items() if name.startswith(prefix)}
        assert read_raw(tmp_path / "o.safetensors")[0] == own


def test_q_k_and_v_of_transformers_are_joined_to_openclip_s_matrix(tmp_path: Path) -> None:
    """SDXL as ComfyUI and Forge name it, the second encoder in transformers' names: the same file comes out."""
    write_checkpoint(tmp_path / "a.safetensors", "sdxl-base", size="tiny")
    tensors = read_raw(tmp_path / "a.safetensors")[0]
    place, forge = "conditioner.embedders.1.", "text_encoders.clip_g.transformer."
    given = {name: raw for name, raw in tensors.items() if not name.startswith(place)}
    for row in mapping(get("sdxl-base")):
        if row.component == "text_encoder_2" and row.key and row.ldm_key in tensors and row.transform != "transpose":
            dtype, shape, data = tensors[row.ldm_key]
            if row.transform.startswith("split_qkv"):
                at, size = int(row.transform[-1]), len(data) // 3
                shape, data = [shape[0] // 3, *shape[1:]], data[at * size : (at + 1) * size]
            given[forge + row.key] = (dtype, shape, data)
    path, out = write_raw(tmp_path / "forge.safetensors", given), tmp_path / "o.safetensors"
    lost = {place + "model.text_projection", place + "model.logit_scale"}
    assert sdsurgery.inspect(path).absent == [place + "model.text_projection"]
    sdsurgery.cast(path, fix_names=True, out=out)
    assert read_raw(out)[0] == {name: raw for name, raw in tensors.items() if name not in lost}
    sdsurgery.merge(
        "weighted-sum", [tmp_path / "a.safetensors", path], alpha=1, fix_names=True, out=out, overwrite=True
    )
    assert read_raw(out)[0] == tensors, "joined operands are merged"
    broken = {name: raw for name, raw in given.items() if "layers.3.self_attn.k_proj.weight" not in name}
    line = refused(sds("cast", write_raw(path, broken), "--fix-names", "-o", out, "--force"), 3, "q, k and v")
    assert "resblocks.3.attn.in_proj_weight" in line


def test_an_inpainting_network_and_a_difference_make_one_sound_checkpoint(tmp_path: Path) -> None:
    """The published SDXL inpainting U-Net is in diffusers' names: with what is added it gets the original ones."""
    for name, family in (("wide", "sdxl-inpainting"), ("b", "sdxl-base"), ("c", "sdxl-base")):
        write_checkpoint(tmp_path / f"{name}.safetensors", family, size="tiny", seed=ord(name[0]))
    unet = diffusers(read_raw(tmp_path / "wide.safetensors")[0], "sdxl-inpainting", "unet")
    a, out = write_raw(tmp_path / "a.safetensors", unet), tmp_path / "o.safetensors"
    inputs = (a, tmp_path / "b.safetensors", tmp_path / "c.safetensors")
    done(sds("merge", "--method", "add-diff", *inputs, "--add-missing", "-o", out))
    found = sdsurgery.inspect(out)
    assert found.family == "sdxl-inpainting"
    assert found.absent == []
    assert set(read_raw(out)[0]) == {row.key for row in get("sdxl-inpainting").tensors()}


def test_a_decoder_of_the_maker_s_own_keeps_its_names(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a.safetensors", "sd1", size="tiny")
    own = {"decoder.0.weight": ("F32", [2], f32(1, 2)), "decoder.3.conv.bias": ("F32", [1], f32(1))}
    path = write_raw(tmp_path / "in.safetensors", {**read_raw(tmp_path / "a.safetensors")[0], **own})
    sdsurgery.cast(path, fix_names=True, out=tmp_path / "o.safetensors")
    assert read_raw(tmp_path / "o.safetensors")[0] == read_raw(path)[0]
    sdsurgery.extract(path, "vae", strip_prefix=True, out=tmp_path / "vae.safetensors")
    assert not own.keys() & read_raw(tmp_path / "vae.safetensors")[0].keys()


def test_a_merge_says_what_a_lacks_and_that_it_can_be_added(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "b.safetensors", "sd1", size="tiny")
    tensors = read_raw(tmp_path / "b.safetensors")[0]
    cut = {name: raw for name, raw in tensors.items() if not name.startswith("first_stage_model.")}
    a, out = write_raw(tmp_path / "a.safetensors", cut), tmp_path / "o.safetensors"
    words = ("merge", "--method", "weighted-sum", a, tmp_path / "b.safetensors", "-o", out, "--force")
    assert "A has no VAE" in (said := done(sds(*words)).err)
    assert "--add-missing" in said
    assert "A has no VAE" not in done(sds(*words, "--add-missing")).err


def test_leftovers_of_a_trainer_are_not_called_tensors_that_a_family_may_lack(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "b.safetensors", "sd1", size="tiny")
    tensors = read_raw(tmp_path / "b.safetensors")[0]
    more = {"embedding_manager.embedder.x.weight": ("F32", [1], f32(1)), "no.one.knows": ("F32", [1], f32(1))}
    a = write_raw(tmp_path / "a.safetensors", {**tensors, **more})
    report = sdsurgery.merge("weighted-sum", [a, tmp_path / "b.safetensors"], alpha=0.5, out=tmp_path / "o.safetensors")
    assert not [note for note in report.notes if "may lack" in note]


def test_a_difference_is_added_to_tensors_under_other_names(tmp_path: Path) -> None:
    """A ControlNet is moved to another base: it gets what that U-Net has beyond the one that it was made with."""
    shape = {
        "input_blocks.0.0.weight": 2,
        "input_blocks.1.0.in_layers.2.weight": 2,
        "middle_block.0.out_layers.3.bias": 2,
    }
    net = {f"control_model.{key}": ("F32", [2], f32(1, 1)) for key in shape}
    own = {"control_model.input_hint_block.0.weight": ("F32", [1], f32(5))}
    base = {UNET + key: ("F32", [2], f32(3, 3)) for key in shape} | {UNET + "out.0.weight": ("F32", [1], f32(9))}
    old = {UNET + key: ("F32", [2], f32(1, 2)) for key in shape}
    files = [write_raw(tmp_path / f"{n}.safetensors", part) for n, part in enumerate((net | own, base, old))]
    words = ("merge", "--method", "add-diff", *files, "-o", tmp_path / "o.safetensors")
    line = refused(sds(*words, "--map", "control_model."), 2, "OLD=NEW")
    assert "control_model." in line
    said = done(sds(*words, "--map", f"{UNET}=control_model.")).err
    assert f"4 names under '{UNET}' read under 'control_model.'" in said
    merged = {key: ("F32", [2], f32(3, 2)) for key in net}
    assert read_raw(tmp_path / "o.safetensors")[0] == merged | own
    report = sdsurgery.merge("add-diff", files, map={UNET: "control_model."}, out=tmp_path / "p.safetensors")
    assert report.recipe["map"] == [f"{UNET}=control_model."]


@pytest.mark.parametrize(("prefix", "inner"), [("", "text_model."), ("", ""), ("clip_g.transformer.", "text_model.")])
@pytest.mark.parametrize(("family", "component"), [("sdxl-base", "text_encoder_2"), ("sd2", "text_encoder")])
def test_an_openclip_encoder_alone_in_transformers_names_gets_open_clip_s(
    family: str, component: str, prefix: str, inner: str, tmp_path: Path
) -> None:
    from sdsurgery.layouts.diffusers_names import openclip_keys

    name = {"sdxl-base": "openclip-g", "sd2": "openclip-h"}[family]
    write_checkpoint(tmp_path / "whole.safetensors", family, size="tiny")
    own = tmp_path / "own.safetensors"
    sdsurgery.extract(tmp_path / "whole.safetensors", component, strip_prefix=True, out=own)
    wanted = read_raw(own)[0]
    foreign: dict[str, Raw] = {}
    for key, (dtype, shape, data) in wanted.items():
        for new, transform in openclip_keys(key, penultimate=False):
            if new is None:
                continue
            third = len(data) // 3
            part = data[int(transform[-1]) * third :][:third] if transform.startswith("split") else data
            rows = [shape[0] // 3, *shape[1:]] if transform.startswith("split") else shape
            if transform == "transpose":
                size = len(data) // shape[0] // shape[1]
                cells = [data[at : at + size] for at in range(0, len(data), size)]
                part = b"".join(cells[row * shape[1] + column] for column in range(shape[1]) for row in range(shape[0]))
            foreign[prefix + (new if new.startswith("text_p") else inner + new.removeprefix("text_model."))] = (
                dtype, rows, part,
            )  # fmt: skip
    given = write_raw(tmp_path / "foreign.safetensors", foreign)
    assert sdsurgery.inspect(given).family == name.replace("open", "")
    done(sds("cast", given, "--fix-names", "-o", tmp_path / "o.safetensors"))
    assert read_raw(tmp_path / "o.safetensors")[0] == {k: raw for k, raw in wanted.items() if k != "logit_scale"}
    assert sdsurgery.inspect(tmp_path / "o.safetensors").family == name


@pytest.mark.parametrize("prefix", ["module.", "x.y."])
def test_adapters_of_a_file_under_any_front_are_those_of_the_file_without(prefix: str, tmp_path: Path) -> None:
    bare, base, under = (tmp_path / f"{name}.safetensors" for name in ("bare", "base", "under"))
    for seed, path in enumerate((bare, base)):
        write_checkpoint(path, "sd1", size="tiny", seed=seed, keep=lambda row: row.component == "unet")
    write_raw(under, renamed(read_raw(bare)[0], {"": prefix}))
    wanted, found, baked = (tmp_path / f"{name}.safetensors" for name in ("wanted", "found", "baked"))
    for tuned, out in ((bare, wanted), (under, found)):
        sdsurgery.extract_lora(tuned, base, rank=2, out=out)
    assert sdsurgery.compare(wanted, found).equal
    sdsurgery.bake(bare, {wanted: 0.5}, out=out, overwrite=True)
    sdsurgery.bake(under, {wanted: 0.5}, out=baked)
    assert sdsurgery.compare(out, baked, fix_names=True).equal
    assert any(note.startswith("no tensor has the same name in both") for note in sdsurgery.compare(out, baked).notes)
