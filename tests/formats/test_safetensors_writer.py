"""Written safetensors headers: byte for byte the reference implementation's, and read back by it."""

from __future__ import annotations

import random

import pytest
from safetensors.numpy import save
from safetensors_tools import our_view, parse, reference_metadata, reference_view
from sdsurgery.dtypes import BF16, BY_NAME, F8_E4M3, F16, F32, F64, I64, U8, DType
from sdsurgery.errors import InputRefused, RunFailed, UsageError
from sdsurgery.formats.kinds import safetensors as ours

Tensors = list[tuple[str, DType, tuple[int, ...]]]
SOME: Tensors = [
    ("w", F64, (2, 3)),
    ('é "q"\n\x01\x7f', F32, ()),
    ("h", F16, (5,)),
    ("e", I64, (0, 3)),
    ("u", U8, (3,)),
]


def written(tensors: Tensors, metadata: dict[str, str]) -> bytes:
    plan = ours.layout(tensors, metadata)
    return plan.header(metadata) + random.Random(0).randbytes(plan.size - plan.start)


def test_written_files_are_read_back_by_the_reference_and_by_us(tmp_path) -> None:
    metadata = {"format": "pt", "recipe": '{"a":"\u00fc\\n\U0001f600"}'}
    data = written(SOME, metadata)
    plan = ours.layout(SOME, metadata)
    assert our_view(data) == reference_view(data)
    assert reference_metadata(data, tmp_path) == parse(data).metadata == metadata
    offsets = {tensor.name: tensor.offset for tensor in parse(data).tensors}
    assert [offsets[name] for name, _, _ in SOME] == list(plan.offsets)
    assert plan.size == len(data)


def test_the_header_is_byte_for_byte_the_reference_s() -> None:
    tensors: Tensors = [
        ("d", F64, (1,)),
        ('a"\\/\b\f\n\r\t\x01\x1f\x7fé\u2028😀', F32, (2, 1)),
        ("b", F32, (0,)),
        ("h", F16, ()),
    ]
    plan = ours.layout(tensors, {"format": "pt"})
    import numpy

    kinds = {F64: "float64", F32: "float32", F16: "float16"}
    arrays = {name: numpy.zeros(shape, kinds[dtype]) for name, dtype, shape in tensors}
    theirs = save(arrays, {"format": "pt"})
    assert theirs[: plan.start] == plan.header({"format": "pt"})
    assert len(theirs) == plan.size


@pytest.mark.parametrize(("tensors", "metadata"), [([], {}), ([], {"format": "pt"}), (SOME, {}), (SOME, {"k": "{"})])
def test_the_header_begins_with_brace_quote_and_the_data_are_aligned(
    tensors: Tensors, metadata: dict[str, str]
) -> None:
    plan = ours.layout(tensors, metadata)
    header = plan.header(metadata)
    assert header[8:10] == b'{"'
    assert len(header) == plan.start
    assert plan.start % 8 == 0
    assert reference_view(written(tensors, metadata)) is not None
    if metadata:
        assert header[8:].startswith(b'{"__metadata__":{')


@pytest.mark.parametrize("length", [0, 1, 7, 8, 64, 200])
def test_a_header_can_be_rendered_again_with_shorter_metadata(length: int) -> None:
    plan = ours.layout(SOME, {"hash": "x" * 200})
    again = plan.header({"hash": "y" * length})
    assert len(again) == plan.start
    data = again + bytes(plan.size - plan.start)
    assert reference_view(data) is not None
    assert parse(data).metadata == {"hash": "y" * length}


def test_a_header_that_would_reach_into_the_tensors_is_not_rendered() -> None:
    plan = ours.layout(SOME, {"hash": "x"})
    with pytest.raises(RunFailed, match="were reserved for it"):
        plan.header({"hash": "x" * 100})


def test_order_is_by_falling_width_then_as_given() -> None:
    tensors: Tensors = [
        ("b", F16, ()),
        ("a", F8_E4M3, ()),
        ("z", F32, ()),
        ("c", BF16, ()),
        ("i", I64, ()),
        ("y", F32, ()),
    ]
    assert [name for name, _, _ in ours.order(tensors)] == ["i", "z", "y", "b", "c", "a"]
    for (_, dtype, _), offset in zip(ours.order(tensors), ours.layout(ours.order(tensors), {}).offsets, strict=True):
        assert offset % dtype.itemsize == 0


@pytest.mark.parametrize(
    ("tensors", "metadata", "expected"),
    [
        ([("a", F32, (1,)), ("a", F16, (1,))], {}, "twice"),
        ([("\ud800", F32, (1,))], {}, "surrogate"),
        ([], {"k": "\udc00"}, "surrogate"),
        ([], {"k": 1}, "must be text, found int"),
        ([("a", BY_NAME["F4"], (3,))], {}, "whole bytes"),
        ([("a", F32, (2**62,))], {}, "overflows"),
        ([], {"k": "x" * 100_000_000}, "the format allows 100000000"),
    ],
)
def test_what_could_not_be_read_back_is_not_written(tensors: Tensors, metadata: dict, expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        ours.layout(tensors, metadata)


def test_a_tensor_with_the_name_of_the_metadata_is_refused_with_the_way_out() -> None:
    with pytest.raises(InputRefused, match=r"'__metadata__'.*own metadata; prune\(drop_keys=…\) drops it"):
        ours.layout([("__metadata__", F32, (1,))], {})
