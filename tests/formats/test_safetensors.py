"""The safetensors reader and writer against the reference implementation: same refusals, same contents, same bytes."""

from __future__ import annotations

import json
import random
import re

import pytest
from pickle_builder import Memory
from safetensors_tools import entry, file, one, our_view, parse, reference_metadata, reference_view, refusal
from sdsurgery import formats
from sdsurgery.dtypes import BY_NAME
from sdsurgery.errors import InputRefused
from sdsurgery.formats.kinds import safetensors as ours

DUPLICATES = re.compile(r"^(tensor '.*'|metadata key '.*'|__metadata__) appears twice in the header$", re.DOTALL)


# ---------------------------------------------------------------- refused, both by the reference and by us

FOUR = b"abcd"
REFUSED = {
    "empty file": (b"", "is empty"),
    "seven bytes": (b"\x02\0\0\0\0\0\0", "too short"),
    "header length beyond 100 MB": ((100_000_001).to_bytes(8, "little") + b"{}", "the format allows 100000000"),
    "header length past the end": ((3).to_bytes(8, "little") + b"{}", "only 2 follow"),
    "no header": (file(""), "found its end"),
    "header is a list": (file("[]"), "the header is not a JSON object, found a list"),
    "byte order mark": (file("\ufeff{}"), "not valid JSON at character 0"),
    "invalid UTF-8": (file(b'{"\xff":1}'), "not valid UTF-8"),
    "UTF-8 surrogate": (file(b'{"\xed\xa0\x80":1}'), "not valid UTF-8"),
    "unfinished": (file("{" + entry(), FOUR), "delimiter, found its end"),
    "trailing comma": (file("{" + entry() + ",}", FOUR), "not valid JSON at character"),
    "trailing garbage": (file(one() + "x", FOUR), "extra data, found 'x'"),
    "trailing zero byte": (file(one() + "\0", FOUR), r"found '\x00'"),
    "two objects": (file(one() + "{}", FOUR), "extra data, found '{'"),
    "NaN": (file(one(x="NaN"), FOUR), "NaN is not a number"),
    "Infinity": (file(one(x="-Infinity"), FOUR), "-Infinity is not a number"),
    "number beyond double": (file(one(x="1e999"), FOUR), "out of range"),
    "number one unit beyond double": (file(one(x="1.7976931348623158e308"), FOUR), "out of range"),
    "half a surrogate pair": (file(one(x='"\\udc00"'), FOUR), "half a surrogate pair"),
    "half a surrogate pair in a name": (file("{" + entry("a").replace('"a"', '"\\ud800"') + "}", FOUR), "surrogate"),
    "bad escape": (file(one(x='"\\x"'), FOUR), "escape"),
    "control character": (file(one(x='"\x01"'), FOUR), "control character"),
    "unterminated string": (file('{"a', FOUR), "unterminated string"),
    "128 nested lists": (file(one(x="[" * 126 + "]" * 126), FOUR), "more than 127 arrays"),
    "128 nested objects": (file(one(x='{"a":' * 126 + "1" + "}" * 126), FOUR), "more than 127 arrays"),
    "metadata is a list": (file('{"__metadata__":[]}'), "__metadata__ is not a JSON object, found a list"),
    "metadata value is a number": (file('{"__metadata__":{"k":1}}'), "metadata value of 'k' is not a string"),
    "metadata value is null": (file('{"__metadata__":{"k":null}}'), "metadata value of 'k' is not a string"),
    "__metadata__ twice": (file('{"__metadata__":{},"__metadata__":{}}'), "__metadata__ appears twice"),
    "entry is a number": (file('{"a":1}'), "the entry of tensor 'a' is not a JSON object, found a number"),
    "field missing": (file(one(shape=""), FOUR), "tensor 'a' lacks the field shape"),
    "field twice": (file('{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}', FOUR), "dtype twice"),
    "unknown dtype": (file(one(dtype='"F31"'), FOUR), "unknown dtype 'F31'; did you mean"),
    "dtype in lower case": (file(one(dtype='"f32"'), FOUR), "unknown dtype 'f32'"),
    "dtype is a number": (file(one(dtype="3"), FOUR), "dtype of tensor 'a' is not a string"),
    "dtype is an empty object": (file(one(dtype="{}"), FOUR), "found an empty object"),
    "dtype is an object of two": (file(one(dtype='{"F32":null,"F16":null}'), FOUR), "found an object"),
    "float in shape": (file(one(shape="[1.0]"), FOUR), "shape of tensor 'a' is not a list of whole numbers"),
    "exponent in shape": (file(one(shape="[1e0]"), FOUR), "shape of tensor 'a' is not a list of whole numbers"),
    "-0 in shape": (file(one(shape="[-0]", data_offsets="[0,0]")), "shape of tensor 'a'"),
    "leading zero in shape": (file(one(shape="[01]"), FOUR), "found '1'"),
    "bool in shape": (file(one(shape="[true]"), FOUR), "shape of tensor 'a'"),
    "2**64 in shape": (file(one(shape="[18446744073709551616,0]", data_offsets="[0,0]")), "below 2^64"),
    "huge number in shape": (file(one(shape=f"[{'9' * 5000}]", data_offsets="[0,0]")), "a number is out of range"),
    "shape is null": (file(one(shape="null"), FOUR), "shape of tensor 'a'"),
    "float offset": (file(one(data_offsets="[0,4.0]"), FOUR), "data_offsets of tensor 'a'"),
    "one offset": (file(one(data_offsets="[0]"), FOUR), "has 1 data_offsets"),
    "three offsets": (file(one(data_offsets="[0,4,4]"), FOUR), "has 3 data_offsets"),
    "entry as a short list": (file('{"a":["F32",[1]]}', FOUR), "a list of 2 fields, expected 3"),
    "entry as a long list": (file('{"a":["F32",[1],[0,4],0]}', FOUR), "a list of 4 fields, expected 3"),
    "begin after end": (file(one(data_offsets="[4,0]"), FOUR), "'a' begins at byte 4 of the data but ends at 0"),
    "end past the file": (file(one(shape="[2]", data_offsets="[0,8]"), FOUR), "ends at byte 8 of the data"),
    "end past 64 bits": (file(one(data_offsets="[0,18446744073709551615]"), FOUR), "ends at byte 18446744073709551615"),
    "hole before the first": (file(one(data_offsets="[4,8]"), FOUR * 2), "4 bytes before tensor 'a' belong to no"),
    "hole between": (
        file("{" + entry("a") + "," + entry("b", data_offsets="[8,12]") + "}", FOUR * 3),
        "4 bytes before tensor 'b' belong to no",
    ),
    "overlap": (
        file("{" + entry("a") + "," + entry("b", data_offsets="[2,6]") + "}", b"abcdef"),
        "tensors 'a' and 'b' overlap",
    ),
    "same place twice": (file("{" + entry("a") + "," + entry("b") + "}", FOUR), "tensors 'a' and 'b' overlap"),
    "trailing bytes": (file(one(), FOUR + b"!"), "1 bytes after the last tensor"),
    "bytes but no tensors": (file("{}", b"!"), "1 bytes after the last tensor"),
    "shape too large": (file(one(shape="[2]"), FOUR), "tensor 'a' has 4 bytes of data, but F32 [2] takes 8"),
    "shape too small": (file(one(shape="[0]"), FOUR), "tensor 'a' has 4 bytes of data, but F32 [0] takes 0"),
    "elements overflow": (file(one(shape="[4294967296,4294967296]"), FOUR), "overflows 64 bits"),
    "elements overflow, then a zero": (
        file(one(shape="[18446744073709551615,2,0]", data_offsets="[0,0]")),
        "overflows 64 bits",
    ),
    "bits overflow": (file(one(shape="[9223372036854775808]", data_offsets="[0,0]")), "overflows 64 bits"),
    "sub-byte dtype, half a byte": (file(one(dtype='"F4"', shape="[3]", data_offsets="[0,2]"), b"xy"), "whole bytes"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_with_one_clear_line_what_the_reference_refuses(case: str) -> None:
    data, expected = REFUSED[case]
    message = refusal(data)
    assert expected in message
    assert "\n" not in message
    assert len(message) < 400
    assert reference_view(data) is None


def test_every_kind_of_refusal_has_a_message_of_its_own() -> None:
    expected = [text for _, text in REFUSED.values()]
    messages = {refusal(data) for data, _ in REFUSED.values()}
    assert len(messages) > 0.8 * len(expected)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (file("{" + entry() + "," + entry() + "}", FOUR), "tensor 'a' appears twice"),
        (file("{" + entry() + "," + entry().replace('"a"', r'"\u0061"') + "}", FOUR), "tensor 'a' appears twice"),
        (file('{"__metadata__":{"k":"1","k":"2"}}'), "metadata key 'k' appears twice"),
    ],
)
def test_refuses_the_duplicates_that_the_reference_lets_through(data: bytes, expected: str) -> None:
    assert expected in refusal(data)
    assert reference_view(data) is not None


def test_names_are_escaped_in_refusals() -> None:
    message = refusal(file("{" + entry("\x1b[31m\u202eevil\n", shape="[2]") + "}", FOUR))
    assert "\\x1b[31m\\u202eevil\\x0a" in message
    assert message.isprintable()


# ---------------------------------------------------------------- accepted, and read identically

ACCEPTED = {
    "no tensors": file("{}"),
    "no tensors, padded": file("{}      "),
    "blanks inside and behind": file("{ \n" + entry().replace(":", " :\t") + "\r\n} \n\t", FOUR),
    "blanks in front": file(" \n" + one(), FOUR),
    "data at an odd byte": file(one() + " " * (len(one()) % 2 + 1), FOUR),
    "empty name": file("{" + entry("") + "}", FOUR),
    "escaped names and values": file(
        r'{"\u0061\"\n\ud83d\ude00":{"dty\u0070e":"F\u00332","shape":[1],"data_offsets":[0,4]}}', FOUR
    ),
    "raw delete character": file("{" + entry("\x7f\u2028é") + "}", FOUR),
    "0-dim": file(one(shape="[]"), FOUR),
    "zero elements": file(one(shape="[3,0,2]", data_offsets="[0,0]")),
    "zero elements, huge sizes": file(one(shape="[0,18446744073709551615,2]", data_offsets="[0,0]")),
    "zero elements between": file(
        "{"
        + entry("z", data_offsets="[4,8]")
        + ","
        + entry("m", shape="[0]", data_offsets="[4,4]")
        + ","
        + entry("a")
        + "}",
        FOUR * 2,
    ),
    "twenty sizes": file(one(shape="[" + ",".join("1" * 20) + "]"), FOUR),
    "unknown fields": file(one(x='[{"y":[1,-2.5e-7,"s\\n",[],{}],"z":{"a":1,"a":null}},true,false]', zz="{}"), FOUR),
    "unknown field twice": file('{"a":{"x":1,"x":2,"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', FOUR),
    "127 nested lists": file(one(x="[" * 125 + "]" * 125), FOUR),
    "127 nested objects": file(one(x='{"a":' * 125 + "1" + "}" * 125), FOUR),
    "tiny and long numbers": file(one(x=f"[1e-999,0e99999999999,0.{'1' * 5000},{'1' * 300},1e-{'9' * 50}]"), FOUR),
    "largest double": file(one(x="1.7976931348623157e+308"), FOUR),
    "metadata": file('{"__metadata__":{"k":"v","":"","e\\u00e9":"\\n"},' + entry() + "}", FOUR),
    "metadata behind": file("{" + entry() + ',"__metadata__":{"k":"v"}}', FOUR),
    "metadata is null": file('{"__metadata__":null,' + entry() + "}", FOUR),
    "entry as a list": file('{"a":["F32",[1],[0,4]]}', FOUR),
    "dtype as an enum object": file(one(dtype='{"F32":null}'), FOUR),
    "sub-byte dtype": file(one(dtype='"F4"', shape="[4]", data_offsets="[0,2]"), b"xy"),
    "fields in another order": file('{"a":{"data_offsets":[0,4],"shape":[1],"dtype":"F32"}}', FOUR),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_accepts_what_the_reference_accepts_and_reads_the_same(case: str, tmp_path) -> None:
    data = ACCEPTED[case]
    assert our_view(data) == reference_view(data)
    assert parse(data).metadata == reference_metadata(data, tmp_path)


@pytest.mark.parametrize("name", BY_NAME)
def test_every_dtype_has_the_size_that_the_reference_gives_it(name: str) -> None:
    nbytes = BY_NAME[name].nbytes(8)
    data = file(one(dtype=f'"{name}"', shape="[2,4]", data_offsets=f"[0,{nbytes}]"), bytes(range(nbytes)))
    assert our_view(data) == reference_view(data) == {"a": (name, [2, 4], bytes(range(nbytes)))}


def test_tensors_come_in_the_order_of_their_data_then_of_appearance() -> None:
    parts = [
        entry("late", data_offsets="[4,8]"),
        entry("empty 2", shape="[0]", data_offsets="[4,4]"),
        entry("first"),
        entry("empty 1", shape="[0]", data_offsets="[4,4]"),
    ]
    contents = parse(file("{" + ",".join(parts) + "}", FOUR * 2))
    assert [tensor.name for tensor in contents.tensors] == ["first", "empty 2", "empty 1", "late"]
    assert [tensor.offset - contents.data_offset for tensor in contents.tensors] == [0, 4, 4, 4]


def test_blanks_in_front_of_the_header_are_remarked() -> None:
    assert parse(ACCEPTED["blanks in front"]).notes
    assert not parse(ACCEPTED["metadata"]).notes


# ---------------------------------------------------------------- the same verdict on thousands of damaged headers


def _number(rng: random.Random) -> str:
    return rng.choice(["0", "1", "4", "8", "-0", "-1", "1.0", "1e0", "01", "18446744073709551615", "1e309", "9" * 25])


def _value(rng: random.Random, depth: int = 0) -> str:
    kind = rng.randrange(9 if depth < 4 else 6)
    if kind < 2:
        return _number(rng)
    if kind < 4:
        return rng.choice(
            ['""', '"F32"', '"a"', '"\\u0061"', '"\\ud83d\\ude00"', '"\\ud800"', '"\\q"', '"\x7f"', '"\t"']
        )
    if kind < 6:
        return rng.choice(["true", "false", "null", "NaN", "tru", "{}", "[]", "[0]", "[1]", "[0,4]", '{"F32":null}'])
    inner = [_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind < 8:
        return "[" + ",".join(inner) + "]"
    return "{" + ",".join(f'"{rng.choice("abx")}":{value}' for value in inner) + "}"


def _random_header(rng: random.Random) -> tuple[str, int]:
    """A mostly sound header, and how many bytes of data it promises."""
    parts, position = [], 0
    if rng.random() < 0.5:
        keys = rng.choice([["k"], ["k", "l"], ["k", "k"], []])
        parts.append('"__metadata__":{' + ",".join(f'"{key}":"v"' for key in keys) + "}")
    for number in range(rng.randrange(4)):
        dtype = rng.choice(list(BY_NAME.values()))
        shape = [rng.choice([0, 1, 2, 4, 8]) for _ in range(rng.randrange(3))]
        elements = 1
        for size in shape:
            elements *= size
        end = position + elements * dtype.bits // 8
        name = rng.choice(["a", "b", "é", "\\n"]) if rng.random() < 0.3 else f"t{number}"
        fields = [f'"dtype":"{dtype.name}"', f'"shape":{json.dumps(shape)}', f'"data_offsets":[{position},{end}]']
        if rng.random() < 0.4:
            fields.append(f'"{rng.choice(["x", "note", "dtype", "shape"])}":{_value(rng)}')
        if rng.random() < 0.3:
            rng.shuffle(fields)
        position = end
        parts.append(f'"{name}":{{' + ",".join(fields) + "}")
    if rng.random() < 0.3:
        rng.shuffle(parts)
    header = "{" + ",".join(parts) + "}"
    if rng.random() < 0.3:
        header = re.sub(r"[:,\[\]{}]", lambda found: found.group() + rng.choice(["", "", " ", "\n"]), header)
    return header, position


def _mutate(rng: random.Random, raw: bytes) -> bytes:
    for _ in range(rng.choice([0, 0, 0, 0, 1, 1, 1, 2, 3])):
        if not raw:
            return raw
        at, kind = rng.randrange(len(raw)), rng.randrange(8)
        to = min(len(raw), at + rng.randrange(1, 12))
        if kind == 0:
            raw = raw[:at] + raw[to:]
        elif kind == 1:
            raw = raw[:at] + raw[at:to] + raw[at:]
        elif kind == 2:
            raw = raw[:at] + bytes([rng.choice(b'{}[]",:0129-+.eE \n\t\\/u\x00\x80\xc3')]) + raw[at + 1 :]
        elif kind == 3:
            raw = raw[:at] + bytes([rng.randrange(256)]) + raw[at + 1 :]
        else:  # swap one token for another, which keeps the header closer to sound
            tokens = list(re.finditer(rb'"[^"]*"|[0-9]+|\[[^\[\]]*\]', raw))
            if tokens:
                token = rng.choice(tokens)
                raw = raw[: token.start()] + _value(rng).encode("utf-8") + raw[token.end() :]
    return raw


@pytest.mark.parametrize("seed", range(8))
def test_agrees_with_the_reference_on_damaged_headers(seed: int, tmp_path) -> None:
    rng = random.Random(seed)
    accepted = refused = 0
    for round_ in range(1500):
        header, size = _random_header(rng)
        data = file(_mutate(rng, header.encode("utf-8")), bytes(rng.randrange(256) for _ in range(size)))
        if rng.random() < 0.05:
            data = rng.choice([data[:-1], data + b"\0"])
        theirs = reference_view(data)
        try:
            mine = our_view(data)
        except InputRefused as error:
            refused += 1
            assert "\n" not in str(error)
            assert theirs is None or DUPLICATES.match(str(error)), (data, str(error))
            continue
        accepted += 1
        assert mine == theirs, data
        if round_ % 5 == 0:
            assert parse(data).metadata == reference_metadata(data, tmp_path), data
    assert accepted > 300
    assert refused > 300


def test_agrees_with_the_reference_on_where_numbers_overflow() -> None:
    rng = random.Random(1)
    digits = "17976931348623157"
    for _ in range(1500):
        head = digits[: rng.randrange(1, 18)] + "".join(rng.choice("0123456789") for _ in range(rng.randrange(12)))
        point = rng.randrange(1, len(head) + 1)
        number = f"{head[:point]}.{head[point:]}" if point < len(head) else head
        exponent = 308 - point + 1 + rng.choice([0, 0, 0, -1, 1])
        number = f"{number}e{exponent}" if rng.random() < 0.8 else head + "0" * max(0, 309 - len(head))
        data = file(one(x=number), FOUR)
        theirs = reference_view(data)
        try:
            assert our_view(data) == theirs, number
        except InputRefused:
            assert theirs is None, number


# ---------------------------------------------------------------- recognising


@pytest.mark.parametrize("case", [name for name in REFUSED if name not in ("no header", "header is a list")])
def test_damaged_files_are_recognised_so_that_their_refusal_is_precise(case: str) -> None:
    data = REFUSED[case][0]
    if case == "byte order mark":
        assert len(data) < 100_000_000
    assert ours.sniff(Memory(data))  # type: ignore[arg-type]


@pytest.mark.parametrize("length", [0x280, 0x04034B50])
def test_a_header_length_that_looks_like_a_pickle_or_a_zip_is_still_recognised(length: int) -> None:
    assert ours.sniff(Memory(length.to_bytes(8, "little") + b'{"a":{}'))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "head",
    [
        b"PK\x03\x04" + bytes(60),
        b"PK\x03\x04\x00\x00\x08\x08" + bytes(60),
        b"\x80\x02}q\x00.",
        b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + bytes(60),
        b"\x80\x02\x00\x00\x00\x00\x00\x00" + bytes(60),
        b"GGUF\x03\x00\x00\x00" + bytes(60),
        b"hello, this is no checkpoint",
        random.Random(3).randbytes(64),
    ],
)
def test_other_files_are_not_claimed(head: bytes) -> None:
    assert not ours.sniff(Memory(head))  # type: ignore[arg-type]


def test_the_reader_is_registered() -> None:
    found = formats.recognise(Memory(file("{}")))  # type: ignore[arg-type]
    assert found is not None
    assert found.name == "safetensors"
