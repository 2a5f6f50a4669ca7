"""What kind of layer a tensor belongs to, from its name, in original and diffusers names."""

from __future__ import annotations

import re

KINDS = ("attn1", "attn2", "ff", "resnet", "proj", "norm", "conv", "embed", "other")
"""All kinds, in the order of tables: self-attention (and the text encoders' and the VAE's only one), cross-attention,
feed-forward, residual layers, projections around transformers, norms, single convolutions, embeddings, the rest."""

# First match wins. Searched in the name with every run of "." and "_" as one dot and a dot at both ends, so that
# kohya's names of LoRA modules (lora_unet_down_blocks_0_attentions_0_…) read like the others.
_RULES = tuple(
    (kind, re.compile(expression))
    for kind, expression in (
        # Norms wherever they stand: GroupNorm is the first of a U-Net residual layer's in_layers and out_layers.
        ("norm", r"norm|\.ln\.|\.(in|out)\.layers\.0\.|(?<!\.to)\.out\.0\."),
        ("attn2", r"\.attn2\."),
        ("attn1", r"\.attn1\.|\.attn\.|\.attentions\.\d+\.(to|query|key|value|proj\.attn)\."),
        ("ff", r"\.ff\.|\.mlp\."),
        ("proj", r"\.proj\.(in|out)\.|text\.projection"),
        ("resnet", r"\.(in|out|emb)\.layers\.|skip\.connection|\.resnets\.|\.block\.\d|\.mid\.block\.\d"),
        ("embed", r"embedding|\.(time|label)\.emb"),
        ("conv", r"conv|\.op\.|input\.blocks\.0\.0\.|\.out\.2\."),
    )
)
_SEPARATORS = re.compile(r"[._]+")


def kind(key: str) -> str:
    """One of :data:`KINDS` for a tensor name; of an EMA key, ask with the name of the tensor that it shadows."""
    name = _SEPARATORS.sub(".", f".{key}.")
    return next((found for found, expression in _RULES if expression.search(name)), "other")
