"""The registry of the merge methods: what a method is, and all of them by name."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..discovery import module_names
from ..errors import InputRefused, UsageError, printable
from .across import Across
from .parameters import Flag, Param, Parameter, PerInput, Whole, is_required, require_sound

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["Across", "Flag", "Method", "Param", "Parameter", "PerInput", "Whole", "get", "method", "registered"]


_USUAL = {"alpha": ("ratio", "multiplier")}
"""What users of other programs call a parameter: "Multiplier (M)" is the web UI's word."""


@dataclass(frozen=True)
class Method:
    """One method of ``merge`` and ``apply``. ``inputs`` are the inputs' names in order, ``many``: any number of inputs
    may follow the last. ``differences`` are those that enter only through the difference between them: where they
    agree, they change nothing. ``base`` is the input that others were trained from, whose differences from it count;
    empty where there is none. ``across``: what the body must know of the whole models. ``roles`` gives a tensor's role
    by its name and family, for a body that takes ``role=`` besides; it is empty for most. ``block`` gives the
    merge block of a tensor by its name and that of its family, where a method counts blocks otherwise. ``stands_in``
    makes of the body one for tensors that some inputs lack, in whose place it is called with A's; else A's is kept
    unchanged. A variant is a method of its own, called ``name.variant``."""

    name: str
    inputs: tuple[str, ...]
    params: Mapping[str, Parameter]
    body: Callable[..., Any]
    differences: frozenset[str] = frozenset()
    many: bool = False
    across: Across | None = None
    roles: Callable[[str, str], str] | None = None
    block: Callable[[str, str | None], str | None] | None = None
    stands_in: Callable[[Callable[..., Any], frozenset[int]], Callable[..., Any]] | None = None
    base: str = ""

    @property
    def summary(self) -> str:
        """First line of the docstring: the formula in words and symbols."""
        return (self.body.__doc__ or "").strip().partition("\n")[0]

    @property
    def variadic(self) -> bool:
        """Whether any number of inputs is taken (by some methods only with a list of numbers, one each)."""
        return self.many or any(isinstance(param, PerInput) and param.instead_of for param in self.params.values())

    @property
    def ratios(self) -> tuple[str, ...]:
        """Names of the parameters that are one number: those that can differ from tensor to tensor."""
        return tuple(name for name, param in self.params.items() if isinstance(param, Param))

    def also(self, name: str) -> tuple[str, ...]:
        """Further names of a parameter: those that tools give it."""
        own = self.params[name].also.split()
        taken = {*self.params, *(each for param in self.params.values() for each in param.also.split())}
        return (*own, *(word for word in _USUAL.get(name, ()) if word not in taken))

    def named(self, given: Mapping[str, Any], others: Iterable[str] = ()) -> dict[str, Any]:
        """The given parameters by their own names, whichever names they were given by. UsageError for an unknown one;
        ``others`` are further words that may have been meant."""
        names = {also: name for name in self.params for also in self.also(name)}
        found: dict[str, Any] = {}
        for name, value in given.items():
            known = names.get(name, name)
            if known not in self.params:
                from ..suggest import did_you_mean

                hint = did_you_mean(name, [*self.params, *others]) or f"; it has {', '.join(self.params) or 'none'}"
                raise UsageError(f"{self.name} has no parameter '{printable(name)}'{hint}", code="unknown_name")
            if known in found:
                raise UsageError(f"{self.name}: {known} is given twice", code="conflict")
            found[known] = value
        return found

    def bind(self, count: int, given: Mapping[str, Any]) -> dict[str, Any]:
        """Complete parameters for ``count`` inputs: defaults filled in, numbers as float64, lists as tuples, None for
        what has no value.

        Raises UsageError for an unknown parameter, a value that is not a finite number or out of its range, two
        parameters that exclude each other, or a wrong number of inputs.
        """
        given = self.named(given)
        if self.many:
            self._require_count(count, False)
        values: dict[str, Any] = {}
        for name, param in self.params.items():
            value = param.default if given.get(name) is None else given[name]
            values[name] = None if value is None else param.bound(self.name, name, value, count)
        lists = [
            (name, param) for name, param in self.params.items()
            if isinstance(param, PerInput) and param.instead_of and values[name]
        ]  # fmt: skip
        for name, param in lists:
            if given.get(param.instead_of) is not None:
                raise UsageError(f"{self.name}: give {param.instead_of} or {name}, not both", code="conflict")
            values[param.instead_of] = None
        for name, param in self.params.items():
            if (
                values[name] is None
                and is_required(param)
                and not any(param_.instead_of == name for _, param_ in lists)
            ):
                raise UsageError(f"{self.name} needs a number for {name} ({param.help})", code="bad_value")
        self._require_count(count, bool(lists))
        return values

    def _require_count(self, count: int, listed: bool) -> None:
        names = " ".join(self.inputs)
        if self.many and count < len(self.inputs):
            raise UsageError(
                f"{self.name} takes {_inputs(len(self.inputs), ' or more')} ({names} …), {count} given",
                code="wrong_inputs",
            )
        if not self.many and not listed and count != len(self.inputs):
            hint = "; for more inputs give weights=" if self.variadic and count > len(self.inputs) else ""
            raise UsageError(
                f"{self.name} takes {_inputs(len(self.inputs))} ({names}), {count} given{hint}", code="wrong_inputs"
            )


def _inputs(count: int, more: str = "") -> str:
    return f"{count}{more} input" + ("" if count == 1 and not more else "s")


_METHODS: dict[str, Method] = {}
_NAMED_BY: dict[str, Callable[[str], Method]] = {}


def method(
    name: str, *, inputs: str, differences: str = "", base: str = "", across: Across | None = None,
    roles: Callable[[str, str], str] | None = None, **params: Parameter,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:  # fmt: skip
    """Register a function as the method ``name``. ``inputs`` are the positional arguments' names, blank-separated, with
    ``…`` behind them if any number may follow; ``differences`` are those of them that enter only through the difference
    between them (B and C of ``A + α·(B − C)``) and so may have more channels than A. A variant of a method is named
    ``method.variant``. ``base``, ``across`` and ``roles`` are a Method's. ValueError for a name that is none of the
    inputs or a range that is none, TypeError for a parameter of another kind."""
    names = tuple(inputs.split())
    many = names[-1] == "…"
    if many:
        names = names[:-1]

    def decorate(body: Callable[..., Any]) -> Callable[..., Any]:
        if name in _METHODS:
            raise ValueError(f"there is a method {name} already")
        for each in (*differences.split(), *([base] if base else ())):
            if each not in names:
                raise ValueError(f"the method {name} has no input {each}")
        for key, param in params.items():
            if not isinstance(param, Param | Whole | Flag | PerInput):
                text = f'a parameter is a Param, a Whole, a Flag or a PerInput, as in Param({param!r}, "what it does")'
                raise TypeError(f"the method {name}: {key} is {param!r}; {text}")
            require_sound(name, key, param)
        _METHODS[name] = Method(
            name, names, params, body, frozenset(differences.split()), many, across, roles, base=base
        )
        return body

    return decorate


def named_by(prefix: str) -> Callable[[Callable[[str], Method]], Callable[[str], Method]]:
    """Register a function as what makes the methods whose name begins with ``prefix``: of the name, a method."""

    def decorate(make: Callable[[str], Method]) -> Callable[[str], Method]:
        _NAMED_BY[prefix] = make
        return make

    return decorate


@functools.cache
def _modules() -> tuple[str, ...]:
    """This package's modules by name; but those with what most people want lead every list."""
    names = dict.fromkeys(["sums", "differences", *module_names([os.path.dirname(__file__)])])
    return tuple(f"{__package__}.{name}" for name in names)


@functools.cache
def _import_modules() -> None:
    """Import this package's modules, which register their methods (even where a method from elsewhere came first)."""
    for name in _modules():
        import_module(name)
    # Whichever was imported first.
    place = {name: number for number, name in enumerate(_modules())}
    ordered = sorted(_METHODS.items(), key=lambda item: place.get(item[1].body.__module__, len(place)))
    _METHODS.clear()
    _METHODS.update(ordered)


def registered(others: bool = False) -> dict[str, Method]:
    """All methods by name; those of ``others`` too, packages with entry points ``sdsurgery.methods``. A package whose
    methods cannot be loaded takes away no other's: ``unusable`` says which."""
    _import_modules()
    if others:
        unusable()
    return dict(_METHODS)


@functools.cache
def unusable() -> tuple[str, ...]:
    """What is wrong with other packages' entry points, a line for each; imports what they offer."""
    from importlib.metadata import entry_points

    found = []
    for point in entry_points(group="sdsurgery.methods"):
        whose = f" of {point.dist.name}" if point.dist else ""
        wrong = _not_loaded(point)
        if wrong:
            text = f"the methods{whose} ({printable(point.value)}) cannot be loaded: {printable(wrong)}"
            found.append(f"{text}; repair or uninstall that package")
    return tuple(found)


def _not_loaded(point: EntryPoint) -> str:
    """Why an entry point gives no method; empty where it gives some."""
    before = len(_METHODS)
    try:
        point.load()
        module = point.module
    except (Exception, SystemExit) as error:  # a script that ends the process, say
        return f"{type(error).__name__}: {error}"
    there = (method.body.__module__ for method in _METHODS.values())  # it may have been imported earlier
    own = len(_METHODS) > before or any(f"{name}.".startswith(f"{module}.") for name in there)
    return "" if own else "it registers no method (with @method)"


def load_methods(path: str | os.PathLike[str]) -> list[str]:
    """Run a Python file that registers methods with ``@method``; gives their names. docs/methods.md shows one.

    InputRefused for a file that cannot be read, UsageError with the line for one that fails or registers none.
    """
    import traceback
    from importlib.machinery import SourceFileLoader
    from importlib.util import module_from_spec, spec_from_loader

    before, text = set(registered()), os.fspath(path)
    name = "sdsurgery_methods_" + "".join(each if each.isalnum() else "_" for each in text)
    loader = SourceFileLoader(name, text)
    spec = spec_from_loader(name, loader)
    assert spec is not None
    try:
        loader.exec_module(module_from_spec(spec))
    except OSError as error:
        if error.filename != text:
            raise
        code = "not_found" if isinstance(error, FileNotFoundError) else "io"
        raise InputRefused(f"method file {printable(text)}: {error.strerror}", code=code, path=text) from None
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == text]
        line = getattr(error, "lineno", None) or (lines[-1] if lines else None)
        at = f", line {line}" if line else ""
        why = getattr(error, "msg", error) if isinstance(error, SyntaxError) else error
        raise UsageError(
            f"method file {printable(text)}{at}: {type(error).__name__}: {printable(why)}",
            code="bad_value",
            path=text,
        ) from None
    found = [each for each in _METHODS if each not in before]
    if not found:
        raise UsageError(f"method file {printable(text)} registers no method", code="bad_value", path=text)
    return found


def get(name: str, variant: str | None = None) -> Method:
    """The method of that name, or its variant; UsageError with close matches for an unknown name."""
    if not isinstance(name, str) or not isinstance(variant, str | None):
        wrong = variant if isinstance(name, str) else name
        raise UsageError(f"a method is given by its name, not by {printable(repr(wrong))}", code="bad_value")
    if variant is None and (quick := _leading(name)):
        return quick
    known_names = registered()
    for prefix, make in _NAMED_BY.items():
        if name.lower().startswith(prefix):
            made = make(prefix + name[len(prefix) :])
            if variant:
                text = f"{printable(made.name)} has no variant '{printable(variant)}'; write it in the method's name"
                raise UsageError(text, code="unknown_name")
            return made
    found = known_names.get(name) or known_names.get(_plain(name))
    if found is None and variant:
        found, variant = known_names.get(f"{name}.{variant}"), None  # of which there is only this one
    if found is None:
        known_names = registered(others=True)
        found = known_names.get(name) or known_names.get(_plain(name))
    if found is None:
        from ..suggest import did_you_mean

        plain = [known for known in known_names if "." not in known]
        hint = did_you_mean(name, known_names if "." in name else plain)
        hint += "".join(f"; {line}" for line in unusable())  # one of which may be what has it
        hint = hint or f"; known: {', '.join(plain)}"
        raise UsageError(f"unknown method '{printable(name)}'{hint}", code="unknown_name")
    return _variant(found, variant) if variant else found


def _leading(name: str) -> Method | None:
    """The method of that name where it is one of the first that are imported: a merge by it needs no others."""
    for module in _modules():
        if name in _METHODS:
            break
        import_module(module)
    return _METHODS.get(name)


def require_free(modifier: str, found: Method, names: Iterable[str]) -> None:
    """UsageError where the method has a parameter that the modifier brings."""
    for name in names:
        if name in found.params:
            text = f"{modifier} brings the parameter {name}, and {found.name} has one of that name already"
            raise UsageError(text, code="conflict")


_CALLED = {
    "add-difference": "add-diff", "train-difference": "train-diff",
    "weighted": "weighted-sum", "sigmoid": "weighted-sum.smoothstep", "inv-sigmoid": "weighted-sum.inverse-smoothstep",
    "inverse-sigmoid": "weighted-sum.inverse-smoothstep", "triple": "triple-sum", "twice": "sum-twice",
    "average": "mean", "lerp": "weighted-sum.lerp",
}  # fmt: skip
"""What other programs call the methods."""


def _plain(name: str) -> str:
    """``weighted_sum``, as Python writes it, and ``Weighted sum``, as the web UI does, as the method is called."""
    word = _word(name)
    return _CALLED.get(word, word)


def _word(name: str) -> str:
    return name.strip().lower().replace("_", "-").replace(" ", "-")


def _variant(found: Method, variant: str) -> Method:
    known = _METHODS.get(f"{found.name}.{variant}") or _METHODS.get(f"{found.name}.{_word(variant)}")
    if known is None:
        from ..suggest import did_you_mean

        words = [name.partition(".")[2] for name in _METHODS if name.startswith(found.name + ".")]
        hint = did_you_mean(variant, words) or (f"; it has {', '.join(words)}" if words else "; it has none")
        raise UsageError(f"{found.name} has no variant '{printable(variant)}'{hint}", code="unknown_name")
    return known
