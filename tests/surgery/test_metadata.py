"""Metadata of outputs: the keys that other tools read, the ancestry and its bounds, hostile parents, header length."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

import pytest
from sdsurgery import layouts
from sdsurgery.errors import UsageError
from sdsurgery.formats.kinds.safetensors import layout
from sdsurgery.layouts import Layout
from sdsurgery.metadata import (
    MAX_ANCESTRY,
    Kind,
    Parent,
    merge_metadata,
    placeholder_hashes,
    recipe_of,
    single_input_metadata,
    stated_architecture,
)

SUM = {"method": "weighted-sum", "parameters": {"alpha": 0.3}, "dtype": "fp16"}
CAST = {"method": "cast", "parameters": {}, "dtype": "fp16"}
BODY = "b" * 64


def digest(number: int) -> str:
    return f"{number:064x}"


def parent(number: int = 1, name: str | None = None, **metadata: str) -> Parent:
    return Parent(name or f"model {number}", metadata, f"{number:08x}", digest(number))


def kind(architecture: str | None, parents: Sequence[Parent], task: str = "") -> Kind:
    """That of a family with this id, or of an unknown one."""
    return layouts.kind_of(Layout("f", "F", architecture, task=task), stated_architecture(parents))


def merged(*parents: Parent, recipe=SUM, architecture="stable-diffusion-v1", body=BODY, title="out", task="") -> dict:
    return merge_metadata(
        recipe=recipe, parents=parents, title=title, kind=kind(architecture, parents, task), body_sha256=body,
        version="1.2.3",
    )  # fmt: skip


def single(source: dict, recipe=CAST, architecture="stable-diffusion-v1", body=BODY, title="out") -> dict[str, str]:
    parents = [Parent("in", source, "0000000a", digest(10))]
    return single_input_metadata(
        source=source,
        recipe=recipe,
        parents=parents,
        title=title,
        kind=kind(architecture, parents),
        body_sha256=body,
        version="1.2.3",
    )


def recipe_in(metadata: dict[str, str]) -> dict:
    return json.loads(metadata["sd_merge_recipe"])


def models_in(metadata: dict[str, str]) -> dict:
    return json.loads(metadata["sd_merge_models"])


def a1111_entry(name: str, *named: int) -> dict:
    recipe = dict(zip(("primary_model_hash", "secondary_model_hash"), map(digest, named), strict=False))
    return {"name": name, "legacy_hash": "12345678", "sd_merge_recipe": {"type": "webui", **recipe} if named else None}


def a1111_parent(number: int, named: list[int], ancestors: dict[int, dict]) -> Parent:
    """A file merged by A1111: its recipe names its parents, its table holds their entries."""
    table = {digest(key): entry for key, entry in ancestors.items()}
    recipe = a1111_entry("", *named)["sd_merge_recipe"]
    return parent(number, sd_merge_recipe=json.dumps(recipe), sd_merge_models=json.dumps(table))


# ---------------------------------------------------------------- merges


def test_a_merge_carries_the_keys_that_a1111_writes() -> None:
    metadata = merged(parent(1), parent(2), parent(3))
    assert metadata["format"] == "pt"
    recipe = recipe_in(metadata)
    assert recipe["type"] == "sdsurgery"
    assert [recipe[f"{which}_model_hash"] for which in ("primary", "secondary", "tertiary")] == [
        *map(digest, (1, 2, 3))
    ]
    assert recipe["interp_method"] == "Weighted sum"
    assert recipe["multiplier"] == 0.3
    assert recipe["save_as_half"] is True
    assert recipe["custom_name"] == "out"
    for key in ("config_source", "bake_in_vae", "discard_weights", "is_inpainting", "is_instruct_pix2pix"):
        assert key in recipe
    assert recipe["method"] == "weighted-sum"
    assert recipe["parameters"] == {"alpha": 0.3}
    assert recipe["version"] == "1.2.3"
    assert models_in(metadata) == {
        digest(n): {"name": f"model {n}", "legacy_hash": f"{n:08x}", "sd_merge_recipe": None} for n in (1, 2, 3)
    }
    assert all(isinstance(value, str) for value in metadata.values())
    assert metadata["sd_merge_recipe"].startswith('{"')


def test_missing_inputs_are_null_and_more_than_three_are_in_our_own_list() -> None:
    recipe = recipe_in(merged(parent(1), parent(2)))
    assert recipe["tertiary_model_hash"] is None
    recipe = recipe_in(merged(*map(parent, range(1, 6))))
    assert recipe["tertiary_model_hash"] == digest(3)
    assert [model["sha256"] for model in recipe["models"]] == [digest(n) for n in range(1, 6)]
    assert recipe["models"][4] == {"name": "model 5", "sha256": digest(5), "legacy_hash": "00000005"}


def test_the_parents_entries_are_kept_and_the_ancestry_grows() -> None:
    a = a1111_parent(1, [11, 12], {11: a1111_entry("x"), 12: a1111_entry("y", 13), 13: a1111_entry("z")})
    models = models_in(merged(a, parent(2)))
    assert list(models) == [digest(n) for n in (1, 2, 11, 12, 13)]
    assert models[digest(12)] == a1111_entry("y", 13)
    assert models[digest(1)]["sd_merge_recipe"] == json.loads(a.metadata["sd_merge_recipe"])


def test_a_merge_of_our_merges_names_every_generation() -> None:
    generation = merged(parent(1), parent(2))
    for number in range(3, 9):
        generation = merged(Parent(f"m{number}", generation, None, digest(100 + number)), parent(number))
    models = models_in(generation)
    assert set(models) == {digest(n) for n in range(1, 9)} | {digest(100 + n) for n in range(3, 9)}
    assert models[digest(103)]["sd_merge_recipe"]["models"][1]["sha256"] == digest(2)


def test_a_nested_json_text_is_kept_unchanged() -> None:
    entry = {
        "name": "n",
        "legacy_hash": None,
        "sd_merge_recipe": '{"type": "webui",  "x": 1}',
        "extra": [1, {"k": 2.5}],
    }
    a = parent(1, sd_merge_models=json.dumps({digest(9): entry}), sd_merge_recipe="made by hand")
    models = models_in(merged(a, parent(2)))
    assert models[digest(9)] == entry
    assert models[digest(1)]["sd_merge_recipe"] == "made by hand"


def test_an_ancestry_nested_under_its_own_key_is_flattened() -> None:
    for inner in ({digest(9): a1111_entry("x")}, json.dumps({digest(9): a1111_entry("x")})):
        a = parent(1, sd_merge_models=json.dumps({digest(8): a1111_entry("y"), "sd_merge_models": inner}))
        assert set(models_in(merged(a, parent(2)))) == {digest(n) for n in (1, 2, 8, 9)}


def test_without_hashes_no_ancestor_is_lost() -> None:
    a = a1111_parent(1, [11], {11: a1111_entry("x")})
    b = parent(2)
    plain = [Parent(item.name, item.metadata, item.legacy_hash, None) for item in (a, b)]
    metadata = merged(*plain, body=None)
    assert recipe_in(metadata)["primary_model_hash"] is None
    models = models_in(metadata)
    assert [entry["name"] for entry in models.values()] == ["model 1", "model 2", "x"]
    assert not {"modelspec.hash_sha256", "sshs_model_hash"} & set(metadata)


@pytest.mark.parametrize(
    ("architecture", "resolution"),
    [
        ("stable-diffusion-v1", "512x512"),
        ("stable-diffusion-v1-inpainting", "512x512"),
        ("stable-diffusion-v2-512", "512x512"),
        ("stable-diffusion-v2-768-v", "768x768"),
        ("stable-diffusion-v2-unclip-h", "768x768"),
        ("stable-diffusion-v2-depth", "512x512"),
        ("stable-diffusion-xl-v1-base", "1024x1024"),
        ("stable-diffusion-xl-v1-refiner", "1024x1024"),
        ("stable-diffusion-xl-turbo-v1", "512x512"),
        ("stable-diffusion-v1/lora", "512x512"),
        ("flux-1-dev", None),
    ],
)
def test_modelspec_s_required_keys_are_written(architecture: str, resolution: str | None) -> None:
    for metadata in (merged(parent(1), parent(2), architecture=architecture), single({}, architecture=architecture)):
        assert metadata["modelspec.sai_model_spec"] == "1.0.1"
        assert metadata["modelspec.architecture"] == architecture
        assert metadata["modelspec.implementation"]
        assert metadata["modelspec.title"] == "out"
        assert metadata.get("modelspec.resolution") == resolution


def test_the_body_hash_is_stored_in_both_spellings() -> None:
    for metadata in (merged(parent(1), parent(2)), single({})):
        assert metadata["modelspec.hash_sha256"] == "0x" + BODY
        assert metadata["sshs_model_hash"] == BODY


def test_an_unknown_architecture_is_what_all_parents_say_or_nothing() -> None:
    said = {"modelspec.architecture": "stable-diffusion-v2-768-v", "modelspec.resolution": "640x640"}
    a, b = parent(1, **said), parent(2, **said)
    metadata = merged(a, b, architecture=None)
    assert metadata["modelspec.architecture"] == "stable-diffusion-v2-768-v"
    assert metadata["modelspec.resolution"] == "640x640"
    metadata = merged(a, parent(2), architecture=None)
    assert [key for key in metadata if key.startswith("modelspec.")] == [
        "modelspec.merged_from",
        "modelspec.hash_sha256",
    ]


def test_inpainting_and_pix2pix_are_said_as_a1111_says_them() -> None:
    assert recipe_in(merged(parent(), task="inpainting"))["is_inpainting"] is True
    assert recipe_in(merged(parent(), task="edit"))["is_instruct_pix2pix"] is True


def test_the_family_says_what_modelspec_has_no_name_for(tmp_path) -> None:
    from sdsurgery import merge, open
    from sdsurgery.testing import write_checkpoint

    for family, key, implementation in (
        ("sd1-pix2pix", "is_instruct_pix2pix", "sgm"),
        ("sd1-inpainting", "is_inpainting", "sgm"),
        ("sd1-diffusers", "is_inpainting", "diffusers"),
    ):
        out = tmp_path / f"{family}.safetensors"
        for name in "ab":
            write_checkpoint(tmp_path / name, family, size="tiny", overwrite=True)
        merge("weighted-sum", [tmp_path / "a", tmp_path / "b"], out=out, hash=False, sync=False)
        with open(out) as made:
            metadata = made.metadata()
        assert recipe_in(metadata)[key] is (implementation == "sgm")
        assert metadata["modelspec.implementation"] == implementation


def test_training_facts_graphs_and_descriptions_do_not_survive_a_merge() -> None:
    own = {
        "ss_network_dim": "4",
        "sshs_legacy_hash": "a",
        "prompt": "{}",
        "workflow": "{}",
        "modelspec.date": "2024-01-01",
        "modelspec.thumbnail": "data:",
        "modelspec.description": "d",
        "modelspec.prediction_type": "v",
        "modelspec.license": "L",
        "other": "1",
    }
    metadata = merged(parent(1, **own), parent(2, **own))
    assert set(metadata) == {
        "format", "sd_merge_recipe", "sd_merge_models", "sshs_model_hash", "modelspec.hash_sha256",
        "modelspec.sai_model_spec", "modelspec.architecture", "modelspec.implementation", "modelspec.title",
        "modelspec.resolution", "modelspec.merged_from", "modelspec.prediction_type", "modelspec.license",
    }  # fmt: skip
    assert "modelspec.prediction_type" not in merged(parent(1, **own), parent(2))


def test_the_same_merge_gives_the_same_text_without_paths_or_dates() -> None:
    a = Parent("/home/me/models/secret, really", {}, None, digest(1))
    b = Parent("C:\\models\\b", {}, None, digest(2))
    metadata = merged(a, b)
    assert metadata == merged(a, b)
    text = json.dumps(metadata)
    for piece in ("/home", "C:"):
        assert piece not in text
    assert metadata["modelspec.merged_from"] == "secret  really, b"


def test_a_parameter_that_is_not_finite_is_refused() -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises(UsageError, match="finite"):
            merged(parent(), recipe={"method": "weighted-sum", "parameters": {"alpha": value}})


def test_names_that_are_not_unicode_can_be_written() -> None:
    odd = Parent("caf\udce9\u202e", {}, None, digest(1))
    metadata = merged(odd, parent(2), title="t\udcff")
    layout([], metadata)
    assert metadata["modelspec.title"] == "t?"


# ---------------------------------------------------------------- single inputs

OWN = {
    "format": "np",
    "ss_steps": "10",
    "prompt": '{"1":{}}',
    "workflow": "{}",
    "modelspec.title": "Mine",
    "modelspec.date": "2024-01-01",
    "modelspec.thumbnail": "data:",
    "modelspec.architecture": "stable-diffusion-v1",
    "modelspec.unet_dtype": "float32",
    "sd_merge_recipe": json.dumps({"type": "webui", "primary_model_hash": digest(5)}),
    "sd_merge_models": json.dumps({digest(5): a1111_entry("five")}),
    "custom": "v",
}
STALE = {
    "modelspec.hash_sha256": "0xold",
    "modelspec.hash_md5": "0xold",
    "sshs_model_hash": "old",
    "sshs_legacy_hash": "old",
}
GONE = {"sd_merge_recipe", "sd_merge_models", "modelspec.unet_dtype", "format"}


def test_a_single_input_keeps_its_metadata() -> None:
    metadata = single(OWN | STALE)
    for key in OWN.keys() - GONE:
        assert metadata[key] == OWN[key]
    assert metadata["format"] == "pt"
    assert metadata["modelspec.resolution"] == "512x512"


def test_a_single_input_s_recipe_moves_into_the_ancestry() -> None:
    metadata = single(OWN)
    recipe, models = recipe_in(metadata), models_in(metadata)
    assert recipe["type"] == "sdsurgery"
    assert recipe["method"] == "cast"
    assert recipe["primary_model_hash"] == digest(10)
    assert recipe["secondary_model_hash"] is None
    assert models[digest(10)]["sd_merge_recipe"] == json.loads(OWN["sd_merge_recipe"])
    assert models[digest(5)] == a1111_entry("five")


def test_without_a_recipe_the_input_s_own_stays() -> None:
    metadata = single(OWN, recipe=None)
    assert {key: metadata[key] for key in OWN if key != "format"} == {key: OWN[key] for key in OWN if key != "format"}


@pytest.mark.parametrize("body", [BODY, None])
def test_stale_hashes_are_replaced_or_removed(body: str | None) -> None:
    metadata = single(OWN | STALE, body=body)
    assert "old" not in "".join(metadata.values())
    assert ("sshs_model_hash" in metadata) == ("modelspec.hash_sha256" in metadata) == (body is not None)


def test_stated_dtypes_stay_only_while_they_are_true() -> None:
    assert "modelspec.unet_dtype" not in single(OWN)
    assert single(OWN, recipe={"method": "cast", "dtype": "keep"})["modelspec.unet_dtype"] == "float32"


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
