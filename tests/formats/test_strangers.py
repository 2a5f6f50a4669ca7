"""Files that are not checkpoints: the refusal says what they are and what to do."""

from __future__ import annotations

import gzip
import json
import pickle
import zipfile

import pytest
import sdsurgery
from cli_support import write_raw
from sdsurgery.errors import InputRefused
from torch_support import saved, torch

PICKLE_0 = "a pickle of protocol 0 or 1"
STRANGERS = {
    "protocol 0": (pickle.dumps({"a": 1}, protocol=0), f"{PICKLE_0} with the opcodes INT, UNICODE, DICT, PUT, which"),
    "protocol 1": (pickle.dumps({"a": 1}, protocol=1), f"{PICKLE_0}, which"),
    "instance": (b"(S'x'\nia.b\nC\n.", f"{PICKLE_0} with the opcodes STRING, INST, which"),
    "object": (b"(ca.b\nC\nS'x'\no.", f"{PICKLE_0} with the opcodes STRING, OBJ, which"),
    "extension": (b"\x82\x01)R0N0N.", f"{PICKLE_0} with the opcode EXT1, which"),
    "persistent id": (b"Pthe key\n.", f"{PICKLE_0} with the opcode PERSID, which"),
    "legacy stream of protocol 0": (
        saved({"a": torch.ones(2)}, "legacy", 1),
        f"{PICKLE_0} with the opcodes INT, LONG, which",
    ),
    "harmful": (
        b"cos\nsystem\n(S'true'\ntR.",
        "suspicious: loading it could have run os.system. Nothing was run here; it",
    ),
    "large": (b"(lp1\n" + b"I1\na" * 800_000 + b".", PICKLE_0),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
    "web page": (b"\n<!DOCTYPE HTML>\n<html>", "a web page"),
    "gzip": (gzip.compress(b"x" * 100), "compressed by gzip; unpack it first"),
    "GGUF": (b"GGUF\x03\0\0\0".ljust(100, b"\1"), "GGUF"),
    "prose": (b"I like it.\nSo do you.\n", "a short text in place of a checkpoint, as a failed download leaves it"),
    "error in JSON": (b'{"error":"Unauthorized","message":"log in to download"}', "failed download"),
    "error in XML": (b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>', "failed download"),
    "error as text": (b"Entry not found", "failed download"),
    "settings": (b'{\n  "_class_name": "UNet2DConditionModel"\n}\n', "a model's settings"),
    "PNG": (b"\x89PNG\r\n\x1a\n" + bytes(300), "a PNG picture"),
    "JPEG": (b"\xff\xd8\xff\xe0" + bytes(300), "a JPEG picture"),
    "zeros": (bytes(5000), "only zeros"),
    "few zeros": (bytes(20), "only zeros"),
    "page behind a comment": (b"<!-- saved from x -->\n<HTML>", "a web page"),
    "error in UTF-16": ('{"error": "Unauthorized"}'.encode("utf-16"), "failed download"),
    "YAML": (b"model:\n  target: ldm.models.diffusion.ddpm.LatentDiffusion\n", "a YAML text, a model's settings"),
    "sound beside pictures": (b"RIFF\x10\0\0\0AVI LIST" + bytes(100), "a video"),
    "video": (b"\0\0\0\x20ftypisom" + bytes(100), "a video"),
    "PDF": (b"%PDF-1.4" + bytes(100), "a PDF document"),
    "program": (b"MZ\x90\0" + bytes(300), "a program"),
    "shortcut": (b"[InternetShortcut]\r\nURL=https://example.org/\r\n", "a shortcut to a web page"),
    "torrent": (b"d8:announce35:udp://tracker" + bytes(100), "a torrent"),
    "one byte": (b"\n", "1 byte is too short"),
    "three bytes": (b"404", "3 bytes are too short"),
    "number": (b"12345678901.", "not a checkpoint of a known format"),
}


@pytest.mark.parametrize("case", STRANGERS)
def test_files_of_other_formats_are_identified_in_the_refusal(case, tmp_path):
    data, words = STRANGERS[case]
    (tmp_path / "x.ckpt").write_bytes(data)
    with pytest.raises(InputRefused) as caught:
        sdsurgery.open(tmp_path / "x.ckpt")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_archive_with_a_model_inside_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
        archive.writestr("folder/model.safetensors", b"x" * 100)
    with pytest.raises(InputRefused, match=r"model\.safetensors'\); unpack it first"):
        sdsurgery.open(tmp_path / "model.zip")


def test_folders_are_named_with_the_file_to_give(tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(InputRefused, match="a diffusers folder"):
        sdsurgery.open(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(InputRefused, match=r"in shards; give its index, .*model\.safetensors\.index\.json"):
        sdsurgery.open(tmp_path)


def test_settings_name_the_weights_beside_them_and_folders_files_that_are_there(tmp_path):
    (tmp_path / "unet").mkdir()
    weights = tmp_path / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    weights.write_bytes(b"x")
    for name, text in (("model_index.json", '{"_class_name": "P"}'), ("unet/config.json", '{"_class_name": "U"}')):
        (tmp_path / name).write_text(text)
        with pytest.raises(InputRefused) as caught:
            sdsurgery.open(tmp_path / name)
        assert f"such as {weights};" in str(caught.value)
    with pytest.raises(InputRefused) as caught:
        sdsurgery.open(tmp_path)
    assert str(caught.value).endswith(f"such as {weights}")


def test_a_shard_alone_is_named_with_its_index_and_one_that_is_missing_too(tmp_path):
    first = write_raw(tmp_path / "model-00001-of-00002.safetensors", {"x": ("F32", [1], b"\0\0\x80?")})
    (found,) = [note for note in sdsurgery.inspect(first).notes if getattr(note, "code", "") == "shard"]
    assert "is shard 1 of 2 of a model; get all of them" in found
    index = tmp_path / "model.safetensors.index.json"
    second = "model-00002-of-00002.safetensors"
    index.write_text(json.dumps({"weight_map": {"x": first.name, "y": second}}))
    (found,) = sdsurgery.cast(first, dry_run=True).warnings
    assert str(found).endswith(f"give {index} for the whole")
    with pytest.raises(InputRefused, match=f"shard '{second}' is missing; download it"):
        sdsurgery.open(index)
