"""Weights straight from their files: the same bits as by the library, in any number format, from any number of files."""

from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from studio import container
from studio.errors import BaseError
from studio.families import parts, single, sources, straight
from studio.families.stored import FLOATS

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("base", "part", "kind"), [("demo-sdxl", "unet", UNet2DConditionModel), ("demo-flux", "transformer", FluxTransformer2DModel)])
def test_a_denoiser_is_what_the_library_reads(base: str, part: str, kind: type, dtype: torch.dtype) -> None:
    folder = sources.find(base).path
    state = straight.read((folder / part).glob("*.safetensors"), dtype, CPU)
    ours = single.filled(folder, lambda: kind.from_config(parts.read_json(folder / part / "config.json")), state)  # type: ignore[attr-defined]
    theirs = parts.read_model(kind, folder, part, dtype)
    found, expected = ours.state_dict(), theirs.state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    assert dict(ours.config) | {"_name_or_path": ""} == dict(theirs.config) | {"_name_or_path": ""}


def test_tensors_longer_than_a_chunk_and_of_every_format_come_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(straight, "CHUNK", 100)
    torch.manual_seed(0)
    stored = {name: torch.randn(7, 33).to(getattr(torch, container.TORCH[name])) for name in FLOATS}
    save_file(stored, tmp_path / "a.safetensors")
    save_file({"more": torch.randn(64), "one": torch.tensor(3.5)}, tmp_path / "b.safetensors")
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    found = straight.read(files, torch.float32, CPU)
    expected = load_file(files[0]) | load_file(files[1])
    assert found.keys() == expected.keys() and all(torch.equal(tensor, expected[name].float()) for name, tensor in found.items())


def test_what_is_no_sound_file_of_weights_is_refused_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    save_file({"x": torch.zeros(8, dtype=torch.int32)}, file)
    with pytest.raises(BaseError, match="floating-point weights"):
        straight.read([file], torch.float32, CPU)
    save_file({"x": torch.zeros(100)}, file)
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(BaseError, match=r"a\.safetensors"):
        straight.read([file], torch.float32, CPU)
    with pytest.raises(BaseError, match="ends too early"):
        straight.Reader(CPU).tensor(straight.Place(file, torch.float32, (1000,), 0))
