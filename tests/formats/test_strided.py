"""Tensors that are not contiguous (only torch's files have them): written as torch's .contiguous() gives them."""

from __future__ import annotations

import random

import pytest
import sdsurgery
from sdsurgery import _native
from torch_support import DTYPES, raw, sample, saved, torch

RUNS = [
    {"backend": "reference"},
    {"threads": 1},
    {"threads": 3, "tile_bytes": 4096},
    {"threads": 2, "io": "mmap"},
    {"threads": 2, "io": "pread", "tile_bytes": 8192},
]


def written(path, **given) -> dict[str, bytes]:
    """The tensors' bytes after a cast that changes nothing."""
    out = path.with_suffix(".out.safetensors")
    sdsurgery.cast(path, out=out, overwrite=True, hash=False, sync=False, **given)
    with sdsurgery.open(out) as checkpoint:
        return {name: checkpoint.read(checkpoint.info(name)) for name in checkpoint}


def view_of(rng: random.Random, dtype: torch.dtype) -> torch.Tensor:
    """A random permuted, sliced and expanded view of a random tensor."""
    value = sample(dtype, *(rng.randint(1, 7) for _ in range(rng.randint(1, 5))))
    if rng.random() < 0.3:
        value = sample(dtype, rng.randint(30, 90), rng.randint(30, 90))
    value = value.permute(*rng.sample(range(value.dim()), value.dim()))
    for dim in range(value.dim()):
        size = value.shape[dim]
        start, step = rng.randrange(size), rng.choice((1, 1, 2, 3))
        if rng.random() < 0.5:
            value = value[(slice(None),) * dim + (slice(start, None, step),)]
    if rng.random() < 0.3:
        value = value.unsqueeze(1).expand(-1, 3, *(-1,) * (value.dim() - 1))
    return value


@pytest.mark.parametrize("options", RUNS, ids=str)
@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_any_view_of_any_dtype_is_copied_bit_for_bit(tmp_path, form, options):
    rng = random.Random(form)
    values = {"first": torch.ones(1, dtype=torch.uint8)}  # so that wider tensors are cut within an element
    for name, dtype in DTYPES.items():
        values |= {f"{name}.{i}": view_of(rng, dtype) for i in range(12)}
    path = tmp_path / "views.ckpt"
    path.write_bytes(saved(values, form))
    found = written(path, **options)
    assert list(found) == list(values)
    for name, value in values.items():
        assert found[name] == raw(value), (name, value.shape, value.stride())


@pytest.mark.parametrize("options", RUNS, ids=str)
def test_formulas_over_strided_and_plain_tensors_give_what_torch_gives(tmp_path, options):
    torch.manual_seed(1)
    a = {"t": torch.randn(70, 130).t(), "s": torch.randn(40, 60)[:, ::2], "e": torch.randn(5, 1, 9).expand(5, 4, 9)}
    b = {"t": torch.randn(130, 70), "s": torch.randn(30, 40).t(), "e": torch.randn(5, 4, 9).half()}
    for name, values in (("a", a), ("b", b)):
        (tmp_path / f"{name}.ckpt").write_bytes(saved(values))
    out = tmp_path / "out.safetensors"
    inputs = [tmp_path / "a.ckpt", tmp_path / "b.ckpt"]
    sdsurgery.merge("weighted-sum", inputs, alpha=0.3, out=out, hash=False, sync=False, overwrite=True, **options)
    with sdsurgery.open(out) as checkpoint:
        for name, value in a.items():
            expected = torch.tensor(1 - 0.3) * value + torch.tensor(0.3) * b[name].float()
            assert torch.equal(checkpoint.torch(name), expected), name


def test_parts_of_a_strided_tensor_are_operands_too(tmp_path):
    """An inpainting model's first convolution is merged in rows: channels 0-3 of each, the rest copied."""
    key = "model.diffusion_model.input_blocks.0.0.weight"
    torch.manual_seed(2)
    wide = torch.randn(32, 9, 3, 3).to(memory_format=torch.channels_last)
    plain = torch.randn(3, 3, 4, 32).permute(3, 2, 0, 1)
    for name, value in (("a", wide), ("b", plain)):
        (tmp_path / f"{name}.ckpt").write_bytes(saved({key: value, "x": torch.ones(3)}))
    expected = wide.clone()
    expected[:, :4] = torch.tensor(0.5) * wide[:, :4] + torch.tensor(0.5) * plain
    for options in RUNS:
        out = tmp_path / "out.safetensors"
        inputs = [tmp_path / "a.ckpt", tmp_path / "b.ckpt"]
        sdsurgery.merge("weighted-sum", inputs, alpha=0.5, out=out, hash=False, sync=False, overwrite=True, **options)
        with sdsurgery.open(out) as checkpoint:
            assert torch.equal(checkpoint.torch(key), expected)


def test_views_larger_than_a_tile_and_than_the_window_of_resident_pages(tmp_path):
    """A transposed tensor of 36 MB, whose every row lies all over its storage."""
    value = (torch.arange(3000 * 3000, dtype=torch.int32) * 2654435761).reshape(3000, 3000).t()
    path = tmp_path / "big.ckpt"
    path.write_bytes(saved({"w": value}))
    assert written(path)["w"] == raw(value)


def test_views_in_numpy_and_torch(tmp_path):
    path = tmp_path / "v.ckpt"
    value = torch.arange(24.0).reshape(4, 6).t()
    path.write_bytes(saved({"w": value}))
    with sdsurgery.open(path) as checkpoint:
        assert torch.equal(checkpoint.torch("w"), value)
        assert (checkpoint.numpy("w") == value.numpy()).all()
        assert checkpoint.read(checkpoint.info("w")) == raw(value)


@pytest.mark.parametrize(
    "view",
    [
        (4, (2,), (1, 1), 0),  # strides of another rank
        (3, (2,), (1,), 0),  # no such element size
        (4, (1 << 40, 1 << 40), (0, 0), 0),  # more elements than 64 bits can count
        (4, (3,), (1 << 62,), 0),  # reaches further than 64 bits can say
        (4, (7,), (1,), 0),  # past the end of the source
        (4, (6,), (1,), 3),  # fewer elements than the job wants
    ],
)
def test_the_engine_refuses_views_that_cannot_be(view):
    source = _native.Source.memory(bytes(24))
    with pytest.raises(_native.Error):
        _native.Run(sources=[source], programs=[], fills=[], jobs=[(0, 0, 0, 0, 16, ((0, 0, 0, view),))], sink=None)
