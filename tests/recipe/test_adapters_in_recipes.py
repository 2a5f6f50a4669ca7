"""Adapters in merges and recipes: one pass, one rounding."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import sdsurgery
import sdsurgery as sds
from adapter_tools import (
    SD1,
    SD1_CONV,
    SD1_CONV_NAME,
    SD1_KEY,
    SD1_KEY_NAME,
    SD1_QUERY,
    SD1_QUERY_NAME,
    Arrays,
    delta,
    loaded,
    lora,
    rounded_once,
    shapes_of,
    written,
)
from cli_support import sds as run
from sdsurgery.errors import InputRefused, UsageError


@pytest.fixture(scope="module")
def parts(models: Path) -> Arrays:
    shapes, found = shapes_of(models / "a.safetensors"), {}
    for seed, (name, tensor) in enumerate(SD1.items()):
        found |= lora(name, shapes[tensor], seed=seed)
    return found


@pytest.fixture(scope="module")
def style(models: Path, parts: Arrays) -> Path:
    return written(models / "style.safetensors", parts)


def files(models: Path) -> tuple[Path, Path]:
    return models / "a.safetensors", models / "b.safetensors"


def wide(path: Path, tensor: str) -> np.ndarray:
    return loaded(path)[tensor].astype(np.float64)


def test_adapters_are_applied_to_the_result_of_a_merge(
    models: Path, style: Path, parts: Arrays, tmp_path: Path
) -> None:
    a, b = files(models)
    report = sds.merge("weighted-sum", [a, b], alpha=0.25, loras={style: 0.8}, out=tmp_path / "out.safetensors")
    found = loaded(tmp_path / "out.safetensors")
    for name, tensor in SD1.items():
        rounded_once(found[tensor], 0.75 * wide(a, tensor) + 0.25 * wide(b, tensor) + 0.8 * delta(parts, name))
    assert report.adapters[0]["applied"] == {"unet": 2, "text_encoder": 1}
    sds.merge("weighted-sum", [a, b], alpha=0.25, out=tmp_path / "plain.safetensors")
    plain = loaded(tmp_path / "plain.safetensors")
    assert {name for name in plain if not np.array_equal(plain[name], found[name])} == set(SD1.values())


def test_adapters_of_an_input_change_that_input_alone(models: Path, style: Path, parts: Arrays, tmp_path: Path) -> None:
    a, b = files(models)
    recipe = sds.weighted_sum(a, sds.model(b) + 0.8 * sds.lora(style) - sds.lora(style, 0.2), alpha=0.25)
    recipe.save(tmp_path / "out.safetensors")
    found = loaded(tmp_path / "out.safetensors")
    for name, tensor in SD1.items():
        changed = wide(b, tensor) + (0.8 - 0.2) * delta(parts, name)
        rounded_once(found[tensor], 0.75 * wide(a, tensor) + 0.25 * changed)


def test_adapters_of_the_first_input_and_of_the_result_together(
    models: Path, style: Path, parts: Arrays, tmp_path: Path
) -> None:
    a, b = files(models)
    recipe = sds.add_diff(sds.model(a) + sds.lora(style), b, models / "c.safetensors", alpha=0.5) + sds.lora(
        style, te=0
    )
    recipe.save(tmp_path / "out.safetensors")
    found = loaded(tmp_path / "out.safetensors")
    for name, tensor in SD1.items():
        twice = 1 if name == SD1_QUERY_NAME else 2
        change = 0.5 * (wide(b, tensor) - wide(models / "c.safetensors", tensor))
        rounded_once(found[tensor], wide(a, tensor) + twice * delta(parts, name) + change)


def test_stages_see_the_changed_input(models: Path, style: Path, parts: Arrays, tmp_path: Path) -> None:
    a, b = files(models)
    baked = tmp_path / "baked.safetensors"
    sds.bake(b, [style], out=baked, dtype="fp32")
    sds.slerp(a, sds.model(b) + sds.lora(style), alpha=0.4).save(tmp_path / "one.safetensors")
    sds.slerp(a, baked, alpha=0.4).save(tmp_path / "two.safetensors")
    one, two = loaded(tmp_path / "one.safetensors"), loaded(tmp_path / "two.safetensors")
    assert all(np.array_equal(one[tensor], two[tensor]) for tensor in SD1.values())


def test_a_tensor_that_is_only_copied_is_changed_too(models: Path, style: Path, parts: Arrays, tmp_path: Path) -> None:
    a, b = files(models)
    values = {name: value for name, value in loaded(b).items() if name != SD1_CONV}
    short = written(tmp_path / "short.safetensors", values)
    sds.merge("weighted-sum", [a, short], alpha=0.25, loras=[style], out=tmp_path / "out.safetensors")
    rounded_once(loaded(tmp_path / "out.safetensors")[SD1_CONV], wide(a, SD1_CONV) + delta(parts, SD1_CONV_NAME))


def test_one_model_with_adapters_is_a_bake(models: Path, style: Path, tmp_path: Path) -> None:
    a, _ = files(models)
    (sds.model(a) + 0.5 * sds.lora(style)).save(tmp_path / "one.safetensors")
    sds.bake(a, {style: 0.5}, out=tmp_path / "two.safetensors")
    one, two = loaded(tmp_path / "one.safetensors"), loaded(tmp_path / "two.safetensors")
    assert all(np.array_equal(one[name], two[name]) for name in two)


def test_thirds_of_a_fused_projection(tmp_path: Path) -> None:
    from sdsurgery.testing import write_checkpoint

    fused = "cond_stage_model.model.transformer.resblocks.2.attn.in_proj_weight"
    for seed, name in enumerate("ab"):
        write_checkpoint(tmp_path / f"{name}.safetensors", "sd2", size="tiny", seed=seed)
    rows, columns = shapes_of(tmp_path / "a.safetensors")[fused]
    name = "lora_te_text_model_encoder_layers_2_self_attn_k_proj"
    given = lora(name, (rows // 3, columns))
    file = written(tmp_path / "k.safetensors", given)
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    sds.merge("weighted-sum", [a, b], alpha=0.25, loras=[file], out=tmp_path / "out.safetensors")
    exact = 0.75 * wide(a, fused) + 0.25 * wide(b, fused)
    exact[rows // 3 : 2 * rows // 3] += delta(given, name)
    rounded_once(loaded(tmp_path / "out.safetensors")[fused], exact)


def test_recipes_with_adapters_are_values(models: Path, style: Path) -> None:
    a, b = files(models)
    recipe = sds.weighted_sum(sds.model(a) + sds.lora(style, 0.8, te=0.3), b) + sds.lora(style, blocks="MIDD", others=0)
    again = sds.recipe_from_json(json.loads(json.dumps(recipe.to_json())))
    assert again == recipe and hash(again) == hash(recipe) and again != recipe + sds.lora(style)
    assert str(recipe) == "(weighted-sum((a + style=0.8, te=0.3), b) + style=1, blocks=MIDD)"
    with pytest.raises(UsageError, match="unknown key 'strenght' of an adapter"):
        sds.recipe_from_json({"path": "a", "loras": [{"lora": "x", "strenght": 1}]})


def test_the_recipe_in_the_output_says_what_was_applied_where(models: Path, style: Path, tmp_path: Path) -> None:
    a, b = files(models)
    recipe = sds.weighted_sum(a, sds.model(b) + 0.8 * sds.lora(style)) + sds.lora(style, 0.1)
    recipe.save(tmp_path / "out.safetensors")
    with sdsurgery.open(tmp_path / "out.safetensors") as out:
        found = json.loads(out.metadata()["sd_merge_recipe"])
    assert found["loras"] == {
        "B": [{"name": "style", "strength": 0.8}], "result": [{"name": "style", "strength": 0.1}],
    }  # fmt: skip
    assert [model["name"] for model in found["models"]] == ["a", "b", "style", "style"]


def test_what_is_refused(models: Path, style: Path, tmp_path: Path) -> None:
    a, b = files(models)
    inner = sds.weighted_sum(a, b) + sds.lora(style)
    with pytest.raises(UsageError, match="not to that of weighted-sum within it"):
        sds.weighted_sum(inner, b).save(tmp_path / "out.safetensors")
    other = written(tmp_path / "xl.safetensors", lora(SD1_KEY_NAME, (8, 2048)))
    with pytest.raises(InputRefused, match="the adapter is for SDXL"):
        sds.merge("weighted-sum", [a, b], loras=[other], dry_run=True)
    with pytest.raises(TypeError):
        sds.model(a) + sds.model(b)  # type: ignore[operator]


def test_the_command_line(models: Path, style: Path, tmp_path: Path) -> None:
    a, b = files(models)
    words = ["--method", "weighted-sum", a, b, "--alpha", "0.25", "--lora", f"{style}=0.8,te=0"]
    done = run("merge", *words, "-o", tmp_path / "one.safetensors")
    assert done.rc == 0, done.err
    assert "ignored 1 (strength 0)" in done.err
    given = [sds.lora(style, 0.8, te=0)]
    sds.merge("weighted-sum", [a, b], alpha=0.25, loras=given, out=tmp_path / "two.safetensors")
    one, two = loaded(tmp_path / "one.safetensors"), loaded(tmp_path / "two.safetensors")
    assert all(np.array_equal(one[name], two[name]) for name in two)
    assert not np.array_equal(one[SD1_KEY], loaded(a)[SD1_KEY]) and SD1_QUERY in one


def test_a_merge_sweeps_strengths_beside_its_own_numbers(models: Path, style: Path, tmp_path: Path) -> None:
    words = ["--alpha", "0.25,0.5", "--lora", f"{style}=0,0.4", "-o", tmp_path / "{alpha}-{lora}.safetensors", "--json"]
    done = run("merge", "--method", "weighted-sum", *files(models), *words)
    assert done.rc == 0, done.err
    reports = done.json()["outputs"]
    assert [each["adapters"][0]["strength"] for each in reports] == [0, 0.4] * 2
    assert ["no_effect" in {each["code"] for each in report["warnings"]} for report in reports] == [True, False] * 2
    for alpha in (0.25, 0.5):
        for strength in (0, 0.4):
            one = tmp_path / "one.safetensors"
            sds.merge("weighted-sum", files(models), alpha=alpha, loras={style: strength}, out=one, overwrite=True,
                      store_names=False)  # fmt: skip
            swept = loaded(tmp_path / f"{alpha}-{strength}.safetensors")
            assert all(np.array_equal(value, swept[name]) for name, value in loaded(one).items())
    tree = sds.model(files(models)[0]) + 0.5 * sds.lora(style)
    sds.sweep(sds.weighted_sum(tree, files(models)[1], alpha=0.5), loras={style: [0.1, 0.2]},
              out=tmp_path / "t{lora}.safetensors")  # fmt: skip
    assert (tmp_path / "t0.1.safetensors").exists() and (tmp_path / "t0.2.safetensors").exists()
    unnamed = run("merge", "--method", "weighted-sum", *files(models), "--lora", f"{style}=0.1,0.2", "-o", "x")
    assert unnamed.rc == 2 and "2 strengths" in unnamed.err and "{lora}" in unnamed.err
