"""Families as rules: generated lists, mappings and file sizes against digests and the reference tables."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from layout_tools import FULL, IN_DIFFUSERS, NAMES, OLD_VAE_NAMES, rows
from reference_writer import Stored, file_size
from sdsurgery import layouts
from sdsurgery.errors import UsageError
from sdsurgery.layouts import UNKNOWN, diffusers, lora_names, size_text
from sdsurgery.layouts.presets import PRESETS

DIGESTS = Path(__file__).with_name("digests.json")
"""Lines and SHA-256 (first 16 digits) of every family's tables: its tensors (key, shape, dtype class, component,
block), their EMA twins, its names in diffusers and in kohya's LoRAs. ``python tests/layouts/test_layouts.py`` adds
those of a new family; one that is there already may not change."""


def digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("".join(line + "\n" for line in lines).encode()).hexdigest()[:16]


def table(name: str, component: str) -> list[str]:
    header, *lines = layouts.keys_table(name, ema=component == "ema")
    return [header, *(line for line in lines if line.split("\t")[3] == component)]


def map_lines(name: str) -> list[str]:
    found = (
        "\t".join((row.ldm_key, row.component or "-", row.key or "-", row.transform))
        for row in diffusers.mapping(layouts.get(name))
    )
    return ["ldm_key\tdiffusers_component\tdiffusers_key\ttransform", *found]


def lora_lines(name: str) -> list[str]:
    header = "kohya_name alias_name scope ldm_key transform diffusers_component diffusers_key shape block"
    lines = [header.replace(" ", "\t")]
    for target in lora_names.targets(layouts.get(name)):
        row = target.row
        cells = (target.name, target.alias, target.scope, row.ldm_key, row.transform, row.component, row.key)
        lines.append("\t".join(cell or "-" for cell in (*cells, size_text(target.shape), target.block)))
    return lines


def tables_of(reference: Path, kind: str) -> list[tuple[str, list[str]]]:
    """Family and lines of every reference table of a kind, for the families that are generated."""
    named = {path.name.removesuffix(f".{kind}.tsv"): path for path in sorted(reference.glob(f"*.{kind}.tsv"))}
    found = [(name, path.read_text().splitlines()) for name, path in named.items() if name in NAMES]
    assert found
    return found


def tables() -> Iterator[tuple[str, list[str]]]:
    """Every table of every family that is generated, with its name in digests.json."""
    for name in NAMES:
        layout = layouts.get(name)
        yield name, list(layouts.keys_table(name))
        if layout.has_ema:
            yield f"{name} ema", table(name, "ema")
        if name in IN_DIFFUSERS:
            yield f"{name} to diffusers", map_lines(name)
        if layout.adapters:
            yield f"{name} lora", lora_lines(name)


def digests() -> dict[str, list[object]]:
    return {name: [len(lines) - 1, digest(lines)] for name, lines in tables()}


class TestGeneratedLists:
    def test_every_table_is_pinned_by_count_and_digest(self) -> None:
        assert digests() == json.loads(DIGESTS.read_text()), "a new family? python tests/layouts/test_layouts.py"

    def test_original_layouts_equal_the_reference_table_line_by_line(self, reference: Path) -> None:
        for name, lines in tables_of(reference, "ldm"):
            assert list(layouts.keys_table(name)) == lines, name

    def test_diffusers_layouts_and_maps_equal_the_reference_tables(self, reference: Path) -> None:
        for name, lines in tables_of(reference, "diffusers"):
            assert list(layouts.keys_table(f"{name}-diffusers")) == lines, name
        for name, lines in tables_of(reference, "diffusers-map"):
            assert map_lines(name) == lines, name

    def test_lora_targets_equal_the_reference_tables(self, reference: Path) -> None:
        for name, lines in tables_of(reference, "lora-map"):
            assert lora_lines(name) == lines, name

    def test_ema_lists_equal_the_reference_tables(self, reference: Path) -> None:
        for name, lines in tables_of(reference, "ema"):
            assert table(name, "ema") == lines, name

    @pytest.mark.parametrize("name", [name for name in FULL if layouts.get(name).base == "sd1"])
    def test_ema_twin_equals_the_reference_map(self, name: str, reference: Path) -> None:
        layout = layouts.get(name)
        expected = {row["ldm_key"]: row["ema_key"] for row in rows(reference / "sd1.ema-map.tsv")}
        expected.pop("-")
        unet = [tensor.key for tensor in layout.tensors() if tensor.component == "unet"]
        assert {key: layout.ema_twin(key) for key in unet} == expected

    def test_variants_differ_from_their_base_in_one_tensor_as_listed(self, reference: Path) -> None:
        for row in rows(reference / "variants.tsv"):
            suffix = "-diffusers" if row["layout"] == "diffusers" else ""
            component = "ema" if row["layout"] == "ema" else row["component"]
            ema = component == "ema"
            own = {t.key: t for t in layouts.get(row["variant"] + suffix).tensors(ema=ema) if t.component == component}
            base = {t.key: t for t in layouts.get(row["base"] + suffix).tensors(ema=ema) if t.component == component}
            assert [key for key in own if own[key] != base.get(key)] == [row["key"]]
            assert size_text(own[row["key"]].shape) == row["shape"]

    def test_totals_equal_the_reference_index(self, reference: Path) -> None:
        for row in rows(reference / "index.tsv"):
            name = row["layout"] + ("-diffusers" if row["kind"] == "diffusers" else "")
            if name not in NAMES:
                continue
            tensors = layouts.get(name).tensors(ema=row["kind"] == "ema")
            if row["component"] != "ALL":
                tensors = tuple(tensor for tensor in tensors if tensor.component == row["component"])
            elements = sum(Stored("", "F16", t.shape).nbytes // 2 for t in tensors if t.dtype_class == "float")
            assert (len(tensors), elements) == (int(row["tensors"]), int(row["float_elements"])), row

    def test_ema_comes_after_the_unet_in_sd1_and_last_in_sdxl(self) -> None:
        order = list(dict.fromkeys(tensor.component for tensor in layouts.get("sd1").tensors(ema=True)))
        assert order == ["buffers", "unet", "ema", "vae", "text_encoder"]
        assert layouts.get("sdxl-base").tensors(ema=True)[-1].component == "ema"

    @pytest.mark.parametrize("name", [name for name in NAMES if name not in FULL])
    def test_asking_for_ema_where_there_is_none_is_a_value_error(self, name: str) -> None:
        with pytest.raises(ValueError, match="has no EMA weights"):
            layouts.get(name).tensors(ema=True)

    @pytest.mark.parametrize("name", ["unknown", "flux", "lora-sd1", "sdxl-distilled"])
    def test_asking_for_tensors_of_a_recognised_only_family_is_a_value_error(self, name: str) -> None:
        with pytest.raises(ValueError, match="not known"):
            layouts.get(name).tensors()
        with pytest.raises(UsageError, match="not known"):
            list(layouts.keys_table(name))

    def test_names_are_unique_within_each_component(self) -> None:
        for name in NAMES:
            keys = [(tensor.component, tensor.key) for tensor in layouts.get(name).tensors()]
            assert len(keys) == len(set(keys)), name


PUBLISHED = (
    # size, layout, component, edits, float dtype, order, padding, metadata (stable-diffusion releases)
    (4265146304, "sd1", "ALL", "+ema_counters", "F32", "name", 0, True),
    (2132625894, "sd1", "ALL", "-buffers", "F16", "dtype", 8, False),
    (5214604494, "sd2", "ALL", "+ema_counters", "F32", "dtype", 0, True),
    (3531269371, "sd2-x4-upscaler", "ALL", "+ema_counters", "F32", "dtype", 0, True),
    (334643276, "sd1-diffusers", "vae", "old_vae_names", "F32", "dtype", 8, True),
    (5135149760, "sdxl-base-diffusers", "unet", "-", "F16", "dtype", 8, True),
)


def stored(name: str, component: str, edits: str, float_dtype: str) -> list[Stored]:
    """The tensors of a published file: a family's list with the edits of the reference table."""
    found = []
    for tensor in layouts.get(name).tensors():
        if component not in ("ALL", tensor.component) or f"-{tensor.component}" == edits:
            continue
        key = tensor.key
        if edits == "-position_ids" and key.endswith("position_ids"):
            continue
        if edits == "old_vae_names" and ".attentions.0." in key:
            for new, old in OLD_VAE_NAMES:
                key = key.replace(f".{new}.", f".{old}.")
        found.append(Stored(key, "I64" if tensor.dtype_class == "int64" else float_dtype, tensor.shape))
    if edits == "+ema_counters":
        found += [Stored("model_ema.decay", "F32", ()), Stored("model_ema.num_updates", "I32", ())]
    if edits == "+position_ids":
        found.append(Stored("text_model.embeddings.position_ids", "I64", (1, 77)))
    return found


class TestPublishedSizes:
    @pytest.mark.parametrize("case", PUBLISHED, ids=lambda case: f"{case[1]} {case[2]} {case[0]}")
    def test_published_files_have_the_size_of_the_generated_list(self, case: tuple) -> None:
        size, name, component, edits, float_dtype, order, padding, metadata = case
        tensors = stored(name, component, edits, float_dtype)
        texts = {"format": "pt"} if metadata else None
        assert file_size(tensors, order=order, padding=padding, metadata=texts) == size

    def test_all_golden_sizes_are_reproduced_to_the_byte(self, reference: Path) -> None:
        table = rows(reference / "golden-sizes.tsv")
        assert len(table) == 30
        for row in table:
            name = row["layout_tsv"].removesuffix(".ldm").replace(".diffusers", "-diffusers")
            tensors = stored(name, row["component"], row["edits"], row["float_dtype"])
            texts = {"format": "pt"} if row["metadata"] == "format=pt" else None
            size = file_size(tensors, order=row["order"], padding=int(row["padding"]), metadata=texts)
            assert (len(tensors), size) == (int(row["tensors"]), int(row["bytes"])), row["published_file"]

    def test_the_model_of_the_writer_agrees_with_the_safetensors_library(self) -> None:
        import numpy as np
        from safetensors.numpy import save

        kinds = {"I64": np.int64, "F32": np.float32, "I32": np.int32, "F16": np.float16}
        tensors = [Stored(f"t{i}.ß", dtype, (i, 3)) for i, dtype in enumerate(kinds)] + [Stored("s", "F16", ())]
        data = save({t.name: np.zeros(t.shape, kinds[t.dtype]) for t in tensors}, metadata={"format": "pt"})
        escaped = [t._replace(name=t.name.replace("ß", "ss")) for t in tensors]  # two bytes of UTF-8, as in the file
        assert file_size(escaped, order="dtype", padding=8, metadata={"format": "pt"}) == len(data)


class TestRegistry:
    def test_an_unknown_name_is_refused_with_a_close_match(self) -> None:
        with pytest.raises(UsageError, match="did you mean 'sdxl-base'"):
            layouts.get("sdxl_base")
        with pytest.raises(UsageError, match=r"known: .*sd1, .*flux"):
            layouts.get("zzzz")

    def test_names_are_unique_and_unknown_is_not_listed(self) -> None:
        found = [layout.name for layout in layouts.all_layouts()]
        assert len(found) == len(set(found))
        assert UNKNOWN not in layouts.all_layouts()
        assert layouts.get("unknown") is UNKNOWN

    def test_importing_generates_nothing_and_needs_no_heavy_module(self) -> None:
        code = (
            "import sys, sdsurgery.layouts as layouts; from sdsurgery.layouts import base;"
            "print(base._tensors.cache_info().currsize,"
            " [m for m in ('numpy', 'torch', 'rich', 'difflib', 'json') if m in sys.modules])"
        )
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert run.stdout.split() == ["0", "[]"]

    def test_the_documentation_lists_every_family_and_preset(self) -> None:
        text = (Path(__file__).parents[2] / "docs" / "layouts.md").read_text()
        for layout in layouts.all_layouts():
            name = (layout.original or layout).name
            if not name.startswith(("lora", "lycoris", "textual-inversion", "hypernetwork")):
                assert f"`{name}`" in text, name
        for name in PRESETS:
            assert f"`{name}`" in text, name


if __name__ == "__main__":
    written = digests() | json.loads(DIGESTS.read_text())
    DIGESTS.write_text(json.dumps(written, indent=1, sort_keys=True) + "\n")
