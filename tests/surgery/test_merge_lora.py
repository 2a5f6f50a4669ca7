"""merge-lora and resize-lora: adapters as one, by their effects."""

from __future__ import annotations

import json
from pathlib import Path

import adapter_golden as golden
import numpy as np
import pytest
import sdsurgery
from adapter_tools import Arrays, delta, loaded, lora, written
from cli_support import sds
from sdsurgery.errors import InputRefused, UsageError

KEY = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
CONV = "lora_unet_down_blocks_1_resnets_0_conv1"
QUERY = "lora_te_text_model_encoder_layers_3_self_attn_q_proj"
SHAPES = {KEY: (640, 768), CONV: (640, 320, 3, 3), QUERY: (768, 768)}
IN_DIFFUSERS = {KEY: "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"}


def adapter(path: Path, *names: str, seed: int = 0, rank: int = 3, alpha: float | None = 2.0) -> Arrays:
    found: Arrays = {}
    for number, name in enumerate(names):
        found |= lora(name, SHAPES[name], seed=10 * seed + number, rank=rank, alpha=alpha, dtype=np.float32)
    written(path, found)
    return found


def close(found: np.ndarray, exact: np.ndarray, tolerance: float = 1e-5) -> None:
    assert found.shape == exact.shape
    assert np.abs(found - exact).max() <= tolerance * np.abs(exact).max()


def test_effects_are_added_and_ranks_add_up(tmp_path: Path) -> None:
    a = adapter(tmp_path / "a.safetensors", KEY, CONV, QUERY, seed=1)
    b = adapter(tmp_path / "b.safetensors", KEY, CONV, seed=2, rank=2, alpha=8)
    loras = {tmp_path / "a.safetensors": 0.8, tmp_path / "b.safetensors": -0.5}
    sdsurgery.merge_lora(loras, out=tmp_path / "m.safetensors")
    found = loaded(tmp_path / "m.safetensors")
    for name in (KEY, CONV):
        close(delta(found, name), 0.8 * delta(a, name) - 0.5 * delta(b, name))
        assert len(found[f"{name}.lora_down.weight"]) == 5
    # several ranks: diffusers would give some modules the alpha of others, so there is none
    assert not [name for name in found if name.endswith(".alpha")]
    close(delta(found, QUERY), 0.8 * delta(a, QUERY))


def test_equal_factors_go_into_alpha_and_leave_the_matrices_as_they_are(tmp_path: Path) -> None:
    a = adapter(tmp_path / "a.safetensors", KEY, seed=1)
    b = adapter(tmp_path / "b.safetensors", KEY, seed=2)
    sdsurgery.merge_lora([tmp_path / "a.safetensors", tmp_path / "b.safetensors"], out=tmp_path / "m.safetensors")
    found = loaded(tmp_path / "m.safetensors")
    both = [each[f"{KEY}.lora_down.weight"] for each in (a, b)]
    assert np.array_equal(found[f"{KEY}.lora_down.weight"], np.concatenate(both))
    assert found[f"{KEY}.alpha"] == np.float32(2 / 3 * 6)


def test_modules_of_an_unknown_family_in_two_dialects_belong_together(tmp_path: Path) -> None:
    """Nothing in them shows whether they are for SD 1 or SD 2, whose names are the same."""
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    kohya, diffusers = f"lora_unet_{path.replace('.', '_')}", f"unet.{path}"
    a, b = (lora(kohya, (320, 320), seed=seed, dtype=np.float32) for seed in (1, 2))
    written(tmp_path / "a.safetensors", a)
    parts = {"lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight", "alpha": "alpha"}
    written(tmp_path / "b.safetensors", {f"{diffusers}.{new}": b[f"{kohya}.{old}"] for new, old in parts.items()})
    for dialect, name in (("kohya", kohya), ("diffusers", diffusers)):
        out = tmp_path / f"{dialect}.safetensors"
        sdsurgery.merge_lora([tmp_path / "a.safetensors", tmp_path / "b.safetensors"], names=dialect, out=out)
        found = {key.replace("lora_A", "lora_down").replace("lora_B", "lora_up"): v for key, v in loaded(out).items()}
        assert {key.partition(".lora_")[0].removesuffix(".alpha") for key in found} == {name}
        close(delta(found, name), delta(a, kohya) + delta(b, kohya))
    assert "ss_base_model_version" not in sdsurgery.inspect(tmp_path / "kohya.safetensors").metadata


def test_a_sparse_residual_is_part_of_the_effect(tmp_path: Path) -> None:
    parts = adapter(tmp_path / "a.safetensors", KEY, alpha=3)
    places, values = np.array([[0, 5, 639], [767, 1, 0]], np.int16), np.array([0.5, -1, 2], np.float32)
    sparse = {f"{KEY}.bias_indices": places, f"{KEY}.bias_values": values, f"{KEY}.bias_size": np.array([640, 768])}
    written(tmp_path / "a.safetensors", parts | sparse)
    sdsurgery.merge_lora({tmp_path / "a.safetensors": 0.5}, out=tmp_path / "m.safetensors", dtype="fp32")
    exact = delta(parts, KEY)
    exact[tuple(places)] += values
    close(loaded(tmp_path / "m.safetensors")[f"{KEY}.diff"], 0.5 * exact)


def test_strengths_of_text_encoders_and_blocks(tmp_path: Path) -> None:
    a = adapter(tmp_path / "a.safetensors", KEY, QUERY)
    given = sdsurgery.lora(tmp_path / "a.safetensors", 0.5, te=2, blocks="IN04=3")
    sdsurgery.merge_lora(given, out=tmp_path / "m.safetensors")
    found = loaded(tmp_path / "m.safetensors")
    close(delta(found, KEY), 1.5 * delta(a, KEY))
    close(delta(found, QUERY), 2 * delta(a, QUERY))


def test_a_sum_cut_to_a_rank_is_the_best_one(tmp_path: Path) -> None:
    a, b = (adapter(tmp_path / f"{name}.safetensors", KEY, CONV, seed=seed) for seed, name in enumerate("ab"))
    loras = {tmp_path / "a.safetensors": 1.0, tmp_path / "b.safetensors": 0.7}
    report = sdsurgery.merge_lora(loras, rank=4, out=tmp_path / "m.safetensors")
    found = loaded(tmp_path / "m.safetensors")
    for name in (KEY, CONV):
        exact = (delta(a, name) + 0.7 * delta(b, name)).reshape(len(delta(a, name)), -1)
        u, sigma, vt = np.linalg.svd(exact, full_matrices=False)
        close(delta(found, name).reshape(exact.shape), (u[:, :4] * sigma[:4]) @ vt[:4])
        assert found[f"{name}.alpha"] == 4
        row = next(row for row in report.adapters[0]["layers"] if row["name"] == name)
        assert abs(row["kept"] - np.sqrt((sigma[:4] ** 2).sum() / (sigma**2).sum())) < 1e-6


def test_resizing_keeps_alpha_over_rank(tmp_path: Path) -> None:
    a = adapter(tmp_path / "a.safetensors", KEY, rank=6, alpha=3)
    sdsurgery.resize_lora(tmp_path / "a.safetensors", rank=4, out=tmp_path / "r.safetensors")
    found = loaded(tmp_path / "r.safetensors")
    assert found[f"{KEY}.alpha"] == 2
    u, sigma, vt = np.linalg.svd(delta(a, KEY), full_matrices=False)
    close(delta(found, KEY), (u[:, :4] * sigma[:4]) @ vt[:4])


@pytest.mark.parametrize("family", ["sd1", "unknown"])
def test_other_kinds_become_lora(tmp_path: Path, family: str) -> None:
    random = np.random.default_rng(0)
    name = KEY if family == "sd1" else "lora_unet_some_module"
    shapes = {
        "loha": {"hada_w1_a": (640, 4), "hada_w1_b": (4, 768), "hada_w2_a": (640, 4), "hada_w2_b": (4, 768)},
        "lokr": {"lokr_w1": (8, 4), "lokr_w2_a": (80, 2), "lokr_w2_b": (2, 192)},
        "full": {"diff": (640, 768)},
    }
    for kind, given in shapes.items():
        parts = {f"{name}.{part}": random.normal(size=shape).astype("f4") for part, shape in given.items()}
        parts[f"{name}.alpha"] = np.array(1, "f4")
        if family == "sd1":  # whose width shows the family
            parts |= lora(name.replace("attn2_to_k", "attn2_to_v"), (640, 768), dtype=np.float32)
        file = written(tmp_path / f"{kind}.safetensors", parts)
        sdsurgery.merge_lora({file: 0.5}, out=tmp_path / f"m-{kind}.safetensors")
        found = loaded(tmp_path / f"m-{kind}.safetensors")
        values = {part: parts[f"{name}.{part}"].astype("f8") for part in given}
        if kind == "loha":
            exact = (values["hada_w1_a"] @ values["hada_w1_b"]) * (values["hada_w2_a"] @ values["hada_w2_b"]) / 4
        elif kind == "lokr":
            exact = np.kron(values["lokr_w1"], values["lokr_w2_a"] @ values["lokr_w2_b"]) / 2
        else:
            exact = values["diff"]
        made = found[f"{name}.diff"] if kind == "full" else delta(found, name)
        close(made, 0.5 * exact)


def test_dialects_are_converted(tmp_path: Path) -> None:
    a = adapter(tmp_path / "a.safetensors", KEY)
    sdsurgery.merge_lora(tmp_path / "a.safetensors", names="diffusers", out=tmp_path / "d.safetensors")
    found, name = loaded(tmp_path / "d.safetensors"), IN_DIFFUSERS[KEY]
    assert set(found) == {f"{name}.lora_A.weight", f"{name}.lora_B.weight"}
    close(found[f"{name}.lora_B.weight"].astype("f8") @ found[f"{name}.lora_A.weight"], delta(a, KEY))
    sdsurgery.merge_lora(tmp_path / "d.safetensors", out=tmp_path / "k.safetensors")
    close(delta(loaded(tmp_path / "k.safetensors"), KEY), delta(a, KEY))


def test_convert_leaves_other_kinds_what_they_are(tmp_path: Path) -> None:
    """LoHa of SimpleTuner's names, LoKr of peft's with the scale of its settings, and an OFT, in kohya's names."""
    path = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    query = path.replace("attn2.to_k", "attn1.to_q")
    random = np.random.default_rng(0)
    shapes = {f"hada_w{n}_a": (640, 2) for n in (1, 2)} | {f"hada_w{n}_b": (2, 768) for n in (1, 2)}
    loha = {part: random.normal(size=shape).astype("f2") for part, shape in shapes.items()} | {"alpha": np.array(3)}
    lokr = {"lokr_w1": random.normal(size=(8, 8)), "lokr_w2_a": random.normal(size=(80, 2)),
            "lokr_w2_b": random.normal(size=(2, 80))}  # fmt: skip
    lokr = {part: value.astype("f4") for part, value in lokr.items()}
    oft = {"oft_blocks": random.normal(size=(80, 8, 8)).astype("f4"), "alpha": np.array(0.01, "f4")}
    given: dict[str, Arrays] = {f"lycoris_{path.replace('.', '_')}": loha, f"oft_unet_{query.replace('.', '_')}": oft}
    whole = {f"{name}.{part}": value for name, parts in given.items() for part, value in parts.items()}
    sdsurgery.convert(written(tmp_path / "a.safetensors", whole), names="kohya", out=tmp_path / "k.safetensors")
    found = loaded(tmp_path / "k.safetensors")
    attention = KEY.removesuffix("attn2_to_k")
    expected = {f"{KEY}.{part}": value for part, value in loha.items()}
    expected |= {f"{attention}attn1_to_q.{part}": value for part, value in oft.items()}
    assert set(found) == set(expected)
    assert all(found[key].dtype == value.dtype and np.array_equal(found[key], value) for key, value in expected.items())
    folder = tmp_path / "peft"
    folder.mkdir()
    written(folder / "adapter_model.safetensors", {f"base_model.model.{query}.{k}": v for k, v in lokr.items()})
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LOKR", "r": 2, "alpha": 3}))
    sdsurgery.convert(folder, names="kohya", out=tmp_path / "p.safetensors")
    assert loaded(tmp_path / "p.safetensors")[f"{attention}attn1_to_q.alpha"] == 3


@pytest.mark.parametrize(
    ("name", "given", "suffix", "written_as"),
    [
        (KEY, (640, 1), "lora_magnitude_vector", (640,)),
        (CONV, (640, 1, 1, 1), "lora_magnitude_vector", (1, 640, 1, 1)),
        (KEY, (1, 768), "dora_scale", (1, 768)),
        (CONV, (1, 320, 1, 1), "dora_scale", (1, 320, 1, 1)),
    ],
)
def test_lengths_of_a_dora_have_the_form_of_peft(
    tmp_path: Path, name: str, given: tuple[int, ...], suffix: str, written_as: tuple[int, ...]
) -> None:
    """peft knows lengths of outputs only; OneTrainer leaves those of inputs under their name."""
    lengths = np.random.default_rng(0).random(given).astype("f4")
    parts = lora(name, SHAPES[name], dtype=np.float32) | {f"{name}.dora_scale": lengths}
    file = written(tmp_path / "a.safetensors", parts)
    sdsurgery.convert(file, names="diffusers", out=tmp_path / "d.safetensors")
    ((key, found),) = ((key, value) for key, value in loaded(tmp_path / "d.safetensors").items() if "lora_A" not in key
                       and "lora_B" not in key)  # fmt: skip
    assert key.endswith(f".{suffix}") and found.shape == written_as
    assert np.array_equal(found.reshape(-1), lengths.reshape(-1))
    sdsurgery.convert(tmp_path / "d.safetensors", names="kohya", out=tmp_path / "k.safetensors")
    again = loaded(tmp_path / "k.safetensors")[f"{name}.dora_scale"]
    assert again.shape == given and np.array_equal(again, lengths)


def test_a_dora_over_more_than_two_factors_is_not_written_without_its_lengths(tmp_path: Path) -> None:
    parts = lora(KEY, SHAPES[KEY], dtype=np.float32) | {
        f"{KEY}.bias": np.ones(SHAPES[KEY], "f4"), f"{KEY}.dora_scale": np.ones((640, 1), "f4"),
    }  # fmt: skip
    file = written(tmp_path / "a.safetensors", parts)
    with pytest.raises(InputRefused, match="is DoRA over more than a product of two factors"):
        sdsurgery.merge_lora([file], out=tmp_path / "m.safetensors")


def test_a_dora_is_resized_with_its_lengths(tmp_path: Path) -> None:
    parts = lora(KEY, SHAPES[KEY], rank=6, dtype=np.float32)
    parts[f"{KEY}.dora_scale"] = np.ones((640, 1), "f4")
    file = written(tmp_path / "d.safetensors", parts)
    report = sdsurgery.resize_lora(file, rank=2, out=tmp_path / "r.safetensors")
    found = loaded(tmp_path / "r.safetensors")
    assert np.array_equal(found[f"{KEY}.dora_scale"], parts[f"{KEY}.dora_scale"])
    assert any("lengths are kept" in note for note in report.notes)
    with pytest.raises(InputRefused, match="DoRA, whose effect depends on the weight"):
        sdsurgery.merge_lora([file, file], dry_run=True)


def test_bundled_embeddings_and_facts_of_training_are_kept(tmp_path: Path) -> None:
    parts = lora(KEY, SHAPES[KEY]) | {"bundle_emb.style.emb_params": np.ones((2, 768), "f2")}
    texts = {"ss_base_model_version": "sd_1.5", "ss_network_dim": "4", "modelspec.trigger_phrase": "zx, soft"}
    file = written(tmp_path / "a.safetensors", parts, texts)
    sdsurgery.resize_lora(file, rank=2, out=tmp_path / "r.safetensors")
    assert np.array_equal(loaded(tmp_path / "r.safetensors")["bundle_emb.style.emb_params"], np.ones((2, 768), "f2"))
    with sdsurgery.open(tmp_path / "r.safetensors") as out:
        found = out.metadata()
    assert found["ss_base_model_version"] == "sd_1.5" and found["ss_network_dim"] == "2"
    assert found["modelspec.trigger_phrase"] == "zx, soft"
    assert json.loads(found["sd_merge_recipe"])["method"] == "resize-lora"


def test_tags_of_the_training_images_are_those_of_all_files(tmp_path: Path) -> None:
    tags = [{"1_cat": {"cat": 3, "sits": 1}}, {"1_cat": {"cat": 2}, "5_dog": {"dog": 7}}]
    files = [
        written(tmp_path / f"{number}.safetensors", lora(KEY, SHAPES[KEY]), {"ss_tag_frequency": json.dumps(each)})
        for number, each in enumerate(tags)
    ]
    files.append(written(tmp_path / "damaged.safetensors", lora(KEY, SHAPES[KEY]), {"ss_tag_frequency": "{"}))
    sdsurgery.merge_lora(files, out=tmp_path / "out.safetensors")
    with sdsurgery.open(tmp_path / "out.safetensors") as out:
        found = out.metadata()["ss_tag_frequency"]
    assert json.loads(found) == {"1_cat": {"cat": 5, "sits": 1}, "5_dog": {"dog": 7}}


def test_differences_that_diffusers_passes_over_are_named(tmp_path: Path) -> None:
    parts = {f"{KEY}.diff": np.ones(SHAPES[KEY], "f4"), f"{KEY}.diff_b": np.ones(640, "f4")}
    file = written(tmp_path / "a.safetensors", parts)
    report = sdsurgery.merge_lora([file], names="diffusers", out=tmp_path / "out.safetensors")
    (warning,) = report.warnings
    assert warning.code == "unread" and "2 tensors" in warning and f"{IN_DIFFUSERS[KEY]}.diff" in warning
    assert not sdsurgery.merge_lora([file], out=tmp_path / "kohya.safetensors").warnings
    cut = sdsurgery.merge_lora([file], names="diffusers", rank=2, out=tmp_path / "cut.safetensors")
    assert ["in 1 tensor:" in warning for warning in cut.warnings] == [True]


def test_the_implementation_is_that_of_the_names(tmp_path: Path) -> None:
    texts = {"modelspec.implementation": "https://github.com/Stability-AI/generative-models"}
    file = written(tmp_path / "a.safetensors", lora(KEY, SHAPES[KEY]), texts)
    for name, expected in (("diffusers", "diffusers"), ("kohya", texts["modelspec.implementation"])):
        sdsurgery.convert(file, names=name, out=tmp_path / f"{name}.safetensors")
        with sdsurgery.open(tmp_path / f"{name}.safetensors") as out:
            assert out.metadata()["modelspec.implementation"] == expected


def test_modules_that_the_family_lacks_are_named(tmp_path: Path) -> None:
    file = written(tmp_path / "a.safetensors", lora(KEY, SHAPES[KEY]) | lora("lora_unet_foo", (8, 8)))
    report = sdsurgery.convert(file, names="diffusers", out=tmp_path / "out.safetensors")
    assert "1 module under names that the family lacks, kept so: lora_unet_foo" in report.notes
    assert "lora_unet_foo.lora_A.weight" in loaded(tmp_path / "out.safetensors")


def test_progress_is_in_bytes(tmp_path: Path) -> None:
    parts = adapter(tmp_path / "a.safetensors", KEY, CONV)
    heard: list[tuple[int, int]] = []
    sdsurgery.merge_lora([tmp_path / "a.safetensors"], dry_run=True, progress=lambda *each: heard.append(each))
    sizes = [sum(part.nbytes for key, part in parts.items() if key.startswith(name)) for name in (KEY, CONV)]
    assert heard == [(sizes[0], sum(sizes)), (sum(sizes), sum(sizes))]


def test_what_has_strength_0_takes_no_rank(tmp_path: Path) -> None:
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    adapter(first, KEY, CONV)
    parts = adapter(second, KEY, seed=1)
    report = sdsurgery.merge_lora({first: 0, second: 1}, out=tmp_path / "out.safetensors")
    found = loaded(tmp_path / "out.safetensors")
    assert found.keys() == parts.keys() and all(np.array_equal(found[name], parts[name]) for name in parts)
    assert "left out: 2 modules at strength 0" in report.notes
    with pytest.raises(InputRefused, match="all strengths are 0"):
        sdsurgery.merge_lora({first: 0}, dry_run=True)


def test_metadata_know_that_no_alphas_are_written(tmp_path: Path) -> None:
    file = written(tmp_path / "a.safetensors", lora(KEY, SHAPES[KEY]) | lora(CONV, SHAPES[CONV], rank=3, alpha=1.5))
    sdsurgery.merge_lora({file: -1}, out=tmp_path / "out.safetensors")
    assert not [name for name in loaded(tmp_path / "out.safetensors") if name.endswith("alpha")]
    with sdsurgery.open(tmp_path / "out.safetensors") as out:
        found = out.metadata()
    assert (found["ss_network_dim"], found["ss_network_alpha"]) == ("4", "4")
    assert json.loads(found["ss_network_args"]) == {"conv_dim": "3", "conv_alpha": "3"}


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ({"oft_blocks": (80, 8, 8)}, "Diag-OFT, whose effect depends on the weight"),
        ({"on_input": (), "weight": (768,)}, r"\(IA\)³, whose effect depends on the weight"),
    ],
)
def test_kinds_that_multiply_are_refused(tmp_path: Path, parts: dict[str, tuple[int, ...]], text: str) -> None:
    given = {f"{KEY}.{part}": np.ones(shape, "f4") for part, shape in parts.items()}
    with pytest.raises(InputRefused, match=text):
        sdsurgery.merge_lora([written(tmp_path / "a.safetensors", given)], dry_run=True)


def test_families_are_not_mixed(tmp_path: Path) -> None:
    adapter(tmp_path / "a.safetensors", KEY)
    written(tmp_path / "b.safetensors", lora(KEY, (640, 1024)))
    with pytest.raises(InputRefused, match=r"a.safetensors is for SD1 .*b.safetensors for SD2"):
        sdsurgery.merge_lora([tmp_path / "a.safetensors", tmp_path / "b.safetensors"], dry_run=True)


def test_words_and_numbers(tmp_path: Path) -> None:
    adapter(tmp_path / "a.safetensors", KEY)
    with pytest.raises(UsageError, match="names= cannot be 'comfy'"):
        sdsurgery.merge_lora(tmp_path / "a.safetensors", names="comfy", dry_run=True)
    with pytest.raises(UsageError, match="rank= must be at least 1"):
        sdsurgery.resize_lora(tmp_path / "a.safetensors", dry_run=True)


@pytest.fixture(scope="module")
def held(adapters: Path) -> Arrays:
    found = golden.tensors(adapters / "golden" / "extract.safetensors")
    return {name: value for name, (_, value) in found.items()}


class TestGolden:
    """Two adapters of the reference, under names that no family has."""

    names = ("lora_unet_linear", "lora_unet_conv3x3")

    def files(self, held: Arrays, folder: Path) -> list[Path]:
        files = []
        for letter in "AB":
            prefix = f"adapter{letter}/"
            parts = {name.removeprefix(prefix): value for name, value in held.items() if name.startswith(prefix)}
            files.append(written(folder / f"{letter}.safetensors", parts))
        return files

    def test_the_sum(self, held: Arrays, tmp_path: Path) -> None:
        a, b = self.files(held, tmp_path)
        sdsurgery.merge_lora({a: 0.8, b: -0.5}, out=tmp_path / "m.safetensors")
        found = loaded(tmp_path / "m.safetensors")
        for name in self.names:
            exact = held[f"merged/{name.removeprefix('lora_unet_')}/canonical64"]
            close(delta(found, name).reshape(exact.shape), exact, 3e-6)

    def test_resized_to_rank_4_as_sd_scripts_does(self, held: Arrays, tmp_path: Path) -> None:
        a, _ = self.files(held, tmp_path)
        sdsurgery.resize_lora(a, rank=4, out=tmp_path / "r.safetensors")
        found = loaded(tmp_path / "r.safetensors")
        theirs = {name.removeprefix("kohya.resize.fixed4/"): value for name, value in held.items() if "fixed4/" in name}
        for name in self.names:
            close(delta(found, name), delta(theirs, name))
            assert found[f"{name}.alpha"] == theirs[f"{name}.alpha"]


def test_the_command_lines(tmp_path: Path) -> None:
    adapter(tmp_path / "a.safetensors", KEY, QUERY)
    given = f"{tmp_path / 'a.safetensors'}=0.8,te=0.3"
    file = tmp_path / "a.safetensors"
    commands = (
        ["merge-lora", given], ["merge-lora", file, "--exact"], ["resize-lora", file, "--rank", 2],
        ["convert", file, "--names", "diffusers"],
    )  # fmt: skip
    for number, words in enumerate(commands):
        done = sds(*words, "-o", tmp_path / f"{number}.safetensors")
        assert done.rc == 0, done.err
        assert "2 modules, rank" in done.err
    done = sds("merge-lora", file, file, "--lora-blocks", "2:BASE=0,IN04=-1", "-o", tmp_path / "b.safetensors")
    assert done.rc == 0, done.err
    one, both = loaded(file), loaded(tmp_path / "b.safetensors")
    close(delta(both, QUERY), delta(one, QUERY))
    assert np.abs(delta(both, KEY)).max() <= 1e-6 * np.abs(delta(one, KEY)).max()
    done = sds("merge-lora", file, "--exact", "--rank", 2, "-o", tmp_path / "n.safetensors")
    assert done.rc == 2 and "--exact keeps all ranks" in done.err, done.err
