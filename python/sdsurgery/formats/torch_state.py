"""Finds the state dict in a checkpoint's value graph, whatever it is wrapped in, and says what else there was.

Files differ in what they wrap around the weights: nothing; ``{"state_dict": …}``; Lightning's dict with callbacks,
loops and optimizer states; ``{"model": …}``. The weights are unwrapped, training leftovers are left out and counted,
and small values (epoch, hyper-parameters) become text metadata. All walks use explicit stacks and visit each container
once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..checkpoint import Contents, Record
from ..errors import InputRefused, number_of, printable
from .numpy_values import Array, array
from .pickle_graph import BYTES, DICT, INT, LIST, MAX_TEXT_TOTAL, OPAQUE, TENSOR, TEXT, TUPLE, Graph
from .pickle_text import render
from .torch_structure import structure_of
from .torch_tensors import place
from .torch_values import Tensor, known

# Keys under which a state dict lies, best first.
WRAPPERS = (
    "state_dict", "model_state_dict", "model", "module", "net", "params_ema", "params", "weights", "ema", "model_ema",
    "generator", "unet",
)  # fmt: skip

# Keys of the parts of a model that lie side by side in one pickle.
PARTS = frozenset(
    (
        "unet", "vae", "text_encoder", "text_encoder_2", "text_encoder_3", "transformer", "controlnet", "image_encoder",
        "model", "text", "clip", "first_stage_model", "cond_stage_model", "adapter",
    )
)  # fmt: skip

# Keys of a training run that are never weights of the model.
LEFTOVERS = frozenset(
    (
        "optimizer", "optimizers", "optimizer_state", "optimizer_states", "optimizer_state_dict", "optim", "scheduler",
        "schedulers", "lr_scheduler", "lr_schedulers", "scheduler_state_dict", "callbacks", "loops", "hooks", "scaler",
        "grad_scaler", "amp_scaling_state", "native_amp_scaling_state", "MixedPrecisionPlugin", "rng_state",
        "rng_states", "random_states",
    )
)  # fmt: skip

MAX_UNWRAP = 8
MAX_DEPTH = 16  # of containers inside the state dict
MAX_TENSORS = 100_000  # and as many arrays
MAX_NAMES = 16 << 20  # characters of all tensor names together
MAX_SUMMARIES = 64
MAX_SHARING = 16  # times the bytes of all storages that the tensors may have together, beside MAX_EXPANDED
MAX_EXPANDED = 1 << 30  # bytes
_PARAMETER_CONTAINERS = ("torch.nn.modules.container.ParameterDict", "torch.nn.modules.container.ParameterList")


def contents(format_name: str, graph: Graph, records: Mapping[str, Record], part: str = "") -> Contents:
    """The checked tensors of a file, with metadata and notes; ``part``: only those under that key of the pickle. Raises
    InputRefused with one line."""
    finder = Finder(graph, part)
    finder.run()
    found = Contents(format_name, [], records=sorted(records.values(), key=lambda record: record.offset))
    used: list[int] = []
    for name, tensor in finder.tensors.items():
        if tensor.unusable:
            found.unusable[name] = tensor.unusable
            continue
        found.tensors.append(place(name, tensor, records))
        assert tensor.storage is not None
        used.append(records[tensor.storage.key].offset)
    found.unusable |= {name: f"a {item.brief} inside the pickle" for name, item in finder.arrays.items()}
    found.data_offset = min(used, default=0)
    found.structure = structure_of(graph, finder.base, finder.path, finder.tensors, finder.children)
    _check_sharing(found)
    _summarise(graph, finder.beside, found)
    _remark(graph, found, finder)
    return found


def _check_sharing(found: Contents) -> None:
    """A small file must not become a huge one by tensors that share or repeat their elements."""
    made, stored = sum(info.nbytes for info in found.tensors), sum(record.nbytes for record in found.records)
    if made > MAX_SHARING * stored + MAX_EXPANDED:
        raise InputRefused(
            f"its tensors share their data so much that {made} bytes would be made of {stored}; at most "
            f"{MAX_SHARING} times as much and {MAX_EXPANDED >> 30} GiB are accepted"
        )


class Finder:
    """Finds the weights in a graph: ``tensors`` by name in file order, NumPy ``arrays`` among them that are too large
    for a summary, ``path`` that led to them, and what lay ``beside``.
    """

    def __init__(self, graph: Graph, part: str = "") -> None:
        self.graph = graph
        self.base = graph.root
        self.part = part
        self.others: list[str] = []  # dictionaries of the same weights beside the one that was taken
        self.tensors: dict[str, Tensor] = {}
        self.arrays: dict[str, Array] = {}
        self.path: list[str] = []
        self.beside: list[tuple[str, int]] = []
        self._entries: dict[int, dict[str, int] | None] = {}
        self._direct: dict[int, bool] = {}
        self._seen: set[int] = set()
        self._names = MAX_NAMES

    def run(self) -> None:
        """Fill the fields. Raises InputRefused when there is nothing to read."""
        base = self.base = self._unwrap()
        if self.graph.kinds[base] == TENSOR:
            self._add("tensor", self.graph.values[base])
            return
        self._seen.add(base)
        for name, child in (self.children(base) or {}).items():
            before = len(self.tensors)
            if name not in LEFTOVERS:
                self._flatten(name, child)
            if len(self.tensors) == before:
                self.beside.append((name, child))
        if not self.tensors:
            self._refuse_empty(base)

    def entries(self, node: int) -> dict[str, int] | None:
        """A mapping's text keys and their nodes (the last of equal keys wins), or None for anything else.

        Unknown classes that were filled like a dict count as mappings; integer keys become text, others are left out.
        """
        if node not in self._entries:
            self._entries[node] = _read_entries(self.graph, node)
        return self._entries[node]

    def attributes(self, node: int) -> dict[str, int] | None:
        """The attributes of an unknown object (the state that BUILD gave it), or None."""
        graph = self.graph
        if graph.kinds[node] != OPAQUE:
            return None
        state = graph.values[node].state
        if state is not None and graph.kinds[state] == TUPLE and graph.values[state]:
            state = graph.values[state][0]  # (attributes, slots)
        return None if state is None else self.entries(state)

    def _holds_tensors(self, node: int) -> bool:
        """Whether a mapping holds tensors itself."""
        if node not in self._direct:
            kinds = self.graph.kinds
            self._direct[node] = any(kinds[child] == TENSOR for child in (self.entries(node) or {}).values())
        return self._direct[node]

    def _unwrap(self) -> int:
        """The node of the state dict; notes the keys that led to it and what lay beside it on the way."""
        node = self.graph.root
        for _ in range(MAX_UNWRAP):
            mapping = self.entries(node)
            key = self._wrapper(node) if not self.part or self.path else self._part(mapping or {})
            if key is None or mapping is None:
                break
            self.beside += [(name, value) for name, value in mapping.items() if name != key]
            self.path.append(key)
            node = mapping[key]
        return node

    def _wrapper(self, node: int) -> str | None:
        """The key of the wrapped state dict, or None when the node is the state dict itself."""
        mapping = self.entries(node) or {}
        own = self._count(node)
        if "state_dict" in mapping:
            inner = mapping["state_dict"]
            # A state dict may have an entry of that name among more weights of its own.
            if not own and self.entries(inner) == {}:
                return "state_dict"
            if self._leads_to_tensors(inner) > own:
                return self._alone("state_dict", mapping, [name for name in mapping if name in PARTS])
        if own:
            return None
        key = next((key for key in WRAPPERS if key in mapping and self._leads_to_tensors(mapping[key])), None)
        return None if key is None else self._alone(key, mapping, [name for name in mapping if name not in LEFTOVERS])

    def _alone(self, key: str, mapping: Mapping[str, int], beside: Sequence[str]) -> str | None:
        """The key of the state dict, unless parts of the same model lie beside it: then all are read."""
        least = self._leads_to_tensors(mapping[key]) / 20  # what is smaller is no part: a metric, say
        others = [name for name in beside if name != key and self._leads_to_tensors(mapping[name]) > least]
        if any(not self._alike(mapping[key], mapping[name]) for name in others):
            return None
        self.others += others
        return key

    def _part(self, mapping: Mapping[str, int]) -> str:
        """The part that was asked for. InputRefused when there is none of that name."""
        parts = [key for key, node in mapping.items() if self._leads_to_tensors(node)]
        if self.part not in parts:
            known = ", ".join(printable(key, 40) for key in parts[:12]) or "none"
            raise InputRefused(
                f"no part '{printable(self.part)}' with weights; its parts: {known}", code="unknown_name"
            )
        return self.part

    def _alike(self, one: int, other: int) -> bool:
        """Whether two mappings hold the same weights in two versions, as ``params`` and ``params_ema`` do: most names
        of the smaller are in the larger."""
        names, more = (set(self.entries(node) or {}) for node in (one, other))
        return 2 * len(names & more) > min(len(names), len(more))

    def _count(self, node: int) -> int:
        """How many tensors a mapping holds itself."""
        kinds = self.graph.kinds
        return sum(kinds[child] == TENSOR for child in (self.entries(node) or {}).values())

    def _leads_to_tensors(self, node: int) -> int:
        """How many tensors a mapping holds, or the state dict that is wrapped in it."""
        for _ in range(MAX_UNWRAP):
            if self._holds_tensors(node):
                return self._count(node)
            mapping = self.entries(node) or {}
            key = next((key for key in WRAPPERS if key in mapping and self.entries(mapping[key])), None)
            if key is None:
                return 0
            node = mapping[key]
        return 0

    def _flatten(self, name: str, node: int) -> None:
        """Collect the tensors under one key, by dotted name. Containers are entered once, however often referred to."""
        stack = [(name, node, 1)]
        while stack:
            name, node, depth = stack.pop()
            if self.graph.kinds[node] == TENSOR:
                self._add(name, self.graph.values[node])
                continue
            if node in self._seen or depth >= MAX_DEPTH:
                continue
            self._seen.add(node)
            children = self.children(node)
            if children is None:
                self._keep_array(name, node)
                continue
            self._names -= sum(map(len, children)) + len(name) * len(children)
            if self._names < 0:
                raise InputRefused(f"tensor names of more than {MAX_NAMES} characters together")
            stack.extend((f"{name}.{key}", child, depth + 1) for key, child in reversed(children.items()))

    def _add(self, name: str, tensor: Tensor) -> None:
        if name in self.tensors:
            raise InputRefused(f"tensor '{printable(name)}' appears twice")
        if len(self.tensors) >= MAX_TENSORS:
            raise InputRefused(f"more than {MAX_TENSORS} tensors")
        if not name.isascii() and _has_surrogates(name):
            raise InputRefused(f"tensor '{printable(name)}': its name is not valid Unicode")
        self.tensors[name] = tensor

    def _keep_array(self, name: str, node: int) -> None:
        found = array(self.graph, node)
        if found is not None and found.numbers is None and len(self.arrays) < MAX_TENSORS and not _has_surrogates(name):
            self.arrays[name] = found

    def children(self, node: int) -> dict[str, int] | None:
        """Named children of a container that may hold weights, or None."""
        graph = self.graph
        if graph.kinds[node] in (LIST, TUPLE):
            return {str(index): child for index, child in enumerate(graph.values[node])}
        if graph.kinds[node] == OPAQUE and graph.values[node].name in _PARAMETER_CONTAINERS:
            parameters = (self.attributes(node) or {}).get("_parameters")
            return None if parameters is None else self.entries(parameters)
        return self.entries(node)

    def _refuse_empty(self, base: int) -> None:
        """No tensors: fine for an empty state dict, else a refusal that says what there is instead."""
        graph, mapping = self.graph, self.entries(base)
        if mapping == {}:
            return
        nodes = [graph.root, base, *(mapping or {}).values()]
        module = next((node for node in nodes if self._is_module(node)), None)
        if module is not None:
            raise InputRefused(
                f"holds a whole pickled module ({printable(graph.values[module].name)}) instead of its weights; "
                "where it was made, save module.state_dict() with torch.save"
            )
        keys = ", ".join(printable(key, 40) for key in list(mapping or {})[:8])
        raise InputRefused(f"holds no tensors ({'its keys: ' + keys if keys else graph.describe(base)})")

    def _is_module(self, node: int) -> bool:
        state = self.attributes(node)
        return state is not None and ("_modules" in state or "_parameters" in state)


def _read_entries(graph: Graph, node: int) -> dict[str, int] | None:
    kind, items = graph.kinds[node], graph.values[node]
    if kind == OPAQUE:
        items = items.items
        if items is None or len(items) % 2:
            return None
    elif kind != DICT:
        return None
    result: dict[str, int] = {}
    kinds: dict[str, int] = {}
    for at in range(0, len(items), 2):
        key, value = items[at], items[at + 1]
        kind = graph.kinds[key]
        if kind in (TEXT, INT):
            name = str(graph.values[key])
        elif kind == BYTES:
            name = graph.values[key].decode("utf-8", "backslashreplace")
        else:
            continue
        if kinds.setdefault(name, kind) != kind and TENSOR in (graph.kinds[value], graph.kinds[result[name]]):
            raise InputRefused(f"tensor '{printable(name)}' appears twice (once not as text)")
        result[name] = value
    return result


def _summarise(graph: Graph, beside: list[tuple[str, int]], found: Contents) -> None:
    """Metadata from what is not weights: ``ckpt.epoch`` = ``3`` and the like."""
    for name, node in beside:
        if name == "__metadata__":
            _own_metadata(graph, node, found)
        elif name not in LEFTOVERS and graph.kinds[node] != TENSOR and len(found.metadata) < MAX_SUMMARIES:
            found.metadata[f"ckpt.{printable(name)}"] = render(graph, node)


def _own_metadata(graph: Graph, node: int, found: Contents) -> None:
    """The text metadata that our own writer stores beside the state dict; what is longer than a pickle's texts can be,
    since parts are referred to again and again, is left out.
    """
    left = MAX_TEXT_TOTAL
    for key, value in (_read_entries(graph, node) or {}).items():
        parts = graph.values[value] if graph.kinds[value] == LIST else [value]
        if all(graph.kinds[part] == TEXT for part in parts):
            left -= len(key) + sum(len(graph.values[part]) for part in parts)
            if left < 0:
                found.notes.append(f"metadata of more than {MAX_TEXT_TOTAL >> 20} MiB were left out")
                return
            text = "".join(graph.values[part] for part in parts)
            if not _has_surrogates(key) and not _has_surrogates(text):
                found.metadata[key] = text


def _has_surrogates(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _remark(graph: Graph, found: Contents, finder: Finder) -> None:
    """Notes: where the weights were, what was left out, what is shared or unreadable."""
    notes = found.notes
    if finder.path:
        notes.append("weights read from " + " → ".join(f"'{key}'" for key in finder.path))
    if finder.others:
        names = ", ".join(f"'{printable(name, 40)}'" for name in finder.others[:8])
        notes.append(f"the same weights in another version not read: {names} (part=… reads one)")
    left = [printable(name, 60) for name, _ in finder.beside if name in LEFTOVERS]
    if left:
        notes.append(f"training leftovers not read: {', '.join(left[:8])}")
    outside = graph.kinds.count(TENSOR) - len({id(tensor) for tensor in finder.tensors.values()})
    if outside > 0:
        notes.append(f"{number_of(outside, 'tensor')} outside the state dict not read")
    unknown = [label for label in graph.called if not known(label)]
    if unknown:
        names = ", ".join(printable(label, 80) for label in unknown[:8])
        notes.append(f"classes not run, kept as text only ({len(unknown)}): {names}")
    if found.unusable:
        name, reason = next(iter(found.unusable.items()))
        notes.append(
            f"not readable: {number_of(len(found.unusable), 'tensor')}, among them '{printable(name)}': {reason}"
        )
    places = [(info.offset, info.nbytes) for info in found.tensors if info.nbytes]
    shared = len(places) - len(set(places))
    if shared:
        notes.append(f"{number_of(shared, 'tensor')} sharing data with another one")
    strided = sum(info.strides is not None for info in found.tensors)
    if strided:
        notes.append(f"{number_of(strided, 'tensor')} not contiguous")
