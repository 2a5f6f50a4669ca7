"""What an adapter's metadata say of its training. Written by anyone, so everything is text until it parses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_PLAIN = {
    "ss_output_name": "name",
    "ss_base_model_version": "base",
    "ss_sd_model_name": "base_model",
    "ss_network_module": "module",
    "ss_network_dim": "rank",
    "ss_network_alpha": "alpha",
    "ss_num_train_images": "images",
    "ss_steps": "steps",
    "ss_num_epochs": "epochs",
    "ss_learning_rate": "learning_rate",
    "ss_resolution": "resolution",
    "modelspec.architecture": "architecture",
    "modelspec.title": "title",
    "modelspec.author": "author",
    "modelspec.date": "date",
    "modelspec.usage_hint": "usage_hint",
}
_TRIGGER = "modelspec.trigger_phrase"
_TAGS = "ss_tag_frequency"
_MOST_TAGS = 12


def training_facts(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Facts by plain names; ``trigger_words`` are what the file says, else the tags that its training images had most
    often, in the order of their frequency."""
    facts: dict[str, Any] = {name: metadata[key] for key, name in _PLAIN.items() if metadata.get(key)}
    if words := metadata.get(_TRIGGER):
        facts["trigger_words"] = [word.strip() for word in words.split(",") if word.strip()]
    elif tags := _tags(metadata.get(_TAGS)):
        facts["trigger_words"] = tags
    return facts


def tag_counts(text: str) -> dict[str, dict[str, int]]:
    """``ss_tag_frequency``: how often each tag occurs, by folder of training images; what has another form is left
    out."""
    try:
        folders = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return {
        folder: {tag: count for tag, count in tags.items() if isinstance(count, int)}
        for folder, tags in (folders.items() if isinstance(folders, dict) else ())
        if isinstance(tags, dict)
    }


def _tags(text: str | None) -> list[str]:
    counts: dict[str, int] = {}
    for tags in tag_counts(text or "").values():
        for tag, count in tags.items():
            counts[tag.strip()] = counts.get(tag.strip(), 0) + count
    return sorted(counts, key=lambda tag: -counts[tag])[:_MOST_TAGS]
