"""Hostile and odd safetensors headers: read in bounded memory as the reference reads them, or refused in one line."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from safetensors_tools import entry, file, one, our_view, parse, reference_view, refusal
from sdsurgery.errors import InputRefused
from sdsurgery.formats import safetensors_header
from sdsurgery.formats.kinds import safetensors as ours

MANY = 100_000
FOUR = b"abcd"


@pytest.mark.parametrize(
    ("value", "accepted"),
    [
        ("[" * MANY, False),
        ('{"a":' * MANY, False),
        ("[" + "[]," * MANY + "1]", True),
        ("[" + '"",' * MANY + "1]", True),
        ("{" + '"k":0,' * MANY + '"k":1}', True),
        ("[" + "[1.5,{}]," * (MANY // 10) + "1]", True),
        ("[" + "[[1.5]]," * MANY + "1]", True),
        ("[" + '{"a":{}},' * MANY + "1]", True),
        ('"' + "a" * MANY + '"', True),
        ('"' + "\\n" * MANY + '"', True),
        ('"' + "a" * MANY, False),
        ("1" * MANY, False),
        ("1e" + "1" * MANY, False),
        ("0." + "0" * MANY + "1", True),
    ],
)
def test_a_hostile_value_is_checked_with_bounded_memory(value: str, accepted: bool) -> None:
    data = file(one(x=value), FOUR)
    assert is_accepted(data) == accepted


def is_accepted(data: bytes) -> bool:
    """Whether the header is read, or else refused in a short line; either way memory has a bound."""
    tracemalloc.start()
    try:
        parse(data)
        return True
    except InputRefused as error:
        assert len(str(error)) < 200
        return False
    finally:
        assert tracemalloc.get_traced_memory()[1] < 32 * len(data) + 100_000
        tracemalloc.stop()


def test_escaped_names_take_a_few_times_the_header() -> None:
    names = (f"\\u0061{number}" for number in range(MANY // 20))
    header = ",".join(f'"{name}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for name in names)
    data = file(f"{{{header}}}")
    tracemalloc.start()
    try:
        assert len(parse(data).tensors) == MANY // 20
        assert tracemalloc.get_traced_memory()[1] < 8 * len(data)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("item", ["[],", "{},", '"",', "0,", "[[1.5]],", '{"a":{}},'])
def test_more_values_than_any_model_has_are_refused_before_they_are_built(
    item: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ours, "_MAX_VALUES", 100)
    data = file(one(x="[" + item * MANY + "0]"), FOUR)
    assert "more than 100 values" in refusal(data)
    assert not is_accepted(data)


@pytest.mark.parametrize("member", ['"%d":""', '"%d":{"x":"y"}', '"%d\\\\":"\\""'])
@pytest.mark.parametrize("around", ["{%s}", '{"__metadata__":{%s}}'])
def test_more_texts_than_any_model_has_are_refused_before_they_are_built(
    member: str, around: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ours, "MAX_ENTRIES", 10)
    data = file(around % ",".join(member % number for number in range(100)))
    assert "texts, more than its tensors and any metadata have" in refusal(data)


def test_deep_nesting_anywhere_is_refused_in_one_line() -> None:
    for header in ("[" * MANY, '{"a":' * MANY, '{"__metadata__":' * MANY, '{"a":{"dtype":' * MANY, '{"a":[[' * MANY):
        assert "\n" not in refusal(file(header))
    for field in ("dtype", "shape", "data_offsets"):
        assert "\n" not in refusal(file(one(**{field: "[" * MANY})))


def test_more_entries_than_any_model_has_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (ours, safetensors_header):
        monkeypatch.setattr(module, "MAX_ENTRIES", 50)
    usual = [f'"{i}":{{"dtype":"U8","shape":[1],"data_offsets":[{i},{i + 1}]}}' for i in range(51)]
    listed = [f'"{i}":["U8",[1],[{i},{i + 1}]]' for i in range(51)]
    for entries in (usual, listed):
        assert len(parse(file("{" + ",".join(entries[:50]) + "}", bytes(50))).tensors) == 50
        assert "more than 50 tensors" in refusal(file("{" + ",".join(entries) + "}", bytes(51)))
    texts = [f'"{i}":""' for i in range(51)]
    assert len(parse(file('{"__metadata__":{' + ",".join(texts[:50]) + "}}")).metadata) == 50
    assert "more than 50 metadata keys" in refusal(file('{"__metadata__":{' + ",".join(texts) + "}}"))


@pytest.mark.parametrize("spaced", [False, True])
def test_an_odd_entry_between_usual_ones_is_read_as_the_reference_reads_it(spaced: bool) -> None:
    members = [entry(str(i), data_offsets=f"[{4 * i},{4 * i + 4}]") for i in range(9)]
    members[4] = '"4" : ["F32",[1],[16,20]]'
    members[6] = members[6].replace('"6"', '"\\u0036"')
    header = "{" + (", " if spaced else ",").join(members) + "}"
    if spaced:
        header = header.replace('":', '": ').replace(',"', ', "')
    data = file(header, bytes(range(36)))
    assert our_view(data) == reference_view(data)
    members[7] = members[2].replace("[8,12]", "[28,32]")
    assert "appears twice" in refusal(file("{" + ",".join(members) + "}", bytes(36)))


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
@pytest.mark.parametrize("place", ["first", "last", "between"])
def test_metadata_anywhere_and_tensors_in_any_order_are_read_as_the_reference_reads_them(
    separators: tuple[str, str], place: str
) -> None:
    said = {"__metadata__": {"format": "pt", "note": '"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'}}
    tensors = {str(i): {"dtype": "F32", "shape": [1], "data_offsets": [4 * i, 4 * i + 4]} for i in (3, 0, 2, 1)}
    (one_key, one_value), *others = tensors.items()
    members = said | tensors if place == "first" else tensors | said
    if place == "between":
        members = {one_key: one_value} | said | dict(others)
    data = file(json.dumps(members, separators=separators), bytes(range(16)))
    assert our_view(data) == reference_view(data)
    assert parse(data).metadata == said["__metadata__"]
    assert [info.name for info in parse(data).tensors] == ["0", "1", "2", "3"]
    both = json.dumps(said)[:-1] + ", " + json.dumps(tensors | said)[1:]
    assert "appears twice" in refusal(file(both, bytes(range(16))))


def test_a_shape_of_many_sizes_is_read() -> None:
    data = file(one(shape="[" + "1," * MANY + "1]"), FOUR)
    assert len(parse(data).tensors[0].shape) == MANY + 1
    message = refusal(file(one(shape="[" + "1," * MANY + "2]"), FOUR))
    assert len(message) < 300


@pytest.mark.parametrize(("zeros", "named"), [(24, True), (8, True), (7, False), (0, False), (40, False)])
def test_a_download_that_was_never_finished_is_named_as_such(zeros: int, named: bool) -> None:
    size = 1 << 17  # so that eight are a megabyte
    entries = ",".join(
        entry(f"t{i}", dtype='"U8"', shape=f"[{size}]", data_offsets=f"[{size * i},{size * (i + 1)}]")
        for i in range(40)
    )
    data = file("{" + entries + "}", b"\1" * (size * (40 - zeros)) + bytes(size * zeros))
    notes = parse(data).notes
    assert bool(notes) == named
    if named:
        assert f"its last {zeros} tensors, from 't{40 - zeros}' on" in notes[0]
