"""Metadata of outputs whose parents say too much, or nonsense; and the room that the header reserves for them."""

from __future__ import annotations

import json
import random

import pytest
from metadata_tools import OWN, STALE, a1111_entry, a1111_parent, digest, merged, models_in, parent, recipe_in, single
from sdsurgery.ancestors import MAX_ANCESTRY
from sdsurgery.formats.kinds.safetensors import layout
from sdsurgery.metadata import (
    Parent,
    placeholder_hashes,
    recipe_of,
)

# ---------------------------------------------------------------- bounds


def chain(length: int, padding: int) -> Parent:
    """A file at the end of a long line: each of its ancestors names the one before."""
    table = {
        digest(n): a1111_entry(f"{n} " + "x" * padding, *([n - 1] if n > 1000 else []))
        for n in range(1000, 1000 + length)
    }
    return parent(
        1, sd_merge_recipe=json.dumps({"primary_model_hash": digest(999 + length)}), sd_merge_models=json.dumps(table)
    )


def test_an_ancestry_beyond_its_bound_loses_its_oldest_generations_and_says_so() -> None:
    metadata = merged(chain(300, 10_000), parent(2))
    assert 0.9 * MAX_ANCESTRY < len(json.dumps(metadata["sd_merge_models"])) <= MAX_ANCESTRY
    kept = [key for key in models_in(metadata) if int(key, 16) >= 1000]
    assert kept == [digest(n) for n in range(1299, 1299 - len(kept), -1)]
    assert recipe_in(metadata)["notes"] == [f"{300 - len(kept)} of the oldest ancestors were left out, for length"]


def test_the_bound_counts_what_the_header_takes_once_quotes_are_escaped() -> None:
    quotes = {digest(n): {"name": '"\\' * 20 * n} for n in range(1, 400)}
    metadata = merged(parent(1, sd_merge_models=json.dumps(quotes)), parent(2))
    assert layout([], metadata).start < MAX_ANCESTRY + 10_000


def test_long_recipes_of_many_parents_are_left_out() -> None:
    long = json.dumps({"type": "webui", "note": "x" * 90_000})
    metadata = merged(*(parent(n, sd_merge_recipe=long) for n in range(1, 31)))
    assert len(json.dumps(metadata["sd_merge_models"])) <= MAX_ANCESTRY + 30 * 300
    assert len(models_in(metadata)) == 30
    assert "too long" in recipe_in(metadata)["notes"][0]


# ---------------------------------------------------------------- hostile parents

BAD_JSON = {
    "broken": "{",
    "garbage behind": "{} x",
    "a list": "[]",
    "a number": "1",
    "null": "null",
    "NaN": '{"a":{"name":NaN}}',
    "infinite": '{"a":{"x":1e999}}',
    "long number": '{"a":{"x":' + "9" * 10_000 + "}}",
    "deep lists": '{"a":' + "[" * 100_000 + "]" * 100_000 + "}",
    "deep objects": '{"a":' * 500 + "1" + "}" * 500,
    "too deep by a little": '{"a":{"x":' + "[" * 200 + "]" * 200 + "}}",
    "huge": '{"a":{"x":"' + "y" * 5_000_000 + '"}}',
}


@pytest.mark.parametrize(
    ("key", "case"),
    [
        (key, case)
        for key in ("sd_merge_models", "sd_merge_recipe")
        for case, text in BAD_JSON.items()
        if key == "sd_merge_models" or text.startswith("{")  # a recipe that is not a JSON object is kept unchanged
    ],
)
def test_unsound_json_of_a_parent_is_left_out_with_a_note(key: str, case: str) -> None:
    own = {key: BAD_JSON[case]}
    for metadata in (merged(parent(1, **own), parent(2)), single(own)):
        assert layout([], metadata).start < 200_000
        assert any("left out" in note for note in recipe_in(metadata)["notes"])
        entry = next(iter(models_in(metadata).values()))
        assert entry["sd_merge_recipe"] is None


def test_unsound_entries_are_left_out_and_the_sound_ones_kept() -> None:
    table = {
        digest(1): 3,
        digest(2): None,
        digest(3): "text",
        digest(4): {"name": "x" * 200_000},
        "k" * 200: {},
        placeholder_hashes(1)[0]: {},
        digest(5): {"name": ["wrong type"], "legacy_hash": {"a": 1}, "sd_merge_recipe": [[[]]]},
        "null": {"name": "a model without a hash"},
    }
    metadata = merged(parent(20, sd_merge_models=json.dumps(table)), parent(21))
    assert set(models_in(metadata)) == {digest(20), digest(21), digest(5), "null"}
    assert recipe_in(metadata)["notes"] == ["6 invalid ancestors of input 1 were left out"]


def test_metadata_of_a_wrong_type_never_raise() -> None:
    odd = {
        "sd_merge_recipe": 5,
        "sd_merge_models": {"a": 1},
        "modelspec.architecture": 3,
        7: "x",
        "k": None,
        "s": "\ud800",
    }
    for metadata in (
        merged(Parent("a", odd, None, None), parent(2), architecture=None),
        single(odd, architecture=None),
    ):
        layout([], metadata)
    assert recipe_of(odd) is None


def test_half_a_surrogate_pair_in_a_parent_s_json_can_be_written() -> None:
    own = {"sd_merge_recipe": r'{"a":"\ud800"}', "sd_merge_models": json.dumps({digest(4): {"name": "\udfff"}})}
    metadata = merged(parent(1, **own), parent(2))
    layout([], metadata)
    assert models_in(metadata)[digest(1)]["sd_merge_recipe"] == {"a": "\ud800"}


def test_a_line_of_descent_that_runs_in_a_circle_ends() -> None:
    table = {digest(1): a1111_entry("1", 2, 1), digest(2): a1111_entry("2", 1, 1)}
    a = parent(3, sd_merge_recipe=json.dumps({"primary_model_hash": digest(1)}), sd_merge_models=json.dumps(table))
    assert list(models_in(merged(a))) == [digest(3), digest(1), digest(2)]


def test_recipe_of_reads_any_tool_s_recipe_and_nothing_unsound() -> None:
    assert recipe_of(merged(parent(1)))["method"] == "weighted-sum"
    assert recipe_of({"sd_merge_recipe": '{"type":"webui"}'}) == {"type": "webui"}
    assert recipe_of({}) is None
    for text in BAD_JSON.values():
        assert recipe_of({"sd_merge_recipe": text}) is None


# ---------------------------------------------------------------- the length that is reserved


def test_placeholders_are_as_long_as_hashes_and_all_different() -> None:
    assert {len(text) for text in placeholder_hashes(1000)} == {64}
    assert len(set(placeholder_hashes(1000))) == 1000
    assert placeholder_hashes(0) == ()


def test_placeholders_need_no_less_room_than_real_hashes() -> None:
    rng = random.Random(7)
    lines = [chain(120, 9_000).metadata, chain(3, 10).metadata]
    for _ in range(60):
        pool = [digest(n) for n in (1, 2, 1001, 1002, 1119)]  # also hashes of ancestors: entries then fall together
        parents = []
        for number in range(rng.randrange(1, 6)):
            own = rng.choice([{}, OWN | STALE, *lines])
            parents.append(Parent(f"p{number}", own, rng.choice([None, "00000001"]), rng.choice(pool)))
        waiting = [
            Parent(item.name, item.metadata, item.legacy_hash, placeholder)
            for item, placeholder in zip(parents, placeholder_hashes(len(parents)), strict=True)
        ]
        reserved = layout([], merged(*waiting, body=placeholder_hashes(1)[0]))
        final = reserved.header(merged(*parents))
        assert len(final) == reserved.start
        assert final[8:10] == b'{"'


def test_hashes_that_all_differ_need_exactly_the_reserved_room() -> None:
    parents = [parent(1), parent(2), a1111_parent(3, [11], {11: a1111_entry("x")})]
    waiting = [
        Parent(item.name, item.metadata, item.legacy_hash, placeholder)
        for item, placeholder in zip(parents, placeholder_hashes(3), strict=True)
    ]
    reserved = merged(*waiting, body=placeholder_hashes(1)[0])
    assert {key: len(value) for key, value in merged(*parents).items()} == {
        key: len(value) for key, value in reserved.items()
    }
