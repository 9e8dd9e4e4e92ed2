"""A file read in one piece: the same numbers as the reference reader gives, views of one buffer, and one word for equal numbers."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from studio.container import read_header
from studio.errors import FormatError
from studio.lora import formats
from studio.lora.adapter import Adapter, LowRank, carried
from studio.lora.formats.loading import load, sound

CPU = torch.device("cpu")


def lora(folder: Path, dtype: torch.dtype = torch.float16, rank: int = 4) -> Path:
    draw = torch.Generator().manual_seed(1)
    name = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_"
    tensors = {}
    for part in ("q", "k", "v"):
        tensors[f"{name}{part}.lora_down.weight"] = torch.randn(rank, 640, generator=draw).to(dtype)
        tensors[f"{name}{part}.lora_up.weight"] = torch.randn(640, rank, generator=draw).to(dtype)
        tensors[f"{name}{part}.alpha"] = torch.tensor(2.0)
    path = folder / f"{str(dtype)[6:]}.safetensors"
    save_file(tensors, path)
    return path


def test_every_number_format_is_read_as_the_reference_reads_it(tmp_path: Path) -> None:
    """Among them single bytes before larger numbers, which then begin at odd places."""
    kinds = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.int64, torch.int32, torch.int16]
    kinds += [torch.int8, torch.uint8, torch.bool]
    values = {f"{i:02}": torch.arange(3 + i % 2, dtype=torch.float32).to(kind) for i, kind in enumerate(kinds)}
    save_file({**values, "scalar": torch.tensor(2.0)}, tmp_path / "all.safetensors")
    found, expected = load(tmp_path / "all.safetensors", read_header(tmp_path / "all.safetensors")), load_file(tmp_path / "all.safetensors")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape
        assert torch.equal(found[name].float(), value.float())


def test_numbers_at_odd_places_are_read(tmp_path: Path) -> None:
    import json
    import struct

    header = json.dumps({"a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}, "b": {"dtype": "F32", "shape": [2], "data_offsets": [3, 11]}}).encode()
    path = tmp_path / "odd.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes([1, 2, 3]) + struct.pack("<2f", 0.5, -4.0))
    found = load(path, read_header(path))
    assert found["a"].tolist() == [1, 2, 3] and found["b"].tolist() == [0.5, -4.0]


def test_a_file_that_shrank_after_its_header_was_read_is_refused(tmp_path: Path) -> None:
    path = lora(tmp_path)
    header = read_header(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(FormatError, match="shorter than its header says"):
        load(path, header)


def test_layers_as_stored_are_the_same_layers_in_the_formats_of_the_file(tmp_path: Path) -> None:
    path = lora(tmp_path)
    wide, stored = formats.read(path), formats.read(path, stored=True)
    for name, layer in wide.layers.items():
        same = stored.layers[name]
        assert isinstance(layer, LowRank) and isinstance(same, LowRank)
        assert (layer.down.dtype, same.down.dtype, same.up.dtype) == (torch.float32, torch.float16, torch.float16)
        assert torch.equal(layer.down, same.down.float()) and torch.equal(layer.delta(), same.delta()) and same.alpha == 2
    buffers = {tensor.untyped_storage().data_ptr() for layer in stored.layers.values() for tensor in (layer.down, layer.up)}  # type: ignore[union-attr]
    assert len(buffers) == 1, "tensors of a file travel in one copy only as views of one buffer"


def test_a_word_stands_for_numbers_and_not_for_where_they_lie(tmp_path: Path) -> None:
    path = lora(tmp_path)
    stored, again = formats.read(path, stored=True), formats.read(path, stored=True)
    apart = type(stored)(stored.family, {name: LowRank(one.down.clone(), one.up.clone(), one.alpha) for name, one in stored.layers.items()})  # type: ignore[union-attr]
    words = [carried(one, CPU) for one in (stored, again, apart)]
    assert len({word for word, _ in words}) == 1
    for name, layer in stored.layers.items():
        assert isinstance(layer, LowRank)
        for _, layers in words:
            there = layers[name]
            assert isinstance(there, LowRank) and there.down.dtype == torch.float32 and torch.equal(there.down, layer.down.float())
    first = next(iter(apart.layers.values()))
    assert isinstance(first, LowRank)
    first.down[0, 0] += 1
    assert carried(apart, CPU)[0] != words[0][0]


def test_no_numbers_are_found_in_a_file_of_any_format(tmp_path: Path) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        path = lora(tmp_path, dtype)
        tensors = load_file(path)
        for value in (float("inf"), float("nan"), float("-inf")):
            name = next(key for key in tensors if key.endswith("v.lora_up.weight"))
            broken = {**tensors, name: tensors[name].clone()}
            broken[name][5, 1] = value
            save_file(broken, path)
            with pytest.raises(FormatError, match="to_v' holds values that are no numbers \\(its up\\)"):
                formats.read(path)
    large = {key: torch.full_like(value, 3e38) if key.endswith("down.weight") else value for key, value in load_file(lora(tmp_path, torch.float32)).items()}
    save_file(large, tmp_path / "large.safetensors")
    assert formats.read(tmp_path / "large.safetensors").layers, "a sum beyond every number is no number that is missing"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("place", [0, 1, -1])
def test_a_number_that_is_none_is_found_wherever_it_lies(dtype: torch.dtype, place: int, tmp_path: Path) -> None:
    """Among tensors of other formats, and the largest number of a format is none of them."""

    def full(rows: int, columns: int, value: float) -> torch.Tensor:
        return torch.full((rows, columns), value, dtype=torch.float64).to(dtype)

    largest = torch.finfo(dtype).max
    values = {"a": full(5, 7, largest), "b": full(300_000, 1, -largest), "n": torch.arange(3), "o": torch.ones(2)}
    for name in ("", "a", "b"):
        if name:
            values[name].view(-1)[place] = float("nan")
        save_file(values, tmp_path / "f.safetensors")
        tensors = load(tmp_path / "f.safetensors", read_header(tmp_path / "f.safetensors"))
        assert sound(tensors.values()) == (not name)
    assert not sound([torch.tensor([[1.0, 2.0], [float("inf"), 3.0]])[:, 0]]) and sound([torch.tensor([[1.0, float("inf")], [2.0, 3.0]])[:, 0]])


def test_plain_layers_are_read_as_all_others_are(tmp_path: Path) -> None:
    """Kept in the file's format or widened: the same layers, numbers and alphas, and the same refusals."""
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        wide, narrow = formats.read(lora(tmp_path, dtype)), formats.read(lora(tmp_path, dtype), stored=True)
        assert list(wide.layers) == list(narrow.layers) and len(wide.layers) == 3
        for path, layer in wide.layers.items():
            other = narrow.layers[path]
            assert isinstance(layer, LowRank) and isinstance(other, LowRank) and layer.alpha == other.alpha == 2.0
            assert torch.equal(layer.down, other.down.float()) and torch.equal(layer.up, other.up.float())
    plain = load_file(lora(tmp_path))
    first = next(iter(plain)).rpartition(".")[0].removesuffix(".lora_down").removesuffix(".lora_up")
    broken = {
        "do not multiply": {f"{first}.lora_up.weight": torch.ones(640, 3).half()},
        "negative alpha": {f"{first}.alpha": torch.tensor(-1.0)},
        "no single number": {f"{first}.alpha": torch.ones(2)},
        "saved from a run that diverged": {f"{first}.lora_up.weight": torch.full((640, 4), float("inf")).half()},
    }
    twin = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    broken["occurs twice"] = {
        f"{twin}.{kind}": plain[f"{first.replace('to_k', 'to_q').replace('to_v', 'to_q')}.{kind}"] for kind in ("lora_down.weight", "lora_up.weight", "alpha")
    }
    for words, change in broken.items():
        save_file({key: value.clone() for key, value in {**plain, **change}.items()}, tmp_path / "broken.safetensors")
        for stored in (False, True):
            with pytest.raises(FormatError, match=words):
                formats.read(tmp_path / "broken.safetensors", stored=stored)


def test_files_of_the_same_keys_are_told_apart_by_their_headers(tmp_path: Path) -> None:
    """What is remembered of a list of keys is what the keys say, never what another file's header said."""
    tensors = load_file(lora(tmp_path))
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    said = [formats.identify(shapes, {"ss_base_model_version": word}).warnings for word in ("flux1", "sdxl_base_v1-0", "flux1")]
    assert said[0] == said[2] and "tensors decide" in said[0][0] and said[1] == ()
    wider = {key: (8, *shape[1:]) if "down" in key else (*shape[:1], 8) if "up" in key else shape for key, shape in shapes.items()}
    assert formats.identify(shapes).ranks == (4,) and formats.identify(wider).ranks == (8,)


def test_views_of_a_buffer_arrive_as_what_they_are() -> None:
    """Columns of a larger matrix, as the parts of a fused layer are, have the same word and numbers as copies of them."""
    whole = torch.arange(24.0).view(4, 6).half()
    down = torch.arange(12.0).view(4, 3).half()
    views = Adapter("flux", {"a": LowRank(down[:2], whole[:, :2], 2.0), "b": LowRank(down[2:], whole[:, 2:4], 1.0)})
    copies = Adapter("flux", {path: LowRank(layer.down.clone(), layer.up.clone(), layer.alpha) for path, layer in views.layers.items()})  # type: ignore[union-attr]
    (word, moved), (again, also) = carried(views, CPU), carried(copies, CPU)
    assert word == again
    for path, layer in moved.items():
        twin, own = also[path], views.layers[path]
        assert isinstance(layer, LowRank) and isinstance(twin, LowRank) and isinstance(own, LowRank)
        assert torch.equal(layer.up, twin.up) and torch.equal(layer.up, own.up.float()) and torch.equal(layer.down, own.down.float())
    turned = Adapter("flux", {**views.layers, "b": LowRank(down[2:], whole[:, 2:4].flip(0), 1.0)})
    assert carried(turned, CPU)[0] != word
