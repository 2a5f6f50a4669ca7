"""unmix: the truth of synthetic mixes comes out again, is proved bit for bit, and what is missing is said."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sdsurgery as sds
from cli_support import sds as command
from mix_tools import QUICK, SHARES, SPARED, a_family, base_of, mixed, pick, ratios, tuned
from safetensors.numpy import load_file, save_file
from sdsurgery.errors import InputRefused, UsageError


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return a_family(tmp_path_factory.mktemp("unmix"))


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same with a third of the tensors, in every block: what tests of many merges need."""
    return a_family(tmp_path_factory.mktemp("unmix_few"), without=SPARED)


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = base_of(tmp_path_factory.mktemp("unmix_xl"), "sdxl-base")
    return {"base": base, **{name: tuned(base, name, SHARES[name], seed) for seed, name in enumerate("ab")}}


UNIFORM = [
    ("a b", "weighted-sum", {"alpha": 0.3}, {"a": 0.7, "b": 0.3}),
    ("a b", "weighted-sum.lerp", {"alpha": 0.45, "fused": True}, {"a": 0.55, "b": 0.45}),
    ("b a", "weighted-sum", {"alpha": 1.2}, {"a": 1.2, "b": -0.2}),
    ("a b base", "add-diff", {"alpha": 0.7}, {"a": 1.0, "b": 0.7, "base": -0.7}),
    ("a b c", "n-sum", {"weights": [0.5, 0.3, 0.2]}, {"a": 0.5, "b": 0.3, "c": 0.2}),
    ("a b c", "mean", {}, {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}),
    ("a b c", "sum-twice.lerp", {"alpha": 0.3, "beta": 0.2, "fused": True}, {"a": 0.56, "b": 0.24, "c": 0.2}),
    ("a b d", "triple-sum", {"alpha": 0.2, "beta": 0.4}, {"a": 0.4, "b": 0.2, "d": 0.4}),
    (
        "a b c d e f", "n-sum", {"weights": [0.3, 0.2, 0.1, 0.15, 0.2, 0.05]},
        {"a": 0.3, "b": 0.2, "c": 0.1, "d": 0.15, "e": 0.2, "f": 0.05},
    ),
    ("base a b", "add-diff", {"weights": [0.5, 0.3]}, {"base": 0.2, "a": 0.5, "b": 0.3}),
    ("a b", "weighted-subtract", {"alpha": 1, "beta": 0.3}, {"a": 1 / 0.7, "b": -0.3 / 0.7}),
    ("a b c d", "ema-chain", {"decay": 0.8}, {"a": 0.512, "b": 0.128, "c": 0.16, "d": 0.2}),
    ("a b", "weighted-sum.smoothstep", {"alpha": 0.37}, {"a": 0.690606, "b": 0.309394}),
    ("a b c", "sum-twice", {"alpha": 0.37, "beta": 0.71}, {"a": 0.1827, "b": 0.1073, "c": 0.71}),
]  # fmt: skip


@pytest.mark.parametrize(("names", "method", "parameters", "truth"), UNIFORM)
def test_linear_methods_are_found_and_proved_bit_for_bit(
    few: dict[str, Path], names: str, method: str, parameters: dict[str, Any], truth: dict[str, float]
) -> None:
    mix = mixed(few, names, method, **parameters)
    found = sds.unmix(mix, pick(few, " ".join(dict.fromkeys([*names.split(), "base", "g"]))), prove=True)
    assert ratios(found) == pytest.approx(truth, abs=1e-4)
    for block in found.blocks.values():
        assert {Path(path).stem: ratio for path, ratio in block.items()} == pytest.approx(truth, abs=5e-4)
    assert found.complete and found.constant and found.unexplained < 4e-4
    assert found.proof is not None and found.proof["text"] == "all 379 tensors equal bit for bit"


def test_the_command_makes_the_same_file(models: dict[str, Path], tmp_path: Path) -> None:
    mix = mixed(models, "a b", "weighted-sum", alpha=0.25, blocks="IN04=0.5,OUT05=0.8,VAE=1")
    found = sds.unmix(mix, pick(models, "a b c"), prove=True)
    assert found.proof is not None and found.proof["equal"] == found.proof["tensors"]
    words = shlex.split(found.command)
    assert command(*words[1:-1], str(tmp_path / "out.safetensors")).rc == 0
    assert sds.compare(mix, tmp_path / "out.safetensors").equal
    assert found.formula == "0.75·a + 0.25·b; α of b by block: IN04 0.5, OUT05 0.8, VAE 1"


def test_the_proof_says_whose_arithmetic_it_is(models: dict[str, Path]) -> None:
    mix = mixed(models, "a b", "supermerger:weighted-sum", alpha=0.3)
    found = sds.unmix(mix, pick(models, "a b c"), prove=True)
    assert found.proof is not None and found.proof["method"] == "weighted-sum.lerp"
    assert "supermerger" in found.proof["tools"] and "a1111" not in found.proof["tools"]


def test_parents_that_are_few_ulps_apart_are_found_and_proved(models: dict[str, Path]) -> None:
    mix = mixed(models, "base e", "weighted-sum", alpha=0.81)
    found = sds.unmix(mix, pick(models, "base a e"), prove=True)
    assert ratios(found) == pytest.approx({"base": 0.19, "e": 0.81}, abs=1e-5)
    assert found.proof is not None and found.proof["equal"] == found.proof["tensors"]
    assert found.proof["parameters"]["alpha"] == 0.81


@pytest.mark.parametrize("method", ["weighted-sum", "weighted-sum.lerp"])
def test_a_preset_is_named_and_proved(few: dict[str, Path], method: str) -> None:
    mix = mixed(few, "a b", method, alpha=0.35, blocks="SMOOTHSTEP")
    found = sds.unmix(mix, pick(few, "a b c"), prove=True)
    assert found.preset == "SMOOTHSTEP" and "SMOOTHSTEP" in found.command and not found.constant
    assert found.proof is not None and found.proof["equal"] == found.proof["tensors"]


def test_each_ratio_has_its_own_preset(few: dict[str, Path]) -> None:
    mix = mixed(few, "a b c", "triple-sum", alpha=0.3, beta=0.4, blocks={"alpha": "GRAD_V", "beta": "COSINE,BASE=0.2"})
    found = sds.unmix(mix, pick(few, "a b c base"), prove=True)
    assert found.formula == "0.5·a + 0.3·b + 0.2·c; α of b by block: GRAD_V; β of c by block: COSINE"
    assert found.proof is not None and found.proof["equal"] == found.proof["tensors"]


def test_the_formula_is_as_exact_as_the_ratios(few: dict[str, Path]) -> None:
    mix = mixed(few, "a b c", "sum-twice", alpha=0.37, beta=0.71)
    found = sds.unmix(mix, pick(few, "a b c"), prove=True)
    assert found.formula == "0.1827·a + 0.1073·b + 0.71·c"
    assert found.proof is not None and found.proof["method"] == "sum-twice" and found.proof["tools"] == ["meh"]


def test_block_weights_that_are_close_to_the_others_are_found_and_proved(models: dict[str, Path]) -> None:
    mix = mixed(models, "a b", "weighted-sum", alpha=0.3, blocks={"BASE": 0.301, "IN05": 0.2995})
    found = sds.unmix(mix, pick(models, "a b"), prove=True)
    assert found.proof is not None and found.proof["equal"] == found.proof["tensors"]
    assert found.proof["blocks"] == {"alpha": {"BASE": 0.301, "IN05": 0.2995, "VAE": 0.301}} and not found.constant


def test_sdxl_with_ratios_by_block(xl: dict[str, Path]) -> None:
    mix = mixed(xl, "a b", "weighted-sum", alpha=0.2, blocks="IN08=0.6,M00=0.4,OUT00-OUT02=0.9")
    found = sds.unmix(mix, list(xl.values()), prove=True)
    assert found.family == "sdxl-base"
    alpha = {block: each[str(xl["b"])] for block, each in found.blocks.items()}
    assert [alpha[block] for block in ("BASE", "IN08", "M00", "OUT01", "OUT03")] == pytest.approx(
        [0.2, 0.6, 0.4, 0.9, 0.2], abs=5e-4
    )
    assert found.proof is not None and found.proof["equal"] == found.proof["tensors"]


def test_a_tool_that_leaves_tensors_of_a_block_is_proved(xl: dict[str, Path]) -> None:
    mix = mixed(xl, "a b", "supermerger:weighted-sum", alpha=0.2, blocks="BASE=0.4")
    found = sds.unmix(mix, list(xl.values()), prove=True)
    assert found.proof is not None and found.proof["equal"] == found.proof["tensors"] and found.complete
    assert "--method weighted-sum --compat supermerger" in found.command and found.proof["tools"] == ["supermerger"]


@pytest.mark.parametrize(
    "tool", ["supermerger", *(pytest.param(tool, marks=pytest.mark.slow) for tool in ("comfy", "chattiori"))]
)
def test_tools_that_leave_tensors_of_sdxl_are_proved(xl: dict[str, Path], tool: str) -> None:
    mix = mixed(xl, "a b", f"{tool}:weighted-sum", alpha=0.3)
    found = sds.unmix(mix, list(xl.values()), prove=True)
    assert found.proof is not None and found.proof["equal"] == found.proof["tensors"]
    assert found.proof["tools"] == [tool] and f"--compat {tool} " in found.command and "IN00" not in found.formula


def test_ratios_by_layer_are_no_missing_parent(few: dict[str, Path], tmp_path: Path) -> None:
    mix = mixed(few, "a b", "weighted-sum", alpha=0.3, rules={"attn2": 0.8})
    found = sds.unmix(mix, pick(few, "a b c"))
    assert not found.complete and not found.upper_bounds and not found.residual_ranks
    (note,) = (note for note in found.notes if "differ from layer to layer in 16 of 27 blocks" in note)
    assert note.endswith("each layer by itself is a mix of a and b")


def test_a_chain_of_two_generations_is_found(models: dict[str, Path]) -> None:
    first = mixed(models, "a b", "weighted-sum", alpha=0.4, name="first")
    out = first.with_name("second.safetensors")
    sds.merge("add-diff", [first, models["c"], models["base"]], alpha=0.5, out=out, **QUICK)
    found = sds.unmix(out, list(models.values()), prove=True)
    assert ratios(found) == pytest.approx({"a": 0.6, "b": 0.4, "c": 0.5, "base": -0.5}, abs=1e-4)
    assert found.complete and found.proof is not None and found.proof["ulps"] > 0


def test_a_vae_of_another_model_is_named(models: dict[str, Path]) -> None:
    first = mixed(models, "a b c", "n-sum", weights=[0.5, 0.3, 0.2], name="first")
    out = first.with_name("other_vae.safetensors")
    sds.replace(first, {"vae": models["d"]}, out=out, **QUICK)
    found = sds.unmix(out, pick(models, "a b c d"))
    assert "vae is that of d, unchanged" in found.notes
    assert found.blocks["VAE"][str(models["d"])] == pytest.approx(1)
    assert {name: ratio for name, ratio in ratios(found).items() if name != "d"} == pytest.approx(
        {"a": 0.5, "b": 0.3, "c": 0.2}, abs=1e-4
    )


def test_a_vae_of_no_candidate_bounds_no_other_ratio(few: dict[str, Path]) -> None:
    first = mixed(few, "a b", "weighted-sum", alpha=0.3, name="first")
    out = first.with_name("other_vae.safetensors")
    sds.replace(first, {"vae": few["d"]}, out=out, **QUICK)
    run = command("unmix", out, *pick(few, "a b c base"), "--prove")
    assert run.err == "" and "\n≈ 0.7·a + 0.3·b; " in run.out and "\nthe nearest merge: sdsurgery merge" in run.out
    assert "in 1 of 27 blocks (VAE)" in run.out and "≤" not in run.out
    assert "arithmetic" not in run.out and "were added" not in run.out  # no tool's, and no trace of TIES


def test_a_unet_alone_among_the_candidates_hides_no_parent(few: dict[str, Path], tmp_path: Path) -> None:
    first = mixed(few, "a b", "weighted-sum", alpha=0.3, name="first")
    out = first.with_name("others.safetensors")
    sds.replace(first, {"vae": few["d"], "text_encoder": few["c"]}, out=out, **QUICK)
    sds.extract(few["c"], "unet", out=tmp_path / "unet.safetensors", **QUICK)
    found = sds.unmix(out, [*pick(few, "a b c d"), tmp_path / "unet.safetensors"], prove=True)
    assert {"text_encoder is that of c, unchanged", "vae is that of d, unchanged"} <= set(found.notes)
    assert found.proof is not None and found.proof["equal"] == found.proof["tensors"]


def test_a_missing_parent_is_said_and_the_base_keeps_the_others_near_the_truth(models: dict[str, Path]) -> None:
    mix = mixed(models, "a b c", "n-sum", weights=[0.45, 0.3, 0.25])
    with_base = sds.unmix(mix, pick(models, "a c d base"))
    assert not with_base.complete and with_base.unexplained > 0.01 > 20 * with_base.rounding
    known = ratios(with_base)
    assert (known["a"], known["c"]) == pytest.approx((0.45, 0.25), abs=0.02) and "d" not in known
    assert with_base.upper_bounds == [str(models["base"])]
    assert any("a parent is missing" in note and "The ratio of base" in note for note in with_base.notes)
    (warning,) = (note for note in with_base.notes if "a parent is missing" in note)
    assert "or the merge was not a weighted sum" in warning
    assert warning.endswith("near the truth if the merge was a weighted sum")
    without = sds.unmix(mix, pick(models, "a c d"))
    assert without.upper_bounds == list(without.ratios)
    assert any("a parent is missing" in note and "The ratios are upper bounds" in note for note in without.notes)
    assert any(
        line.startswith("all") and "≤ 0." in line
        for line in command("unmix", mix, *pick(models, "a c d")).out.splitlines()
    )
    assert without.residual_ranks and not any(row["low"] for row in without.residual_ranks)


def test_a_mix_of_none_of_the_candidates(few: dict[str, Path]) -> None:
    found = sds.unmix(mixed(few, "a b", "weighted-sum", alpha=0.4), pick(few, "base d f g"))
    assert ratios(found) == {"base": 1.0} and found.upper_bounds == [str(few["base"])]
    text = next(note for note in found.notes if "is missing" in note)
    assert "No other candidate has a share: the model descends from base" in text


def test_a_baked_adapter_shows_as_low_rank(models: dict[str, Path], tmp_path: Path) -> None:
    mix = load_file(mixed(models, "a b", "weighted-sum", alpha=0.3))
    rng = np.random.default_rng(1)
    layers = [key for key in mix if "attn1.to_" in key and key.endswith("weight") and min(mix[key].shape) >= 32]
    for key in layers[:12]:
        rows, columns = mix[key].shape
        change = rng.normal(size=(rows, 4)) @ rng.normal(size=(4, columns)) * (0.05 / columns**0.5)
        mix[key] = (mix[key].astype(np.float32) + change.astype(np.float32)).astype(np.float16)
    save_file(mix, tmp_path / "baked.safetensors")
    found = sds.unmix(tmp_path / "baked.safetensors", pick(models, "a b c base"))
    assert (ratios(found)["a"], ratios(found)["b"]) == pytest.approx((0.7, 0.3), abs=5e-3)
    assert not found.complete and found.residual_ranks
    assert [(row["low"], row["rank"]) for row in found.residual_ranks] == [(True, 4)] * len(found.residual_ranks)
    assert any("adapter is baked" in note and "--rank 4 " in note for note in found.notes)


def test_a_coarse_stranger_hides_nothing(models: dict[str, Path], tmp_path: Path) -> None:
    mix = load_file(mixed(models, "a b", "weighted-sum", alpha=0.3))
    rng = np.random.default_rng(2)
    for key in [key for key in mix if "attn1.to_" in key and key.endswith("weight") and min(mix[key].shape) >= 32]:
        rows, columns = mix[key].shape
        change = rng.normal(size=(rows, 2)) @ rng.normal(size=(2, columns)) * (0.003 / columns**0.5)
        mix[key] = (mix[key].astype(np.float32) + change.astype(np.float32)).astype(np.float16)
    save_file(mix, tmp_path / "baked.safetensors")
    coarse = tmp_path / "coarse.safetensors"
    sds.cast(models["c"], out=coarse, dtype="fp8_e5m2")
    found = sds.unmix(tmp_path / "baked.safetensors", [*pick(models, "a b c base"), coarse])
    assert ratios(found) == pytest.approx({"a": 0.7, "b": 0.3}, abs=5e-3) and not found.complete
    assert found.rounding < 1e-3 and any("adapter is baked" in note for note in found.notes)
    # Two fine-tunes differ by less than this dtype rounds; that makes none the other's cast, nor the answer ambiguous.
    assert found.unique and not any("is this model" in note or "is itself" in note for note in found.notes)


def test_casts_of_the_true_parents(models: dict[str, Path], tmp_path: Path) -> None:
    casts = [tmp_path / f"{name}.safetensors" for name in "abc"]
    for cast in casts:
        sds.cast(models[cast.stem], out=cast, dtype="bf16")
    found = sds.unmix(mixed(models, "a b", "weighted-sum", alpha=0.3), casts)
    assert ratios(found) == pytest.approx({"a": 0.7, "b": 0.3}, abs=2e-3) and found.complete
    assert any("a and b are in a coarser dtype than the mix" in note for note in found.notes)


def test_what_casts_lost_makes_no_parent(models: dict[str, Path], tmp_path: Path) -> None:
    given = dict(models)
    for name, dtype in {"a": "fp8_e4m3", "b": "bf16", "f": "bf16"}.items():
        given[name] = tmp_path / f"{name}.safetensors"
        sds.cast(models[name], out=given[name], dtype=dtype)
    mix = mixed(models, "f a g", "n-sum", weights=[0.2, 0.45, 0.35])
    found = sds.unmix(mix, pick(given, "a b c d f g"))
    assert ratios(found) == pytest.approx({"f": 0.2, "a": 0.45, "g": 0.35}, abs=0.03)
    assert any("coarser dtype" in note for note in found.notes)


def test_a_parent_in_fp8_of_a_mix_in_fp16(models: dict[str, Path], tmp_path: Path) -> None:
    narrow, mix, again = (tmp_path / f"{name}.safetensors" for name in ("narrow", "mix", "again"))
    sds.cast(models["a"], out=narrow, dtype="fp8_e4m3")
    sds.merge("weighted-sum", [narrow, models["b"]], alpha=0.4, dtype="fp16", out=mix, **QUICK)
    found = sds.unmix(mix, [narrow, *pick(models, "a b c")], prove=True)
    assert ratios(found) == pytest.approx({"narrow": 0.6, "b": 0.4}, abs=1e-5)
    assert found.proof is not None and found.proof["equal"] == found.proof["tensors"]
    assert not any("is this model" in note or "coarser" in note for note in found.notes)
    assert command(*shlex.split(found.command.replace("OUT.safetensors", str(again)))[1:]).rc == 0
    assert sds.compare(mix, again).verdict.startswith("equal")


def test_candidates_that_are_mixes_of_each_other_are_not_unique(models: dict[str, Path]) -> None:
    half = mixed(models, "a b", "weighted-sum", alpha=0.5, name="half")
    mix = half.with_name("quarter.safetensors")
    sds.merge("weighted-sum", [models["a"], half], alpha=0.5, out=mix, **QUICK)
    found = sds.unmix(mix, [models["a"], models["b"], half])
    assert not found.unique and any("half is itself 0.5·a + 0.5·b" in note for note in found.notes)
    assert len(found.ratios) == 2


def test_the_command_runs_whatever_the_names(
    few: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["-o.safetensors", "a '\n\u202e\\$(id)\"b.safetensors"]
    for name, path in zip(names, pick(few, "a b"), strict=True):
        (tmp_path / name).write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    mix = mixed(few, "a b", "weighted-sum", alpha=0.3)
    shown = command("unmix", mix, "--", *names).out
    assert "\u202e" not in shown
    line = next(line for line in shown.splitlines() if line.startswith("made by: "))
    called = f"sdsurgery() {{ printf '%s\\0' \"$@\"; }}; {line.removeprefix('made by: ')}"
    words = subprocess.run(["bash", "-c", called], capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"}).stdout
    assert words.decode().split("\0")[1:3] == [f"./{names[0]}", names[1]]
    assert command(*words.decode().split("\0")[:-1]).rc == 0


def test_identical_candidates_count_once(models: dict[str, Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(models["a"].read_bytes())
    found = sds.unmix(mixed(models, "a b", "weighted-sum", alpha=0.3), [copy, *pick(models, "a b")])
    assert ratios(found) == pytest.approx({"copy": 0.7, "b": 0.3}, abs=1e-4)
    assert any("a has the same weights as copy" in note for note in found.notes)


def test_a_cast_and_the_model_itself(models: dict[str, Path], tmp_path: Path) -> None:
    sds.cast(models["a"], out=tmp_path / "cast.safetensors", dtype="bf16")
    found = sds.unmix(tmp_path / "cast.safetensors", pick(models, "a b c"), prove=True)
    assert ratios(found) == {"a": 1.0} and found.complete
    assert found.proof is not None and found.proof["equal"] == found.proof["tensors"]
    itself = sds.unmix(models["a"], [*pick(models, "b c"), tmp_path / "cast.safetensors"])
    assert ratios(itself) == {"cast": 1.0} and "cast is this model in BF16" in itself.notes


def test_backends_and_threads_give_the_same_answer(models: dict[str, Path], tmp_path: Path) -> None:
    mix, *given = [tmp_path / name for name in ("mix", "a", "b", "c")]
    for path in given:
        sds.extract(models[path.name], "vae", out=path.with_suffix(".safetensors"), **QUICK)
    given = [path.with_suffix(".safetensors") for path in given]
    mix = mix.with_suffix(".safetensors")
    sds.merge("n-sum", given, weights=[0.5, 0.3, 0.2], out=mix, **QUICK)
    plain, other = sds.unmix(mix, given), sds.unmix(mix, given, threads=3, io="mmap")
    reference = sds.unmix(mix, given, backend="reference")
    assert plain.ratios == other.ratios == reference.ratios
    assert plain.blocks == reference.blocks and plain.errors == reference.errors


def test_the_command_line(models: dict[str, Path], tmp_path: Path) -> None:
    mix = tmp_path / "mix.safetensors"
    mix.symlink_to(mixed(models, "a b", "weighted-sum", alpha=0.3))
    for path in pick(models, "a b d"):
        (tmp_path / path.name).symlink_to(path)
    run = command("unmix", mix, "--in", tmp_path, "--json", "--prove")
    assert run.rc == 0, run.err
    found = json.loads(run.out)
    assert found["formula"] == "0.7·a + 0.3·b" and found["proof"]["text"].startswith("all 1,143")
    keys = "ratios blocks errors unexplained formula command proof"
    assert set(keys.split()) <= set(found) and str(mix) not in found["candidates"]
    text = command("unmix", mix, models["a"], models["b"]).out
    assert "= 0.7·a + 0.3·b" in text and "made by: sdsurgery merge" in text


def test_a_folder_with_other_files_in_it(few: dict[str, Path], xl: dict[str, Path], tmp_path: Path) -> None:
    for path in (few["a"], few["b"]):
        (tmp_path / path.name).symlink_to(path)
    for name in ("notes.txt", "damaged.safetensors"):
        (tmp_path / name).write_text("no model")
    mix = mixed(few, "a b", "weighted-sum", alpha=0.3)
    found = sds.unmix(mix, [], folder=tmp_path)
    assert ratios(found) == pytest.approx({"a": 0.7, "b": 0.3}, abs=1e-4)
    words = "2 files are not models of the mix's family and were left out (damaged.safetensors, notes.txt)"
    assert f"{tmp_path}: {words}" in found.notes
    with pytest.raises(UsageError, match="no other model of the mix's family"):
        sds.unmix(xl["a"], [], folder=tmp_path)


def test_an_inpainting_model_of_a_folder_with_plain_ones(few: dict[str, Path], tmp_path: Path) -> None:
    base = base_of(tmp_path, "sd1-inpainting", without=SPARED)
    inpainting = tuned(base, "inpainting", 0.2, 30)
    base.unlink()
    for path in (few["a"], few["base"]):
        (tmp_path / path.name).symlink_to(path)
    mix = tmp_path.with_name("mix.safetensors")
    sds.merge("add-diff", [inpainting, few["a"], few["base"]], alpha=1, out=mix, **QUICK)
    found = sds.unmix(mix, [], folder=tmp_path, prove=True)
    assert found.formula == "inpainting + (a − base)"
    assert found.proof is not None and found.proof["equal"] == found.proof["tensors"]


def test_a_name_writes_no_control_characters_to_the_terminal(few: dict[str, Path], tmp_path: Path) -> None:
    odd = tmp_path / "\x1b[31m\u202e\nb.safetensors"
    odd.symlink_to(few["b"])
    out = command("unmix", mixed(few, "a b", "weighted-sum", alpha=0.3), few["a"], odd).out
    assert "\x1b" not in out and "\u202e" not in out and out.splitlines()[-1].startswith("made by: ")


def test_refusals(models: dict[str, Path], xl: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="no candidates"):
        sds.unmix(models["a"], [])
    with pytest.raises(InputRefused, match="another family"):
        sds.unmix(models["a"], [xl["a"]])
    with pytest.raises(InputRefused):
        sds.unmix(models["a"], [models["b"].with_name("nowhere.safetensors")])
    with pytest.raises(InputRefused, match="cannot be listed"):
        sds.unmix(models["a"], [], folder=models["a"].with_name("nowhere"))
    with pytest.raises(UsageError, match=r"keeps no values|cannot be used"):
        sds.unmix(models["a"], [models["b"]], backend="triton")
    floats = {name: tensor for name, tensor in load_file(models["a"]).items() if tensor.dtype == np.float16}
    nothing = {name: np.full_like(tensor, np.nan) for name, tensor in floats.items()}
    save_file(nothing, models["a"].with_name("nothing.safetensors"))
    with pytest.raises(InputRefused, match="each weight holds NaN or Inf"):
        sds.unmix(models["a"].with_name("nothing.safetensors"), [models["b"]])
    assert "or a folder (--in)" in command("unmix", models["a"]).err
    run = command("unmix", models["a"])
    assert run.rc == 2 and run.err.count("\n") == 1


# ---- other forms of a file


def test_a_merge_that_was_cast_afterwards_is_proved_as_two_steps(models: dict[str, Path], tmp_path: Path) -> None:
    mix = mixed(models, "a b", "weighted-sum", alpha=0.4)
    sds.prune(mix, preset="inference", dtype="bf16", out=tmp_path / "cast.safetensors", **QUICK)
    found = sds.unmix(tmp_path / "cast.safetensors", pick(models, "a b base"), prove=True)
    assert found.proof is not None and found.proof["equal"] == found.proof["tensors"] == 1131
    first, second = found.command.split(" && ")
    assert "--dtype" not in first
    assert second == "sdsurgery prune MERGED.safetensors --dtype bf16 --drop buffers -o OUT.safetensors"


def test_a_merge_that_was_cast_to_fp8_is_proved(models: dict[str, Path], tmp_path: Path) -> None:
    sds.cast(
        mixed(models, "a b", "weighted-sum", alpha=0.4), out=tmp_path / "fp8.safetensors", dtype="fp8_e4m3", **QUICK
    )
    found = sds.unmix(tmp_path / "fp8.safetensors", pick(models, "a b base"), prove=True)
    assert found.proof is not None and found.proof["equal"] == found.proof["tensors"] == 1143
    assert found.command.endswith(" && sdsurgery cast MERGED.safetensors --dtype fp8_e4m3 -o OUT.safetensors")


def test_the_command_of_a_pruned_merge_prunes(models: dict[str, Path], tmp_path: Path) -> None:
    sds.extract(mixed(models, "a b", "weighted-sum", alpha=0.4), "unet", out=tmp_path / "unet.safetensors", **QUICK)
    found = sds.unmix(tmp_path / "unet.safetensors", pick(models, "a b"), prove=True)
    out, merged = str(tmp_path / "again.safetensors"), str(tmp_path / "merged.safetensors")
    for step in found.command.split(" && "):
        words = shlex.split(step.replace("OUT.safetensors", out).replace("MERGED.safetensors", merged))
        assert command(*words[1:]).rc == 0
    assert sds.compare(tmp_path / "unet.safetensors", out).equal


def test_a_pruned_file_is_called_so(models: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "pruned.safetensors"
    sds.prune(models["a"], preset="inference", out=out, **QUICK)
    found = sds.unmix(out, pick(models, "a b base"))
    assert found.notes == [
        "a has the weights of the mix, bit for bit in value; it has 12 more tensors, so the mix was pruned"
    ]


# ---- EMA weights


def test_ema_weights_are_a_candidate_of_their_own(models: dict[str, Path], tmp_path: Path) -> None:
    full = tmp_path / "trained.safetensors"
    weights, averages = load_file(models["a"]), load_file(models["c"])
    twins = {
        "model_ema." + key.removeprefix("model.").replace(".", ""): tensor
        for key, tensor in averages.items() if key.startswith("model.diffusion_model.")
    }  # fmt: skip
    save_file({**weights, **twins}, full)
    out = tmp_path / "mix.safetensors"
    sds.merge("weighted-sum", [models["b"], full], alpha=0.4, use_ema="B", out=out, **QUICK)
    found = sds.unmix(out, [models["b"], full, models["d"]], prove=True)
    assert found.formula == "0.6·b + 0.4·trained (EMA)"
    assert f"{full} (EMA)" in found.ratios and str(full) in found.left_out
    assert found.proof is not None and found.proof["equal"] == found.proof["tensors"]
    words = shlex.split(found.command)
    assert words[words.index("--use-ema") + 1] == "B"
    assert command(*words[1:-1], str(tmp_path / "again.safetensors")).rc == 0
    assert sds.compare(out, tmp_path / "again.safetensors").equal
    itself = sds.unmix(full, pick(models, "a b"))
    (note,) = (note for note in itself.notes if "EMA" in note)
    assert command(*shlex.split(note.split("`")[1])[1:-1], tmp_path / "out.safetensors").rc == 0
    alone = sds.ema(full, out=tmp_path / "alone.safetensors", sync=False)
    found = sds.unmix(alone.output, [full, models["b"]])
    assert found.formula == "trained (EMA)" and found.command.startswith("sdsurgery ema ")
