"""What other tools compute: of each method they have our form of it, and which tensors and blocks they take.

docs/compat.md is written from this table; ``compat.py`` makes methods of it. Sources are those tools' own code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

SEPARATOR = ":"
"""Between a tool and a method in the name of the method as the tool computes it."""


class Form(NamedTuple):
    """What a tool computes for one of our methods: the method's full name, and how equal the result is."""

    name: str
    equal: str = "bits"
    fused: bool = False
    keeps: tuple[str, ...] = ()  # words of names that the tool leaves A's
    still: str = ""  # the parameter at whose 0 the result is A itself, signed zeros included


class Tool(NamedTuple):
    """A tool's methods, which tensors it merges, and where its merge blocks differ from the family's."""

    forms: Mapping[str, Form]
    keys: str  # for the docs: which tensors
    lacks: str = ""  # for the docs: what is not offered, and why
    keeps: str = ""  # a pattern of names that stay A's
    keeps_xl: str = ""  # further ones of SDXL
    blocks: Mapping[str, str] = {}  # a pattern of names: their block, where it isn't the family's
    stands_in: bool = False  # A's tensor stands in for one that another input lacks

    def leaves(self, name: str, family: str) -> bool:
        """Whether the tool leaves this tensor A's."""
        xl = self.keeps_xl if family.startswith("sdxl") else ""
        return any(pattern and re.search(pattern, name) for pattern in (self.keeps, xl))

    def block(self, name: str, block: str | None) -> str | None:
        """The block that the tool counts the tensor to, given the family's."""
        return next((other for pattern, other in self.blocks.items() if re.search(pattern, name)), block)


_MASKS = "bits, given its masks"
_LERP = Form("weighted-sum.lerp", fused=True)
_OUTER = ("to_out", "proj_out", "norm")
_MEH = ("weighted-sum", "sum-twice", "triple-sum", "add-diff", "weighted-subtract", "tensor-sum", "similarity-add-diff")
_NO_NUMBERS = r"^(?!.*(weight|bias))"  # neither word in it: positional embeddings, projections, the logit scale
_LABEL = r"(^|\.)label_emb\."
_TIME = rf"(^|\.)time_embed\.|{_LABEL}"

TOOLS: Mapping[str, Tool] = {
    "a1111": Tool(
        {"weighted-sum": Form("weighted-sum"), "add-diff": Form("add-diff")},
        "Every tensor that all files have, the VAE's too; A's where one lacks it. Early versions added what only B "
        "has: --add-missing. No merge blocks.",
    ),
    "supermerger": Tool(
        {
            "weighted-sum": _LERP, "sum-twice": Form("sum-twice.lerp", fused=True),
            "triple-sum": Form("triple-sum.lerp", fused=True),
            "add-diff": Form("add-diff", "bits of float32 files; B − C is rounded to B's dtype there"),
            "train-diff": Form("train-diff"), "tensor-sum": Form("tensor-sum"), "tensor-sum-2": Form("tensor-sum-2"),
            "extract": Form("extract", "1e-6", fused=True),
            "extract.no-base": Form("extract.no-base", "5e-6", fused=True),
            "self-scale": Form("self-scale", keeps=_OUTER),
            "add-noise": Form("add-noise", "the same rule, other random numbers", keeps=_OUTER),
            "cosine-a": Form("cosine-a", "5e-6", fused=True), "cosine-b": Form("cosine-b", "2e-6", fused=True),
            "smooth-add": Form("smooth-add"), "adjust": Form("adjust"),
        },
        "Tensors that all files have and whose names hold `weight` or `bias`: in SD 2.x and SDXL the text encoder's "
        "positional embedding, projection and logit scale stay A's. The VAE follows BASE; cosine modes keep A's VAE. "
        "Blocks are the family's: `time_embed` and `label_emb` belong to IN00, `out.` to the last OUT.",
        '"use old calc method" (weighted-sum without --compat is that), elemental weights (--rules are such), random '
        "ratios, and the 109 blocks within SDXL's transformers.",
        keeps=_NO_NUMBERS,
    ),
    "sd-mecha": Tool(
        {
            "weighted-sum": _LERP, "n-sum": Form("n-sum.running-mean", fused=True),
            "add-diff": Form("add-diff", fused=True, still="alpha"),
            "add-diff.clamped": Form("add-diff.clamped", fused=True), "slerp": Form("slerp.norm", "2e-6", fused=True),
            "tensor-sum": Form("tensor-sum.round"), "top-k-tensor-sum": Form("top-k-tensor-sum.le"),
            "ties": Form("ties.count", fused=True, still="alpha"),
            "ties.sum": Form("ties.sum", fused=True, still="alpha"),
            "ties.extended": Form("ties.extended", "1e-6", fused=True, still="alpha"),
            "model-stock": Form("model-stock.consecutive", "1e-6"), "clamp": Form("clamp"), "scale": Form("scale"),
            "train-diff": Form("train-diff", "1e-6"), "add-opposite": Form("add-opposite", "1e-6"),
            "add-strict-opposite": Form("add-strict-opposite", "1e-6"), "perpendicular": Form("perpendicular", "5e-6"),
            "add-perpendicular": Form("add-perpendicular", "1e-6", fused=True, still="alpha"),
            "geometric-sum": Form("geometric-sum", "2e-6"), "multiply-quotient": Form("multiply-quotient", "1e-5"),
            "geometric-median": Form("geometric-median", "2e-3"),
            "add-cosine-a": Form("add-cosine-a", "2e-6", fused=True),
            "add-cosine-b": Form("add-cosine-b", "2e-6", fused=True),
            "crossover": Form("crossover", "5e-6", fused=True),
            "rotate": Form("rotate", "1e-5; 2e-3 of fractional powers", fused=True),
            "rotate.differences": Form("rotate.differences", "1e-5; 2e-3 of fractional powers", fused=True),
            "truncate-rank": Form("truncate-rank", "5e-5 of exact singular vectors"),
            "truncate-kronecker": Form("truncate-kronecker", "2e-5 of exact singular vectors"),
            "della": Form("della.mecha", _MASKS, fused=True, still="lam"), "dare-mean": Form("dare-mean", _MASKS),
        },
        "The keys of the model's configuration; a missing one is an error there, and A's here. `time_embed` and "
        "`label_emb` belong to BASE; in SDXL the VAE is a block of its own, in SD 1.x it follows BASE.",
        "balance_attention and rebasin (they permute a model's own weights, and mix nothing), fallback, cast and "
        "pick_component (`replace` and `cast` do that), a ratio that is a tensor, truncate_rank's randomised basis.",
        blocks={_TIME: "BASE"},
    ),
    "mergekit": Tool(
        {
            "n-sum": Form("n-sum.normalised", fused=True), "slerp": Form("slerp", "2e-6"),
            "nuslerp": Form("nuslerp", "2e-6"), "nuslerp.base": Form("nuslerp.base", "2e-6"),
            "nuslerp.first-axis": Form("nuslerp.first-axis", "1e-5"),
            "nuslerp.last-axis": Form("nuslerp.last-axis", "1e-5"), "multislerp": Form("multislerp", "5e-6"),
            "multislerp.base": Form("multislerp.base", "5e-6"), "karcher": Form("karcher", "1e-6"),
            "model-stock": Form("model-stock", "1e-6"), "model-stock.rows": Form("model-stock.rows", "1e-6"),
            "ties": Form("ties"), "breadcrumbs": Form("breadcrumbs"), "breadcrumbs-ties": Form("breadcrumbs-ties"),
            "breadcrumbs.empty": Form("breadcrumbs.empty", "bits of mergekit up to 0.1.4"),
            "sce": Form("sce", "1e-6"), "ram": Form("ram"), "ram-plus": Form("ram-plus"), "nearswap": Form("nearswap"),
            "arcee-fusion": Form("arcee-fusion", "bits up to a million elements; not where rounding decides"),
            "della": Form("della.mergekit", "2e-6, given its masks"),
            "della-linear": Form("della-linear.mergekit", "1e-6, given its masks"),
            "dare-linear": Form("dare-linear.mergekit", "2e-6, given its masks"),
            "dare-ties": Form("dare-ties.mergekit", "2e-6, given its masks"),
        },
        "Every tensor; a missing one is an error there, and A's here. No merge blocks of Stable Diffusion.",
        "passthrough (layers of language models in another order); task_arithmetic is add-diff with --weights, without "
        "--compat.",
    ),
    "comfy": Tool(
        {"weighted-sum": Form("weighted-sum.first")},
        "The U-Net by one node and the text encoders by another, each with its ratio: --blocks BASE=… here. The VAE "
        "and the text encoders' logit scale stay A's. Blocks IN…, M00, OUT… are its `input`, `middle` and `out`.",
        "ModelMergeAdd and ModelMergeSubtract, which are steps of an add-diff.",
        keeps=r"^first_stage_model\.|^vae\.|\.logit_scale$",
    ),
    "kohya": Tool(
        {"n-sum": Form("n-sum")},
        "Every tensor of A; A's stands in for one that another model lacks, behind the others, so that the weights "
        "still sum. No merge blocks.",
        "--unet_only, and sums that are rounded to fp16 or bf16 (--precision).",
        stands_in=True,
    ),
    "meh": Tool(
        {
            **{name: Form(name) for name in _MEH}, "multiply-diff": Form("multiply-diff", "1e-6"),
            "euclidean-add-diff": Form("euclidean-add-diff", "1e-6"),
            "ties": Form("ties.count", "bits; the base is the first model here, the last in meh"),
            "top-k-tensor-sum": Form("top-k-tensor-sum"),
            "distribution-crossover": Form("distribution-crossover", "2e-6"), "clamp": Form("clamp.ab"),
        },
        "Every tensor that all files have; A's where one lacks it. What only B has is added: --add-missing. Blocks are "
        "the family's, except that `label_emb` belongs to BASE; SDXL's `out.` counts as OUT11, not a block here.",
        "the re-basin loop, which permutes channels before it mixes.",
        blocks={_LABEL: "BASE"},
    ),
    "chattiori": Tool(
        {
            "weighted-sum": _LERP, "sum-twice": Form("sum-twice.lerp", fused=True),
            "sum-twice.flat": Form("sum-twice.flat", "bits of the version of 2024"),
            "triple-sum": Form("triple-sum", fused=True), "add-diff": Form("add-diff"),
            "train-diff": Form("train-diff"), "multiply-diff": Form("multiply-diff.ge", "1e-6"),
            "similarity-add-diff": Form("similarity-add-diff.matched", "2e-6", fused=True),
            "sparse-top-k": Form("sparse-top-k"), "dare": Form("dare.wrong-scale", _MASKS, fused=True),
            "dare.half": Form("dare.half", f"{_MASKS}; the version of 2024", fused=True),
            "norm-direction": Form("norm-direction", "2e-6"), "ortho": Form("ortho", "1e-6"),
            "channel-cosine-gate": Form("channel-cosine-gate", "1e-6"),
            "cosine-channel": Form("cosine-channel", "2e-6", fused=True), "max": Form("max"),
            "geometric-sum": Form("geometric-sum.real", "2e-6"), "tensor-sum": Form("tensor-sum"),
            "smooth-add": Form("smooth-add.gauss"), "frequency-band": Form("frequency-band", "2e-6"),
            "feature-weighted": Form("feature-weighted", "2e-6"), "adjust": Form("adjust"),
        },
        "Every tensor that all files have; A's where one lacks it. What only B has is added: --add-missing. The VAE "
        "stays A's (`replace` or --vae give another). `time_embed` belongs to OUT11 in SD 1.x and 2.x; in SDXL "
        "`time_embed`, `label_emb` and names without `weight` or `bias` stay A's.",
        '"SIG", which is not a mix, "CLIPXOR", whose formula is not published, and elemental weights (--rules are '
        "such).",
        keeps=r"^first_stage_model\.|^vae\.", keeps_xl=f"{_TIME}|{_NO_NUMBERS}", blocks={_TIME: "OUT11"},
    ),
}  # fmt: skip
"""By name: the tool."""
