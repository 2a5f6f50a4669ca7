"""The pages against the code: commands and options that exist, a map without gaps, tables that are up to date.

``python tests/test_docs.py`` writes docs/methods.md again, from what ``python -m sdsurgery methods --json`` says, and
docs/errors.md, docs/warnings.md and the table of settings in docs/verbs/README.md from the code.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sdsurgery import commands
from sdsurgery.cli import command_parser, parse
from sdsurgery.methods import registered as methods

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("bench/*.md")])
MAPPED = ("csrc", "python", "kernels", "examples")
SUFFIXES = {".py", ".pyi", ".cc", ".cu", ".h"}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def parsers() -> list[Any]:
    return [command_parser(name) for name in commands.NAMES]


# ---- docs/methods.md


def registered() -> list[dict[str, Any]]:
    """The methods as a process of its own sees them: other tests register methods in this one."""
    command = [sys.executable, "-m", "sdsurgery", "methods", "--json"]
    answer = subprocess.run(command, check=True, capture_output=True, encoding="utf-8")
    rows: list[dict[str, Any]] = json.loads(answer.stdout)["methods"]
    return rows


BODIES = "\n## What a body may use\n"  # from here on the page is written by hand


def methods_page() -> str:
    lines = [
        "# Methods",
        "",
        "The table is written by `python tests/test_docs.py` from the registry (`python -m sdsurgery methods`); the",
        "formulas are the bodies of the functions in `python/sdsurgery/methods/`. Their evaluation:",
        "[numerics.md](numerics.md). The base is the input that others were trained from.",
        "",
        "| method | inputs | base | formula | parameters |",
        "|---|---|---|---|---|",
    ]
    for row in registered():
        inputs = " ".join(row["inputs"]) + (" …" if row["any_number_of_inputs"] else "")
        parameters = []
        for name, param in row["parameters"].items():
            parameters.append(f"`--{name.replace('_', '-')}` {param['text']}")
        cells = (f"`{row['name']}`", inputs, row["base"] or "", row["formula"], "; ".join(parameters) or "none")
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n" + BODIES + read("docs/methods.md").partition(BODIES)[2]


def test_the_page_lists_every_function_of_a_body_with_an_example() -> None:
    from sdsurgery import functions

    by_hand = read("docs/methods.md").partition(BODIES)[2]
    names = [name for name, item in vars(functions).items() if name[0] != "_" and hasattr(item, "__code__")]
    assert [name for name in names if f"{name}(" not in by_hand] == []


EXAMPLE_NAMES = {
    "alpha": 0.3, "p": 0.4, "weight": 0.2, "seed": 1, "fused": False,
}  # fmt: skip


def examples() -> list[str]:
    """The second cells of the tables of what a body may use."""
    cells = [
        line.split(" | ") for line in read("docs/methods.md").partition(BODIES)[2].splitlines() if line[:3] == "| `"
    ]
    return [row[1].strip("` ") for row in cells]


@pytest.mark.parametrize("example", examples())
def test_every_example_of_a_body_gives_the_same_traced_and_in_numpy(example: str) -> None:
    import math

    import numpy as np
    from sdsurgery import functions
    from sdsurgery.definitions.filters import gaussian
    from sdsurgery.definitions.programs import evaluate_tensor
    from sdsurgery.dtypes import F32
    from sdsurgery.methods.registry import Method
    from sdsurgery.program.tracing import trace

    def body(a: object, b: object, c: object) -> object:
        names = {**vars(functions), "math": math, "a": a, "b": b, "c": c, "x": a, "smoothed": gaussian, **EXAMPLE_NAMES}
        names |= {"cosine": functions.dot(a, b) / (functions.norm(a) * functions.norm(b)), "t": functions.norm(a)}
        return functions.rounded(eval(example, names), a) + a * 0.5

    arrays = np.random.default_rng(2).normal(size=(3, 6, 8)).astype(np.float32)
    method = Method("example", ("A", "B", "C"), {}, body)
    stored, *_ = evaluate_tensor(trace(method, 3, {}), [(each, F32) for each in arrays], F32, "default", False)
    got = stored.reshape(arrays[0].shape)
    with np.errstate(all="ignore"):
        wanted = np.asarray(body(*arrays))
    assert np.array_equal(got, wanted.astype(np.float32), equal_nan=True), example


def test_the_methods_page_says_what_the_registry_says() -> None:
    assert read("docs/methods.md") == methods_page(), "write it again with: python tests/test_docs.py"


# ---- docs/compat.md


COMPAT = """# Other tools' numbers

The tables are written by `python tests/test_docs.py` from `python/sdsurgery/methods/compat.py`.

`merge --method weighted-sum --compat supermerger` computes what that tool computes of float32 tensors: its variant of
the method, its order of operations, and the roundings of torch on x86-64 with AVX2 (`torch.lerp`, `addcmul` and
`add(alpha=)` round once there; in its portable kernels they round twice, and such a tool gives other last bits). From
Python the method is called `"supermerger:weighted-sum"`. A method that is not in a tool's table is refused.

Merge blocks are those of the family ([semantics.md](semantics.md)), which are supermerger's and those of the extensions
before it; where a tool counts a tensor to another block, `--compat` does so too. A tensor that the tool leaves A's
stays A's, and the report counts it as kept. What no table has: random masks (no tool's stream is reproduced), and
rounding of intermediate results to fp16 or bf16, so the tables hold for float32 files.

"Rounded once" is a method's lerp or addcmul. Where it says no, the tool has none, or (nuslerp, model-stock by rows and
consecutive, multiply-diff, comparative-interp) its AVX2 kernels of sums, sines and powers round otherwise than its
portable ones: both lie within the tolerance of ours, and neither is reproduced.
similarity-add-diff of chattiori is to the bit but for
the mean and the deviation of the whole tensor, which float32 sums there leave to the order of the kernel.
"""


WHOLE = """Whole models, float32, AVX2: 21 tensors of a Llama through mergekit 0.1.5 gave the bits of ours for
linear, ties, task_arithmetic, breadcrumbs, nearswap and arcee_fusion; slerp, model_stock, karcher, multislerp and sce
were within 4e-7 of the largest value. Stable Diffusion 1.5 with reduced shapes (1143 tensors) through sd-mecha 1.1.8
gave the bits of ours for weighted_sum, n_average and tensor_sum; slerp, add_cosine_a and crossover were within 6e-7.
With another weight for every block, weighted_sum of Stable Diffusion 1.5 and of SDXL base (2515 tensors) gave the bits
too. sd-mecha merges the sampler's buffers (`betas` and so on) too, which are A's here.
"""


def compat_page() -> str:
    from sdsurgery.methods.tools import TOOLS

    lines = [COMPAT, WHOLE]
    for name, tool in TOOLS.items():
        lines += [
            f"## {name}",
            "",
            tool.keys,
            "",
            *([f"Not offered: {tool.lacks}", ""] if tool.lacks else []),
            "| method | computed as | rounded once | equal to the tool within | keys |",
            "|---|---|---|---|---|",
        ]
        for method, form in tool.forms.items():
            keys = f"A's: those with {', '.join(form.keeps)}" if form.keeps else ""
            once = "yes" if form.fused else "no"
            lines.append(f"| `{method}` | `{form.name}` | {once} | {form.equal} | {keys} |")
        lines.append("")
    return "\n".join(lines)


def test_the_compat_page_says_what_the_table_says() -> None:
    assert read("docs/compat.md") == compat_page(), "write it again with: python tests/test_docs.py"


# ---- docs/errors.md


ERRORS = """# Errors

Written by `python tests/test_docs.py` from `python/sdsurgery/errors.py`.

Every error has a `code`, which is stable; the wording of messages is not. `tensor` and `path` are the tensor's name
and the file where they are known, else `None`; `details` is a dictionary of further facts, such as `found` and
`expected` of a wrong shape. `to_dict()` gives all of it in JSON types.

```python
import sdsurgery

try:
    sdsurgery.cast("a.safetensors", out="b.safetensors", dtype="fp16")
except sdsurgery.SdsError as error:
    if error.code != "exists":
        raise
```

Messages spell options as Python does (`overwrite=True`); the command line prints them as its own (`--force`). With
`--json` a command that fails prints `{"schema": 1, "error": …}` with what `to_dict()` gives ([json.md](json.md)). Where
there is a result too (`verify`, `scan`, `convert --out-dir`), the result has the `error` in it. stderr has one line
either way.

| class | exit code | its own code | |
|---|---|---|---|
CLASSES

All but `Interrupted` are `SdsError`s. `Interrupted` is a `KeyboardInterrupt`: `except Exception` doesn't swallow
Ctrl-C.

| code | meaning |
|---|---|
CODES
"""


def errors_page() -> str:
    from sdsurgery import errors

    own = [item for item in vars(errors).values() if isinstance(item, type) and issubclass(item, errors.Failure)]
    classes = []
    for item in own:
        if item not in (errors.Failure, errors.SdsError):
            text = " ".join((item.__doc__ or "").partition("\n\n")[0].split())
            classes.append(f"| `{item.__name__}` | {item.exit_code} | `{item.code}` | {text} |")
    codes = [f"| `{code}` | {meaning} |" for code, meaning in errors.CODES.items()]
    return ERRORS.replace("CLASSES", "\n".join(classes)).replace("CODES", "\n".join(codes))


def test_the_errors_page_says_what_the_errors_say() -> None:
    assert read("docs/errors.md") == errors_page(), "write it again with: python tests/test_docs.py"


WARNINGS = """# Warnings

Written by `python tests/test_docs.py` from `python/sdsurgery/report/warnings.py`.

A warning is a line that begins with `warning: `, yellow on a terminal (unless `NO_COLOR` is set). With `--json` a
report has them as `warnings`, each `{"code": …, "text": …}`; from Python `report.warnings` are texts with a `code`.
Codes are stable, the wording is not. A run with warnings ends with exit code 0.

| code | given when |
|---|---|
"""


def warnings_page() -> str:
    from sdsurgery.report.warnings import KINDS

    return WARNINGS + "".join(f"| `{code}` | {kind.when} |\n" for code, kind in KINDS.items())


def test_the_warnings_page_says_what_the_table_says() -> None:
    assert read("docs/warnings.md") == warnings_page(), "write it again with: python tests/test_docs.py"


def test_every_warning_is_given_somewhere() -> None:
    from sdsurgery.report.warnings import KINDS

    files = (
        path for row in ("surgery", "formats", "commands") for path in (ROOT / "python/sdsurgery" / row).glob("*.py")
    )
    sources = "".join(path.read_text(encoding="utf-8") for path in files)
    assert [code for code in KINDS if f'"{code}"' not in sources] == []


def test_every_code_of_an_error_is_documented_and_every_documented_code_is_used() -> None:
    from sdsurgery.errors import CODES

    # csrc/error.h
    used = {"not_found", "permission", "not_regular", "io", "truncated", "changed", "no_space", "too_many_files"}
    for code in used:
        assert re.search(rf"^    {code},", read("csrc/error.h"), re.MULTILINE), code
    for path in (ROOT / "python").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "code":
                used |= {item.value for item in ast.walk(node.value) if isinstance(item, ast.Constant)}
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
                names = {getattr(target, "attr", getattr(target, "id", "")) for target in node.targets}
                used |= {node.value.value} if "code" in names else set()
    used = {code for code in used if isinstance(code, str)}
    assert used == set(CODES)


# ---- README


def test_the_two_commands_of_a_fresh_machine_are_in_the_readme_and_ci_runs_them() -> None:
    for command in ("pip install . && python -m sdsurgery demo", 'pip install ".[test]" && python -m pytest'):
        assert command in [line for block in blocks(read("README.md"), "sh") for line in block.splitlines()]
    # CI installs once for both: the package with what the tests need.
    for step in (r'python -m pip install "\.\[test\]"', "python -m sdsurgery demo", "python -m pytest"):
        assert re.search(r"^(?!echo)[^#]*" + step, read(".ci/run"), re.MULTILINE), step


def test_every_command_in_the_pages_is_one_that_the_command_line_understands() -> None:
    seen = set()
    for page in PAGES:
        for block in blocks(page.read_text(encoding="utf-8"), "sh"):
            for line in re.findall(r"python -m sdsurgery (.+)", block.replace("\\\n", " ")):
                words = shlex.split(line, comments=True)
                seen.add(parse(words)[1].verb)
    assert {"merge", "cast", "inspect", "verify", "demo"} <= seen


def test_every_option_that_the_pages_name_exists_with_its_words() -> None:
    known = {option for parser in parsers() for option in parser.option_strings()} | {"--help", "--version"}
    known |= {f"--{name}" for method in methods().values() for name in method.params}
    verbs = [str(page.relative_to(ROOT)) for page in (ROOT / "docs" / "verbs").glob("*.md")]
    for name in ("README.md", "docs/semantics.md", "docs/numerics.md", *verbs):
        text = re.sub(r"^```.*?^```", "", read(name), flags=re.MULTILINE | re.DOTALL)
        named = {word for code in re.findall(r"`(--[^`]+)`", text) for word in re.findall(r"--[a-z][a-z-]*", code)}
        assert named <= known, name


# ---- the table of settings


def settings_rows() -> str:
    """The rows of ``Settings`` for docs/verbs/README.md."""
    from sdsurgery.settings import DEFAULTS, OPTIONS

    lines = []
    for name, option in OPTIONS.items():
        flag = option.flag and f"`{option.flag}{' ' if option.metavar else ''}{option.metavar}`"
        flag += option.off and f", `{option.off}`"
        values = ", ".join(f"`{word}`" for word in option.words)
        values += option.off and f"; `{option.off}`: {option.off_help}"
        lines.append(f"| {flag} | `{name}={DEFAULTS[name]!r}` | {option.help}{': ' if values else ''}{values} |")
    return "\n".join(lines) + "\n"


def with_settings(page: str) -> str:
    start, end = "| option | in Python, with its default | |\n|---|---|---|\n", "\n<!-- end of the settings -->"
    assert start in page and end in page
    return page.partition(start)[0] + start + settings_rows() + end + page.partition(end)[2]


def test_the_table_of_settings_is_that_of_the_code() -> None:
    page = read("docs/verbs/README.md")
    assert page == with_settings(page), "write it again with: python tests/test_docs.py"


def test_every_command_has_a_page_of_its_own() -> None:
    from sdsurgery.commands import NAMES

    elsewhere = {"methods": "docs/methods.md", **dict.fromkeys(("demo", "completion"), "docs/verbs/info.md")}
    assert [name for name in NAMES if not (ROOT / elsewhere.get(name, f"docs/verbs/{name}.md")).exists()] == []
    index = read("docs/verbs/README.md")
    assert [
        name for name in NAMES if f"({Path(elsewhere.get(name, name)).stem}.md)" not in index.replace("../", "")
    ] == []


def test_every_page_of_a_verb_has_an_example_of_it() -> None:
    for page in (ROOT / "docs" / "verbs").glob("*.md"):
        if page.stem != "README":
            assert f"python -m sdsurgery {page.stem} " in page.read_text(encoding="utf-8").replace("\n", " "), page


def test_the_readme_names_every_verb() -> None:
    text = read("README.md")
    assert [verb for verb in commands.NAMES if f"`{verb}`" not in text] == []


def test_the_exit_codes_in_the_pages_are_those_of_the_errors() -> None:
    from sdsurgery import errors

    codes = {0} | {
        item.exit_code for item in vars(errors).values() if isinstance(item, type) and issubclass(item, errors.SdsError)
    }
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", read("docs/verbs/README.md"), re.MULTILINE)} >= codes


def test_python_in_the_pages_is_python_and_calls_what_the_package_has() -> None:
    import sdsurgery

    snippets = [snippet for page in PAGES for snippet in blocks(page.read_text(encoding="utf-8"), "python")]
    assert snippets
    for snippet in snippets:
        for node in ast.walk(ast.parse(snippet)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "sdsurgery":
                assert node.attr in sdsurgery.__all__


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_the_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


# ---- the map


def map_entries() -> list[str]:
    """Paths and patterns of the map's first column; a bare name lies in the folder of the one before it."""
    section = read("CONTRIBUTING.md").partition("## The map")[2].partition("\n## ")[0]
    entries = []
    for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE):
        folder = ""
        for name in re.findall(r"`([^`]+)`", row):
            path = name if "/" in name or not folder else f"{folder}/{name}"
            folder = path.rpartition("/")[0]
            entries.append(path)
    return entries


@pytest.mark.parametrize("entry", map_entries())
def test_what_the_map_names_is_there(entry: str) -> None:
    assert list(ROOT.glob(entry.rstrip("/")))


def test_every_source_file_is_in_the_map() -> None:
    covered: set[Path] = set()
    for entry in map_entries():
        for path in ROOT.glob(entry.rstrip("/")):
            covered.update(path.rglob("*") if path.is_dir() else (path,))
    sources = [path for top in MAPPED for path in (ROOT / top).rglob("*") if path.suffix in SUFFIXES]
    assert sources
    assert [str(path.relative_to(ROOT)) for path in sources if path not in covered] == []


# ---- promises and their tests


def promise_rows() -> list[tuple[str, str, str]]:
    """Promise (empty where it goes on), file and tests of each row of CONTRIBUTING's table."""
    section = read("CONTRIBUTING.md").partition("## Promises and their tests")[2].partition("\n## ")[0]
    return re.findall(r"^\| *(.*?) *\| `(tests/[^`]+)` \| (.*) \|$", section, re.MULTILINE)


def test_every_promise_of_the_readme_is_in_the_table() -> None:
    section = read("README.md").partition("## What it promises\n")[2].partition("\n## ")[0]
    promises = re.findall(r"^\d+\. \*\*(.*?)\.\*\*", section, re.MULTILINE)
    listed = [promise for promise, _, _ in promise_rows() if promise]
    assert listed == [f"{number} {promise}" for number, promise in enumerate(promises, 1)]
    assert len(listed) == 10


@pytest.mark.parametrize(("file", "tests"), [row[1:] for row in promise_rows()], ids=lambda text: text[:40])
def test_the_tests_of_a_promise_exist(file: str, tests: str) -> None:
    named = re.findall(r"`(test_[a-z0-9_]+)`", tests)
    defined = {node.name for node in ast.walk(ast.parse(read(file))) if isinstance(node, ast.FunctionDef)}
    assert named
    assert set(named) <= defined


# ---- examples


@pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("*.py")), ids=lambda script: script.name)
def test_examples_run(script: Path, tmp_path: Path) -> None:
    ran = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip()


def test_workflows_name_the_commits_of_the_actions_that_they_use() -> None:
    """As SECURITY.md says: a tag can be moved."""
    lines = [line for path in ROOT.glob(".github/workflows/*.yml") for line in path.read_text().splitlines()]
    used = [line for line in lines if "uses:" in line]
    assert used or not (ROOT / ".github").exists()
    assert [line for line in used if not re.search(r"@[0-9a-f]{40} +# v\d", line)] == []


if __name__ == "__main__":
    (ROOT / "docs" / "methods.md").write_text(methods_page(), encoding="utf-8")
    (ROOT / "docs" / "errors.md").write_text(errors_page(), encoding="utf-8")
    (ROOT / "docs" / "warnings.md").write_text(warnings_page(), encoding="utf-8")
    (ROOT / "docs" / "compat.md").write_text(compat_page(), encoding="utf-8")
    verbs = ROOT / "docs" / "verbs" / "README.md"
    verbs.write_text(with_settings(verbs.read_text(encoding="utf-8")), encoding="utf-8")
