"""``sdsurgery merge``"""

from __future__ import annotations

import argparse
import re
from collections.abc import Container, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ..errors import UsageError, printable
from .bake import adapters, given
from .common import Arguments, group, numbers, one_of, words, writing, written

if TYPE_CHECKING:
    from ..methods.registry import Method, Parameter
    from ..recipe import Recipe

HELP = "merge checkpoints into one"


EXAMPLES = (
    "sdsurgery merge A.safetensors B.safetensors --method weighted-sum --alpha 0.3 -o mix.safetensors",
    "sdsurgery merge A.safetensors B.safetensors C.safetensors --method add-diff --alpha 1 -o OUT.safetensors",
    "sdsurgery merge A.safetensors B.safetensors --method weighted-sum --blocks GRAD_V,BASE=0.5 "
    "--vae VAE.safetensors --dtype fp16 -o OUT.safetensors",
)


def arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    first = _deciding(argv)
    try:
        _arguments(parser, argv, first)
    except argparse.ArgumentError as error:  # only a method of somebody's own can have such a parameter
        whose = "a method" if first.method is None else printable(first.method)
        text = f"{whose} has a parameter that is called like the option {error.argument_name}; give it another name"
        raise UsageError(text, code="conflict") from None


def _arguments(parser: argparse.ArgumentParser, argv: Sequence[str], first: argparse.Namespace) -> None:
    from ..methods.tools import TOOLS

    recipe = _loaded(first.recipe)
    files = "FILE FILE [FILE …] --method METHOD" if recipe is None else "--recipe FILE"
    parser.usage = f"sdsurgery merge {files} [options] -o OUT"
    what = group(parser, "what is merged")
    what.add_argument("inputs", nargs="*", metavar="FILE",
                      help="A B [C …], in the method's order")  # fmt: skip
    method = what.add_mutually_exclusive_group()
    method.add_argument("--method", help="see `sdsurgery methods`")
    method.add_argument("--formula", metavar="TEXT", help="a method of your own, such as 'A + k*(B - C)'")
    what.add_argument("--recipe", metavar="FILE", help="merges of merges as JSON, instead of --method and files")
    what.add_argument("--variant", metavar="WORD",
                      help="the variant, for a method that has several (`sdsurgery methods`)")  # fmt: skip
    what.add_argument("--compat", metavar="TOOL", type=one_of("--compat", TOOLS),
                      help=f"the method as this tool computes it: {', '.join(TOOLS)}")  # fmt: skip
    what.add_argument("--method-file", action="append", metavar="FILE",
                      help="a Python file with methods of your own; may be repeated")  # fmt: skip
    for file in _values_in(argv, "--method-file"):
        from ..methods.registry import load_methods

        load_methods(file)
    what.add_argument("--use-ema", action="extend", type=words, default=[], metavar="A,B",
                      help="merge the EMA weights of these inputs")  # fmt: skip
    what.add_argument("--add-missing", action="store_true", help="add tensors that only B (or C) has")
    what.add_argument("--map", action="append", default=[], metavar="OLD=NEW", help="read names of B, C, … that begin "
                      "with OLD as names that begin with NEW, as 'model.diffusion_model.=control_model.'")  # fmt: skip
    if recipe is None:
        # A formula's numbers could be called like an option, so they have none of their own.
        _parameters(parser, _method_of(first), without=None if first.formula is None else _plain(first).params)
    else:
        _numbers_of(parser, recipe)
    _ratios(group(parser, "ratios"))
    parts = group(parser, "adapters and VAE")
    adapters(parts)
    parts.add_argument("--vae", metavar="FILE", help="bake this file's VAE in, instead of merging the inputs'")
    parser.set_defaults(tree=recipe)
    writing(parser)


class _OneOfTwo(argparse.BooleanOptionalAction):
    """``--name`` or ``--no-name``, and not both."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        before = getattr(namespace, self.dest, None)
        super().__call__(parser, namespace, values, option)
        if before not in (None, getattr(namespace, self.dest)):
            raise UsageError(f"{' and '.join(self.option_strings)} exclude each other", code="conflict")


def _ratios(into: Arguments) -> None:
    from ..methods.sums import CURVES

    add = into.add_argument
    add("--blocks", action="append", default=[], metavar="[RATIO:]WEIGHTS", help="ratios by merge block: "
        "IN04=0.3,OUT05-OUT08=0.8,BASE=0.5, a preset (`sdsurgery layouts --presets`), or a list of "
        "numbers")  # fmt: skip
    add("--rules", action="append", default=[], metavar="[RATIO:]FILE", help="ratios by regular expression over names: "
        "lines REGEX = NUMBER, the last that matches wins")  # fmt: skip
    add("--set", action="append", type=_assigned, default=[], dest="numbers", metavar="NAME=NUMBER",
        help="a number of the method or formula")  # fmt: skip
    add(
        "--curve",
        metavar="WORD",
        type=one_of("--curve", CURVES),
        help="shape alpha (smoothstep, inverse-smoothstep)",
    )
    add("--clamp", action="store_true", help="keep the result between A and B")
    add("--bounds", metavar="A,B,…", help="keep the result between these inputs; --stiffness, 0 to 1, "
        "moves the limits towards their mean")  # fmt: skip
    add("--adjust", metavar="D1,…,D8", type=numbers,
        help="eight numbers that change detail, contrast and colours of the result")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    from ..api.merging import merge, sweep
    from ..methods.parameters import Param, PerInput, Whole

    if args.tree is not None:
        return _of_recipe(args)
    if args.method is None and args.formula is None:
        raise _without_method(args.inputs)
    method = _modified(_plain(args), args.curve, _bounds(args.clamp, args.bounds), args.adjust is not None)
    params = _once(_given(args, method.params), _adjusting(args.adjust), *map(method.named, args.numbers))
    if args.formula is not None:
        for name in method.params:
            if name not in params and method.params[name].default is None:
                raise UsageError(f"the formula needs a number for {name}: --set {name}=NUMBER", code="bad_value")
    numeric = [name for name in params if isinstance(method.params[name], Param | Whole)]
    swept = [name for name in numeric if len(params[name]) > 1]
    options = {name: getattr(args, name) for name in ("add_missing", "use_ema", "blocks", "rules", "map", "vae")}
    for name, value in params.items():
        one = isinstance(value, list) and len(value) == 1 and not isinstance(method.params[name], PerInput)
        params[name] = value[0] if one else value
    loras = given(args)
    if swept or any(len(each) > 1 for each in loras):
        options |= {"parameters": params, "loras": loras}
        return written(args, lambda **settings: sweep(method.name, args.inputs, **options, **settings))
    options["loras"] = [each[0] for each in loras]
    return written(args, lambda **settings: merge(method.name, args.inputs, **options, **settings, **params))


def _without_method(inputs: Sequence[str]) -> UsageError:
    """The refusal of files without a method: what is usual for so many, with their names. InputRefused for missing
    files."""
    from ..files import require_found

    require_found(inputs)
    choices = _USUAL.get(len(inputs), _USUAL_OF_MANY if len(inputs) > 1 else _USUAL[2])
    files = " ".join(map(printable, inputs)) if len(inputs) > 1 else "A.safetensors B.safetensors"
    lines = [f"sdsurgery merge {files} --method {how} -o mix.safetensors" for how, _ in choices]
    shown = "; or ".join(f"{line}  gives {what}" for line, (_, what) in zip(lines, choices, strict=True))
    few = "merge takes two files or more, and a method" if len(inputs) < 2 else "merge needs a method"
    return UsageError(f"{few}: {shown} (`sdsurgery methods` lists all)", code="wrong_inputs")


_USUAL = {
    2: [("weighted-sum --alpha 0.3", "0.7·A + 0.3·B")],
    3: [
        ("add-diff --alpha 1", "A + (B − C)"),
        ("triple-sum --alpha 0.3 --beta 0.2", "0.5·A + 0.3·B + 0.2·C"),
    ],
}
_USUAL_OF_MANY = [
    ("mean", "the mean of all; with --method weighted-sum --weights W1,W2,… each has a weight of its own")
]
"""Methods for so many inputs, and what they give."""


def _bounds(clamp: bool, given: str | None) -> str | None:
    """The inputs between which the result stays, as modifiers name them."""
    return "A,B" if clamp and given is None else given and given.replace(" ", "").upper()


def _adjusting(given: list[float] | None) -> dict[str, list[float]]:
    """The numbers of ``--adjust`` by their names. UsageError unless they are eight."""
    if given is None:
        return {}
    from ..methods.adjust import NUMBERS

    if len(given) != len(NUMBERS):
        raise UsageError(f"--adjust takes {len(NUMBERS)} numbers, {len(given)} given", code="bad_value")
    return {name: [number] for name, number in zip(NUMBERS, given, strict=True)}


def _once(*given: Mapping[str, Any]) -> dict[str, Any]:
    """All parameters that are given, in one way or another. UsageError for one that is given twice."""
    found: dict[str, Any] = {}
    for each in given:
        for name, value in each.items():
            if name in found:
                raise UsageError(f"{name} is given twice", code="conflict")
            found[name] = value
    return found


def _plain(given: argparse.Namespace) -> Method:
    """The method or formula that is given, as a tool computes it if one is named."""
    from ..methods.registry import get
    from ..methods.tools import SEPARATOR, TOOLS
    from ..methods.written import PREFIX

    name = given.method if given.method is not None else PREFIX + given.formula
    for option in ("compat", "variant") if given.formula is not None else ():
        if getattr(given, option) is not None:
            raise UsageError(f"--{option} goes with --method, not with --formula", code="conflict")
    if given.compat not in TOOLS:
        return get(name, given.variant)
    whole = f"{name}.{given.variant}" if given.variant else name
    of_tool = whole if whole in TOOLS[given.compat].forms else get(name, given.variant).name
    return get(f"{given.compat}{SEPARATOR}{of_tool}")


def _modified(
    method: Method, curve: str | None = None, bounds: str | None = None, adjust: bool = False
) -> Method:  # fmt: skip
    """The method with the modifiers that are asked for."""
    if curve is None and bounds is None and not adjust:
        return method
    from ..methods.modifiers import modified

    return modified(method, curve, bounds, adjust)


def _assigned(text: str) -> dict[str, list[float]]:
    """An argument type: ``NAME=NUMBER``, or several numbers."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise argparse.ArgumentTypeError(f"'{printable(text)}' is not NAME=NUMBER")
    return {name.strip(): _values(value)}


def _given(args: argparse.Namespace, known: Mapping[str, object]) -> dict[str, Any]:
    """The parameters that are on the command line."""
    values = {name: getattr(args, f"param_{name}", None) for name in known}
    return {name: value for name, value in values.items() if value is not None}


def _of_recipe(args: argparse.Namespace) -> int:
    from ..api.merging import sweep
    from ..recipe import Call, compose

    recipe: Recipe = args.tree
    own = {"a method": args.method or args.formula, "files": args.inputs, "block weights": args.blocks}
    own |= {"rules": args.rules, "adapters": args.loras}
    for what in (name for name, value in own.items() if value):
        text = f"{printable(args.recipe)} has {what} of its own; leave out --recipe or what it replaces"
        raise UsageError(text, code="conflict")
    for name in (name for name in _IN_A_NAME if getattr(args, name)):
        text = f"--{name} changes a method, and {printable(args.recipe)} has methods of its own; it is part of a "
        raise UsageError(f'{text}method\'s name there, as in "{_IN_A_NAME[name]}"', code="conflict")
    if args.map:
        raise UsageError("--map goes with --method, not with --recipe", code="conflict")
    options = {"add_missing": args.add_missing, "use_ema": args.use_ema, "vae": args.vae}
    if not isinstance(recipe, Call):
        for name in (name for name, value in {**options, "set": args.numbers}.items() if value):
            text = f"{_flag(name)} goes with a recipe that merges; {printable(args.recipe)} is a single file"
            raise UsageError(text, code="conflict")
        return written(args, recipe.save)
    given = _once(_given(args, compose(recipe).numbers({})), *args.numbers)
    numbers = {name: value if len(value) > 1 else value[0] for name, value in given.items()}
    first = slice(None) if any(len(value) > 1 for value in given.values()) else 0
    return written(args, lambda **settings: sweep(recipe, parameters=numbers, **options, **settings)[first])


_IN_A_NAME = {
    "clamp": "clamp(A,B):add-diff", "bounds": "clamp(A,B):add-diff", "curve": "smoothstep:weighted-sum",
    "adjust": "adjust:add-diff", "variant": "ties.sum", "compat": "supermerger:weighted-sum",
}  # fmt: skip
"""Options that change a method, and methods with such a change."""


def _deciding(argv: Sequence[str]) -> argparse.Namespace:
    """The options that decide which others there are, each None where it isn't given."""
    names = ("recipe", "method", "formula", "variant", "compat", "bounds")
    last = {name: next(iter(_values_in(argv, _flag(name))[::-1]), None) for name in names}
    return argparse.Namespace(clamp="--clamp" in argv, **last)


def belongs(option: str, argv: Sequence[str]) -> str:
    """What an option goes with that this merge lacks, where it is a number of another method; empty for others."""
    from ..methods.adjust import NUMBERS
    from ..methods.registry import registered

    first, name = _deciding(argv), option.removeprefix("--").replace("-", "_")
    if first.recipe is not None:  # whose numbers have paths
        return 'it goes with a method like "clamp(A,B):add-diff" in the recipe' if name == "stiffness" else ""
    if name == "stiffness":
        return "it goes with --clamp or --bounds"
    if name in NUMBERS:
        return "it is a number of --method adjust; --adjust D1,…,D8 changes the result of another method"
    own = () if first.method is None and first.formula is None else _plain(first).params
    if first.formula is not None and name in own:
        return f"a number of the formula is given as --set {name}=NUMBER"
    if not any(name in (each, *method.also(each)) for method in registered().values() for each in method.params):
        return ""
    if first.formula is not None:
        return f"the formula has {' and '.join(own) or 'no number'}"
    return f"{printable(first.method)} has {' and '.join(map(_flag, own)) or 'no number'}"


def _values_in(argv: Sequence[str], option: str) -> list[str]:
    """The values of an option; an option without one is left to the parser, which says so."""
    found = []
    for word, following in pairwise([*argv, "-"]):
        if word.startswith(f"{option}="):
            found.append(word.removeprefix(f"{option}="))
        elif word == option and not following.startswith("-"):
            found.append(following)
    return found


def _loaded(path: str | None) -> Recipe | None:
    """The recipe in that file, None without one."""
    if path is None:
        return None
    from ..recipe import load

    return load(path)


def _numbers_of(parser: argparse.ArgumentParser, recipe: Recipe) -> None:
    """A flag for every number of the recipe: ``--B.alpha`` is the alpha of the root's input B."""
    from ..methods.registry import Param, Whole
    from ..recipe import Call, compose

    if not isinstance(recipe, Call):
        return
    tree = compose(recipe)
    group = parser.add_argument_group("numbers of the recipe", str(recipe).replace("%", "%%"))
    for name, param in tree.method.params.items():
        value = tree.params[name]
        if isinstance(param, Param | Whole) and value is not None:
            text = f"{param.help} (now {value:g})".replace("%", "%%")
            group.add_argument(_flag(name), dest=f"param_{name}", type=_values, metavar="NUMBER",
                               help=text)  # fmt: skip
        else:
            parser.set_defaults(**{f"param_{name}": None})


def _method_of(given: argparse.Namespace) -> Method | None:
    """The method that the command line names, with its bounds; None when it names none."""
    if given.formula is None and given.method is None:
        return None
    return _modified(_plain(given), bounds=_bounds(given.clamp, given.bounds))


def _parameters(parser: argparse.ArgumentParser, method: Method | None, without: Container[str] | None) -> None:
    """The flags of the method's parameters, ``without`` those of a formula; without a method, where to read them."""
    if method is None:
        parser.description = f"{HELP}. `sdsurgery merge --method NAME --help` shows the parameters of a method, "
        parser.description += "`sdsurgery methods` those of all."
        _parameters_of_all(parser)
        return
    from ..methods.parameters import described

    params = {name: param for name, param in method.params.items() if name not in (without or ())}
    if without is not None and not params:
        return
    parser.prog += f" --method {method.name}"  # where --help shows its flags
    group = parser.add_argument_group(f"parameters of {method.name}", method.summary.replace("%", "%%"))
    for name, param in params.items():
        flags = [_flag(each) for each in (name, *method.also(name))]
        group.add_argument(*flags, dest=f"param_{name}", help=described(param).replace("%", "%%"), **_how(param))


def _parameters_of_all(parser: argparse.ArgumentParser) -> None:
    """The flags of every method, unseen: without a method the mistake is not that they are unknown."""
    from ..methods.registry import registered

    seen: set[str] = set()
    for method in registered().values():
        for name, param in method.params.items():
            for flag in {_flag(each) for each in (name, *method.also(name))} - seen:
                seen.add(flag)
                how = {**_how(param), "dest": "_unused", "help": argparse.SUPPRESS}
                parser.add_argument(flag, **{key: value for key, value in how.items() if key != "type"})


def _values(text: str) -> list[float]:
    """An argument type: a number, or several for a sweep."""
    from ..surgery.sweep import WrongRange, values

    try:
        return values(text)
    except WrongRange as error:
        raise argparse.ArgumentTypeError(f"'{printable(text)}': {error}") from None
    except ValueError:
        percent = re.fullmatch(r"\s*(\d+[.,]?\d*)\s*%\s*", text)
        if percent:
            meant = float(percent[1].replace(",", ".")) / 100
            raise argparse.ArgumentTypeError(f"'{printable(text)}' is not a number; did you mean {meant:g}?") from None
        raise argparse.ArgumentTypeError(
            f"'{printable(text)}' is not a number like 0.5, nor a list like 0.1,0.2 or 0.1:0.5:0.1"
        ) from None


def _how(param: Parameter) -> dict[str, Any]:
    """How argparse reads a parameter."""
    from ..methods.registry import Flag, Param, PerInput, Whole

    kinds: dict[type, dict[str, Any]] = {
        Param: {"type": _values, "metavar": "NUMBER"},
        Whole: {"type": _values, "metavar": "NUMBER"},
        PerInput: {"type": numbers, "metavar": "NUMBERS"},
        Flag: {"action": _OneOfTwo},
    }
    return kinds[type(param)]


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
