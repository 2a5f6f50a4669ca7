"""``--json``: what every command prints has the shape that docs/json.md says, and the number of its schema."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import sdsurgery
from adapter_tools import lora, shapes_of, written
from sdsurgery import commands
from sdsurgery.cli import run
from sdsurgery.commands.common import SCHEMA
from sdsurgery.testing import write_checkpoint

PAGE = Path(__file__).resolve().parents[2] / "docs" / "json.md"
LAYER = "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight"


def documented() -> dict[str, dict[str, str]]:
    """By section of the page: path -> type. A path has ``[]`` for the items of a list and ``{}`` for the values of an
    object whose keys are names."""
    sections: dict[str, dict[str, str]] = {}
    title = ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            title = line[3:]
        elif found := re.match(r"\| `([^`]+)` \| ([^|]+) \|", line):
            sections.setdefault(title, {})[found[1]] = sections.get(title, {}).get(found[1], "") + found[2]
    return sections


SECTIONS = documented()


def known(title: str) -> dict[str, bool]:
    """The paths of a section, and whether they are in every answer, with those of the sections that its types name."""
    found: dict[str, bool] = {}
    for path, kind in SECTIONS[title].items():
        always = "sometimes" not in kind
        if not path.endswith(("[]", "{}")):
            found[path] = always
        inner = kind.partition(",")[0]
        if inner in SECTIONS:
            found |= {f"{path}.{each}": always and own for each, own in known(inner).items()}
    return found


def walked(value: Any, path: str, shape: dict[str, bool]) -> Iterator[str]:
    """The paths of an answer. What has no documented parts is not looked into."""
    if path and not path.endswith(("[]", "{}")):
        yield path
    inner = [each[len(path) :] for each in shape if each.startswith(path) and each != path]
    if isinstance(value, list) and any(each.startswith("[]") for each in inner):
        for item in value:
            yield from walked(item, f"{path}[]", shape)
    elif isinstance(value, dict) and any(each.startswith("{}") for each in inner):
        for item in value.values():
            yield from walked(item, f"{path}{{}}", shape)
    elif isinstance(value, dict) and any(each.startswith(".") or not path for each in inner):
        for key, item in value.items():
            yield from walked(item, f"{path}.{key}".removeprefix("."), shape)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a with EMA, b, c; mix of b and c; two LoRAs, and a file that is no checkpoint."""
    made = tmp_path_factory.mktemp("json")
    for seed, name in enumerate("abc"):
        write_checkpoint(made / f"{name}.safetensors", "sd1", size="tiny", seed=seed, ema=name == "a")
    b, c = made / "b.safetensors", made / "c.safetensors"
    sdsurgery.merge("weighted-sum", [b, c], alpha=0.3, blocks={"IN04": 0.5}, out=made / "mix.safetensors")
    for seed, name in enumerate(("x", "y")):
        shape = shapes_of(b)[LAYER]
        parts = lora("lora_te_text_model_encoder_layers_0_mlp_fc1", shape, seed=seed)
        written(made / f"{name}.safetensors", parts, {"ss_base_model_version": "sd_v1"})
    sdsurgery.convert(b, out=made / "b.ckpt")
    (made / "bad.safetensors").write_bytes(b"{}")
    (made / "evil.ckpt").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    return made


MERGE = "merge b.safetensors c.safetensors --method weighted-sum"
COMMANDS: dict[str, Sequence[str]] = {
    "report": (
        f"{MERGE} -o o1.safetensors --hash full", f"{MERGE} --dry-run",
        f"{MERGE} --lora x.safetensors -o o2.safetensors",
        "cast b.safetensors --dtype fp8_e4m3 -o o3.safetensors", "ema a.safetensors -o o4.safetensors",
        "prune a.safetensors --preset no-ema -o o5.safetensors", "fix-clip b.safetensors -o o6.safetensors",
        "extract b.safetensors --component vae -o o7.safetensors", "convert b.safetensors -o o8.ckpt",
        "replace b.safetensors --component vae --with c.safetensors -o o9.safetensors",
        "bake b.safetensors --lora x.safetensors --check -o o10.safetensors",
        "merge-lora x.safetensors y.safetensors -o o11.safetensors",
        "resize-lora x.safetensors --rank 2 -o o12.safetensors",
        "extract-lora mix.safetensors b.safetensors --rank 1 -o o13.safetensors", "demo",
    ),
    "Several outputs": (f"{MERGE} --alpha 0.1,0.2 -o s{{alpha}}.safetensors",),
    "Several files": ("cast b.safetensors bad.safetensors --dtype fp16 --out-dir d1",
                      "convert b.safetensors bad.safetensors --out-dir d2"),
    "inspect": ("inspect a.safetensors", "inspect --hashes --keys out.2 mix.safetensors",
                "inspect x.safetensors --base b.safetensors"),
    "inspect of several files": ("inspect a.safetensors bad.safetensors",),
    "compare": ("compare b.safetensors c.safetensors", "compare b.safetensors a.safetensors",
                "compare x.safetensors y.safetensors"),
    "unmix": ("unmix mix.safetensors b.safetensors c.safetensors --prove",),
    "map": ("map b.safetensors c.safetensors mix.safetensors",),
    "verify": ("verify a.safetensors", "verify b.ckpt --expect 12345678"),
    "verify of several files": ("verify a.safetensors bad.safetensors",),
    "scan": ("scan b.ckpt", "scan evil.ckpt", "scan x.safetensors"),
    "methods": ("methods",),
    "layouts": ("layouts",),
    "layouts --keys": ("layouts --keys sd1",),
    "layouts --blocks": ("layouts --blocks sd1",),
    "layouts --presets": ("layouts --presets",),
    "info": ("info",),
    "A failure": ("verify none.safetensors", "cast bad.safetensors -o e.safetensors", "merge --method slurp b c -o e"),
}  # fmt: skip


@pytest.fixture
def answer(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[str], Any]:
    def ask(command: str) -> Any:
        monkeypatch.chdir(folder)
        run([*command.split(), "--json"])
        return json.loads(capsys.readouterr().out)

    return ask


@pytest.mark.parametrize("title", COMMANDS)
def test_every_answer_has_the_documented_shape(title: str, answer: Callable[[str], Any]) -> None:
    shape, seen = known(title), set()
    for command in COMMANDS[title]:
        value = answer(command)
        assert next(iter(value)) == "schema" and value.pop("schema") == SCHEMA
        paths = set(walked(value, "", shape))
        assert paths <= set(shape), (command, sorted(paths - set(shape)))
        always = {path for path, each in shape.items() if each and not re.search(r"\[\]|\{\}", path)}
        assert always <= paths, (command, sorted(always - paths))
        seen |= paths
    own = {path for path in SECTIONS[title] if not path.endswith(("[]", "{}")) and "warnings[]" not in path}
    assert own - seen == set(), "documented, but in none of the answers"


def test_the_page_is_about_every_command() -> None:
    asked = {command.split()[0] for lines in COMMANDS.values() for command in lines}
    assert set(commands.NAMES) - asked == {"completion"}  # which needs shtab
    assert set(SECTIONS) - set(COMMANDS) == {"error", "likeness", "changes", "effects", "completion"}
    assert f"`schema` is {SCHEMA}" in PAGE.read_text(encoding="utf-8")
