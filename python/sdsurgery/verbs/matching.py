"""Which tensor of another input belongs to which of A's: by name, and where that fails by what both names stand for.

Old and foreign names (CLIP-L without ``text_model.``, the VAE's old attention names, ``state_dict.`` and ``model.``
around everything, a bare U-Net, also in diffusers' names, SD 2's encoder in sgm's place) are renames: the tensors
themselves are merged as they are. The output keeps A's names.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..checkpoint import TensorInfo
from ..errors import printable
from ..layouts import Layout, aliases, get


def in_names_of(
    first: Mapping[str, TensorInfo], other: Mapping[str, TensorInfo], layout: Layout
) -> tuple[Mapping[str, TensorInfo], list[str]]:
    """``other``'s tensors under the names that ``first`` has for them, and what there is to tell, one line each.

    A tensor that ``first`` has under no name keeps its own. A name that both have is never given to another tensor.
    """
    extra = [name for name in other if name not in first and not layout.is_ema(name)]
    if not extra:
        return other, []
    layout = get(layout.name.removesuffix("-diffusers"))  # whose names are what all others stand for
    lacking = {aliases.canonical(name, layout): name for name in first if name not in other and not layout.is_ema(name)}
    renamed: dict[str, str] = {}
    for name in extra:
        known = lacking.pop(aliases.canonical(name, layout), None)
        if known is not None:
            renamed[name] = known
    told = _transposed([name for name in extra if name not in renamed], lacking)
    if renamed:
        name, known = next(iter(renamed.items()))
        told.insert(0, f"{len(renamed)} tensors found under other names ('{printable(name)}' for '{printable(known)}')")
        other = {renamed.get(name, name): info for name, info in other.items()}
    return other, told


def _transposed(extra: list[str], lacking: Mapping[str, str]) -> list[str]:
    return [
        f"'{printable(name)}' holds the transposed matrix of '{printable(lacking[name.removesuffix('.weight')])}' and "
        "is not used"
        for name in extra
        if aliases.needs_transpose(name) and name.removesuffix(".weight") in lacking
    ]
