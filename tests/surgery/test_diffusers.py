"""What merge, ema, prune and replace write loads in diffusers: ``from_single_file`` with a local configuration.

The families are sd1 and sdxl-base at reduced width: the true names and layers, 32 instead of 320 channels. Each output
must load like a file that torch and safetensors made in the straightforward way, and the pipeline must run.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sdsurgery
from reduced_models import FAMILIES, REDUCED, configuration, pipeline, reduced_families, weights
from sdsurgery.testing import write_checkpoint

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when it is imported: nothing here is to be fetched
NEEDED = ("diffusers", "transformers", "accelerate", "torch", "safetensors")
LACKING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(LACKING), reason=f"not installed: {', '.join(LACKING)} (pip install {' '.join(LACKING)})"),
]


@pytest.fixture
def reduced() -> Iterator[None]:
    with reduced_families():
        yield


# ---- the straightforward way, and ours

State = dict[str, Any]


def load(path: Path) -> State:
    from safetensors.torch import load_file

    return dict(load_file(path))


def merged(a: State, b: State) -> State:
    import torch

    found = {}
    for name, value in a.items():
        same = not value.is_floating_point() or value.dtype == torch.float32  # position_ids; the noise schedules
        mixed = (1 - 0.3) * value.float() + 0.3 * b[name].float()
        found[name] = value if same else mixed.to(value.dtype)
    return found


def averaged(a: State, b: State) -> State:
    twin = "model_ema.{}".format
    kept = {name: value for name, value in a.items() if not name.startswith("model_ema.")}
    return {
        name: a[twin(name[6:].replace(".", ""))] if name.startswith("model.diffusion_model.") else value
        for name, value in kept.items()
    }


def without_ema(a: State, b: State) -> State:
    return {name: value for name, value in a.items() if not name.startswith("model_ema.")}


def with_other_vae(a: State, b: State) -> State:
    return {name: b[name] if name.startswith("first_stage_model.") else value for name, value in a.items()}


Verb = Callable[[Path, Path, Path], Any]
CASES: dict[str, tuple[Verb, Callable[[State, State], State], bool]] = {
    # name: our verb, the straightforward way, whether A has an EMA twin
    "merge": (lambda a, b, o: sdsurgery.merge("weighted-sum", [a, b], alpha=0.3, out=o, sync=False), merged, False),
    "ema": (lambda a, b, o: sdsurgery.ema(a, out=o, sync=False), averaged, True),
    "prune": (lambda a, b, o: sdsurgery.prune(a, preset="inference", out=o, sync=False), without_ema, True),
    "replace": (lambda a, b, o: sdsurgery.replace(a, {"vae": b}, out=o, sync=False), with_other_vae, False),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", CASES)
def test_outputs_load_and_run_in_diffusers(case: str, family: str, tmp_path: Path, reduced: None) -> None:
    import torch
    from safetensors.torch import save_file

    verb, straightforward, ema = CASES[case]
    a, b, out, plain = (tmp_path / f"{name}.safetensors" for name in ("a", "b", "out", "plain"))
    write_checkpoint(a, family, ema=ema)
    write_checkpoint(b, family, seed=1)
    report = verb(a, b, out)
    assert report.family == family
    save_file(straightforward(load(a), load(b)), plain, metadata={"format": "pt"})

    config = configuration(tmp_path / "config", family)
    ours, theirs = (pipeline(path, config, family) for path in (out, plain))
    left, right = weights(ours), weights(theirs)
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert value.device.type == "cpu", f"{name} was not in the file"
        assert torch.equal(value, right[name]), name

    stored = load(out)
    unused = ("logit_scale", "position_ids", "denoiser.sigmas")
    model = [value for name, value in stored.items() if "." in name and not name.endswith(unused)]
    loaded = [value for name, value in left.items() if not name.endswith("position_ids")]
    assert sum(value.numel() for value in loaded) == sum(value.numel() for value in model), "every weight was taken"

    ours.set_progress_bar_config(disable=True)
    image = ours("a", num_inference_steps=1, height=64, width=64, output_type="latent", guidance_scale=1.0).images
    assert image.shape == (1, 4, 8, 8)
    assert torch.isfinite(image).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_what_diffusers_saves_can_be_put_into_a_checkpoint(family: str, tmp_path: Path, reduced: None) -> None:
    """A pipeline's folders are donors: q, k and v are joined, the projection is transposed, nothing else differs."""
    import torch

    a, b, out = (tmp_path / f"{name}.safetensors" for name in ("a", "b", "out"))
    write_checkpoint(a, family)
    write_checkpoint(b, family, seed=1)
    pipeline(b, configuration(tmp_path / "config", family), family).save_pretrained(tmp_path / "saved")
    components = {part.component for part in REDUCED[family].parts} - {"buffers"}
    donors = {name: next((tmp_path / "saved" / name).glob("*.safetensors")) for name in sorted(components)}
    report = sdsurgery.replace(a, donors, out=out, allow_missing=True, dtype="fp16", sync=False)
    found, old, new = load(out), load(a), load(b)
    assert found.keys() == old.keys()
    lacking = {name for names in report.missing.values() for name in names}
    assert all(name.endswith("logit_scale") for name in lacking)  # the only tensor that diffusers doesn't load
    for name, value in found.items():
        kept = name in lacking or REDUCED[family].component(name) == "buffers"
        assert torch.equal(value, (old if kept else new)[name]), name
