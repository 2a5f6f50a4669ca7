"""merge's preflight: what is refused before it begins, what is only noted, and inputs with old or foreign names."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import sdsurgery
from cli_support import done, f32, plain, read_raw, refused, sds, transposed, write_raw
from layout_tools import BASES
from sdsurgery import layouts
from sdsurgery.errors import InputRefused
from sdsurgery.layouts import diffusers
from sdsurgery.testing import write_checkpoint

UNET = "model.diffusion_model."
CLIP = "cond_stage_model.transformer."
IDS = CLIP + "text_model.embeddings.position_ids"
BIAS = "output_blocks.11.1.transformer_blocks.0.norm1.bias"
Tensors = dict[str, Any]


@pytest.fixture(scope="module", name="folder")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for family in BASES:
        for seed, name in enumerate("ab"):
            write_checkpoint(folder / f"{family}-{name}.safetensors", family, size="tiny", seed=seed)
    return folder


def changed(
    source: Path, target: Path, change: Callable[[Tensors], Tensors], metadata: Mapping[str, str] | None = None
) -> Path:
    """A copy of a file with other tensors or names."""
    tensors, own = read_raw(source)
    return write_raw(target, change(tensors), {**own, **(metadata or {})})


def renamed(rule: Callable[[str], str]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {rule(name): raw for name, raw in tensors.items()}


def merged(paths: list[Path], out: Path, **options: Any) -> tuple[Tensors, list[str]]:
    report = sdsurgery.merge("weighted-sum", paths, out=out, alpha=0.25, hash=False, **options)
    return read_raw(out)[0], report.notes


# ---- old and foreign names


OLD_ATTENTION = {"q": "query", "k": "key", "v": "value", "proj_out": "proj_attn", "norm": "group_norm"}


def nai(name: str) -> str:
    return name.replace(CLIP + "text_model.", CLIP)


def old_vae(name: str) -> str:
    match = re.fullmatch(r"(first_stage_model\..*\.mid\.attn_1\.)(\w+)(\..*)", name)
    return f"{match[1]}{OLD_ATTENTION[match[2]]}{match[3]}" if match else name


SPELLINGS: dict[str, Callable[[str], str]] = {
    "NAI's CLIP": nai,
    "the VAE's old attention names": old_vae,
    "state_dict. around it": lambda name: "state_dict." + name,
    "module. around it": lambda name: "module." + name,
    "model. around it": lambda name: "model." + name,
    "all at once": lambda name: "state_dict." + nai(old_vae(name)),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_an_input_with_other_names_is_merged_as_under_as_own(spelling: str, folder: Path, tmp_path: Path) -> None:
    a, b = folder / "sd1-a.safetensors", folder / "sd1-b.safetensors"
    old = changed(b, tmp_path / "old.safetensors", renamed(SPELLINGS[spelling]))
    want, _ = merged([a, b], tmp_path / "want.safetensors")
    got, notes = merged([a, old], tmp_path / "got.safetensors")
    assert got == want
    assert any(re.search(r"B \(.*old\.safetensors\): [0-9,]+ tensors found under other names", note) for note in notes)
    assert not any(note.startswith(("text encoders:", "position_ids:", "warning:")) for note in notes)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_where_a_has_the_other_names_the_output_keeps_them(spelling: str, folder: Path, tmp_path: Path) -> None:
    rule = SPELLINGS[spelling]
    a, b = folder / "sd1-a.safetensors", folder / "sd1-b.safetensors"
    old = changed(a, tmp_path / "old.safetensors", renamed(rule))
    want, _ = merged([a, b], tmp_path / "want.safetensors")
    got, _ = merged([old, b], tmp_path / "got.safetensors")
    assert got == {rule(name): raw for name, raw in want.items()}


def test_sgm_names_of_sd2s_encoder_are_understood(folder: Path, tmp_path: Path) -> None:
    a, b = folder / "sd2-a.safetensors", folder / "sd2-b.safetensors"
    place = ("cond_stage_model.model.", "conditioner.embedders.0.model.")
    turbo = changed(b, tmp_path / "turbo.safetensors", renamed(lambda name: name.replace(*place)))
    want, _ = merged([a, b], tmp_path / "want.safetensors")
    got, notes = merged([a, turbo], tmp_path / "got.safetensors")
    assert got == want
    assert any("OpenCLIP-H: sgm names in B" in note and "usual names in A" in note for note in notes)


def test_a_bare_unet_merges_with_a_whole_model_in_both_orders(folder: Path, tmp_path: Path) -> None:
    a, b = folder / "sd1-a.safetensors", folder / "sd1-b.safetensors"
    bare = changed(b, tmp_path / "unet.safetensors",
                   lambda all: {n.removeprefix(UNET): raw for n, raw in all.items() if n.startswith(UNET)})  # fmt: skip
    want, _ = merged([a, b], tmp_path / "want.safetensors")
    own, _ = read_raw(a)
    got, _ = merged([a, bare], tmp_path / "got.safetensors")
    assert got == {name: want[name] if name.startswith(UNET) else own[name] for name in want}
    there, _ = merged([b, a], tmp_path / "there.safetensors")
    back, _ = merged([bare, a], tmp_path / "back.safetensors")
    assert back == {n.removeprefix(UNET): raw for n, raw in there.items() if n.startswith(UNET)}


@pytest.mark.parametrize("family", BASES)
def test_a_unet_in_diffusers_names_merges_with_a_whole_model_in_both_orders(
    family: str, folder: Path, tmp_path: Path
) -> None:
    new = {row.ldm_key: row.key for row in diffusers.mapping(layouts.get(family)) if row.component == "unet"}
    assert all(new.values())
    a, b = folder / f"{family}-a.safetensors", folder / f"{family}-b.safetensors"
    foreign = changed(b, tmp_path / "unet.safetensors", lambda all: {new[n]: t for n, t in all.items() if n in new})
    with sdsurgery.open(foreign) as checkpoint:
        assert layouts.detect(checkpoint.tensors).layout.name == f"{family}-diffusers"
    options = {"blocks": "GRAD_A,BASE=0.3"}
    want, _ = merged([a, b], tmp_path / "want.safetensors", **options)
    got, notes = merged([a, foreign], tmp_path / "got.safetensors", **options)
    assert {n: t for n, t in got.items() if n in new} == {n: t for n, t in want.items() if n in new}
    assert any(f"{len(new):,} tensors found under other names" in note for note in notes)
    there, _ = merged([b, a], tmp_path / "there.safetensors", **options)
    back, _ = merged([foreign, a], tmp_path / "back.safetensors", **options)
    assert back == {new[n]: t for n, t in there.items() if n in new}


def test_blocks_and_rules_go_by_as_names(folder: Path, tmp_path: Path) -> None:
    a, b = folder / "sd1-a.safetensors", folder / "sd1-b.safetensors"
    old = changed(b, tmp_path / "old.safetensors", renamed(SPELLINGS["all at once"]))
    options = {"blocks": "GRAD_V,BASE=0.3", "rules": {r"text_model\.encoder": 0.9}}
    want, _ = merged([a, b], tmp_path / "want.safetensors", **options)
    got, _ = merged([a, old], tmp_path / "got.safetensors", **options)
    assert got == want


PROJECTION = "conditioner.embedders.1.model.text_projection"


@pytest.mark.parametrize("foreign", ["A", "B"])
def test_a_transposed_projection_is_transposed_and_noted(foreign: str, folder: Path, tmp_path: Path) -> None:
    paths = [folder / "sdxl-base-a.safetensors", folder / "sdxl-base-b.safetensors"]
    want, _ = merged(paths, tmp_path / "want.safetensors")
    if foreign == "A":  # the output has A's names and A's orientation
        want[PROJECTION + ".weight"] = transposed(want.pop(PROJECTION))
    tensors, metadata = read_raw(paths["AB".index(foreign)])
    tensors[PROJECTION + ".weight"] = transposed(tensors.pop(PROJECTION))
    paths["AB".index(foreign)] = write_raw(tmp_path / "foreign.safetensors", tensors, metadata)
    got, notes = merged(paths, tmp_path / "got.safetensors")
    assert got == want
    assert any("transposed matrix" in note for note in notes)


# ---- text encoders


def test_different_text_encoders_are_noted(folder: Path, tmp_path: Path) -> None:
    a, b = folder / "sd1-a.safetensors", folder / "sd1-b.safetensors"
    old = changed(b, tmp_path / "old.safetensors", renamed(nai))
    _, notes = merged([a, old], tmp_path / "o.safetensors")
    found = [note for note in notes if note.startswith("text encoder CLIP-L: old names")]
    assert len(found) == 1
    assert "usual names in A; its tensors were matched anyway" in found[0]
    none = changed(b, tmp_path / "none.safetensors", lambda all: {n: t for n, t in all.items() if CLIP not in n})
    _, notes = merged([a, none], tmp_path / "p.safetensors")
    assert any(note.startswith("text encoders: A has CLIP-L, B (") and note.endswith("has none") for note in notes)


def test_position_ids_in_one_input_only_are_explained(folder: Path, tmp_path: Path) -> None:
    a = folder / "sd1-a.safetensors"
    without = changed(a, tmp_path / "without.safetensors", lambda all: {n: t for n, t in all.items() if n != IDS})
    got, notes = merged([a, without], tmp_path / "o.safetensors")
    assert IDS in got
    assert any(note.startswith("position_ids: A has them, B (") and "A's are copied" in note for note in notes)
    got, notes = merged([without, a], tmp_path / "p.safetensors")
    assert IDS not in got
    assert any("has them, A has none" in note and "fix_clip=True adds them" in note for note in notes)
    got, notes = merged([without, a], tmp_path / "r.safetensors", fix_clip=True)
    assert IDS in got
    assert not any(note.startswith("position_ids:") for note in notes)
    assert not any("position_ids:" in note for note in merged([a, a], tmp_path / "q.safetensors")[1])


def test_every_verb_that_copies_wrong_position_ids_notes_them(folder: Path, tmp_path: Path) -> None:
    a, b = folder / "sd1-a.safetensors", folder / "sd1-b.safetensors"

    ids = struct.pack("<77e", *range(7), 6.996, *range(8, 77))
    wrong = changed(a, tmp_path / "wrong.safetensors", lambda all: {**all, IDS: ("F16", [1, 77], ids)})
    start, words = f"position_ids '{IDS}' are copied unchanged: F16", "6.99609 at 7 (fix_clip=True repairs them)"
    for notes in (
        merged([wrong, b], tmp_path / "m.safetensors")[1],
        sdsurgery.cast(wrong, out=tmp_path / "c.safetensors").notes,
        sdsurgery.prune(wrong, out=tmp_path / "n.safetensors").notes,
    ):
        assert len([note for note in notes if note.startswith(start) and words in note]) == 1, notes
    _, notes = merged([b, wrong], tmp_path / "o.safetensors")
    assert not any("copied unchanged" in note for note in notes), "B's are not in the output"
    _, notes = merged([wrong, b], tmp_path / "p.safetensors", fix_clip=True)
    assert not any("copied unchanged" in note for note in notes)


def test_missing_tensors_that_a_family_may_lack_are_explained(folder: Path, tmp_path: Path) -> None:
    last = ("resblocks.23.", "text_projection", "logit_scale")
    b = changed(folder / "sd2-b.safetensors", tmp_path / "b.safetensors",
                lambda all: {n: t for n, t in all.items() if not any(part in n for part in last)})  # fmt: skip
    _, notes = merged([folder / "sd2-a.safetensors", b], tmp_path / "o.safetensors")
    assert any(note.startswith("14 of the tensors missing in B (") and "files may lack" in note for note in notes)


# ---- what the models predict


def marked(*names: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, **{name: ("F32", [0], b"") for name in names}}


def prediction_notes(paths: list[Path]) -> list[str]:
    report = sdsurgery.merge("weighted-sum", paths, dry_run=True, hash=False)
    return [str(note) for note in report.warnings if note.code in ("prediction", "schedule")]


def test_mixing_epsilon_and_v_prediction_warns_and_names_which_is_what(folder: Path, tmp_path: Path) -> None:
    a = folder / "sdxl-base-a.safetensors"
    v = changed(a, tmp_path / "v.safetensors", marked("v_pred", "ztsnr"))
    (first, second) = prediction_notes([a, v])
    assert f"A ({a}): epsilon (usual for Stable Diffusion XL, nothing in the file says otherwise)" in first
    assert f"B ({v}): v-prediction (marker tensor v_pred)" in first
    assert "ztsnr (zero-terminal-SNR schedule) is in B and not in A; the output lacks it" in second
    assert "is in A and not in B; the output has it" in prediction_notes([v, a])[1]
    assert prediction_notes([v, v]) == prediction_notes([a, a]) == []
    err = done(sds("merge", "--method", "weighted-sum", a, v, "-o", tmp_path / "o.safetensors", "--no-hash")).err
    assert "\nwarning: these models predict different things" in err


@pytest.mark.parametrize(
    ("metadata", "kind"),
    [
        ({"modelspec.prediction_type": "v"}, "v-prediction (metadata modelspec.prediction_type)"),
        ({"modelspec.architecture": "stable-diffusion-v2-768-v"}, "v-prediction (metadata modelspec.architecture)"),
        ({"modelspec.prediction_type": "epsilon", "modelspec.architecture": "stable-diffusion-v2-768-v"}, ""),
    ],
)
def test_metadata_say_what_a_model_predicts(
    metadata: Mapping[str, str], kind: str, folder: Path, tmp_path: Path
) -> None:
    a = folder / "sd2-a.safetensors"
    b = changed(a, tmp_path / "b.safetensors", dict, metadata)
    found = prediction_notes([a, b])
    assert (len(found) == 1 and f"B ({b}): {kind}" in found[0]) if kind else found == []


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_sd2s_kinds_are_identified_by_the_bias_that_comfyui_looks_at(dtype: str, folder: Path, tmp_path: Path) -> None:
    import torch

    kinds = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

    def bias(spread: float) -> Callable[[Tensors], Tensors]:
        values = (torch.tensor([-1.0, 1.0] * 10) * spread).to(kinds[dtype])
        return lambda tensors: {**tensors, UNET + BIAS: (dtype, [20], values.view(torch.uint8).numpy().tobytes())}

    a = changed(folder / "sd2-a.safetensors", tmp_path / "a.safetensors", bias(0.08))
    b = changed(folder / "sd2-b.safetensors", tmp_path / "b.safetensors", bias(0.1))
    (found,) = prediction_notes([a, b])
    assert f"A ({a}): epsilon (by the spread of {BIAS}, 0.08" in found
    assert f"B ({b}): v-prediction (by the spread of {BIAS}, 0.1" in found


# ---- refusals


def test_a_conflict_names_the_inputs_that_it_is_between(folder: Path, tmp_path: Path) -> None:
    sd1, sd2 = folder / "sd1-a.safetensors", folder / "sd2-a.safetensors"
    unknown = plain(tmp_path / "unknown.safetensors", 1.0)
    out = tmp_path / "out.safetensors"
    line = refused(sds("merge", "--method", "add-diff", sd1, sd1, sd2, "-o", out), 3)
    assert f"A ({sd1}) and C ({sd2}): A is Stable Diffusion 1" in line
    assert "C is Stable Diffusion 2" in line
    assert "320x768 in A and 320x1024 in C" in line or "x768 in A" in line
    with pytest.raises(InputRefused, match=r"B \(.*sd1-a.* and C \(.*sd2-a.*B is .* C is "):
        sdsurgery.merge("add-diff", [unknown, sd1, sd2], out=out)


def test_a_vae_and_a_whole_model_are_refused_with_the_verb_that_fits(folder: Path, tmp_path: Path) -> None:
    vae = tmp_path / "vae.safetensors"
    write_checkpoint(vae, "vae-kl-f8", size="tiny")
    with pytest.raises(InputRefused, match=r"VAE f8 .*; replace\(component=.vae.\) puts a VAE into a checkpoint$"):
        sdsurgery.merge("weighted-sum", [folder / "sd1-a.safetensors", vae], dry_run=True)


def test_fewer_than_half_of_a_in_b_is_refused_unless_allowed(folder: Path, tmp_path: Path) -> None:
    a, out = folder / "sd1-a.safetensors", tmp_path / "out.safetensors"
    tensors, _ = read_raw(a)
    weights = [n for n in tensors if n.startswith((UNET, CLIP, "first_stage_model.")) and n != IDS]
    assert len(weights) == 1130

    def first(count: int) -> Path:
        chosen = set(weights[:count])
        return changed(a, tmp_path / f"{count}.safetensors", lambda all: {n: t for n, t in all.items() if n in chosen})

    half, less = first(565), first(564)
    assert sdsurgery.merge("weighted-sum", [a, half], dry_run=True).counts["merged"] == 565
    merge = ("merge", "--method", "weighted-sum", a, less, "-o", out)
    refused(sds(*merge), 3, f"only 564 of 1130 of A's tensors are in B ({less})", "--allow-unlike")
    refused(sds(*merge, "--force"), 3, "--allow-unlike")
    assert not out.exists()
    done(sds(*merge, "--allow-unlike"))
    got, _ = read_raw(out)
    own = [name for name in tensors if name not in set(weights[:564])]
    assert all(got[name] == tensors[name] for name in own)


def test_nothing_in_common_is_refused_even_if_allowed(tmp_path: Path) -> None:
    a = write_raw(tmp_path / "a.safetensors", {"x": ("F32", [1], f32(1))})
    b = write_raw(tmp_path / "b.safetensors", {"y": ("F32", [1], f32(1))})
    line = refused(
        sds("merge", "--method", "weighted-sum", a, b, "--allow-unlike", "-o", tmp_path / "o.safetensors"), 3
    )
    assert "only 0 of 1 of A's tensors are in B" in line
    assert "allow" not in line


def test_two_loras_are_refused_with_the_reason_and_the_verb_that_fits(tmp_path: Path) -> None:
    """Means of factors are not the mean of their products."""
    names = (
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k",
        "lora_te_text_model_encoder_layers_0_mlp_fc1",
    )
    tensors = {f"{name}.lora_{end}.weight": ("F32", [1, 1], f32(2)) for name in names for end in ("down", "up")}
    a, b = (write_raw(tmp_path / f"{name}.safetensors", tensors) for name in "ab")
    line = refused(
        sds("merge", "--method", "weighted-sum", a, b, "-o", tmp_path / "o.safetensors"), 3, "LoRA", "factors"
    )
    assert "merge-lora" in line
    assert not (tmp_path / "o.safetensors").exists()
