"""Every method against the values that other tools computed: the native kernels, the reference and the body itself.

The values lie outside the repository (a folder shared/methods/golden above it, or SDS_GOLDEN_METHODS); index.tsv there
says how equal each must be. Every label there is a method's name, but for those that are not offered.
"""

from __future__ import annotations

import csv
import functools
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import sdsurgery
from numeric_tools import CASES, CAST
from sdsurgery.definitions.programs import evaluate_tensor
from sdsurgery.dtypes import F32
from sdsurgery.methods import della, dropout, registered
from sdsurgery.methods.registry import get
from sdsurgery.program.tracing import trace

NOT_OFFERED = {
    "sigmoid.tensor": "no mix: it gives B/2 at alpha 0, and nobody used it",
}
# What a variant is by name, and what the tools say by a parameter.
IMPLIED = {"flatten", "row_wise", "filter_wise", "vote_sgn", "normalize", "select_topk", "rescale"}


class Golden(NamedTuple):
    """One case of index.tsv."""

    row: dict[str, str]
    values: dict[str, np.ndarray]

    @property
    def inputs(self) -> list[np.ndarray]:
        names = self.row["inputs"].split()
        if self.row["formula"] == "ties.count" and self.row["base"] == names[-1]:
            names = [names[-1], *names[:-1]]  # meh takes the base last
        return [self.values[f"in/{name}"] for name in names]

    def of(self, prefix: str) -> dict[str, np.ndarray]:
        """A model's tensors by name."""
        return {name[len(prefix) :]: each for name, each in self.values.items() if name.startswith(prefix)}

    @property
    def masks(self) -> list[np.ndarray]:
        """What the tool drew, input by input."""
        return [each for name, each in sorted(self.values.items()) if name == "noise" or name.startswith("mask/")]

    def bound(self) -> dict[str, Any]:
        return registered()[self.row["formula"]].bind(len(self.inputs), self.parameters())

    def parameters(self) -> dict[str, Any]:
        """As the method takes them."""
        params = registered()[self.row["formula"]].params
        given = json.loads(self.row["parameters"])
        if given.get("weights") == "1/n each":
            del given["weights"]
        return {name: value for name, value in given.items() if name in params or name not in IMPLIED}


def folder() -> Path | None:
    given = os.environ.get("SDS_GOLDEN_METHODS")
    above = [parent / "shared" / "methods" / "golden" for parent in Path(__file__).resolve().parents]
    return next((place for place in ([Path(given)] if given else above) if (place / "index.tsv").is_file()), None)


@functools.cache
def rows() -> list[dict[str, str]]:
    place = folder()
    if place is None:
        return []
    with open(place / "index.tsv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


@functools.lru_cache(maxsize=4)
def tensors(name: str) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    place = folder()
    assert place is not None
    return load_file(place / name)


def cases(label: str) -> list[Golden]:
    found = []
    for row in rows():
        if row["formula"] == label:
            prefix = row["case"] + "/"
            values = {key[len(prefix) :]: each for key, each in tensors(row["file"]).items() if key.startswith(prefix)}
            found.append(Golden(row, values))
    return found


LABELS = list(dict.fromkeys(row["formula"] for row in rows() if row["formula"] not in NOT_OFFERED)) or [""]


@pytest.fixture(name="label", params=LABELS)
def _label(request: pytest.FixtureRequest) -> str:
    label: str = request.param
    if not label:
        pytest.skip("no golden values (a folder shared/methods/golden above the repository, or SDS_GOLDEN_METHODS)")
    assert label in registered(), f"{label} is neither a method nor in NOT_OFFERED"
    return label


# Whose base is not the one that our method counts differences from.
OTHER_BASE = {
    "slerp": "mergekit's word for its first model",
    "add-diff": "mergekit's task_arithmetic, which is add-diff with weights",
}


def test_the_base_is_the_input_that_the_tools_call_so(label: str) -> None:
    told = [row for row in rows() if row["formula"] == label and row["base"] and label not in OTHER_BASE]
    for row in told:
        names = row["inputs"].split()
        place = 0 if label == "ties.count" else names.index(row["base"])  # meh takes the base last
        assert registered()[label].base == "ABCDE"[place], row["case"]


def test_what_is_not_offered_is_no_method() -> None:
    assert not NOT_OFFERED.keys() & registered().keys()


def ways(label: str, inputs: list[np.ndarray], given: dict[str, Any]) -> dict[str, np.ndarray]:
    """One result by the native kernels, the reference and the body."""
    name, _, variant = label.partition(".")
    found = {"native": sdsurgery.apply(name, *inputs, variant=variant or None, **given)}
    method = get(label)
    bound = method.bind(len(inputs), given)
    formula = trace(method, len(inputs), bound)
    stored, *_ = evaluate_tensor(formula, [(each, F32) for each in inputs], F32, "default", False)
    found["reference"] = stored.reshape(inputs[0].shape)
    with np.errstate(all="ignore"):
        found["body"] = np.asarray(method.body(*inputs, **bound))
    return found


def equal(a: np.ndarray, b: np.ndarray) -> bool:
    """Bit for bit, but any NaN is one."""
    number = ~np.isnan(a)
    same = np.array_equal(a.view(np.uint32)[number], b.view(np.uint32)[number])
    return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(number, ~np.isnan(b)) and same


def as_close(tolerance: str, got: np.ndarray, wanted: np.ndarray) -> bool:
    if tolerance == "bits":
        return equal(got, wanted)
    if tolerance == "bits except signed zeros":
        return equal(got + 0.0, wanted + 0.0)
    if tolerance.startswith("rel "):
        number = np.isfinite(wanted)
        away = np.abs(got.astype(np.float64) - wanted)[number].max(initial=0)
        largest = np.abs(wanted[number]).max(initial=0)
        return equal(np.where(number, 0, got), np.where(number, 0, wanted)) and away <= float(tolerance[4:]) * largest
    return bool(
        np.isfinite(got[np.isfinite(wanted)]).all()
    )  # the tool's own value has no meaning, or is one of several


# The tools draw at random: their masks are stored, and what is done with them is compared.
WITH_MASKS = {
    "dare": lambda m, d, p: dropout.dare_of(m, d, p["p"], p["lam"], weights=p["weights"], rescale=True),
    "dare.no-rescale": lambda m, d, p: dropout.dare_of(m, d, p["p"], p["lam"], weights=p["weights"], rescale=False),
    "dare.density": lambda m, d, p: dropout.density_of(m, d, p["density"], p["alpha"], p["fused"]),
    "dare.half": lambda m, d, p: dropout.half_of(m, d, p["alpha"], p["fused"]),
    "dare.wrong-scale": lambda m, d, p: dropout.wrong_scale_of(m, d, p["p"], p["lam"], p["fused"]),
    "dare-mean": lambda m, d, p: dropout.dare_mean_of(m, d, p["probability"], p["rescale"]),
    "dare-linear.mergekit": lambda m, d, p: dropout.linear_of(m, d, p["weights"], p["rescale"], p["lam"]),
    "dare-ties.mergekit": lambda m, d, p: dropout.ties_of(m, d, p["weights"], p["rescale"], p["lam"]),
    "della.mecha": lambda m, d, p: della.della_of(
        m, d, della.single_share(p["p"]), p["k"], vote_sgn=p["vote_sgn"], rescale=True, lam=p["lam"]
    ),
    "della.mergekit": lambda m, d, p: dropout.ties_of(m, d, p["weights"], True, p["lam"], normalize=True),
    "della-linear.mergekit": lambda m, d, p: dropout.linear_of(m, d, p["weights"], True, p["lam"]),
    "add-noise": lambda m, d, p: dropout.noise_of(m[0], d[0], p["alpha"]),
}
REFUSED = {("weighted-subtract", "006")}
"""Cases that we refuse and the tool answers."""


def test_each_golden_case_is_met_by_the_kernels_the_reference_and_the_body(label: str) -> None:
    for case in cases(label):
        tolerance = case.row["tolerance"]
        if case.row["shape"] == "several":
            continue  # of a whole model, below
        if tolerance == "bits" and "pow" in case.row["why"]:
            tolerance = "rel 1e-6"  # no two libraries round a power alike
        where = (label, case.row["case"], case.row["parameters"])
        if tolerance == "refused" or (label, case.row["case"]) in REFUSED:
            with pytest.raises(sdsurgery.UsageError):
                sdsurgery.apply(label, *case.inputs, **case.parameters())
            continue
        if label in WITH_MASKS:
            with np.errstate(all="ignore"):
                got = WITH_MASKS[label](case.inputs, case.masks, case.bound())
            assert as_close(tolerance, got, case.values["out"]), (where, tolerance)
            continue
        found = ways(label, case.inputs, case.parameters())
        assert as_close(tolerance, found["native"], case.values["out"]), (where, tolerance)
        for way, result in found.items():
            assert equal(result, found["native"]), (where, way)


WHOLE_MODELS = {"cosine-a": "alpha", "cosine-b": "alpha", "adjust": "d"}


@pytest.mark.parametrize("label", WHOLE_MODELS)
def test_each_golden_model_is_met_in_memory_and_from_files(label: str, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    if not rows():
        pytest.skip("no golden values (a folder shared/methods/golden above the repository, or SDS_GOLDEN_METHODS)")
    for case in cases(label):
        models = [case.of(f"in/{name}/") for name in case.row["inputs"].split()]
        given = json.loads(case.row["parameters"])
        params = {f"d{k}": d for k, d in enumerate(given["d"], 1)} if "d" in given else {"alpha": given["alpha"]}
        if given.get("family") == "sdxl":  # by its text encoder's names
            for model in models:
                model["conditioner.embedders.0.transformer.text_model.final_layer_norm.bias"] = np.ones(3, np.float32)
        got = sdsurgery.apply_many(label, *models, **params)
        paths = [str(tmp_path / f"{case.row['case']}-{number}.safetensors") for number in range(len(models))]
        for path, model in zip(paths, models, strict=True):
            save_file(model, path)
        sdsurgery.merge(label, paths, out=tmp_path / f"{case.row['case']}.safetensors", **params)
        written = load_file(tmp_path / f"{case.row['case']}.safetensors")
        if label != "adjust":
            once = sdsurgery.apply_many(label, *models, **params, fused=True)
            for name, wanted in case.of("out_fma/").items():
                assert as_close(case.row["tolerance"], once[name], wanted), (label, case.row["case"], name)
        for name, wanted in case.of("out/").items():
            nan = np.isnan(wanted)  # 0/0: A's
            assert as_close(case.row["tolerance"], got[name][~nan], wanted[~nan]), (label, case.row["case"], name)
            assert equal(got[name][nan], models[0][name][nan])
            if given.get("family") != "sdxl":  # these few names are no layout, so files count as SD 1.x
                assert equal(written[name], got[name])


OWN_ORDER = {"similarity-add-diff.matched": "rel 5e-7"}
"""A method whose sums of whole tensors the tool rounds in another order on AVX2: how near its values there are."""


def test_fused_gives_what_the_tools_give_on_avx2(label: str) -> None:
    """The lerp and addcmul of torch, which round once there. A method without them has only the tool's other kernels of
    sums and powers, so its one form is as near to these values as to the others."""
    takes = "fused" in registered()[label].params
    for case in cases(label):
        if "out_fma" not in case.values:
            continue
        tolerance = case.row["tolerance"] if case.row["why"] or not takes else "bits"
        if label in WITH_MASKS:
            tolerance = "bits"
            with np.errstate(all="ignore"):
                got = WITH_MASKS[label](case.inputs, case.masks, {**case.bound(), "fused": True})
        else:
            found = ways(label, case.inputs, case.parameters() | ({"fused": True} if takes else {}))
            got = found["native"]
            for way, result in found.items():
                assert equal(result, got), (case.row["case"], way)
        if tolerance == "bits" and not equal(got, case.values["out_fma"]):
            tolerance = OWN_ORDER.get(label, tolerance)
        assert as_close(tolerance, got, case.values["out_fma"]), (case.row["case"], tolerance)


MULTIPLIES = {"crossover": {"tilt": 1.0}, "dare.wrong-scale": {"lam": 0.7}, "della.mecha": {"lam": 0.3}}
"""Parameters with which a method multiplies and adds, besides α and weights."""
ELSE = {"slerp.norm"}
"""Methods that do so only where there is no arc."""


def test_fused_rounds_once_where_it_multiplies_and_adds() -> None:
    """So it is nearer to the formula in float64 than the same with two roundings."""
    rng = np.random.default_rng(8)
    for name, method in registered().items():
        if "fused" not in method.params or method.across is not None or name in ELSE:
            continue
        count = 3 if method.many else len(method.inputs)
        given = {"alpha": 0.3} if "alpha" in method.params else {}
        if "weights" in method.params and "alpha" not in method.params:
            given = {"weights": [0.3, 0.5, 0.4]}
        given |= MULTIPLIES.get(name, {})
        arrays = [rng.normal(size=4096).astype(np.float32) for _ in range(count)]
        wanted = method.body(*(array.astype(np.float64) for array in arrays), **method.bind(count, given))
        once, twice = (
            np.abs(sdsurgery.apply(name, *arrays, **given, fused=fused) - wanted).sum() for fused in (True, False)
        )
        assert once < twice, name


PEERS = {
    "a1111": "a1111@",
    "supermerger": "supermerger@",
    "sd-mecha": "sd-mecha==",
    "mergekit": "mergekit==",
    "kohya": "sd-scripts@",
    "meh": "meh@",
    "chattiori": "chattiori",
}


@pytest.mark.parametrize("tool", PEERS)
def test_a_compat_form_gives_the_tools_numbers(tool: str) -> None:
    """Those of its fused kernels where it has them: to the bit, or as near as the table of the values says."""
    from sdsurgery.methods.tools import TOOLS

    compared = 0
    for name, form in TOOLS[tool].forms.items():
        for case in cases(form.name):
            row = case.row
            if not row["peer"].startswith(PEERS[tool]) or row["shape"] == "several" or form.name in WITH_MASKS:
                continue
            if row["tolerance"] == "refused" or (form.name, row["case"]) in REFUSED:
                continue
            got = sdsurgery.apply(f"{tool}:{name}", *case.inputs, **case.parameters())
            wanted = case.values.get("out_fma", case.values["out"])
            tolerance = OWN_ORDER.get(form.name, row["tolerance"])
            tolerance = "rel 1e-6" if tolerance == "bits" and "pow" in row["why"] else tolerance
            assert as_close(tolerance, got, wanted), (name, row["case"], tolerance)
            compared += 1
    assert compared or not rows()


# ---- tensors at the edges, of every method


EDGES = [
    (shape, kind)
    for shape, kinds in (
        ((), ("normal", "zero", "inf")), ((1,), ("normal", "nan")), ((0, 3), ("normal",)), ((5,), ("normal", "nan")),
        *((shape, ("normal", "zero", "equal", "nan", "inf")) for shape in ((3, 4), (2, 3, 3, 3))),
    )
    for kind in kinds
]  # fmt: skip


@pytest.mark.parametrize(("shape", "kind"), EDGES, ids=str)
def test_every_method_has_the_reference_s_answer_at_the_edges(shape: tuple[int, ...], kind: str) -> None:
    """0-d, empty and one-element tensors; all zero, all equal, with a NaN, with an Inf."""
    rng = np.random.default_rng(1)
    for case in CASES.values():
        if case is CAST:  # no method
            continue
        arrays = [rng.normal(size=shape).astype(np.float32) for _ in range(case.count)]
        if kind == "zero":
            arrays = [np.zeros(shape, np.float32) for _ in arrays]
        elif kind == "equal":
            arrays = [arrays[0].copy() for _ in arrays]
        elif kind != "normal":
            arrays[-1] = arrays[-1].copy()
            arrays[-1][(0,) * len(shape)] = np.float32(kind)
        got = sdsurgery.apply(case.method.name, *arrays, **case.given)
        formula = case.formula
        method = get(case.method.name)
        if method.across is not None:
            with np.errstate(all="ignore"):
                found = method.across.statistic(*arrays).values.reshape(-1)
            formula = trace(method.across.known(method, found), case.count, case.params)
        wanted, *_ = evaluate_tensor(formula, [(each, F32) for each in arrays], F32, "default", False)
        assert equal(np.asarray(got), wanted.reshape(shape)), case.label
        if kind in ("zero", "equal", "normal") and case.method.name not in OPEN:
            assert np.isfinite(got).all(), case.label


OPEN = {"geometric-sum", "geometric-sum.real", "model-stock.consecutive"}  # powers of 0 and below; no guard


# ---- where a definition has no value of its own, or its numbers end


def test_at_their_ends_methods_give_what_their_tools_give() -> None:
    a, b = np.float32([1, -2, 3, 4]), np.float32([5, 6, -7, 8])
    for tilt in (0.0, 0.5, 2.0, 3.5):  # B itself, its mean too
        assert equal(sdsurgery.apply("crossover", a, b, alpha=1, tilt=tilt), b)
    square = np.random.default_rng(0).normal(size=(2, 10, 10)).astype(np.float32)
    cut = sdsurgery.apply("crossover", square[0], square[1], alpha=0.8)  # ρ at 0.2 is no higher than 1 − 0.8 in float32
    spectrum = np.fft.rfftn(cut - square[0])
    assert abs(spectrum[1, 0]) < 1e-4 * abs(spectrum).max()
    inf = np.float32([np.inf, 1, 2])
    assert equal(sdsurgery.apply("sparse-top-k", np.zeros(3, np.float32), inf, beta=0.1), np.zeros(3, np.float32))
    ram = sdsurgery.apply("ram-plus", np.zeros(2, np.float32), np.float32([0, 1]), np.float32([0, 0]), epsilon=0, r=1)
    assert equal(ram, np.float32([0, 1]))


def test_opposite_models_have_a_mean_no_larger_than_they_are() -> None:
    for values in ([2.0, 1.0, -1.5, 3.0], [1.0, -2.0, -1.0]):
        models = [np.float32([value]) for value in values]
        assert abs(sdsurgery.apply("karcher", *models)[0]) <= max(map(abs, values))


@pytest.mark.parametrize("name", ["ties", "breadcrumbs", "breadcrumbs-ties", "arcee-fusion", "nuslerp"])
def test_a_nan_of_a_model_is_carried(name: str) -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(2, 4, 8)).astype(np.float32)
    b[1, 2] = np.nan
    assert np.isnan(sdsurgery.apply(name, a, b)[1, 2])


@pytest.mark.parametrize(
    ("name", "given", "text"),
    [
        ("n-sum.normalised", {"weights": [0.1, 0.2, -0.3]}, "sum to 0"),
        ("multislerp", {"weights": [0.3, 0.5, -0.8]}, "sum to 0"),
        ("weighted-subtract", {"alpha": 1, "beta": 1}, "alpha·beta is 1"),
        ("tensor-sum", {"alpha": -0.4}, r"must be in \[0, 1\]"),
        ("tensor-sum-2", {"beta": 1.2}, r"must be in \[0, 1\]"),
    ],
)
def test_parameters_without_a_result_are_refused(name: str, given: dict[str, Any], text: str) -> None:
    inputs = [np.ones(4, np.float32)] * (3 if "weights" in given else 2)
    with pytest.raises(sdsurgery.UsageError, match=text):
        sdsurgery.apply(name, *inputs, **given)
