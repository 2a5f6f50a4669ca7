"""extract-lora: the difference of two checkpoints as an adapter that gives it back."""

from __future__ import annotations

import json
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sdsurgery
import torch
from adapter_tools import (
    SD1,
    SD1_CONV,
    SD1_CONV_NAME,
    SD1_KEY,
    SD1_KEY_NAME,
    SD1_QUERY_NAME,
    delta,
    loaded,
    lora,
    shapes_of,
    written,
)
from cli_support import sds
from safetensors import safe_open
from safetensors.torch import load_file, save
from sdsurgery.adapters.svd import Rank, factored, of_product
from sdsurgery.backends import Backend
from sdsurgery.errors import InputRefused, UsageError
from sdsurgery.testing import write_checkpoint


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("extract") / "base.safetensors"
    write_checkpoint(path, "sd1", size="tiny", dtype="fp32")
    return path


@pytest.fixture(scope="module")
def parts(base: Path) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for seed, (name, tensor) in enumerate(SD1.items()):
        found |= lora(name, shapes_of(base)[tensor], seed=seed, rank=3)
    return found


@pytest.fixture(scope="module")
def tuned(base: Path, parts: dict[str, np.ndarray]) -> Path:
    path = base.with_name("tuned.safetensors")
    sdsurgery.bake(base, [written(base.with_name("a.safetensors"), parts)], out=path)
    return path


def differences(tuned: Path, base: Path) -> dict[str, np.ndarray]:
    after, before = loaded(tuned), loaded(base)
    return {name: after[name].astype(np.float64) - before[name] for name in SD1.values()}


def test_what_was_baked_comes_out_again(tuned: Path, base: Path, parts: dict[str, np.ndarray], tmp_path: Path) -> None:
    report = sdsurgery.extract_lora(tuned, base, out=tmp_path / "l.safetensors", kind="locon", rank=3, dtype="fp32")
    found = loaded(tmp_path / "l.safetensors")
    assert {name.partition(".")[0] for name in found} == set(SD1)
    for name in SD1:
        exact = delta(parts, name)
        assert np.abs(delta(found, name) - exact).max() <= 1e-5 * np.abs(exact).max()
        assert found[f"{name}.alpha"] == 3
    layers = {layer["name"]: layer for layer in report.adapters[0]["layers"]}
    assert all(layer["kept"] > 0.99999 and layer["rank"] == 3 for layer in layers.values())


def test_the_adapter_baked_into_the_base_gives_the_tuned_model(tuned: Path, base: Path, tmp_path: Path) -> None:
    sdsurgery.extract_lora(tuned, base, out=tmp_path / "l.safetensors", kind="locon", rank=3, dtype="fp32")
    sdsurgery.bake(base, [tmp_path / "l.safetensors"], out=tmp_path / "again.safetensors")
    expected, found = loaded(tuned), loaded(tmp_path / "again.safetensors")
    for name, value in expected.items():
        assert np.abs(found[name] - value).max(initial=0) <= 2e-6 * np.abs(value).max(initial=1e-9), name


def test_the_time_of_the_report_includes_the_extraction(tuned: Path, base: Path, tmp_path: Path) -> None:
    calls: list[int] = []

    def slowly(done: int, total: int) -> None:
        calls.append(done)
        time.sleep(0.002)

    report = sdsurgery.extract_lora(tuned, base, out=tmp_path / "l.safetensors", rank=1, progress=slowly)
    assert len(calls) > 100 and report.seconds is not None and report.seconds > 0.8 * 0.002 * len(calls)


def test_full_differences_are_those_of_the_tensors(tuned: Path, base: Path, tmp_path: Path) -> None:
    sdsurgery.extract_lora(tuned, base, out=tmp_path / "f.safetensors", kind="full", dtype="fp32")
    found = loaded(tmp_path / "f.safetensors")
    exact = differences(tuned, base)
    assert set(found) == {f"{name}.diff" for name in SD1}
    for name, tensor in SD1.items():
        assert np.array_equal(found[f"{name}.diff"], exact[tensor].astype(np.float32))
    with sdsurgery.open(tmp_path / "f.safetensors") as file:
        texts = file.metadata()
    assert texts["ss_network_module"] == "lycoris.kohya" and json.loads(texts["ss_network_args"]) == {"algo": "full"}


def test_dora_has_the_lengths_of_the_tuned_rows(tuned: Path, base: Path, tmp_path: Path) -> None:
    sdsurgery.extract_lora(tuned, base, out=tmp_path / "d.safetensors", kind="dora", rank=3, dtype="fp32")
    found = loaded(tmp_path / "d.safetensors")
    rows = np.sqrt((loaded(tuned)[SD1_KEY].astype(np.float64) ** 2).sum(axis=1))
    assert found[f"{SD1_KEY_NAME}.dora_scale"].shape == (len(rows), 1)
    assert np.allclose(found[f"{SD1_KEY_NAME}.dora_scale"][:, 0], rows, rtol=1e-6)
    sdsurgery.bake(base, [tmp_path / "d.safetensors"], out=tmp_path / "again.safetensors")
    again, expected = loaded(tmp_path / "again.safetensors")[SD1_KEY], loaded(tuned)[SD1_KEY]
    assert np.abs(again - expected).max() <= 1e-5 * np.abs(expected).max()


def test_ranks_by_share_of_the_norm_and_by_ratio(tuned: Path, base: Path, tmp_path: Path) -> None:
    exact = differences(tuned, base)[SD1_KEY]
    sigma = np.linalg.svd(exact, compute_uv=False)
    shares = np.sqrt(np.cumsum(sigma**2) / np.sum(sigma**2))
    cases: list[tuple[dict[str, Any], int]] = [
        ({"energy": 0.9}, int(np.argmax(shares >= 0.9)) + 1),
        ({"sigma_ratio": 0.5}, int((sigma > 0.5 * sigma[0]).sum())),
        ({"energy": 1.0, "rank": 2}, 2),
    ]
    for number, (given, rank) in enumerate(cases):
        out = tmp_path / f"{number}.safetensors"
        sdsurgery.extract_lora(tuned, base, out=out, **given)
        assert len(loaded(out)[f"{SD1_KEY_NAME}.lora_down.weight"]) == rank


def test_the_default_is_plain_lora_of_rank_32_in_fp16_and_leaves_convolutions_out(
    tuned: Path, base: Path, tmp_path: Path
) -> None:
    sdsurgery.extract_lora(tuned, base, out=tmp_path / "l.safetensors")
    found = loaded(tmp_path / "l.safetensors")
    assert {name.partition(".")[0] for name in found} == {SD1_KEY_NAME, SD1_QUERY_NAME}
    assert found[f"{SD1_KEY_NAME}.lora_down.weight"].dtype == np.float16


def test_what_the_adapter_does_not_hold_is_counted(base: Path, tmp_path: Path) -> None:
    changed = (SD1_KEY, SD1_CONV, "model.diffusion_model.out.0.bias", "first_stage_model.encoder.conv_in.weight")
    after = {name: value + np.float32(name in changed) for name, value in loaded(base).items()}
    tuned = written(tmp_path / "t.safetensors", after)
    lost = sdsurgery.extract_lora(tuned, base, out=tmp_path / "l.safetensors").notes[-1]
    assert lost == "also different, but not held by an adapter of kind lora: 1 tensor of vae, 2 tensors of unet"
    whole = sdsurgery.extract_lora(tuned, base, out=tmp_path / "f.safetensors", kind="full").notes[-1]
    assert whole == "also different, but not held by an adapter of kind full: 1 tensor of vae"


def test_metadata_that_user_interfaces_read(tuned: Path, base: Path, tmp_path: Path) -> None:
    report = sdsurgery.extract_lora(tuned, base, out=tmp_path / "l.safetensors", kind="locon", rank=4, conv_rank=2)
    with sdsurgery.open(tmp_path / "l.safetensors") as file:
        texts = file.metadata()
    expected = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "4",
        "ss_base_model_version": "sd_v1",
        "ss_v2": "False",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "sshs_model_hash": report.body_sha256,
    }
    assert expected.items() <= texts.items()
    assert json.loads(texts["ss_network_args"]) == {"conv_dim": "2", "conv_alpha": "2"}
    recipe = json.loads(texts["sd_merge_recipe"])
    assert [model["name"] for model in recipe["models"]] == ["tuned", "base"]
    assert sdsurgery.inspect(tmp_path / "l.safetensors").family == "lora-sd1"


@pytest.mark.parametrize("dtype", [None, "fp16"])
def test_both_hashes_are_those_that_sd_scripts_computes(base: Path, tmp_path: Path, dtype: str | None) -> None:
    """Of the file as safetensors.torch.save writes it with the ``ss_*`` metadata alone: everything behind the header,
    and 64 KiB from the first MiB on."""
    write_checkpoint(tmp_path / "t.safetensors", "sd1", size="tiny", seed=9)
    out = tmp_path / "l.safetensors"
    sdsurgery.extract_lora(tmp_path / "t.safetensors", base, out=out, kind="full", rank=1, dtype=dtype or "keep")
    assert out.stat().st_size > 0x120000
    texts = safe_open(out, "pt").metadata()
    own = {name: text for name, text in texts.items() if name.startswith("ss_")}
    data = save(load_file(out), own)
    assert texts["sshs_model_hash"] == sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()
    assert texts["sshs_legacy_hash"] == sha256(data[0x100000:0x110000]).hexdigest()[:8]


def test_without_hashes_the_metadata_have_none(tuned: Path, base: Path, tmp_path: Path) -> None:
    sdsurgery.extract_lora(tuned, base, out=tmp_path / "l.safetensors", rank=1, hash=False)
    assert not [name for name in safe_open(tmp_path / "l.safetensors", "pt").metadata() if name.startswith("sshs_")]


def test_names_of_diffusers(tuned: Path, base: Path, tmp_path: Path) -> None:
    sdsurgery.extract_lora(tuned, base, out=tmp_path / "l.safetensors", kind="locon", rank=3, names="diffusers")
    found = loaded(tmp_path / "l.safetensors")
    assert "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight" in found
    assert "text_encoder.text_model.encoder.layers.3.self_attn.q_proj.lora_B.weight" in found
    assert not [name for name in found if name.endswith("alpha")]


def test_thirds_of_a_fused_projection_are_layers_of_their_own(tmp_path: Path) -> None:
    base = tmp_path / "sd2.safetensors"
    write_checkpoint(base, "sd2", size="tiny", dtype="fp32")
    fused = "cond_stage_model.model.transformer.resblocks.2.attn.in_proj_weight"
    rows, columns = shapes_of(base)[fused]
    name = "lora_te_text_model_encoder_layers_2_self_attn_v_proj"
    given = lora(name, (rows // 3, columns), rank=2)
    tuned = tmp_path / "tuned.safetensors"
    sdsurgery.bake(base, [written(tmp_path / "v.safetensors", given)], out=tuned)
    sdsurgery.extract_lora(tuned, base, out=tmp_path / "l.safetensors", rank=2, dtype="fp32")
    found = loaded(tmp_path / "l.safetensors")
    assert {key.partition(".")[0] for key in found} == {name}
    assert np.abs(delta(found, name) - delta(given, name)).max() <= 1e-5 * np.abs(delta(given, name)).max()


class TestRefusals:
    def test_equal_models(self, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        with pytest.raises(InputRefused, match="don't differ in any layer"):
            sdsurgery.extract_lora(base, base, dry_run=True)
        assert list(tmp_path.iterdir()) == []

    def test_other_families(self, base: Path, tmp_path: Path) -> None:
        other = tmp_path / "sd2.safetensors"
        write_checkpoint(other, "sd2", size="tiny")
        with pytest.raises(InputRefused, match=r"TUNED is .* BASE is"):
            sdsurgery.extract_lora(other, base, dry_run=True)

    def test_values_that_are_not_finite(self, base: Path, tmp_path: Path) -> None:
        values = loaded(base)
        values[SD1_KEY][0, 0] = np.nan
        broken = written(tmp_path / "broken.safetensors", values)
        with pytest.raises(InputRefused, match=r"attn2.to_k.weight' holds NaN or Inf"):
            sdsurgery.extract_lora(broken, base, dry_run=True)

    @pytest.mark.parametrize(
        ("given", "text"),
        [
            ({"rank": 0}, "rank= must be at least 1"),
            ({"energy": 2.0}, "energy= must be above 0"),
            ({"energy": 0.9, "sigma_ratio": 0.1}, "exclude each other"),
            ({"kind": "loha"}, "kind= cannot be 'loha'"),
            ({"kind": "full", "names": "diffusers"}, "kohya's dialect only"),
        ],
    )
    def test_numbers_and_words(self, base: Path, given: dict[str, Any], text: str) -> None:
        with pytest.raises(UsageError, match=text):
            sdsurgery.extract_lora(base, base, dry_run=True, **given)


class TestFactors:
    """Golden values: the best possible products, and those of other tools."""

    def held(self, adapters: Path) -> dict[str, np.ndarray]:
        import adapter_golden as golden

        found = golden.tensors(adapters / "golden" / "extract.safetensors")
        return {name: value for name, (_, value) in found.items()}

    @pytest.mark.parametrize("decay", [0.0, 0.2])
    def test_a_random_subspace_loses_next_to_nothing(self, decay: float) -> None:
        """Of noise, where all singular values are alike, and where the rank's last is 10⁻⁶ of the largest."""
        random = np.random.default_rng(0)
        matrix = random.normal(size=(400, 700))
        if decay:
            left, right = (np.linalg.qr(each)[0] for each in (matrix[:, :60], matrix[:60].T))
            matrix = left * 10 ** (-decay * np.arange(60)) @ right.T
        exact, sampled = (factored(matrix, Rank(32), sampled=each) for each in (False, True))
        assert exact is not None and sampled is not None
        least, lost = (float(np.linalg.norm(matrix - each.up @ each.down)) for each in (exact, sampled))
        assert lost <= 1.0001 * least

    @pytest.mark.parametrize("rank", [Rank(8), Rank(energy=0.9)])
    @pytest.mark.parametrize("shape", [(320, 768), (1280, 320)])
    def test_torch_gives_the_product_that_numpy_gives(self, rank: Rank, shape: tuple[int, int]) -> None:
        matrix = np.random.default_rng(0).normal(size=shape).astype("f4")
        one, other = factored(matrix, rank), factored(matrix, rank, device="cpu")
        assert one is not None and other is not None and one.up.shape == other.up.shape
        assert np.abs(one.up @ one.down - other.up @ other.down).max() <= 1e-6 * np.abs(matrix).max()
        assert one.kept == pytest.approx(other.kept, rel=1e-9)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="this torch has a GPU")
    def test_a_torch_without_a_gpu_is_refused_before_the_work(
        self, tuned: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gpu = Backend("gpu", lambda: None, *[lambda *_: None] * 2, on_tensors=lambda _: None)  # type: ignore[arg-type]
        monkeypatch.setattr("sdsurgery.surgery.extract_lora.choose", lambda name: gpu)
        with pytest.raises(UsageError, match=r"factorised by torch on the GPU: this torch .*; use backend='cpu'"):
            sdsurgery.extract_lora(tuned, base, out=tmp_path / "l.safetensors", rank=1)
        monkeypatch.setattr("sdsurgery.adapters.svd.DEVICE", "cpu")
        sdsurgery.extract_lora(tuned, base, out=tmp_path / "l.safetensors", rank=3, dtype="fp32")
        monkeypatch.undo()
        sdsurgery.extract_lora(tuned, base, out=tmp_path / "n.safetensors", rank=3, dtype="fp32")
        found, expected = (loaded(tmp_path / f"{name}.safetensors") for name in "ln")
        assert delta(found, SD1_KEY_NAME) == pytest.approx(delta(expected, SD1_KEY_NAME), abs=1e-6)

    @pytest.mark.parametrize("sampled", [False, True])
    def test_products_are_the_best_possible(self, adapters: Path, sampled: bool) -> None:
        held = self.held(adapters)
        for case in ("linear", "conv3x3", "conv1x1"):
            matrix = held[f"{case}/delta"].reshape(len(held[f"{case}/delta"]), -1)
            for rank in (2, 4, 8):
                found = factored(matrix, Rank(rank), sampled=sampled)
                assert found is not None
                best = held[f"{case}/optimal64.{rank}"]
                assert np.abs(found.up @ found.down - best).max() <= 1e-5 * np.abs(best).max()

    def test_ranks_by_ratio_are_those_of_lycoris(self, adapters: Path) -> None:
        held = self.held(adapters)
        for case, rank in (("linear", 7), ("conv3x3", 5), ("conv1x1", 5)):
            assert Rank(ratio=0.2).of(held[f"{case}/S64"]) == rank

    def test_the_smallest_rank_that_keeps_a_share(self, adapters: Path) -> None:
        held = self.held(adapters)
        adapter = held["adapterA/lora_unet_linear.lora_up.weight"] @ held["adapterA/lora_unet_linear.lora_down.weight"]
        found = factored(adapter, Rank(energy=0.95))
        assert found is not None and len(found.down) == 5 and found.kept >= 0.95  # sd-scripts' resize takes 6

    def test_signs_are_those_of_the_largest_entries(self) -> None:
        matrix = np.random.default_rng(0).normal(size=(40, 30)).astype("f4")
        one, other = factored(matrix, Rank(5)), factored(matrix.copy(), Rank(5))
        assert one is not None and other is not None
        assert np.array_equal(one.up, other.up) and np.array_equal(one.down, other.down)
        assert (one.up[np.abs(one.up).argmax(axis=0), range(5)] > 0).all()

    def test_a_product_is_factored_without_being_made(self) -> None:
        random = np.random.default_rng(1)
        up, down = random.normal(size=(50, 6)), random.normal(size=(6, 70))
        found, exact = of_product(up, down, Rank(3)), factored(up @ down, Rank(3))
        assert found is not None and exact is not None
        assert np.allclose(found.up @ found.down, exact.up @ exact.down, atol=1e-12)
        assert abs(found.kept - exact.kept) < 1e-12


def test_the_command_line(tuned: Path, base: Path, tmp_path: Path) -> None:
    done = sds("extract-lora", tuned, base, "--kind", "locon", "--energy", "0.99", "-o", tmp_path / "l.safetensors")
    assert done.rc == 0, done.err
    assert "layers differ" in done.err
    assert f"{SD1_CONV_NAME}.lora_down.weight" in shapes_of(tmp_path / "l.safetensors")
    assert SD1_CONV in SD1.values()
