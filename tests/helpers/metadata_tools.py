"""Metadata of outputs with made-up parents."""

from __future__ import annotations

import json
from collections.abc import Sequence

from sdsurgery import layouts
from sdsurgery.layouts import Layout
from sdsurgery.metadata import Kind, Parent, merge_metadata, single_input_metadata, stated_architecture

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
