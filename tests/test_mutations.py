"""Damaged files of every format, by chance but from a fixed seed: each is read or refused in one line, soon and in little memory."""

import json
import random
import resource
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from studio import container
from studio.errors import FormatError
from studio.lora import formats

SECONDS, BYTES = 30.0, 500 * 2**20
EXTREMES = [0, 1, -1, 2, 3, 7, 255, 2**31, 2**32, 2**53, 2**62, 2**63, 2**64, 10**30, 1.5, True, None, "2", [], {}]
SUFFIXES = [
    "lora_down.weight",
    "lora_up.weight",
    "alpha",
    "dora_scale",
    "hada_w1_a",
    "lokr_w1",
    "lokr_w2_a",
    "lokr_t2",
    "lora_mid.weight",
    "diff",
    "diff_b",
    "x",
]


def seeds() -> list[bytes]:
    """Small sound files: LDM names with every kind of layer, FLUX.1's fused names, PEFT with metadata, XLabs."""

    def low(name: str, out: int, into: int, down: str = "lora_down.weight", up: str = "lora_up.weight") -> dict[str, torch.Tensor]:
        return {f"{name}.{down}": torch.rand(2, into), f"{name}.{up}": torch.rand(out, 2), f"{name}.alpha": torch.tensor(1.0)}

    block = "lora_unet_input_blocks_4_1_"
    loha = {f"{block}proj_out.hada_{k}": torch.rand(s) for k, s in (("w1_a", (6, 2)), ("w1_b", (2, 8)), ("w2_a", (6, 2)), ("w2_b", (2, 8)))}
    lokr = {f"{block}transformer_blocks_0_ff_net_2.lokr_{k}": torch.rand(s) for k, s in (("w1", (2, 2)), ("w2_a", (3, 2)), ("w2_b", (2, 4)))}
    conv = "lora_unet_input_blocks_1_0_in_layers_2."
    tucker = {f"{conv}lora_{k}.weight": torch.rand(s) for k, s in (("mid", (2, 2, 3, 3)), ("down", (2, 4, 1, 1)), ("up", (4, 2, 1, 1)))}
    more = {f"{block}proj_in.dora_scale": torch.rand(1, 8), "bundle_emb.word.clip_l": torch.rand(1, 8), f"{block}norm.w_norm": torch.rand(8)}
    sdxl = {**low(block + "proj_in", 8, 8), **loha, **lokr, **tucker, **more}
    flux = {**low("lora_unet_double_blocks_0_img_attn_qkv", 24, 8), **low("lora_unet_single_blocks_0_linear1", 56, 8)}
    flux |= low("lora_unet_final_layer_adaLN_modulation_1", 16, 8)
    flux |= {f"lora_unet_double_blocks_1_txt_attn_qkv.lokr_{k}": torch.rand(s) for k, s in (("w1", (2, 2)), ("w2", (12, 4)))}
    peft = {f"transformer.transformer_blocks.{i}.attn.to_q.lora_{ab}.weight": torch.rand(2, 2) for i in (0, 1) for ab in "AB"}
    stated = {"lora_adapter_metadata": json.dumps({"transformer.r": 2, "transformer.lora_alpha": 4, "transformer.alpha_pattern": {"1.attn.to_q": 1}})}
    xlabs = {f"double_blocks.0.processor.qkv_lora1.{k}.weight": torch.rand(s) for k, s in (("down", (2, 8)), ("up", (24, 2)))}
    half = {key: tensor.half() for key, tensor in sdxl.items()}
    return [save(sdxl, {"ss_base_model_version": "sdxl_base_v1-0"}), save(flux), save(peft, stated), save(xlabs), save(half)]


def damage(content: bytes, chance: random.Random) -> bytes:
    return chance.choice([_bytes, _bytes, _header_bytes, _cut, _structure, _structure, _structure, _numbers])(content, chance)


def _bytes(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(chance.randint(1, 8)):
        at = chance.randrange(len(changed))
        action = chance.randrange(3)
        if action == 0:
            changed[at] = chance.randrange(256)
        elif action == 1:
            changed[at:at] = chance.randbytes(chance.randint(1, 9))
        else:
            del changed[at : at + chance.randint(1, 9)]
    return bytes(changed)


def _header_bytes(content: bytes, chance: random.Random) -> bytes:
    """Changes within the header, its length kept right."""
    (length,) = struct.unpack("<Q", content[:8])
    raw = bytearray(content[8 : 8 + length])
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(raw))
        patch = [b"0", b"9" * chance.randint(1, 30), b'"', b"{", b"[" * chance.randint(1, 2000), b"\xff", b"\\ud800", b"null"]
        raw[at : at + chance.randint(0, 3)] = chance.choice(patch)
    return struct.pack("<Q", len(raw)) + bytes(raw) + content[8 + length :]


def _cut(content: bytes, chance: random.Random) -> bytes:
    end = chance.randrange(len(content))
    return content[:end] if chance.random() < 0.7 else content[:end] + b"\0" * chance.randint(1, 10_000)


def _structure(content: bytes, chance: random.Random) -> bytes:
    """A header that is sound JSON and says something else."""
    (length,) = struct.unpack("<Q", content[:8])
    table = json.loads(content[8 : 8 + length])
    for _ in range(chance.randint(1, 3)):
        names = [name for name in table if name != "__metadata__"]
        name = chance.choice(names)
        action = chance.randrange(7)
        if action == 0:
            table[name]["shape"] = [chance.choice(EXTREMES) for _ in range(chance.randint(0, 5))]
        elif action == 1:
            table[name]["data_offsets"] = [chance.choice(EXTREMES), chance.choice(EXTREMES)]
        elif action == 2:
            table[name]["dtype"] = chance.choice(["F64", "F16", "BF16", "I64", "F8_E4M3", "BOOL", "F4", "C64", "?", None])
        elif action == 3 and len(names) > 1:
            table[chance.choice(names)], table[name] = table[name], table[chance.choice(names)]
        elif action == 4:
            stem = name.rpartition(".")[0].removesuffix(".lora_down").removesuffix(".lora_up")
            table[f"{stem}.{chance.choice(SUFFIXES)}"] = table.pop(name)
        elif action == 5:
            table["__metadata__"] = chance.choice(
                [{"lora_adapter_metadata": chance.choice(["{", "[]", '{"transformer.alpha_pattern": 3}', "7"])}, {"a": 1}, [], "x"]
            )
        elif isinstance(table[name].get("shape"), list):
            chance.shuffle(table[name]["shape"])
    raw = json.dumps(table).encode()
    return struct.pack("<Q", len(raw)) + raw + content[8 + length :]


def _numbers(content: bytes, chance: random.Random) -> bytes:
    """Other values in the tensors: infinities, no numbers, negatives."""
    (length,) = struct.unpack("<Q", content[:8])
    body = bytearray(content[8 + length :])
    for _ in range(chance.randint(1, 5)):
        at = chance.randrange(max(1, len(body) - 4))
        body[at : at + 4] = chance.choice([b"\xff\xff\xff\xff", b"\0\0\x80\x7f", b"\0\0\x80\xff", b"\0\0\x80\xbf", b"\xff\xff\x7f\x7f", b"\0\0\0\0"])
    return content[: 8 + length] + bytes(body)


def run(n: int, path: Path, seed: int) -> dict[str, float]:
    """Read n damaged files; how many were refused, the slowest in seconds, the memory that was needed beyond the start in bytes."""
    chance, sound = random.Random(seed), seeds()
    path.write_bytes(sound[0])
    formats.read(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused, slowest = 0, 0.0
    for _ in range(n):
        content = damage(chance.choice(sound), chance)
        path.write_bytes(content)
        began = time.perf_counter()
        refused += _refused(path)
        slowest = max(slowest, time.perf_counter() - began)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return {"files": n, "refused": refused, "slowest_seconds": round(slowest, 3), "memory_bytes": grown}


def _refused(path: Path) -> bool:
    try:
        header = container.read_header(path)
        formats.identify(header.shapes, header.metadata)
        container.nonfinite(path, header)
        formats.read(path, partial=True)
    except FormatError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000, str(error)
        return True
    return False


@pytest.mark.parametrize("n", [1_000, pytest.param(100_000, marks=pytest.mark.long)])
def test_damaged_files_neither_crash_nor_hang_nor_fill_the_memory(tmp_path: Path, n: int, record: Callable[[dict[str, float]], None]) -> None:
    found = run(n, tmp_path / "some.safetensors", seed=n)
    record(found)
    assert 0.5 * n < found["refused"] < n, "some damage must be harmless and some not, or this proves nothing"
    assert found["slowest_seconds"] < SECONDS and found["memory_bytes"] < BYTES


@pytest.fixture
def record(capsys: pytest.CaptureFixture[str]) -> Callable[[dict[str, float]], None]:
    def show(found: dict[str, float]) -> None:
        with capsys.disabled():
            print(f" {found}", end="")

    return show


def test_the_undamaged_files_are_read(tmp_path: Path) -> None:
    for content in seeds():
        (tmp_path / "f").write_bytes(content)
        assert formats.read(tmp_path / "f").layers
