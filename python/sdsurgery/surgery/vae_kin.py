"""Whether a VAE belongs to a family: those of SD 1 and 2 and those of SDXL have the same names and shapes, and latents
that are not interchangeable (scale factors 0.18215 and 0.13025, and other values altogether).

Three signs, each for what it is: the donor's own family or its ModelSpec id; the SHA-256 of a published file; and that
two VAEs have nothing in common. SDXL's was trained from the beginning (model card of stabilityai/sdxl-vae), while
ft-EMA, ft-MSE and other descendants of kl-f8 kept their encoder or started from it (model card of
stabilityai/sd-vae-ft-mse), so the filters of relatives point the same way and those of strangers do not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isfinite, sqrt
from operator import mul

from ..checkpoint import Checkpoint, TensorInfo
from ..errors import printable
from ..layouts import Layout, detect
from ..report.warnings import Warned, warned

_SD, _XL = "Stable Diffusion 1 and 2", "Stable Diffusion XL"
_OF_ARCHITECTURES = {"stable-diffusion-v1": _SD, "stable-diffusion-v2": _SD, "stable-diffusion-xl": _XL}
_FILES = {
    334_641_164: ("63aeecb90ff7bc1c115395962d3e803571385b61938377bc7089b36e81e92e2e", _XL, "sdxl_vae.safetensors"),
    334_641_162: ("235745af8d86bf4a4c1b5b4f529868b37019a10f7c0b2e79ad0abca3a22bc6e1", _XL, "sdxl-vae-fp16-fix"),
    334_641_190: ("735e4c3a447a3255760d7f86845f09f937809baa529c17370d83e4c3758f3c75", _SD, "vae-ft-mse-840000"),
}
"""Bytes of a published file -> its SHA-256, whose latents it has, its name."""
_FILTERS = {"encoder.conv_in.weight": (128, 3, 3, 3), "encoder.conv_out.weight": (8, 512, 3, 3)}
_MOST = 4096  # numbers of a tensor; the cosine of two unrelated ones is then ±0.02
_RELATED = 0.5  # descendants are far above, strangers near zero

Tensors = Mapping[str, TensorInfo]


def doubt(base: Checkpoint, layout: Layout, donor: Checkpoint, first: Tensors, second: Tensors) -> Iterator[Warned]:
    """A warning where the donor's VAE is another family's. ``first`` and ``second`` are the tensors of the base and of
    the donor under the base's names. Reads a few kilobytes, and the whole of a file that is as long as a published
    one."""
    wanted = _of_architecture(layout.architecture or "")
    sign = _sign(donor)
    if sign is not None and wanted not in (None, sign[0]):
        found, what = sign
        yield warned("vae_family", path=printable(donor.path), found=found, sign=what, family=layout.title)
        return
    yield from unrelated(base, layout, donor, first, second)


def unrelated(base: Checkpoint, layout: Layout, donor: Checkpoint, first: Tensors, second: Tensors) -> Iterator[Warned]:
    """A warning where the two VAEs have nothing in common; of models of one family nothing else is a sign."""
    cosine = _likeness(base, layout, donor, first, second)
    if cosine is not None and cosine < _RELATED:
        yield warned("vae_unrelated", path=printable(donor.path), base=printable(base.path), cosine=cosine)


def _of_architecture(architecture: str) -> str | None:
    return next((name for front, name in _OF_ARCHITECTURES.items() if architecture.lower().startswith(front)), None)


def _sign(donor: Checkpoint) -> tuple[str, str] | None:
    """Whose latents the donor's VAE has, and what says so."""
    own = detect(donor.tensors).layout
    stated = donor.metadata().get("modelspec.architecture", "")
    for architecture, what in ((own.architecture or "", f"its family ({own.name})"), (stated, "its metadata")):
        found = _of_architecture(architecture)
        if found is not None:
            return found, what
    published = None if donor.source.in_memory else _FILES.get(donor.source.size)
    if published is not None:
        from ..hashing import file_sha256

        digest, found, name = published
        if file_sha256(donor.source) == digest:
            return found, f"its SHA-256 ({name})"
    return None


def _likeness(base: Checkpoint, layout: Layout, donor: Checkpoint, first: Tensors, second: Tensors) -> float | None:
    """The larger cosine of two layers of the encoders; None where they are not of the real sizes, or not there."""
    found = []
    for ending, shape in _FILTERS.items():
        name = next((key for key in first if key.endswith(ending) and layout.component(key) == "vae"), None)
        if name is None or name not in second or not first[name].shape == second[name].shape == shape:
            return None
        x, y = _numbers(base, first[name]), _numbers(donor, second[name])
        if not x or not y:
            return None
        found.append(1.0 if x == y else _cosine(x, y))
    return max(found)


def _numbers(checkpoint: Checkpoint, info: TensorInfo) -> list[float]:
    if info.strides is not None or info.encoded is not None or info.parts:
        return []
    count = min(info.elements, _MOST)
    first = info.form._replace(shape=(count,), nbytes=info.dtype.nbytes(count) or 0)
    return checkpoint.numbers(info.with_form(first))


def _cosine(x: list[float], y: list[float]) -> float:
    both = sqrt(sum(map(mul, x, x))) * sqrt(sum(map(mul, y, y)))
    cosine = sum(map(mul, x, y)) / both if both else 1.0
    return cosine if isfinite(cosine) else 1.0
