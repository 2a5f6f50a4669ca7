"""``dataclass``, ``NamedTuple`` and ``Protocol`` for start-up that is not felt.

The standard library's ``dataclasses`` imports ``inspect`` (with ``ast``, ``dis`` and ``tokenize``) and generates up to
nine functions a class: together a third of a merge's start-up. This one has the same names and the same meaning for
what is used here (``frozen``, ``eq``, defaults, ``field``, ``__post_init__``, inheritance) and compiles no text at all.
``typing`` itself takes 4 ms, and its ``NamedTuple`` compiles the text of every annotation; so the modules that a
merge imports name ``Any`` and the like for type checkers alone, below ``TYPE_CHECKING``. A type checker sees the
standard ones. What there are thousands of is a NamedTuple: it is made several times faster.
"""

from __future__ import annotations

from collections import namedtuple

TYPE_CHECKING = False  # type checkers take it for true by its name
if TYPE_CHECKING:
    from dataclasses import asdict, dataclass, field, fields, replace
    from typing import Any, NamedTuple, Protocol

__all__ = ["NamedTuple", "Protocol", "asdict", "dataclass", "field", "fields", "replace"]

if not TYPE_CHECKING:
    _NOTHING = object()

    class Field:
        """One field: its name and type, its default, and whether ``__init__``, ``==`` and ``repr`` know it."""

        __slots__ = ("compare", "default", "default_factory", "init", "name", "repr", "type")

        def __init__(self, default, default_factory, init, compare, repr):
            self.name = self.type = ""
            self.default, self.default_factory = default, default_factory
            self.init, self.compare, self.repr = init, compare, repr

    def field(*, default=_NOTHING, default_factory=None, init=True, compare=True, repr=True) -> Any:
        return Field(default, default_factory, init, compare, repr)

    def fields(record) -> tuple[Field, ...]:
        return record.__record_fields__

    def dataclass(cls=None, *, frozen: bool = False, eq: bool = True):
        if cls is None:
            return lambda decorated: dataclass(decorated, frozen=frozen, eq=eq)
        found = {item.name: item for base in cls.__mro__[:0:-1] for item in getattr(base, "__record_fields__", ())}
        for name, annotation in cls.__annotations__.items():
            if not str(annotation).startswith("ClassVar"):
                found[name] = _own_field(cls, name, annotation)
        cls.__record_fields__ = tuple(found.values())
        cls.__init__ = _make_init(cls)
        cls.__signature__ = _Signature()
        if "__repr__" not in cls.__dict__:
            cls.__repr__ = _repr
        if eq:
            cls.__eq__ = _eq
            cls.__hash__ = _hash if frozen else None
        if frozen:
            cls.__setattr__, cls.__delattr__ = _refuse_set, _refuse_delete
        return cls

    def _own_field(cls, name, annotation):
        given = cls.__dict__.get(name, _NOTHING)
        item = given if isinstance(given, Field) else Field(given, None, True, True, True)
        item.name, item.type = name, annotation
        if isinstance(given, Field):
            if item.default is _NOTHING:
                delattr(cls, name)
            else:
                setattr(cls, name, item.default)
        return item

    def _make_init(cls):
        items = cls.__record_fields__
        order = [item.name for item in items if item.init]
        finish = getattr(cls, "__post_init__", None)

        def __init__(self, /, *given, **named):
            values = self.__dict__
            values.update(zip(order, given))  # noqa: B905 (fewer are given, or the rest is refused below)
            for item in items:
                name = item.name
                if name in values:
                    continue
                if item.init and name in named:
                    values[name] = named.pop(name)
                elif item.default_factory is not None:
                    values[name] = item.default_factory()
                elif item.default is not _NOTHING:
                    values[name] = item.default
                elif item.init:
                    raise TypeError(f"{cls.__qualname__}() lacks the argument '{name}'")
            if named or len(given) > len(order):
                raise TypeError(f"{cls.__qualname__}() takes {', '.join(order) or 'no arguments'}, each of them once")
            if finish is not None:
                finish(self)

        __init__.__qualname__ = f"{cls.__qualname__}.__init__"
        return __init__

    class _Signature:
        """What ``help`` and editors show of ``__init__``, made when they ask."""

        def __get__(self, record, cls):
            from inspect import Parameter, Signature

            def shown(item):
                default = item.default_factory or item.default  # of a list and the like: what makes it
                if default is _NOTHING:
                    default = Parameter.empty
                return Parameter(item.name, Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=item.type)

            return Signature([shown(item) for item in cls.__record_fields__ if item.init])

    def _compared(record):
        return tuple([getattr(record, item.name) for item in record.__record_fields__ if item.compare])

    def _eq(self, other):
        return _compared(self) == _compared(other) if other.__class__ is self.__class__ else NotImplemented

    def _hash(self):
        return hash(_compared(self))

    def _repr(self):
        shown = (f"{item.name}={getattr(self, item.name)!r}" for item in self.__record_fields__ if item.repr)
        return f"{self.__class__.__qualname__}({', '.join(shown)})"

    def _refuse_set(self, name, value):
        raise AttributeError(f"cannot assign to field {name!r}")

    def _refuse_delete(self, name):
        raise AttributeError(f"cannot delete field {name!r}")

    def replace(record, /, **changes):
        given = {item.name: getattr(record, item.name) for item in record.__record_fields__ if item.init}
        return record.__class__(**{**given, **changes})

    def asdict(record) -> dict[str, Any]:
        return {item.name: _plain(getattr(record, item.name)) for item in record.__record_fields__}

    def _plain(value):
        if hasattr(value, "__record_fields__"):
            return asdict(value)
        if isinstance(value, dict):
            return {_plain(key): _plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(_plain(item) for item in value)
        return value

    class _NamedTupleMaker(type):
        def __new__(cls, name, bases, body):
            if not bases:
                return super().__new__(cls, name, bases, body)
            fields = list(type(name, (), dict(body)).__annotations__)
            defaults = [body.pop(field) for field in fields if field in body]
            made = namedtuple(name, fields, defaults=defaults, module=body["__module__"])
            for key, value in body.items():
                if key not in ("__module__", "__qualname__"):
                    setattr(made, key, value)
            return made

    class Protocol:
        """What ``typing.Protocol`` is to those who only derive from it."""

    class NamedTuple(metaclass=_NamedTupleMaker):
        """A tuple with names; a class statement with this base makes a plain ``collections.namedtuple``."""
