"""The keywords of the verbs: typed for mypy, checked at run time, and one table behind all of them."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import sdsurgery
from cli_support import done, floats, plain, read_raw, refused, sds
from sdsurgery import commands, settings
from sdsurgery.api import analysis
from sdsurgery.cli import command_parser
from sdsurgery.commands import spelling
from sdsurgery.methods import Param, PerInput, method


def _with(setting: str) -> list[str]:
    """The functions that take a setting, but merge, which takes a method's parameters besides."""
    names = [*(name.replace("-", "_") for name in commands.NAMES), "convert_all"]
    functions = {name: getattr(sdsurgery, name, None) for name in names if name != "merge"}
    return [
        name for name, function in functions.items()
        if inspect.isfunction(function) and setting in inspect.signature(function).parameters
    ]  # fmt: skip


VERBS, WRITING = _with("allow_suspicious"), _with("dry_run")
WRONG = """
import sdsurgery as sds

sds.cast("a", dtpye="fp16")
sds.cast("a", dtype="fp61")
sds.cast("a", force=True)
sds.verify("a", dtype="fp16")
sds.merge("weighted-sum", ["a", "b"], dtpye="fp16")
sds.merge("weighted-sum", ["a", "b"], alpha="much")
"""
RIGHT = """
import sdsurgery as sds

sds.cast("a", dtype="fp16", out="b", overwrite=True, threads=2)
sds.merge("weighted-sum", ["a", "b"], alpha=0.3, weights=[1, 2], dtype="bf16", progress=lambda done, total: None)
sds.compare("a", "b", fix_names=True).total.cosine
sds.verify("a", hash=False).ok
"""


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return plain(tmp_path / "a.safetensors", 1.0, 2.0), plain(tmp_path / "b.safetensors", 3.0, 4.0)


def test_mypy_sees_wrong_keywords_and_values(tmp_path: Path) -> None:
    for name, text in (("wrong", WRONG), ("right", RIGHT)):
        (tmp_path / f"{name}.py").write_text(text)
    skipped = "".join(
        f"[mypy-{name}.*]\nfollow_imports = skip\n" for name in ("torch", "triton", "matplotlib", "numpy")
    )
    (tmp_path / "mypy.ini").write_text(f"[mypy]\n{skipped}")  # large, and no keyword's type is theirs
    folder = Path(sdsurgery.__file__).parent.parent
    env = {**os.environ, **({} if folder.name == "site-packages" else {"MYPYPATH": str(folder)})}
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports", "silent", "--no-error-summary"]
    command += ["--cache-dir", str(tmp_path / "cache"), "wrong.py", "right.py"]
    ran = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    lines = [line for line in ran.stdout.splitlines() if ": error:" in line]
    assert all(line.startswith("wrong.py") for line in lines), ran.stdout
    numbers = sorted({int(line.split(":")[1]) for line in lines})
    first = WRONG.splitlines().index('sds.cast("a", dtpye="fp16")') + 1
    assert numbers == list(range(first, first + 6)), ran.stdout
    assert 'Unexpected keyword argument "dtpye" for "cast"' in ran.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_a_mistyped_keyword_is_a_type_error_with_close_matches(verb: str, tmp_path: Path) -> None:
    function = getattr(sdsurgery, verb)
    given = {"replace": ("a", {"vae": "b"}), "extract": ("a", "vae"), "compare": ("a", "b"), "convert_all": (["a"],)}
    given |= {"bake": ("a", ["b"]), "extract_lora": ("a", "b"), "merge_lora": (["a"],)}
    own = {"out_dir": tmp_path} if verb == "convert_all" else {}
    with pytest.raises(
        TypeError, match=rf"^{verb}\(\) got an unexpected keyword argument 'allow_inflat'; did you mean "
    ):
        function(*given.get(verb, ("a",)), allow_inflat=True, **own)


def test_cast_says_did_you_mean_dtype(pair: tuple[Path, Path]) -> None:
    with pytest.raises(TypeError, match="did you mean 'dtype'"):
        sdsurgery.cast(pair[0], dtpye="fp16")  # type: ignore[call-arg]
    with pytest.raises(sdsurgery.UsageError, match="no parameter 'dtpye'; did you mean 'dtype'"):
        sdsurgery.merge("weighted-sum", pair, dtpye="fp16")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="'force'"):
        sdsurgery.cast(pair[0], force=True)  # type: ignore[call-arg]


def test_the_types_of_the_keywords_are_of_the_fields_of_settings() -> None:
    assert set(settings.Keywords.__annotations__) == set(settings.OPTIONS) == set(settings.DEFAULTS)
    for part in (settings.Reading, analysis.Examining, analysis.Showing, analysis.Comparing):
        assert set(part.__annotations__) <= set(settings.OPTIONS)
    for name, option in settings.OPTIONS.items():
        words = getattr(getattr(settings, name.title().replace("_", ""), None), "__args__", None)
        if option.words and name not in ("dtype", "hash"):
            assert words == option.words, name
    assert set(settings.Dtype.__args__[0].__args__) == set(settings.OPTIONS["dtype"].words)
    assert settings.Hash.__args__[1].__args__ == settings.OPTIONS["hash"].words


def test_merge_spells_out_every_setting_with_its_default() -> None:
    found = inspect.signature(sdsurgery.merge).parameters
    assert {name: found[name].default for name in settings.DEFAULTS} == dict(settings.DEFAULTS)


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_the_settings_one_by_one(verb: str) -> None:
    found = inspect.signature(getattr(sdsurgery, verb)).parameters
    assert all(item.kind is not item.VAR_KEYWORD for item in found.values())
    assert "allow_suspicious" in found
    assert {name: item.default for name, item in found.items() if name in settings.DEFAULTS}.items() <= (
        settings.DEFAULTS.items()
    )


@pytest.mark.parametrize("name", settings.DEFAULTS)
def test_merge_passes_every_setting_on(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    default, words = settings.DEFAULTS[name], settings.OPTIONS[name].words if name in settings.OPTIONS else ()
    other = words[-1] if words else not default if isinstance(default, bool) else print if default is None else 1
    other = "text" if default == "" else other
    other = {"backend": "cpu", "metadata": (("key", "value"),), "html": str(tmp_path / "r.html")}.get(name, other)
    got: list[object] = []
    report = sdsurgery.Report("merge", None, "sd1", [], {}, {}, {}, {}, {}, 0, 0, 0, {})

    def merge(*args: object, **kwargs: object) -> list[sdsurgery.Report]:
        got.extend((*args, *kwargs.values()))
        return [report]

    monkeypatch.setattr("sdsurgery.surgery.merge.merge", merge)
    sdsurgery.merge("weighted-sum", ["a", "b"], out="c", **{name: other})
    (found,) = [item for item in got if isinstance(item, settings.Settings)]
    assert getattr(found, name) == other != default


def test_messages_can_spell_every_option_of_the_writing_verbs() -> None:
    own = set()
    for verb in ("merge", *WRITING):
        found = inspect.signature(getattr(sdsurgery, verb)).parameters.values()
        own |= {item.name for item in found if item.default is not item.empty} - set(settings.OPTIONS)
    assert own - {"to", "started"} <= spelling._OWN


def test_every_setting_with_a_flag_is_an_option_of_every_writing_command() -> None:
    flags = {flag for option in settings.OPTIONS.values() for flag in (option.flag, option.off) if flag}
    assert len(WRITING) > 6
    for name in ("merge", *(verb.replace("_", "-") for verb in WRITING if verb != "convert_all")):
        assert flags <= command_parser(name).option_strings(), name


# ---- flags of a method


def test_a_method_s_flags_do_not_change_those_of_another(registry: None) -> None:
    @method("listed-alpha", inputs="A B", alpha=PerInput("one for each", instead_of="beta"), beta=Param(0.5, "β"))
    def listed_alpha(a: float, b: float, alpha: object, beta: float) -> float:
        """A + β·B"""
        return a + beta * b

    argv = ["--method", "weighted-sum", "a", "b", "--alpha", "0.1:0.2:0.1"]  # one number, or a range for a sweep
    assert command_parser("merge", argv).parse(argv).param_alpha == [0.1, 0.2]
    argv = ["--method", "listed-alpha", "a", "b", "--alpha", "0.1,0.2,0.3"]  # one for each input
    assert command_parser("merge", argv).parse(argv).param_alpha == [0.1, 0.2, 0.3]
    with pytest.raises(sdsurgery.UsageError, match="list of numbers"):
        command_parser("merge", argv).parse([*argv[:-1], "0.1:0.2:0.1"])


def test_another_method_s_flag_is_refused_with_the_place_that_lists_the_right_ones(pair: tuple[Path, Path]) -> None:
    ended = sds("merge", "--method", "slerp", *pair, "--weights", "1,1", "--dry-run")
    refused(ended, 2, "no option '--weights'", "see sdsurgery merge --method slerp --help")
    text = done(sds("merge", "--method", "slerp", "--help")).out
    assert "--alpha NUMBER" in text and "--weights" not in text


@pytest.mark.parametrize("words", ["--alpha -1e-3", "--alpha -.5", "--alpha=-1", "--alpha -1E0", "--weights -0.5,1.5"])
def test_negative_numbers_of_every_form_are_values(pair: tuple[Path, Path], tmp_path: Path, words: str) -> None:
    done(sds("merge", "--method", "weighted-sum", *pair, *words.split(), "-o", tmp_path / "o.safetensors"))
    first, second = floats(read_raw(pair[0])[0]["w"])[0], floats(read_raw(pair[1])[0]["w"])[0]
    text = words.replace("=", " ").split()[1]
    alpha = 1.5 if "," in text else float(text)
    assert floats(read_raw(tmp_path / "o.safetensors")[0]["w"])[0] == pytest.approx(
        (1 - alpha) * first + alpha * second
    )
