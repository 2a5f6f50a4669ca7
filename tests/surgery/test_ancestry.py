"""What a file is made of, by its metadata: ours, the web UI's, SD.Next's, supermerger's, Chattiori's."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import sdsurgery
from cli_support import done, plain, sds
from sdsurgery.report.bars import bars
from sdsurgery.surgery.ancestry import ancestry

A, B, C, D = ("a" * 64, "b" * 64, "c" * 64, "d" * 64)


def metadata(recipe: Any, **recipes: Any) -> dict[str, str]:
    """Of a file: its recipe, and by name those of models in folders, A, B, C and D."""
    names = {A: "SD/anime.safetensors", B: "SD\\photo.ckpt", C: "sd v1.5.safetensors", D: "mix"}
    models = {
        key: {"name": name, "legacy_hash": key[:8], "sd_merge_recipe": recipes.get(key[0])}
        for key, name in names.items()
    }
    return {"sd_merge_recipe": json.dumps(recipe), "sd_merge_models": json.dumps(models)}


def shown(found: dict[str, str], path: str = "models/new.safetensors") -> list[str]:
    return [f"{each.name} = {each.formula}" for each in ancestry(found, path)]


def webui(*hashes: str, method: str = "Weighted sum", **more: Any) -> dict[str, Any]:
    keys = ("primary_model_hash", "secondary_model_hash", "tertiary_model_hash")
    given: dict[str, Any] = {**dict.fromkeys(keys), **dict(zip(keys, hashes, strict=False))}
    return {"type": "webui", **given, "interp_method": method, "multiplier": 0.3, "bake_in_vae": "None", **more}


def supermerger(*models: str, mode: str = "Weight sum", **more: Any) -> dict[str, Any]:
    given = dict(zip(("model_a", "model_b", "model_c"), models, strict=False))
    start = {"type": "sd-webui-supermerger", "mode": mode, "mbw": False, "calcmode": "normal", "base_alpha": 0.25}
    return {**start, "base_beta": 0.5, "weights_alpha": None, "weights_beta": None, **given, **more}


def test_three_generations_of_ours_are_three_formulas_in_file_names(tmp_path: Path) -> None:
    a, b, c = (plain(tmp_path / f"{name}.safetensors", value) for name, value in (("A", 1.0), ("B", 2.0), ("C", 3.0)))
    one, two, three = (tmp_path / f"gen{k}.safetensors" for k in (1, 2, 3))
    sdsurgery.merge("weighted-sum", [a, b], alpha=0.3, out=one)
    sdsurgery.merge("add-diff", [one, c, b], alpha=0.5, out=two)
    sdsurgery.cast(two, dtype="bf16", out=three)
    text = done(sds("inspect", three)).out
    want = ["gen3 = bf16(gen2)", "gen2 = gen1 + 0.5·(C − B)", "gen1 = 0.7·A + 0.3·B"]
    assert [line.strip() for line in text.split("made of:\n")[1].splitlines()[:3]] == want
    assert "sd_merge" not in text
    rows = done(sds("inspect", three, "--json")).json()["ancestry"]
    assert [f"{row['name']} = {row['formula']}" for row in rows] == want
    assert [origin["name"] for origin in rows[1]["inputs"]] == ["gen1", "C", "B"]
    assert rows[0]["inputs"][0]["sha256"] == rows[1]["sha256"]  # the edges of the graph


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (webui(A, B), "0.7·anime + 0.3·photo"),
        (webui(A, B, C, method="Add difference"), "anime + 0.3·(photo − sd v1.5)"),
        (webui(A, B, bake_in_vae="kl-f8.vae.pt"), "0.7·anime + 0.3·photo, VAE of kl-f8.vae"),
        (webui(A, method="No interpolation", save_as_half=True), "fp16(anime)"),
        (webui(A, "e" * 64), "0.7·anime + 0.3·eeeeeeeeee"),  # of no known name
        (webui(A, B, type="Neo"), "0.7·anime + 0.3·photo"),
        ({**webui(A, B, C), "type": "SDNext", "merge_mode": "sum_twice", "alpha": 0.5, "beta": 0.25},
         "0.75·(0.5·anime + 0.5·photo) + 0.25·sd v1.5"),
        ({**webui(A, B, C), "type": "SDNext", "merge_mode": "add_difference", "alpha": 1, "beta": 0.5},
         "anime + photo − sd v1.5"),
        (supermerger(A, B, C), "0.75·anime + 0.25·photo"),  # whose third model is not used
        (supermerger(A, B, C, mode="Add difference:A+(B-C)*alpha"), "anime + 0.25·(photo − sd v1.5)"),
        (supermerger(A, B, C, mode="Triple sum"), "0.25·anime + 0.25·photo + 0.5·sd v1.5"),
        ({**webui(A, B), "type": "merge-models-chattiori", "merge_method": "Weight Sum", "alpha_info": "0.4"},
         "0.6·anime + 0.4·photo"),
    ],
)  # fmt: skip
def test_recipes_of_other_programs_are_the_same_formulas(recipe: dict[str, Any], expected: str) -> None:
    assert shown(metadata(recipe)) == [f"new = {expected}"]


def test_methods_of_others_keep_their_names() -> None:
    (found,) = ancestry(metadata(supermerger(A, B, C, mode="Add difference", calcmode="trainDifference")), "new")
    assert "trainDifference" in found.formula and all(name in found.formula for name in ("anime", "photo", "sd v1.5"))
    (found,) = ancestry(metadata({"type": "unheard-of", "primary_model_hash": A, "mode": "melt"}), "new")
    assert (found.tool, found.formula) == ("unheard-of", "melt(anime)")


def test_a_line_of_generations_goes_through_all_programs() -> None:
    found = metadata(webui(D, A), d=json.dumps(supermerger(A, B)), a=webui(C, method="No interpolation"))
    assert shown(found) == ["new = 0.7·mix + 0.3·anime", "mix = 0.75·anime + 0.25·photo", "anime = copy(sd v1.5)"]
    nested = json.loads(found["sd_merge_models"])
    outer = {D: nested.pop(D), "sd_merge_models": json.dumps(nested)}  # as Forge Neo does
    assert shown({**found, "sd_merge_models": json.dumps(outer)}) == shown(found)


def test_block_weights_are_bars() -> None:
    weights = [k / 24 for k in range(25)]
    for given in (weights, ",".join(map(str, weights)), [0.9, *weights]):
        (found,) = ancestry(metadata(supermerger(A, B, mbw=True, base_alpha=0.9, weights_alpha=given)), "new")
        assert list(found.blocks["alpha"])[:2] == ["BASE", "IN00"] and len(found.blocks["alpha"]) == 26
        assert found.blocks["alpha"]["BASE"] == 0.9 and found.blocks["alpha"]["OUT11"] == 1
    assert bars(found.blocks["alpha"]) == "BASE ▇  IN ▁▁▂▂▂▂▃▃▃▄▄▄  M ▅  OUT ▅▅▅▆▆▆▇▇▇▇██  (0 to 1)"
    xl = supermerger(A, B, mbw=True, weights_alpha=[0.5] * 19)
    assert "OUT08" in ancestry(metadata(xl), "new")[0].blocks["alpha"]
    assert bars({"M00": -1.0, "OUT00": 3.0}) == "M ▁  OUT █  (-1 to 3)"


def test_files_of_one_name_are_told_apart() -> None:
    found = metadata(webui(D, B), d=webui(A, B))
    assert shown(found, "mix.safetensors") == ["mix = 0.7·mix [dddddddddd] + 0.3·photo",
                                               "mix [dddddddddd] = 0.7·anime + 0.3·photo"]  # fmt: skip


@pytest.mark.parametrize(
    "recipe",
    [[], "text", {"type": 3}, {"type": "webui"}, webui(A, B, multiplier="x"), webui(A, B, multiplier=[1]),
     webui([A], {"b": 1}), {"type": "sdsurgery", "models": 3}, {"type": "sdsurgery", "models": [3]},  # type: ignore
     {"type": "sdsurgery", "method": "weighted-sum", "models": [{"name": 3}], "parameters": 7, "blocks": [1]},
     {"type": "sdsurgery", "method": "slerp", "models": [], "blocks": {"alpha": {"M00": "x"}}, "parameters": {}},
     supermerger(A, B, mbw=True, weights_alpha={"a": 1}), {**supermerger(A, B), "mode": None}],
)  # fmt: skip
def test_what_is_not_understood_raises_nothing(recipe: Any) -> None:
    for each in ancestry(metadata(recipe, b=recipe, a=3), "new"):
        json.dumps(each.to_dict())
    assert ancestry({"sd_merge_recipe": json.dumps(recipe), "sd_merge_models": "{"}, "new") is not None


def test_a_file_that_is_its_own_ancestor_ends() -> None:
    found = metadata(webui(D, A), d=webui(D, A), a=webui(D, D))
    assert len(ancestry(found, "new")) == 3


def test_names_do_not_reach_the_terminal_unescaped() -> None:
    found = metadata(webui(A, B))
    found["sd_merge_models"] = json.dumps({A: {"name": "x\x1b[31m.ckpt"}, B: {"name": "a × b"}})
    (line,) = shown(found)
    assert "\x1b" not in line and "a × b" in line


AGAIN: list[tuple[str, str, dict[str, Any]]] = [
    ("weighted-sum", "a b", {"alpha": 1 / 3}),
    ("weighted-sum", "a b", {"alpha": 0.3, "blocks": "GRAD_V,BASE=0.25", "dtype": "bf16"}),
    ("weighted-sum", "a b c", {"weights": [0.5, 0.3, 0.2], "blocks": {"B": "IN01=0.9", "C": {"M00": -0.5}}}),
    ("supermerger:weighted-sum", "a b", {"alpha": 0.7}),
    ("add-diff.clamped", "a b c", {"alpha": -0.7, "compute": "fp64", "overflow": "saturate"}),
    ("dare.density", "a b", {"density": 0.4, "alpha": 0.6, "seed": 2**40 + 1}),
    ("formula:A + k*(B - C)", "a b c", {"k": 0.1}),
    ("adjust:clamp(A,B):slerp", "a b", {"alpha": 0.3, "d1": 0.5}),
    ("weighted-sum", "a b", {"alpha": 0.5, "vae": "c", "add_missing": True, "fix_clip": True}),
    ("weighted-sum.lerp", "a b", {"alpha": 0.5, "fused": True, "loras": {"l": -0.25}}),
]


@pytest.mark.parametrize("case", AGAIN, ids=str)
def test_the_command_that_inspect_shows_makes_the_file_again(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: tuple[str, str, dict[str, Any]]
) -> None:
    method, names, given = case[0], case[1], dict(case[2])
    if "vae" in given:
        given["vae"] = models / "c.safetensors"
    if "loras" in given:
        given["loras"] = {models / f"{name}.safetensors": strength for name, strength in given["loras"].items()}
        sdsurgery.extract_lora(models / "b.safetensors", models / "c.safetensors", rank=1, out=models / "l.safetensors")
    out = tmp_path / "mix.safetensors"
    sdsurgery.merge(method, [models / f"{name}.safetensors" for name in names.split()], out=out, **given)
    found = sdsurgery.inspect(out).ancestry[0]
    assert f"again: {found.command[:30]}" in done(sds("inspect", out)).out
    monkeypatch.chdir(models)
    words = shlex.split(found.command)
    done(sds(*words[1:-1], str(tmp_path / "again.safetensors")))
    assert sdsurgery.compare(out, tmp_path / "again.safetensors").equal


def test_what_no_single_command_makes_has_none(models: Path, tmp_path: Path) -> None:
    a, b = (str(models / f"{name}.safetensors") for name in "ab")
    tree = sdsurgery.weighted_sum(a, sdsurgery.weighted_sum(b, a, alpha=0.2), alpha=0.4)
    tree.save(tmp_path / "tree.safetensors")
    sdsurgery.merge("weighted-sum", [a, b], out=tmp_path / "rules.safetensors", alpha=0.5, rules={"attn": 0.1})
    sdsurgery.cast(a, out=tmp_path / "cast.safetensors", dtype="bf16")
    for name in ("tree", "rules", "cast"):
        (found,) = sdsurgery.inspect(tmp_path / f"{name}.safetensors").ancestry
        assert not found.command
        assert "again:" not in done(sds("inspect", tmp_path / f"{name}.safetensors")).out


@pytest.mark.parametrize(
    ("changed", "sound"),
    [
        ({}, True), ({"parameters": {"alpha": "x"}}, False), ({"parameters": {"alpha": None}}, False),
        ({"map": 5}, False), ({"blocks": {"alpha": {"IN00": "x"}}}, False), ({"loras": {"result": ["x"]}}, False),
        ({"use_ema": 3}, False),
    ],
)  # fmt: skip
def test_a_strangers_recipe_has_a_quoted_command_or_none(changed: dict[str, Any], sound: bool) -> None:
    recipe = {"type": "sdsurgery", "method": "weighted-sum", "parameters": {"alpha": 0.5}, "add_missing": False}
    (found,) = ancestry(metadata({**recipe, "models": [{"name": "a"}, {"name": "b; rm x"}], **changed}), "new")
    quoted = "sdsurgery merge a.safetensors 'b; rm x.safetensors' --method weighted-sum --alpha=0.5 -o OUT.safetensors"
    assert found.command == (quoted if sound else "")
