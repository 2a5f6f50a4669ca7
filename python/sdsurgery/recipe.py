"""The Recipe: what is wanted, as a tree of values.

Leaves are models (files), nodes are calls of a method with their inputs and parameters. A recipe is frozen, comparable,
printable, and JSON both ways; nothing is opened until it is saved. A merge of merges runs in one pass
(``compose``).

    import sdsurgery as sds

    recipe = sds.weighted_sum("a.safetensors", sds.add_diff("b.safetensors", "c.safetensors", "base.safetensors"))
    recipe.save("out.safetensors", dtype="fp16")
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Union

from .adapters.lora import Lora
from .adapters.lora import from_json as lora_from_json
from .composition import Composition, Part, as_method, block_table
from .errors import InputRefused, UsageError, number_of, printable
from .methods.registry import Method, get
from .methods.written import PREFIX, letter
from .suggest import did_you_mean

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from .checkpoint import Checkpoint
    from .settings import Keywords
    from .surgery.ratios import BlockWeights, RuleSet
    from .surgery.report import Report

MOST_INPUTS = 512  # of one program
_MOST_TEXT = 4_000_000  # characters of a file


class _Adaptable:
    """What adapters can be added to: ``model("a") + 0.8 * lora("x") - lora("y")``."""

    loras: tuple[Lora, ...]

    def __add__(self, other: Lora) -> Self:
        if not isinstance(other, Lora):
            return NotImplemented
        return replace(self, loras=(*self.loras, other))  # type: ignore[type-var]

    def __sub__(self, other: Lora) -> Self:
        return self + -1.0 * other if isinstance(other, Lora) else NotImplemented

    def _with_loras(self, text: str) -> str:
        return f"({' + '.join([text, *map(str, self.loras)])})" if self.loras else text

    def _loras_to_json(self) -> dict[str, Any]:
        return {"loras": [item.to_json() for item in self.loras]} if self.loras else {}


@dataclass(frozen=True)
class Model(_Adaptable):
    """A leaf: a checkpoint file. ``use_ema``: its U-Net's EMA weights take the weights' place. ``loras`` are adapters
    that are applied to it, one after the other."""

    path: str
    use_ema: bool = False
    loras: tuple[Lora, ...] = ()

    def __str__(self) -> str:
        name = os.path.splitext(os.path.basename(self.path))[0]
        return self._with_loras(f"{name} (EMA)" if self.use_ema else name)

    @property
    def input(self) -> str:
        """What is opened."""
        return self.path

    def to_json(self) -> dict[str, Any]:
        """The leaf in JSON types."""
        return {"path": self.path, **({"use_ema": True} if self.use_ema else {}), **self._loras_to_json()}

    def save(self, out: str | os.PathLike[str], **settings: Unpack[Keywords]) -> Report:
        """Write the leaf alone, as ``sdsurgery.cast`` does, or ``sdsurgery.ema`` where its EMA weights are taken."""
        return _save_leaf(self, out, settings)


@dataclass(frozen=True, eq=False)
class Opened(_Adaptable):
    """A leaf that is there already: an opened checkpoint, or tensors by name. It equals leaves of the same object."""

    input: Checkpoint | Mapping[str, Any]
    use_ema: bool = False
    loras: tuple[Lora, ...] = ()

    def __eq__(self, other: object) -> bool:
        mine, same = (self.use_ema, self.loras), isinstance(other, Opened) and self.input is other.input
        return same and isinstance(other, Opened) and mine == (other.use_ema, other.loras)

    def __hash__(self) -> int:
        return hash((id(self.input), self.use_ema, self.loras))

    def __str__(self) -> str:
        name = getattr(self.input, "path", None)
        if name is None:
            return self._with_loras(number_of(len(self.input), "tensor"))
        return str(Model(name, self.use_ema, self.loras))

    __repr__ = __str__

    def to_json(self) -> dict[str, Any]:
        """The leaf in JSON types. UsageError for tensors, which no file holds."""
        name = getattr(self.input, "path", None)
        if name is None:
            raise UsageError("tensors in memory cannot be written as JSON; save them first", code="wrong_inputs")
        return Model(name, self.use_ema, self.loras).to_json()

    def save(self, out: str | os.PathLike[str], **settings: Unpack[Keywords]) -> Report:
        """As that of ``Model``."""
        return _save_leaf(self, out, settings)


@dataclass(frozen=True)
class Call(_Adaptable):
    """A node: a method of its inputs. ``parameters`` are the given ones, in the method's order; ``blocks`` and
    ``rules`` are JSON texts of what ``merge`` takes under these names, empty for none. ``loras`` are adapters that are
    applied to the result."""

    method: str
    inputs: tuple[Recipe, ...]
    parameters: tuple[tuple[str, float | tuple[float, ...]], ...] = ()
    blocks: str = ""
    rules: str = ""
    loras: tuple[Lora, ...] = ()

    def __str__(self) -> str:
        given = "".join(f", {name}={_plain(value)}" for name, value in self.parameters)
        return self._with_loras(f"{self.method}({', '.join(map(str, self.inputs))}{given})")

    def to_json(self) -> dict[str, Any]:
        """The tree in JSON types; ``from_json`` reads it back."""
        found: dict[str, Any] = {"method": self.method, "inputs": [item.to_json() for item in self.inputs]}
        found["parameters"] = {name: _plain(value) for name, value in self.parameters}
        for name, text in (("blocks", self.blocks), ("rules", self.rules)):
            if text:
                found[name] = json.loads(text)
        return found | self._loras_to_json()

    def save(
        self,
        out: str | os.PathLike[str],
        *,
        add_missing: bool = False,
        use_ema: str | Sequence[str] = (),
        **settings: Unpack[Keywords],
    ) -> Report:
        """Merge into the file ``out``. ``settings`` are the keywords of ``sdsurgery.merge``; raises as it does."""
        from .report.html import reported
        from .settings import settings_of
        from .surgery.merge import merge_tree

        return reported(
            "merge",
            settings_of("save", settings, ("add_missing", "use_ema")),
            lambda given: merge_tree(compose(self), given, out=out, add_missing=add_missing, use_ema=use_ema)[0],
        )


Recipe = Model | Opened | Call
Leaf = Union[str, "os.PathLike[str]", "Checkpoint", Mapping[str, Any]]
"""A file, an opened checkpoint, or tensors by name."""


def model(given: Leaf, *, use_ema: bool = False) -> Model | Opened:
    """A checkpoint file as an input of a recipe; or one that is opened already, or tensors by name."""
    if isinstance(given, str | os.PathLike):
        return Model(os.fspath(given), use_ema)
    if not hasattr(given, "items"):
        text = "an input must be a file, an opened checkpoint, a dictionary of tensors or a recipe"
        raise UsageError(f"{text}, not {type(given).__name__}", code="wrong_inputs")
    return Opened(given, use_ema)


def call(
    method: str,
    inputs: Sequence[Recipe | Leaf],
    *,
    variant: str | None = None,
    blocks: BlockWeights | Mapping[str, BlockWeights] | None = None,
    rules: RuleSet | Mapping[str, RuleSet] | None = None,
    **parameters: float | Sequence[float],
) -> Call:
    """A method of its inputs: what ``model`` takes, or other recipes. UsageError for an unknown method or parameter, a
    value that is not a finite number, or a wrong number of inputs."""
    chosen = get(method, variant)
    rest = chosen.named(parameters)
    bound = chosen.bind(len(inputs), rest)
    given = tuple((name, bound[name]) for name in chosen.params if rest.get(name) is not None)
    nodes = tuple(item if isinstance(item, Model | Opened | Call) else model(item) for item in inputs)
    return Call(chosen.name, nodes, given, _json("blocks", blocks), _json("rules", rules))


class FormulaName(str):
    """The name of a method that is written as text. Called with inputs and numbers it gives their recipe."""

    __slots__ = ()

    def __call__(
        self, *inputs: Recipe | Leaf, blocks: Any = None, rules: Any = None, **parameters: float | Sequence[float]
    ) -> Call:
        numbers: dict[str, Any] = dict(parameters)
        return call(str(self), inputs, blocks=blocks, rules=rules, **numbers)


def formula(text: str) -> FormulaName:
    """A formula as a method: ``formula("A + k*(B - C)")``.

    What it gives is a method's name, for ``merge``, ``sweep`` and ``apply``; called with inputs and the formula's
    numbers it gives a recipe: ``formula("A + k*(B - C)")("a.safetensors", "b.safetensors", "c.safetensors", k=0.7)``.
    docs/methods.md says what a formula may use. UsageError that points at the character for what is not a formula.
    """
    return FormulaName(get(PREFIX + text).name)


def from_json(value: Mapping[str, Any] | str) -> Recipe:
    """The recipe of ``to_json``, in which a file may also be its path alone. UsageError when it isn't one."""
    if isinstance(value, str):
        return Model(value)
    if not isinstance(value, Mapping):
        text = f"not a recipe: {printable(value)} is neither a file's path nor an object with path or method"
        raise UsageError(text, code="bad_value")
    try:
        known = ("path", "use_ema") if "method" not in value else ("method", "inputs", "parameters", "blocks", "rules")
        known = (*known, "loras")
        for name in value:
            if name not in known:
                hint = did_you_mean(str(name), known) or f"; known here: {', '.join(known)}"
                raise UsageError(f"not a recipe: unknown key '{printable(name)}'{hint}", code="unknown_name")
        loras = tuple(lora_from_json(item) for item in value.get("loras", ()))
        if "method" not in value:
            return Model(str(value["path"]), bool(value.get("use_ema", False)), loras)
        if isinstance(value["inputs"], str):
            raise TypeError("inputs is no list")
        extra = {name: value[name] for name in ("blocks", "rules") if name in value}
        parameters = dict(value.get("parameters", {}))
        found = call(str(value["method"]), [from_json(item) for item in value["inputs"]], **extra, **parameters)
        return replace(found, loras=loras)
    except KeyError as error:
        text = f"not a recipe: {printable(error)} is missing in {printable(value)}"
        raise UsageError(text, code="bad_value") from None
    except (TypeError, AttributeError) as error:
        raise UsageError(f"not a recipe: {printable(error)} in {printable(value)}", code="bad_value") from None
    except RecursionError:
        raise UsageError("not a recipe: its calls are nested too deeply", code="bad_value") from None


def load(path: str | os.PathLike[str]) -> Recipe:
    """The recipe in a file of JSON (``to_json``). Its paths are as on the command line: relative to the current folder.
    UsageError when the file is no recipe, InputRefused when it cannot be read."""
    name = os.path.expanduser(os.fspath(path))
    try:
        with open(name, encoding="utf-8") as file:
            text = file.read(_MOST_TEXT + 1)
        if len(text) > _MOST_TEXT:
            raise ValueError("it is too long")
        value = json.loads(text)
    except OSError as error:
        code = "not_found" if isinstance(error, FileNotFoundError) else "permission"
        raise InputRefused(f"{printable(name)}: {error.strerror}", code=code, path=name) from None
    except UnicodeDecodeError:
        text = "not a recipe: it is not UTF-8 text (what a checkpoint was made of: `sdsurgery inspect`)"
        raise UsageError(f"{printable(name)}: {text}", code="bad_value", path=name) from None
    except (ValueError, RecursionError) as error:
        text = f"{printable(name)}: not a recipe: {printable(error)}"
        raise UsageError(text, code="bad_value", path=name) from None
    try:
        return from_json(value)
    except UsageError as error:
        raise error.within(printable(name), path=name) from None


def _save_leaf(leaf: Model | Opened, out: str | os.PathLike[str], settings: Keywords) -> Report:
    from .report.html import reported
    from .settings import settings_of
    from .surgery.cast import cast
    from .surgery.ema import ema

    if leaf.loras:
        if leaf.use_ema:
            raise UsageError("take the EMA weights first (ema), then bake adapters into them", code="conflict")
        from .surgery.bake import bake

        return reported(
            "bake", settings_of("save", settings), lambda given: bake(leaf.input, leaf.loras, given, out=out)
        )
    verb, work = ("ema", ema) if leaf.use_ema else ("cast", cast)
    return reported(verb, settings_of("save", settings), lambda given: work(leaf.input, given, out=out))


def _plain(value: float | tuple[float, ...]) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _json(name: str, spec: Any) -> str:
    if spec is None:
        return ""
    try:
        return json.dumps(os.fspath(spec) if isinstance(spec, os.PathLike) else spec)
    except TypeError:
        raise UsageError(
            f"{name} must be text, numbers or a mapping, not {type(spec).__name__}", code="bad_value"
        ) from None


# ---- one method of a tree


def compose(root: Call) -> Composition:
    """The tree as one method of its leaves, in the order in which they first appear. UsageError for too many."""
    leaves: dict[Model | Opened, int] = {}
    params: dict[str, Any] = {}
    ratios: dict[str, dict[str, Any]] = {"blocks": {}, "rules": {}}

    def part(node: Call, prefix: str) -> Part:
        method = get(node.method)
        bound = method.bind(len(node.inputs), dict(node.parameters))
        params.update({prefix + name: value for name, value in bound.items()})
        for kind, text in (("blocks", node.blocks), ("rules", node.rules)):
            if text:
                ratios[kind].update(_by_ratio(method, bound, prefix, kind, json.loads(text)))
        if node.loras and node is not root:
            raise UsageError(
                f"adapters are applied to files and to the result of the whole recipe, not to that of {node.method} "
                "within it; apply them to its inputs, or save it first",
                code="conflict",
            )
        if method.across and (node is not root or any(isinstance(item, Call) for item in node.inputs)):
            raise UsageError(
                f"{node.method} looks at whole models, so it takes files and cannot be part of a larger recipe; save "
                "its inputs first, and merge its output in a run of its own",
                code="conflict",
            )
        inputs = [
            part(item, f"{prefix}{letter(number)}.") if isinstance(item, Call) else leaves.setdefault(item, len(leaves))
            for number, item in enumerate(node.inputs)
        ]
        return Part(method, prefix, tuple(inputs))

    whole = part(root, "")
    if len(leaves) > MOST_INPUTS:
        raise UsageError(f"a recipe takes at most {MOST_INPUTS} files, {len(leaves)} given", code="wrong_inputs")
    method = whole.method if whole.inputs == tuple(range(len(root.inputs))) else as_method(whole, params)[0]
    block_table(whole.methods().values(), bool(ratios["blocks"]))
    weights = (ratios["blocks"] or None, ratios["rules"] or None)
    return Composition(tuple(leaves), method, params, *weights, whole, root.loras)


def _by_ratio(
    method: Method, params: Mapping[str, Any], prefix: str, kind: str, spec: Any
) -> dict[str, Any]:  # fmt: skip
    from .surgery.ratios import by_ratio

    return {prefix + ratio: given for ratio, given in by_ratio(method, params, f"{kind}=", spec).items()}
