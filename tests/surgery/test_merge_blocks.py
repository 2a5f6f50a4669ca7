"""merge --blocks and --rules: which tensor gets which ratio, checked against torch and a list of blocks made here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import sdsurgery
from cli_support import done, f32, floats, plain, read_raw, refused, sds, write_raw
from hypothesis import given
from hypothesis import strategies as st
from sdsurgery import layouts
from sdsurgery.errors import InputRefused, UsageError
from sdsurgery.methods import Method, Param, get, registry
from sdsurgery.surgery.ratios import Ratios
from sdsurgery.testing import write_checkpoint

UNET = "model.diffusion_model."


@pytest.fixture(scope="module", name="models")
def _models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Three tiny models each of SD 1 and SDXL."""
    folder = tmp_path_factory.mktemp("models")
    found: dict[str, list[Path]] = {}
    for family in ("sd1", "sdxl-base"):
        found[family] = [folder / f"{family}-{seed}.safetensors" for seed in range(3)]
        for seed, path in enumerate(found[family]):
            write_checkpoint(path, family, size="tiny", seed=seed)
    return found


def block_of(key: str, outputs: int) -> str:
    """The merge block of a weight, from the published rule (reference table), written down once more."""
    match = re.match(r"model\.diffusion_model\.(input|output)_blocks\.(\d+)\.", key)
    if match:
        return f"{'IN' if match[1] == 'input' else 'OUT'}{int(match[2]):02d}"
    if key.startswith((UNET + "time_embed", UNET + "label_emb")):
        return "IN00"
    if key.startswith(UNET + "middle_block"):
        return "M00"
    if key.startswith(UNET + "out."):
        return f"OUT{outputs - 1:02d}"
    return "VAE" if key.startswith("first_stage_model.") else "BASE"


def loaded(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    tensors: dict[str, Any] = load_file(path)
    return tensors


def dry(method: str, paths: Iterable[Path], **options: Any) -> dict[str, Mapping[str, Any]]:
    report = sdsurgery.merge(method, list(paths), dry_run=True, hash=False, **options)
    return {row["name"]: row for row in report.tensors}


# ---- blocks


@pytest.mark.parametrize(("family", "outputs"), [("sd1", 12), ("sdxl-base", 9)])
def test_every_weight_is_merged_with_its_blocks_ratio(
    models: Mapping[str, list[Path]], family: str, outputs: int, tmp_path: Path
) -> None:
    import torch

    names = ["BASE", *(f"IN{i:02d}" for i in range(outputs)), "M00", *(f"OUT{i:02d}" for i in range(outputs))]
    ratios = {name: i / 37 for i, name in enumerate(names)}
    ratios["VAE"] = ratios["BASE"]
    out = tmp_path / "out.safetensors"
    text = ",".join(str(ratios[name]) for name in names)
    sdsurgery.merge("weighted-sum", models[family][:2], out=out, blocks=text)
    a, b, got = (loaded(path) for path in (*models[family][:2], out))
    assert set(got) == set(a)
    for key, left in a.items():
        if left.dtype == torch.int64 or key == "denoiser.sigmas" or left.dtype == torch.float32:
            assert torch.equal(got[key], left), key
            continue
        alpha = ratios[block_of(key, outputs)]
        assert torch.equal(got[key], ((1 - alpha) * left.float() + alpha * b[key].float()).half()), key


def test_add_difference_takes_block_weights_and_other_blocks_keep_alpha(
    models: Mapping[str, list[Path]], tmp_path: Path
) -> None:
    import torch

    out = tmp_path / "out.safetensors"
    done(sds("merge", "--method", "add-diff", *models["sd1"], "--alpha", "0.9", "--blocks", "IN04=0.3,OUT05-OUT08=0.8",
             "-o", out))  # fmt: skip
    a, b, c, got = (loaded(path) for path in (*models["sd1"], out))
    for key, left in a.items():
        if left.dtype != torch.float16:
            continue
        block = block_of(key, 12)
        alpha = 0.3 if block == "IN04" else 0.8 if block in ("OUT05", "OUT06", "OUT07", "OUT08") else 0.9
        assert torch.equal(got[key], (left.float() + alpha * (b[key].float() - c[key].float())).half()), key


def test_a_preset_leaves_base_and_vae_to_alpha(models: Mapping[str, list[Path]]) -> None:
    rows = dry("weighted-sum", models["sd1"][:2], blocks="GRAD_V,M00=0.7", alpha=0.2)
    expected = {"IN00": 1.0, "IN06": 0.5, "M00": 0.7, "OUT11": 1.0, "BASE": 0.2, "VAE": 0.2}
    seen = {row["block"]: row["ratios"]["alpha"] for row in rows.values() if row["action"] == "merged"}
    assert {block: seen[block] for block in expected} == expected


def test_all_zeros_give_a_and_all_ones_give_b(models: Mapping[str, list[Path]], tmp_path: Path) -> None:
    import torch

    a, b = models["sd1"][:2]
    for number, want in ((0.0, loaded(a)), (1.0, loaded(b))):
        out = tmp_path / f"{number}.safetensors"
        sdsurgery.merge("weighted-sum", [a, b], out=out, blocks=[number] * 26)
        got = loaded(out)
        weights = [key for key, value in want.items() if value.dtype == torch.float16]
        assert len(weights) == 1130
        assert all(torch.equal(got[key], want[key]) for key in weights)


def test_a_merge_with_blocks_has_one_formula_for_each_ratio() -> None:
    layout = layouts.get("sd1")
    ratios = Ratios(
        get("weighted-sum"), 2, {"alpha": 0.5, "weights": None}, layout, blocks="MID12_50", rules={"^cond": 0.125}
    )
    made = {ratios.of(tensor.key, layout.block(tensor.key))[0] for tensor in layout.tensors() if tensor.block}
    assert sorted(formula.numbers[-1] for formula in made) == [0.0, 0.125, 0.5]


# ---- components of their own


def test_depth_and_image_encoder_follow_base_and_rules_reach_them() -> None:
    method, params = get("weighted-sum"), {"alpha": 0.5, "weights": None}
    for family, key in (
        ("sd2-depth", "depth_model.model.pretrained.model.cls_token"),
        ("sd2-unclip-h", "embedder.model.visual.proj"),
    ):
        layout = layouts.get(family)
        assert any(tensor.key == key and tensor.block is None for tensor in layout.tensors())
        plain_ratios = Ratios(method, 2, params, layout, blocks="IN00=0.1", rules=None)
        assert plain_ratios.of(key, None)[1]["ratios"] == {"alpha": 0.5}
        ratios = Ratios(method, 2, params, layout, blocks="BASE=0.25", rules=None)
        assert ratios.of(key, None)[1] == {"block": "BASE", "ratios": {"alpha": 0.25}}
        ruled = Ratios(method, 2, params, layout, blocks="BASE=0.25", rules={"^depth|^embedder": 0.0})
        assert ruled.of(key, None)[1]["ratios"] == {"alpha": 0.0}


def test_the_vae_follows_base_unless_it_is_set(models: Mapping[str, list[Path]]) -> None:
    key = "first_stage_model.decoder.conv_in.weight"
    for blocks, expected in (("BASE=0.4", 0.4), ("BASE=0.4,VAE=0", 0.0), ("IN00=0.1", 0.5)):
        assert dry("weighted-sum", models["sd1"][:2], blocks=blocks)[key]["ratios"] == {"alpha": expected}


# ---- rules


def test_rules_win_over_blocks_and_blocks_over_the_parameter(models: Mapping[str, list[Path]], tmp_path: Path) -> None:
    rules = tmp_path / "rules.txt"
    rules.write_text("\ufeff# comment\n\\.attn\\d\\. = 0.3\n\\.attn2\\.to_[kv] = 0.9  # the last one wins\n", "utf-8")
    result = done(sds("merge", "--method", "weighted-sum", *models["sd1"][:2], "--alpha", "0.1", "--blocks", "IN01=0.6",
                      "--rules", rules, "--dry-run", "--json"))  # fmt: skip
    rows = {row["name"]: row for row in result.json()["tensors"]}
    stem = UNET + "input_blocks.1.1.transformer_blocks.0."
    for name, ratio in (("attn1.to_k", 0.3), ("attn2.to_q", 0.3), ("attn2.to_k", 0.9), ("ff.net.2", 0.6)):
        assert (rows[f"{stem}{name}.weight"]["block"], rows[f"{stem}{name}.weight"]["ratios"]) == (
            "IN01",
            {"alpha": ratio},
        )
    assert rows[UNET + "input_blocks.0.0.weight"]["ratios"] == {"alpha": 0.1}


def test_rules_work_where_there_are_no_blocks_and_zero_keeps_its_sign(tmp_path: Path) -> None:
    paths = [write_raw(tmp_path / f"{i}.safetensors", {n: ("F32", [1], f32(value)) for n in "xyz"})
             for i, value in enumerate((-0.0, 5.0))]  # fmt: skip
    out = tmp_path / "out.safetensors"
    sdsurgery.merge("weighted-sum", paths, out=out, rules={"x": 0.0, "y": -0.0, "z": 2})
    tensors, _ = read_raw(out)
    # (1 − α)·(−0) + α·5: with α = −0.0 the sum of two negative zeros
    assert [str(floats(tensors[name])[0]) for name in "xyz"] == ["0.0", "-0.0", "10.0"]


def test_a_rule_that_matches_nothing_is_noted(models: Mapping[str, list[Path]]) -> None:
    rules = {r"attn3": 0.1, r"position_ids": 0.2, r"attn1": 0.3}
    notes = sdsurgery.merge("weighted-sum", models["sd1"][:2], dry_run=True, hash=False, rules=rules).notes
    assert [note for note in notes if "rule" in note] == [
        "the rule 'attn3' (alpha) matches no merged tensor",
        "the rule 'position_ids' (alpha) matches no merged tensor",
    ]


# ---- several ratios


@pytest.fixture(name="two_ratios")
def _two_ratios(monkeypatch: pytest.MonkeyPatch) -> str:
    """A method with two ratios, registered for one test."""

    def body(a: Any, b: Any, c: Any, alpha: float, beta: float) -> Any:
        return a + alpha * b + beta * c

    registry.registered()
    params = {"alpha": Param(0.5, "of B"), "beta": Param(0.25, "of C")}
    monkeypatch.setitem(registry._METHODS, "two-ratios", Method("two-ratios", ("A", "B", "C"), params, body))
    return "two-ratios"


def test_each_ratio_has_its_own_blocks_and_rules(
    two_ratios: str, models: Mapping[str, list[Path]], tmp_path: Path
) -> None:
    import torch

    out = tmp_path / "out.safetensors"
    blocks = ["alpha:IN00=0.75,BASE=0.5", "beta:IN00=0.125"]
    sdsurgery.merge(two_ratios, models["sd1"], out=out, blocks=blocks, rules={"beta": {r"attn2": 2.0}})
    a, b, c, got = (loaded(path) for path in (*models["sd1"], out))
    for key, alpha, beta in (
        (UNET + "input_blocks.0.0.weight", 0.75, 0.125),
        (UNET + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", 0.5, 2.0),
        (UNET + "input_blocks.1.1.transformer_blocks.0.attn1.to_k.weight", 0.5, 0.25),
    ):
        want = a[key].float() + alpha * b[key].float() + beta * c[key].float()
        assert torch.equal(got[key], want.half()), key


def test_with_several_ratios_it_must_be_said_which(two_ratios: str, models: Mapping[str, list[Path]]) -> None:
    for options, words in (
        ({"blocks": "IN00=0.5"}, 'two-ratios has several ratios (alpha, beta); say which: blocks={"alpha": …}'),
        ({"rules": {"x": 1.0}}, 'say which: rules={"alpha": …}'),
        ({"blocks": "alfa:IN00=0.5"}, "has no ratio 'alfa' for blocks=; did you mean 'alpha'"),
        ({"blocks": {"gamma": "IN00=0.5"}}, "has no ratio 'gamma'"),
        ({"blocks": ["beta:IN00=1", "beta:IN01=1"]}, "given twice for beta"),
    ):
        with pytest.raises(UsageError, match=re.escape(words)):
            sdsurgery.merge(two_ratios, models["sd1"], dry_run=True, hash=False, **options)


def test_a_ratio_may_go_by_its_other_names(models: Mapping[str, list[Path]]) -> None:
    def formulas(given: dict[str, Any], inputs: int, method: str) -> list[Any]:
        report = sdsurgery.merge(method, models["sd1"][:inputs], dry_run=True, hash=False, **given)
        return [tensor["ratios"] for tensor in report.to_dict()["tensors"] if "ratios" in tensor]

    for method, inputs, name, others in (
        ("weighted-sum", 2, "alpha", ("ratio", "multiplier")),
        ("ties", 3, "lam", ("lambda", "alpha")),
    ):
        for option, value in (("blocks", "IN00=0.75"), ("rules", {"attn2": 0.125})):
            wanted = formulas({option: {name: value}}, inputs, method)
            assert len({str(each) for each in wanted}) == 2
            for other in others:
                assert formulas({option: {other: value}}, inputs, method) == wanted
        assert formulas({"blocks": f"{others[0]}:IN00=0.75"}, inputs, method) != formulas({}, inputs, method)
    with pytest.raises(UsageError, match="blocks= is given twice for lam"):
        formulas({"blocks": ["lam:IN00=1", "alpha:IN01=1"]}, 3, "ties")


# ---- the recipe and the report


def test_the_recipe_holds_the_weights_and_repeats_the_merge(models: Mapping[str, list[Path]], tmp_path: Path) -> None:
    first, again = tmp_path / "a" / "out.safetensors", tmp_path / "b" / "out.safetensors"
    for path in (first, again):
        path.parent.mkdir()
    rules = tmp_path / "rules.txt"
    rules.write_text("attn1 = 0.1\nattn2 = 0.2\nattn1 = 0.3\n")
    sdsurgery.merge("weighted-sum", models["sd1"][:2], out=first, blocks="COSINE,BASE=0.25", rules=rules)
    recipe = json.loads(read_raw(first)[1]["sd_merge_recipe"])
    assert recipe["blocks"]["alpha"]["IN00"] == 1.0
    assert recipe["blocks"]["alpha"]["VAE"] == 0.25
    assert len(recipe["blocks"]["alpha"]) == 27
    assert list(recipe["rules"]["alpha"].items()) == [("attn2", 0.2), ("attn1", 0.3)]
    assert recipe["parameters"] == {"alpha": 0.5}
    # The web UI's field is one number for the whole merge: there is none.
    assert (recipe["interp_method"], recipe["multiplier"]) == ("Weighted sum", None)
    sdsurgery.merge("weighted-sum", models["sd1"][:2], out=again, blocks=recipe["blocks"], rules=recipe["rules"])
    assert first.read_bytes() == again.read_bytes()


def test_multiplier_is_the_plain_ratio_and_none_with_weights(tmp_path: Path) -> None:
    a, b, out = (
        plain(tmp_path / "a.safetensors", 1.0),
        plain(tmp_path / "b.safetensors", 2.0),
        tmp_path / "o.safetensors",
    )
    for options, expected in (({"alpha": 0.3}, 0.3), ({"weights": [0.5, 0.5]}, None)):
        sdsurgery.merge("weighted-sum", [a, b], out=out, overwrite=True, **options)
        assert json.loads(read_raw(out)[1]["sd_merge_recipe"])["multiplier"] == expected


def test_dry_run_v_shows_block_and_ratio_of_every_merged_tensor(models: Mapping[str, list[Path]]) -> None:
    result = done(
        sds("merge", "--method", "weighted-sum", *models["sd1"][:2], "--blocks", "IN04=0.3", "--dry-run", "-v")
    )
    lines = [line for line in result.out.splitlines() if line.startswith("  merged")]
    assert len(lines) == 1130
    assert all(re.search(r"  \((BASE|IN\d\d|M00|OUT\d\d|VAE) alpha [0-9.]+\)$", line) for line in lines)
    assert any(line.endswith("input_blocks.4.0.in_layers.2.weight  (IN04 alpha 0.3)") for line in lines)


def test_dry_run_shows_weights(tmp_path: Path) -> None:
    a = plain(tmp_path / "a.safetensors", 1.0)
    result = done(sds("merge", "--method", "weighted-sum", a, a, "--weights", "0.25,0.75", "--dry-run", "-v"))
    assert "(BASE weights 0.25 0.75)" in result.out


# ---- refusals


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ("--blocks IN12=0.5", 2, ("has no block 'IN12'", "did you mean 'IN11'")),
        ("--blocks GRAD_W", 2, ("'GRAD_W'", "did you mean", "GRAD_V")),
        ("--blocks 0.1,0.2,0.3", 2, ("3 numbers given", "25", "26")),
        ("--blocks IN00=nan", 2, ("'IN00=nan'", "finite")),
        ("--blocks IN00=1e999", 2, ("finite",)),
        ("--blocks alfa:IN00=1", 2, ("no ratio 'alfa'", "did you mean 'alpha'")),
        ("--blocks IN00=1 --blocks IN01=1", 2, ("given twice for alpha",)),
        ("--blocks IN00=1 --weights 0.5,0.5", 2, ("--blocks", "--weights", "only one of them")),
        ("--rules missing.txt", 3, ("missing.txt", "no such file")),
        ("--rules .", 3, ("not a regular file",)),
        ("--rules bad-regex.txt", 2, ("bad-regex.txt", "line 2", "(attn")),
        ("--rules not-text.txt", 3, ("not-text.txt", "not UTF-8")),
        ("--rules bad-number.txt", 2, ("bad-number.txt", "line 1", "not a finite number")),
    ],
)
def test_what_is_not_understood_is_refused_in_one_line(
    models: Mapping[str, list[Path]], tmp_path: Path, options: str, code: int, words: tuple[str, ...]
) -> None:
    (tmp_path / "bad-regex.txt").write_text("# rules\n(attn = 0.5\n")
    (tmp_path / "bad-number.txt").write_text("attn = inf\n")
    (tmp_path / "not-text.txt").write_bytes(b"attn = 0.5 \xff\n")
    merge = ("merge", "--method", "weighted-sum", *models["sd1"][:2], *options.split(), "-o", "out.safetensors")
    refused(sds(*merge, cwd=tmp_path), code, *words)
    assert not (tmp_path / "out.safetensors").exists()


@given(st.text(alphabet="alphINOUTMBSEVGRD_:=.,-01234 \n\\", max_size=30), st.sampled_from(layouts.all_layouts()))
def test_any_text_is_understood_or_refused(text: str, layout: layouts.Layout) -> None:
    chosen = get("add-diff")
    params = chosen.bind(3, {"alpha": 0.5})
    try:
        ratios = Ratios(chosen, 3, params, layout, blocks=text, rules={text: 0.25} if len(text) % 2 else None)
    except (UsageError, InputRefused) as error:
        assert str(error).isprintable()
        return
    formula, facts = ratios.of(UNET + "input_blocks.1.0.in_layers.2.weight", "IN01")
    assert formula.numbers == (facts["ratios"]["alpha"],)


def test_families_without_merge_blocks_refuse_them(tmp_path: Path) -> None:
    names = ["model.1.sub.0.RDB1.conv1.0.weight", "model.0.weight"]
    path = write_raw(tmp_path / "esrgan.safetensors", {n: ("F32", [1, 2, 1, 1], f32(1, 2)) for n in names})
    with pytest.raises(UsageError, match=r"ESRGAN.* has no merge blocks"):
        sdsurgery.merge("weighted-sum", [path, path], dry_run=True, blocks="IN00=0.5")
    assert dry("weighted-sum", [path, path], rules={"RDB": 0.25})[names[0]]["ratios"] == {"alpha": 0.25}


def test_a_vae_takes_only_its_own_block(tmp_path: Path) -> None:
    path = tmp_path / "vae.safetensors"
    write_checkpoint(path, "vae-kl-f8", size="tiny")
    rows = dry("weighted-sum", [path, path], blocks="VAE=0.25")
    assert {row["ratios"]["alpha"] for row in rows.values()} == {0.25}
    with pytest.raises(UsageError, match="has no U-Net"):
        dry("weighted-sum", [path, path], blocks="GRAD_V")


def test_python_forms_that_are_wrong_are_usage_errors(tmp_path: Path) -> None:
    path = plain(tmp_path / "a.safetensors", 1.0)
    for options in ({"blocks": 3}, {"blocks": {"IN00": "x", "IN01": 1}}, {"blocks": [None]}, {"rules": 3.5},
                  {"rules": {"(": 1.0}}, {"rules": {"x": float("nan")}}):  # fmt: skip
        with pytest.raises(UsageError):
            sdsurgery.merge("weighted-sum", [path, path], dry_run=True, **options)
    with pytest.raises(InputRefused, match="no such file"):
        sdsurgery.merge("weighted-sum", [path, path], dry_run=True, rules=tmp_path / "none")


# ---- layouts --keys, layouts --blocks


def test_layouts_prints_keys_and_blocks() -> None:
    keys = done(sds("layouts", "--keys", "sd1")).out
    assert keys.splitlines() == list(layouts.keys_table("sd1"))
    assert done(sds("layouts", "--keys", "sd1", "--ema")).out.count("\tema\t") == 688
    rows = done(sds("layouts", "--keys", "sd1", "--json")).json()
    assert rows["layout"] == "sd1"
    assert rows["tensors"][12] == {
        "key": UNET + "time_embed.0.weight", "shape": [1280, 320], "dtype_class": "float", "component": "unet",
        "block": "IN00",
    }  # fmt: skip
    table = done(sds("layouts", "--blocks", "sdxl-base")).out.splitlines()
    assert table[0] == "block\tcomponent\ttensors\telements\tprefix"
    assert [line.split("\t")[2] for line in table if line.startswith("M00")] == ["226"]
    blocks = done(sds("layouts", "--blocks", "sdxl-base", "--json")).json()["blocks"]
    assert len(blocks) == len(table) - 1
    assert {row["tensors"] for row in blocks if row["block"] == "M00"} == {226}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--keys sdxlbase", ("unknown layout 'sdxlbase'", "did you mean 'sdxl-base'")),
        ("--blocks sd3x", ("unknown layout", "sd3")),
        ("--keys flux", ("flux", "not known")),
        ("--blocks lora", ("lora", "not known")),
        ("--keys vae-kl-f8 --ema", ("no EMA weights",)),
        ("--ema", ("--keys",)),
        ("--keys sd1 --blocks sd1", ("not allowed with",)),
    ],
)
def test_layouts_refuses_families_that_it_cannot_print(options: str, words: tuple[str, ...]) -> None:
    refused(sds("layouts", *options.split()), 2, *words)


def test_a_rules_file_may_have_a_dot_and_a_colon_in_its_name(
    models: Mapping[str, list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "v1.5:attention.txt").write_text("attn2 = 0.25\n")
    report = sdsurgery.merge("weighted-sum", models["sd1"][:2], rules="v1.5:attention.txt", dry_run=True, hash=False)
    assert report.recipe["rules"] == {"alpha": {"attn2": 0.25}}


def test_without_weights_a_gets_in_every_block_what_the_others_leave(
    models: dict[str, list[Path]], tmp_path: Path
) -> None:
    files = models["sd1"]
    words = ["merge", *files, "--method", "weighted-sum", "--blocks", "b:GRAD_V,BASE=0.25", "--blocks", "C:IN03=0.125"]
    assert "warning" not in done(sds(*words, "-o", tmp_path / "rest.safetensors")).err
    blocks = {"alpha": "GRAD_V,BASE=0.25", "beta": "IN03=0.125"}
    sdsurgery.merge("triple-sum", files, alpha=0, beta=0, blocks=blocks, out=tmp_path / "triple.safetensors")
    assert sdsurgery.compare(tmp_path / "rest.safetensors", tmp_path / "triple.safetensors").equal
    (found,) = sdsurgery.inspect(tmp_path / "rest.safetensors").ancestry
    assert found.blocks["A"]["IN03"] == 1 - (found.blocks["B"]["IN03"] + 0.125)


@pytest.mark.parametrize("given", ["A:GRAD_V B:0.5", "GRAD_V", "B:GRAD_V B:0.5", "B:GRAD_V D:0.5"])
def test_other_block_weights_of_three_models_need_weights(
    given: str, models: dict[str, list[Path]], tmp_path: Path
) -> None:
    out = tmp_path / "out.safetensors"
    run = sds("merge", *models["sd1"], "--method", "weighted-sum", "--blocks", given, "-o", out)
    refused(run, 2, "for more inputs give --weights")
