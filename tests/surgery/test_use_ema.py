"""merge --use-ema: an input's EMA weights merged on the fly."""

from __future__ import annotations

from pathlib import Path

import pytest
import sdsurgery
from cli_support import done, read_raw, refused, sds, write_raw
from sdsurgery.errors import InputRefused, UsageError
from sdsurgery.testing import write_checkpoint


def test_use_ema_gives_the_bytes_of_ema_then_merge(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    a, b = (tmp_path / f"{name}.safetensors" for name in "ab")
    for seed, path in enumerate((a, b)):
        write_checkpoint(path, "sd1", size="tiny", seed=seed, ema=True)
    only, want, got = (tmp_path / f"{name}.safetensors" for name in ("only", "want", "got"))
    sdsurgery.ema(b, out=only)
    sdsurgery.merge("weighted-sum", [a, only], out=want, alpha=0.3)
    done(sds("merge", a, b, "--method", "weighted-sum", "--alpha", "0.3", "--use-ema", "b", "-o", got))
    left, right = load_file(want), load_file(got)
    assert set(left) == set(right)
    assert all(left[name].equal(right[name]) for name in left)


@pytest.mark.parametrize("who", ["A", "B"])
def test_use_ema_of_an_input_with_other_names_and_blocks(who: str, tmp_path: Path) -> None:
    a, b = (tmp_path / f"{name}.safetensors" for name in "ab")
    for seed, path in enumerate((a, b)):
        write_checkpoint(path, "sd1", size="tiny", seed=seed, ema=True)
    nested = write_raw(tmp_path / "n.safetensors", {"state_dict." + name: raw for name, raw in read_raw(b)[0].items()})
    outs = [tmp_path / "want.safetensors", tmp_path / "got.safetensors"]
    for other, out in zip((b, nested), outs, strict=True):
        options = {"use_ema": who, "blocks": "GRAD_V,BASE=0.25", "rules": {"time_embed": 0.75}}
        report = sdsurgery.merge("weighted-sum", [a, other], out=out, **options)
        assert report.missing == report.only_there == {}
    want, got = (read_raw(out)[0] for out in outs)
    assert got == want


def test_use_ema_may_be_given_once_for_each_input(tmp_path: Path) -> None:
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for seed, path in enumerate(paths):
        write_checkpoint(path, "sd1", size="tiny", ema=True, seed=seed)
    asked = ("merge", *paths, "--method", "weighted-sum", "--no-hash", "-o")
    done(sds(*asked, tmp_path / "want.safetensors", "--use-ema", "A,B"))
    done(sds(*asked, tmp_path / "got.safetensors", "--use-ema", "A", "--use-ema", " b"))
    assert read_raw(tmp_path / "got.safetensors")[0] == read_raw(tmp_path / "want.safetensors")[0]


def test_use_ema_refuses_a_partial_ema_with_the_counts(tmp_path: Path) -> None:
    a, b, out = (tmp_path / f"{name}.safetensors" for name in ("a", "b", "o"))
    write_checkpoint(a, "sd1", size="tiny")
    lacking = ("model_ema.diffusion_modelout2bias", "model_ema.diffusion_modelout2weight")
    write_checkpoint(b, "sd1", size="tiny", ema=True, keep=lambda row: row.key not in lacking)
    merge = ("merge", a, b, "--method", "weighted-sum", "--use-ema", "B", "-o", out)
    refused(sds(*merge), 3, str(b), "partial EMA", "684 found", "686 expected")
    assert not out.exists()


def test_use_ema_refuses_inputs_without_ema_and_unknown_letters(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_checkpoint(path, "sd1", size="tiny")
    with pytest.raises(InputRefused, match="0 found, 686 expected"):
        sdsurgery.merge("weighted-sum", [path, path], out=tmp_path / "o.safetensors", use_ema="A")
    with pytest.raises(UsageError, match="no input 'C'"):
        sdsurgery.merge("weighted-sum", [path, path], out=tmp_path / "o.safetensors", use_ema="C")
