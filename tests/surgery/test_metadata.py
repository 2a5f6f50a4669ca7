"""Metadata of outputs: the keys that other tools read, and what is kept of the inputs'."""

from __future__ import annotations

import json

import pytest
from metadata_tools import (
    BODY,
    OWN,
    STALE,
    a1111_entry,
    a1111_parent,
    digest,
    merged,
    models_in,
    parent,
    recipe_in,
    single,
)
from sdsurgery.errors import UsageError
from sdsurgery.formats.kinds.safetensors import layout
from sdsurgery.metadata import (
    Parent,
)

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


def test_training_facts_and_graphs_do_not_survive_a_merge_and_a_s_own_words_do() -> None:
    gone = {
        "ss_network_dim": "4",
        "sshs_legacy_hash": "a",
        "prompt": "{}",
        "workflow": "{}",
        "modelspec.date": "2024-01-01",
        "other": "1",
    }
    kept = {
        "modelspec.thumbnail": "data:",
        "modelspec.description": "d",
        "modelspec.author": "someone",
        "modelspec.license": "L",
        "modelspec.usage_hint": "low guidance",
        "modelspec.trigger_phrase": "cat style",
        "modelspec.tags": "cats",
        "ss_base_model_version": "sd_v1",
    }
    own = {**gone, **kept, "modelspec.prediction_type": "v"}
    metadata = merged(parent(1, **own), parent(2, **{**own, "modelspec.author": "another"}))
    assert set(metadata) == {
        "format", "sd_merge_recipe", "sd_merge_models", "sshs_model_hash", "modelspec.hash_sha256",
        "modelspec.sai_model_spec", "modelspec.architecture", "modelspec.implementation", "modelspec.title",
        "modelspec.resolution", "modelspec.merged_from", "modelspec.prediction_type", *kept,
    }  # fmt: skip
    assert {key: metadata[key] for key in kept} == kept, "A's, whatever the others say"
    assert "modelspec.prediction_type" not in merged(parent(1, **own), parent(2))
    assert not kept.keys() & merged(parent(1), parent(2, **own)).keys()


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
