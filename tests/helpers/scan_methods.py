"""Hostile files for ``scan`` that name nothing dangerous: they give objects methods, and let loaders call these."""

from __future__ import annotations

from pickle_builder import call, dict_of, integer, list_of, name, pickled, text, tuple_of


def methods(canary: str) -> dict[str, tuple[str, bytes]]:
    """Objects whose attributes are functions, for what calls such a method of what it gets; by no dangerous name."""
    run = call("functools", "partial", name("mailbox", "Maildir"), text(canary))

    def bag(kind: tuple[str, str] = ("types", "SimpleNamespace"), /, **attributes: bytes) -> bytes:
        return name(*kind) + b")\x81" + dict_of(attributes) + b"b"

    def module(buffers: bytes) -> bytes:
        return bag(("torch.nn.modules.linear", "Identity"), _buffers=buffers, _parameters=b"}", _modules=b"}")

    ordered = call("collections", "OrderedDict") + dict_of({"keys": run}) + b"b"
    state = tuple_of(name("mailbox", "Maildir"), b")", b"}", dict_of({"keys": run}))
    detach = bag(detach=run)
    made = (
        call("collections", "defaultdict")
        + tuple_of(b"N", dict_of({"default_factory": run}))
        + b"b"
        + text("x")
        + b"Ns"
    )
    steps, groups = dict_of([(integer(0), made)]), list_of(dict_of({"params": list_of(integer(0))}))
    bodies = {
        "dict": call("builtins", "dict", bag(keys=run)),
        "OrderedDict": call("collections", "OrderedDict", bag(("argparse", "Namespace"), keys=run)),
        "UserDict": call("collections", "UserDict", bag(("builtins", "ValueError"), keys=run)),
        "defaultdict": call("collections", "defaultdict", b"N", bag(("collections", "UserList"), keys=run)),
        "Counter of an OrderedDict": call("builtins", "dict", ordered),
        "partial": call("builtins", "dict", call("functools", "partial", name("mailbox", "Maildir")) + state + b"b"),
        "module": call("builtins", "dict", module(dict_of({"keys": run}))),
        "module, filled later": b"}q\x070"
        + module(b"h\x07")
        + b"q\x080h\x07("
        + text("keys")
        + run
        + b"u0"
        + call("builtins", "dict", b"h\x08"),
        "optimizer's steps": bag(("torch.optim.adam", "Adam"), state=steps, param_groups=groups, defaults=b"}"),
        "Parameter": call("torch.nn.parameter", "Parameter", detach),
        "_rebuild_parameter": call("torch._utils", "_rebuild_parameter", detach, b"\x88", b"}"),
        "_rebuild_parameter_with_state": call(
            "torch._utils", "_rebuild_parameter_with_state", detach, b"\x88", b"}", b"}"
        ),
        "_rebuild_from_type_v2": call(
            "torch._tensor",
            "_rebuild_from_type_v2",
            name("torch._utils", "_rebuild_parameter"),
            name("torch.nn.parameter", "Parameter"),
            tuple_of(detach, b"\x88", b"}"),
            b"}",
        ),
    }
    return {key: ("pickle", pickled(body)) for key, body in bodies.items()}
