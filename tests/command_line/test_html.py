"""--html: one self-contained page of every kind of result, with every text escaped, written whole or not at all."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sdsurgery as sds
from cli_support import done, refused
from cli_support import sds as command
from html_tools import Page
from mix_tools import base_of, tuned
from safetensors.numpy import save_file
from sdsurgery.errors import RunFailed
from sdsurgery.report import html

HOSTILE = (
    "</script><img src=x onerror=alert(1)>", "\"'><svg onload=alert(1)>", "&lt;b&gt; & <!-- -->", "]]></style><style>*",
    "line\nbreak\ttab", "\u202egnp.exe\u2066", '{"json": "</script>"}', "n" * 10_000, "\x00\x1b[31m",
    "javascript:alert(1)",
)  # fmt: skip
FILE = "\u202e<img src=x onerror=alert(1)>\"'&\n{}.safetensors"
ELEMENTS = (
    "html head meta title style script body main article header footer nav section h1 h2 p a ul li dl dt dd div span b "
    "small strong pre code details summary table caption thead tbody tr th td"
)
QUICK: dict[str, Any] = {"overwrite": True, "sync": False}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = base_of(tmp_path_factory.mktemp("html"))
    made = {name: tuned(base, name, share, seed) for seed, (name, share) in enumerate({"a": 0.05, "b": 0.1}.items())}
    mix = base.with_name("mix.safetensors")
    sds.merge("weighted-sum", list(made.values()), alpha=0.3, blocks="IN04=0.5", out=mix, sync=False)
    return {"base": base, **made, "mix": mix}


@pytest.fixture(scope="module")
def strange(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files whose names, tensors and metadata try to leave the text."""
    folder = tmp_path_factory.mktemp("strange")
    found = {}
    for number, name in enumerate("ab"):
        rng = np.random.default_rng(number)
        tensors = {key: rng.normal(size=(4, 4)).astype(np.float16) for key in HOSTILE}
        found[name] = folder / FILE.format(name)
        save_file(tensors, found[name], metadata={key: HOSTILE[0] + key for key in HOSTILE[:6]})
    return found


Make = Callable[[dict[str, Path], Path], Any]
KINDS: dict[str, Make] = {
    "compare": lambda m, page: sds.compare(m["a"], m["b"], html=page),
    "unmix": lambda m, page: sds.unmix(m["a"], [m["a"], m["b"]], prove=True, html=page),
    "map": lambda m, page: sds.relations([m["a"], m["b"]], html=page),
    "inspect": lambda m, page: sds.inspect(m["a"], html=page),
    "merge": lambda m, page: sds.merge(
        "weighted-sum", [m["a"], m["b"]], out=page.with_name("o.safetensors"), html=page, title=HOSTILE[0], **QUICK
    ),
    "dry run": lambda m, page: sds.merge("weighted-sum", [m["a"], m["b"]], dry_run=True, html=page),
    "sweep": lambda m, page: sds.sweep(
        "weighted-sum",
        [m["a"], m["b"]],
        parameters={"alpha": [0.1, 0.2]},
        out=page.with_name("o{alpha}.safetensors"),
        dry_run=True,
        html=page,
    ),
    "cast": lambda m, page: sds.cast(m["a"], dtype="fp32", dry_run=True, html=page),
    "convert": lambda m, page: sds.convert_all([m["a"], m["b"]], out_dir=page.parent, dry_run=True, html=page),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_is_well_formed_and_self_contained(kind: str, models: dict[str, Path], tmp_path: Path) -> None:
    KINDS[kind](models, tmp_path / "report.html")
    page = Page.of(tmp_path / "report.html")
    page.assert_self_contained()
    assert page.elements["h1"] == (2 if kind in ("sweep", "convert") else 1)
    assert (tmp_path / "report.html").stat().st_size < 700_000


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_names_stay_text(kind: str, strange: dict[str, Path], tmp_path: Path) -> None:
    KINDS[kind](strange, tmp_path / "r.html")
    wild = Page.of(tmp_path / "r.html")
    wild.assert_self_contained()
    assert set(wild.elements) <= set(ELEMENTS.split()) | ({"svg", "path", "text"} if kind == "map" else set())
    assert wild.values("tabindex") == ["0"] * len(wild.values("tabindex"))
    assert "\\u202e<img src=x onerror=alert(1)>\"'&\\x0a" in wild.text
    assert not re.search("[\u202e\u2066\x00\x1b]", wild.source)


def test_what_is_cut_off_a_name_is_counted(strange: dict[str, Path], tmp_path: Path) -> None:
    sds.compare(*strange.values(), html=tmp_path / "report.html")
    names = [row[0] for row in Page.of(tmp_path / "report.html").rows]
    assert "n" * 400 + "… (+9600 characters)" in names and "</script><img src=x onerror=alert(1)>" in names


def test_compare_shows_every_tensor_and_block(models: dict[str, Path], tmp_path: Path) -> None:
    found = sds.compare(models["a"], models["b"], html=tmp_path / "r.html")
    rows = Page.of(tmp_path / "r.html").rows
    names = {row[0]: row for row in rows}
    assert {tensor.name for tensor in found.tensors} <= set(names)
    tensor = found.tensors[40]
    assert f"{tensor.likeness.relative_l2:.4g}" in names[tensor.name]
    block = found.by("component", "block")["unet", "IN04"]
    assert ["unet", "IN04", "38", "0", f"{block.cosine:.6f}"] in [row[:5] for row in rows]


def test_unmix_shows_parts_beside_long_weights_by_block(models: dict[str, Path], tmp_path: Path) -> None:
    vae, body, mix = (tmp_path / f"{name}.safetensors" for name in ("vae", "body", "mix"))
    sds.extract(models["b"], out=vae, component="vae", strip_prefix=True)
    own = {f"IN{at:02}": 0.1 + at / 16 for at in range(12)}
    sds.merge("weighted-sum", [models["a"], models["base"]], alpha=0.5, blocks=own, out=body, **QUICK)
    sds.replace(body, {"vae": vae}, out=mix, **QUICK)
    found = sds.unmix(mix, [models["a"], models["base"], vae], html=tmp_path / "r.html")
    page = Page.of(tmp_path / "r.html")
    assert len(found.formula) > 180 and found.formula.endswith("; vae of vae")
    assert "other ratios by block, see below; vae of vae" in page.text and f"that of {vae}" in page.text


def test_unmix_shows_formula_ratios_command_and_proof(models: dict[str, Path], tmp_path: Path) -> None:
    found = sds.unmix(models["mix"], [models["a"], models["b"]], prove=True, html=tmp_path / "r.html")
    page = Page.of(tmp_path / "r.html")
    assert f"= {found.formula}" in page.text and found.command in page.text
    assert "all 1,143 tensors equal bit for bit" in page.text
    assert ["IN04", "0.5000", "0.5000"] in page.rows and ["IN05", "0.7000", "0.3000"] in page.rows
    layers = {row[0]: row for row in page.rows}
    assert len(found.layers) == found.tensors and all(layer["name"] in layers for layer in found.layers)
    assert "upper bounds" not in page.text
    found = sds.unmix(models["mix"], [models["a"], models["base"]], html=tmp_path / "missing.html")
    assert found.upper_bounds and "upper bounds" in Page.of(tmp_path / "missing.html").text


def test_map_shows_distances_tree_and_dendrogram(models: dict[str, Path], tmp_path: Path) -> None:
    found = sds.relations([models["base"], models["a"], models["b"]], html=tmp_path / "r.html")
    page = Page.of(tmp_path / "r.html")
    far = found.distances[0][1]
    assert far is not None and ["1  base", "=", f"{100 * far:.3g}"] in [row[:3] for row in page.rows]
    assert page.elements["svg"] == 1 and page.values("class").count("tree") == 1


def test_merge_shows_formula_ratios_hashes_and_what_became_of_each_tensor(
    models: dict[str, Path], tmp_path: Path
) -> None:
    given: dict[str, Any] = {"alpha": 0.3, "blocks": "IN04=0.75", "out": tmp_path / "o.safetensors", **QUICK}
    report = sds.merge("weighted-sum", [models["a"], models["b"]], html=tmp_path / "r.html", **given)
    page = Page.of(tmp_path / "r.html")
    assert report.formula in page.text and report.body_sha256 and report.body_sha256 in page.text
    assert all(digest and digest in page.text for digest in report.sha256)
    assert ["IN04", "0.75"] in page.rows and ["IN05", "0.3"] in page.rows
    assert len([row for row in page.rows if row[1:2] == ["merged"]]) == 1130
    assert '"IN04": 0.75' in page.text


def test_the_same_result_gives_the_same_page(models: dict[str, Path]) -> None:
    found = sds.inspect(models["mix"])
    assert html.document(found) == html.document(sds.inspect(models["mix"]))


# ---- the file


def test_a_page_that_cannot_be_written_is_refused_before_the_work(models: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "o.safetensors"
    merge = ("merge", models["a"], models["b"], "--method", "weighted-sum", "-o", out)
    (tmp_path / "there.html").write_text("mine")
    refused(command(*merge, "--html", tmp_path / "there.html"), 2, "exists", "--force")
    refused(command(*merge, "--html", tmp_path / "no" / "r.html"), 2, "no folder")
    before = models["a"].read_bytes()
    refused(command(*merge, "--force", "--html", models["a"]), 2, ".html")
    assert models["a"].read_bytes() == before and not out.exists()
    assert (tmp_path / "there.html").read_text() == "mine"


def test_force_replaces_a_page(models: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "r.html"
    path.write_text("old")
    done(command("inspect", models["a"], "--html", path, "--force"))
    Page.of(path).assert_self_contained()
    refused(command("map", models["a"], models["b"], "--html", path), 2, "exists", "--force")


def test_when_only_the_page_fails_the_error_says_so(models: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "reports"
    folder.mkdir()
    with pytest.raises(RunFailed, match="the work is done, but its HTML report is not written"):
        sds.cast(
            models["a"], dtype="bf16", out=tmp_path / "o.safetensors", html=folder / "r.html",
            progress=lambda done, total: shutil.rmtree(folder, ignore_errors=True),
        )  # fmt: skip
    assert sds.inspect(tmp_path / "o.safetensors").family == "sd1"


def test_many_files_share_one_page(models: dict[str, Path], tmp_path: Path) -> None:
    page = tmp_path / "r.html"
    given = ("cast", models["a"], models["b"], "--dtype", "bf16", "--out-dir", tmp_path / "out", "--html", page)
    done(command(*given))
    assert Page.of(page).elements["h1"] == 2


def test_inspect_shows_ancestry_and_several_files_share_a_page(models: dict[str, Path], tmp_path: Path) -> None:
    page = tmp_path / "r.html"
    files = (models["mix"], models["a"], tmp_path / "missing.safetensors")
    assert command("inspect", *files, "--html", page).rc == 3
    found = Page.of(page)
    found.assert_self_contained()
    assert found.elements["h1"] == 3 and found.values("class").count("tree") == 1
    (mix,) = sds.inspect(models["mix"]).ancestry
    assert f" = {mix.formula}" in found.text and "missing.safetensors" in found.text


def test_json_is_as_without_a_page(models: dict[str, Path], tmp_path: Path) -> None:
    with_page = command("map", models["a"], models["b"], "--json", "--html", tmp_path / "r.html").json()
    without = command("map", models["a"], models["b"], "--json").json()
    volatile = ("seconds", "how")
    assert json.dumps({**with_page, **dict.fromkeys(volatile)}) == json.dumps({**without, **dict.fromkeys(volatile)})


# ---- what is seen


def luminance(colour: str) -> float:
    parts = [int(colour[1 + i : 3 + i], 16) / 255 if len(colour) == 7 else int(colour[1], 16) / 15 for i in (0, 2, 4)]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return sum(share * x for share, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_texts_stand_out_from_every_colour_behind_them() -> None:
    """A contrast of 4.5 (WCAG 2, level AA), light, dark and in print."""
    style = (Path(html.__file__).parent / "page.css").read_text()
    themes = re.findall(r":root \{([^}]*)\}", style)
    assert len(themes) == 3
    on_low = [f"h{step}" for step in range(7)] + ["m1", "m2", "m3"]
    pairs = [("on-low", name) for name in on_low] + [("on-high", name) for name in ("h7", "h8", "h9", "m4")]
    pairs += [("text", name) for name in ("page", "panel", "bar", "warn-panel")]
    pairs += [("soft", "page"), ("link", "page"), ("warn", "warn-panel")]
    for theme in themes:
        colours = dict(re.findall(r"--([\w-]+): (#\w+);", theme))
        for front, back in pairs:
            light, dark = sorted((luminance(colours[front]), luminance(colours[back])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (front, back)


def test_the_script_sorts_and_filters_in_a_browser(models: dict[str, Path], tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
    if browser is None:
        pytest.skip("no Chromium here")
    sds.compare(models["a"], models["b"], html=tmp_path / "r.html")
    options = ("--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}")
    ran = subprocess.run(
        [browser, *options, "--dump-dom", (tmp_path / "r.html").as_uri()], capture_output=True, timeout=60, check=True
    )
    page = Page(re.sub(r"<(input[^>]*)>", r"<\1></input>", ran.stdout.decode()))
    assert page.elements["button"] > 10 and page.elements["input"] == 2
    assert "1143 of 1143 rows" in page.text
