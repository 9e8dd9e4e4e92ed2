"""Bake and extract on the demo bases, whose weights are stored in 8 and 16 bits: bit for bit what a live stack makes."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from studio import metadata
from studio.config import GenerateConfig
from studio.errors import BaseError, FormatError, InputError
from studio.events import Warned
from studio.families import get, sources, stored
from studio.families.base import Base, Components
from studio.generation.sampler import generate, open_base
from studio.generation.stack import Stack
from studio.lora.adapter import Adapter, Decomposed, LowRank
from studio.lora.tools import bake as baking
from studio.lora.tools.bake import bake
from studio.lora.tools.extract import Plan, extract
from tests.generation.conftest import Asked, adapter
from tests.lora.test_tools import off, result

MODELS = {"sdxl": ("unet", "text_encoder", "text_encoder_2", "vae"), "flux": ("transformer", "text_encoder", "text_encoder_2", "vae")}


@pytest.fixture(scope="module", params=["demo-sdxl", "demo-flux"])
def loaded(request: pytest.FixtureRequest) -> Components:
    return open_base(sources.find(request.param), "fp32", "cpu")


@pytest.fixture
def c(loaded: Components) -> Iterator[Components]:
    """A base without a stack, before and after."""
    yield loaded
    if "stack" in loaded.warm:
        loaded.warm["stack"].clear()


def denoiser(c: Components, seed: int = 1) -> Adapter:
    return adapter(c, seed, (".attn", "resnets", "proj_mlp"), rank=4)


def drawn(c: Components, folder: Path, stack: list[tuple[Adapter, float]]) -> torch.Tensor:
    from PIL import Image

    config = GenerateConfig(base=c.base.name, prompt="a red apple", seed=5, steps=3, precision="fp32", stack_mode="baked")
    list(generate(c, stack, config, folder, requests=Asked(), names=["a"] * len(stack)))
    with Image.open(next((folder / "images").glob("*.png"))) as picture:
        return torch.tensor(list(picture.tobytes()))


def weights(c: Components) -> dict[str, torch.Tensor]:
    return {f"{part}.{name}": tensor for part in MODELS[c.facts.name] for name, tensor in c.parts[part].state_dict().items()}


@pytest.mark.parametrize("name", ["baked.safetensors", "baked"])
def test_a_baked_base_loads_as_the_stack_bakes_it(c: Components, tmp_path: Path, name: str) -> None:
    """Every tensor bit for bit, and so the same picture from the same seed; as one file and as a folder."""
    lora = denoiser(c)
    report = result(bake(c.base, [("a", lora, 0.7)], tmp_path / name, "fp32"))
    assert report["layers"] == len(lora.layers) == report["changed"] and not report["left_out"]
    again = open_base(sources.find(str(tmp_path / name)), "fp32", "cpu")
    picture = drawn(c, tmp_path / "live", [(lora, 0.7)])
    live, found = weights(c), weights(again)
    assert live.keys() == found.keys()
    assert all(torch.equal(live[path], found[path]) for path in live)
    # Equal weights at other addresses may take other CPU kernels, whose sums end in another last bit: one step of 255 at most.
    assert int((drawn(again, tmp_path / "baked-pictures", []) - picture).abs().max()) <= 1
    assert int((drawn(c, tmp_path / "plain", []) - picture).abs().max()) > 20, "the LoRA has an effect, so the comparison says something"


def test_diffusers_reads_a_baked_checkpoint_as_we_do(tmp_path: Path) -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    base = sources.find("demo-sdxl")
    c = open_base(base, "fp32", "cpu")
    result(bake(base, [("a", denoiser(c), 0.7)], tmp_path / "baked.safetensors", "fp32"))
    Stack(c).set([(denoiser(c), 0.7)], mode="baked")
    for kind, part in ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae")):
        theirs = kind.from_single_file(str(tmp_path / "baked.safetensors"), config=str(base.path), subfolder=part, local_files_only=True).state_dict()
        assert theirs.keys() == c.parts[part].state_dict().keys()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in c.parts[part].state_dict().items())


def test_the_sum_is_rounded_once(c: Components, tmp_path: Path) -> None:
    lora, other = denoiser(c), denoiser(c, 2)
    result(bake(c.base, [("a", lora, 0.7), ("b", other, -0.4)], tmp_path / "half.safetensors", "fp16"))
    own = weights(c)
    with stored.opened(sources.identify(tmp_path / "half.safetensors")) as baked:
        for path, layer in lora.layers.items():
            exact = own[f"{path}.weight"].double() + 0.7 * layer.delta().double() - 0.4 * other.layers[path].delta().double()  # type: ignore[call-arg]
            found = baked.read(f"{path}.weight").double()
            step = torch.maximum(exact.abs() * 2**-11, torch.tensor(2.0**-25))
            assert ((found - exact).abs() <= step + 1e-7).all(), "within half a step of fp16, and what fp32 rounds"


def test_number_formats_are_those_asked_for(c: Components, tmp_path: Path) -> None:
    lora = denoiser(c)
    formats: list[tuple[baking.Dtype, set[str]]] = [("stored", {"F16"}), ("bf16", {"BF16"}), ("fp32", {"F32"})]
    for dtype, expected in formats:
        output = tmp_path / f"{dtype}.safetensors"
        result(bake(c.base, [("a", lora, 1.0)], output, dtype))
        header = metadata.read_header(output)
        own = {number for name, number in header.dtypes.items() if not name.startswith("first_stage_model.")}
        assert own == expected, "8 bits would swallow the change"
        assert {number for name, number in header.dtypes.items() if name.startswith("first_stage_model.")} <= {"F16"}, "the VAE stays as it was"
        assert header.metadata["modelspec.hash_sha256"] == "0x" + metadata.tensor_hash(output)
        assert header.metadata["modelspec.merged_from"].endswith(", random-1 1")


def test_a_file_baked_again_keeps_all_it_came_with(c: Components, tmp_path: Path) -> None:
    """Markers, position ids and foreign tensors go through; the second bake adds to the first."""
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    result(bake(c.base, [("a", denoiser(c), 0.5)], first, "fp32"))
    others = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)} if c.facts.denoiser == "unet" else {}
    if others:
        others["conditioner.embedders.0.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
        others["denoiser.sigmas"] = torch.linspace(0, 1, 5)
    save_file({**load_file(first), **others}, first, dict(metadata.read_header(first).metadata))
    base = sources.identify(first)
    result(bake(base, [("a", denoiser(c), 0.5)], second, "stored"))
    found = load_file(second)
    assert found.keys() == load_file(first).keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in others.items())
    assert sources.identify(second).habits.get("objective") == base.habits.get("objective") == ("v" if others else None)
    own = weights(c)
    with stored.opened(sources.identify(second)) as baked:
        for path, layer in denoiser(c).layers.items():
            assert off(LowRank(layer.down, layer.up, layer.alpha), baked.read(f"{path}.weight") - own[f"{path}.weight"]) < 1e-4  # type: ignore[union-attr]


def test_a_v_prediction_folder_becomes_a_v_prediction_file(tmp_path: Path) -> None:
    import json
    import shutil

    folder = tmp_path / "v"
    shutil.copytree(sources.BUILTIN / "demo-sdxl", folder)
    config = folder / "scheduler" / "scheduler_config.json"
    config.chmod(0o644)
    config.write_text(json.dumps({**json.loads(config.read_text()), "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}))
    base = sources.identify(folder)
    lora = Adapter("sdxl", {"unet.mid_block.attentions.0.proj_in": LowRank(torch.zeros(1, 192), torch.zeros(192, 1), 1.0)})
    with stored.opened(base) as there:
        width = there.shapes["unet.mid_block.attentions.0.proj_in.weight"][0]
    lora = Adapter("sdxl", {"unet.mid_block.attentions.0.proj_in": LowRank(torch.zeros(1, width), torch.zeros(width, 1), 1.0)})
    result(bake(base, [("a", lora, 1.0)], tmp_path / "v.safetensors"))
    found = sources.identify(tmp_path / "v.safetensors")
    assert found.habits["objective"] == "v"
    header = metadata.read_header(tmp_path / "v.safetensors")
    assert header.shapes["v_pred"] == (0,) == header.shapes["ztsnr"] and header.metadata["modelspec.prediction_type"] == "v"


def test_layers_whose_change_depends_on_the_base_are_baked_too(c: Components, tmp_path: Path) -> None:
    path = next(path for path, layer in denoiser(c).layers.items() if len(layer.shape) == 2)
    inner = denoiser(c).layers[path]
    assert isinstance(inner, LowRank)
    own = weights(c)[f"{path}.weight"]
    layer = Decomposed(inner, torch.linspace(0.5, 1.5, own.shape[0]))
    result(bake(c.base, [("a", Adapter(c.facts.name, {path: layer}), 0.8)], tmp_path / "dora.safetensors", "fp32"))
    with stored.opened(sources.identify(tmp_path / "dora.safetensors")) as baked:
        assert torch.allclose(baked.read(f"{path}.weight"), own + 0.8 * layer.delta(own), atol=1e-6)


def test_a_flux_file_has_no_place_for_text_encoder_layers_and_says_so(tmp_path: Path) -> None:
    c = open_base(sources.find("demo-flux"), "fp32", "cpu")
    lora = adapter(c, 1, ("attn.to_q", "text_model.encoder"))
    events = list(bake(c.base, [("a", lora, 1.0)], tmp_path / "f.safetensors"))
    told = [event.message for event in events if isinstance(event, Warned)]
    assert len(told) == 1 and "have no place in the output" in told[0] and "text_encoder" in told[0]
    events = list(bake(c.base, [("a", lora, 1.0)], tmp_path / "folder"))
    assert not any(isinstance(event, Warned) for event in events)
    base = sources.identify(tmp_path / "folder")
    path = next(path for path in lora.layers if path.startswith("text_encoder."))
    with stored.opened(base) as baked, stored.opened(c.base) as own:
        assert not torch.equal(baked.read(f"{path}.weight").float(), own.read(f"{path}.weight").float())


@pytest.mark.parametrize("name", ["x.safetensors", "x"])
def test_nothing_is_left_of_a_bake_that_ends_early(c: Components, tmp_path: Path, name: str) -> None:
    for error in (False, True):
        lora = denoiser(c)
        if error:  # beyond fp16 in the last layer
            path = list(lora.layers)[-1]
            layer = lora.layers[path]
            assert isinstance(layer, LowRank)
            lora = dataclasses.replace(lora, layers={**lora.layers, path: LowRank(layer.down * 1e6, layer.up * 1e6, layer.alpha)})
            with pytest.raises(FormatError, match="numbers beyond F16"):
                result(bake(c.base, [("a", lora, 1.0)], tmp_path / name, "fp16"))
        else:
            steps = bake(c.base, [("a", lora, 1.0)], tmp_path / name)
            next(steps), next(steps)
            assert any(tmp_path.iterdir()), "writing has begun"
            steps.close()
        assert list(tmp_path.iterdir()) == []


def test_an_older_file_outlives_a_bake_that_is_given_up(c: Components, tmp_path: Path) -> None:
    output = tmp_path / "x.safetensors"
    output.write_bytes(b"what was there")
    steps = bake(c.base, [("a", denoiser(c), 1.0)], output)
    next(steps), next(steps)
    steps.close()
    assert output.read_bytes() == b"what was there" and len(list(tmp_path.iterdir())) == 1


def test_what_cannot_be_baked_is_refused(c: Components, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Adapter("flux" if c.facts.name == "sdxl" else "sdxl", denoiser(c).layers)
    with pytest.raises(FormatError, match="choose a base of its family"):
        result(bake(c.base, [("a", other, 1.0)], tmp_path / "x.safetensors"))
    foreign = Adapter(c.facts.name, {f"{c.facts.denoiser}.nowhere": LowRank(torch.ones(1, 4), torch.ones(4, 1), 1.0)})
    with pytest.raises(FormatError, match="none of its 1 layers fits"):
        result(bake(c.base, [("a", foreign, 1.0)], tmp_path / "x.safetensors"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").touch()
    with pytest.raises(InputError, match="exists"):
        result(bake(c.base, [("a", denoiser(c), 1.0)], tmp_path / "full"))
    monkeypatch.setattr(baking.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(Exception, match="free some space"):
        result(bake(c.base, [("a", denoiser(c), 1.0)], tmp_path / "x.safetensors"))


def test_extracting_what_was_baked_gives_the_adapter_back(c: Components, tmp_path: Path) -> None:
    lora = denoiser(c)
    result(bake(c.base, [("a", lora, 0.7)], tmp_path / "tuned.safetensors", "fp32"))
    tuned = sources.identify(tmp_path / "tuned.safetensors")
    made = result(extract(tuned, c.base, "back", Plan(rank=4)))
    assert made.adapter.layers.keys() == lora.layers.keys() and made.report["left_out"] == {}
    assert max(off(layer, 0.7 * lora.layers[path].delta()) for path, layer in made.adapter.layers.items()) < 1e-4  # type: ignore[call-arg]
    smaller = result(extract(tuned, c.base, "back", Plan(rank=2)))
    for path, layer in smaller.adapter.layers.items():
        expected = 0.7 * lora.layers[path].delta().double()  # type: ignore[call-arg]
        s = torch.linalg.svdvals(expected.flatten(1))
        assert layer.rank == 2
        assert off(layer, expected) == pytest.approx(float(s[2:].norm() / s.norm()), abs=1e-4)
        assert smaller.report["layers"][path]["residual"] == pytest.approx(float(s[2:].norm() / s.norm()), abs=1e-4)


def test_extract_compares_a_folder_with_a_folder_and_names_what_it_cannot_carry(c: Components, tmp_path: Path) -> None:
    path = next(path for path, layer in denoiser(c).layers.items() if len(layer.shape) == 2)
    one = Adapter(c.facts.name, {path: denoiser(c).layers[path]})
    result(bake(c.base, [("a", one, 1.0)], tmp_path / "tuned", "fp32"))
    file = stored.weight_files(tmp_path / "tuned", c.facts.denoiser)[0]
    tensors = load_file(file)
    tensors["conv_in.bias" if c.facts.denoiser == "unet" else "x_embedder.bias"] += 0.5
    save_file(tensors, file, {"format": "pt"})
    tuned: Base = sources.identify(tmp_path / "tuned")
    made = result(extract(tuned, c.base, "back", Plan(energy=0.999)))
    assert list(made.adapter.layers) == [path] and made.adapter.layers[path].rank <= 5
    assert len(made.report["left_out"]) == 1 and "1 tensors differ that this LoRA does not carry" in made.notes[0] and ".bias" in made.notes[0]


def test_models_that_do_not_compare_are_told(c: Components, tmp_path: Path) -> None:
    other = sources.find("demo-flux" if c.facts.name == "sdxl" else "demo-sdxl")
    with pytest.raises(BaseError, match="name a base of the same family"):
        result(extract(other, c.base, "x", Plan()))
    result(bake(c.base, [("a", denoiser(c), 0.0)], tmp_path / "same.safetensors", "fp32"))
    with pytest.raises(FormatError, match=r"differs from .* in nothing"):
        result(extract(sources.identify(tmp_path / "same.safetensors"), c.base, "x", Plan()))


def test_every_part_of_a_base_has_a_slot_in_its_file(c: Components) -> None:
    """Slots give back what they take: join(split(tensor)) is the tensor, for all of a file."""
    with stored.opened(c.base) as there:
        found = stored.slots(get(c.facts.name).sections(()), there.shapes)
        covered = [part for slot in found for part in slot.parts]
        expected = [name for name in there.shapes if c.facts.name == "sdxl" or name.startswith("transformer.")]
        assert sorted(covered) == sorted(expected)
        for slot in found[::7]:
            pieces: dict[str, Any] = {part: there.read(part).float() for part in slot.parts}
            again = slot.split(slot.join(pieces))
            assert all(torch.equal(again[part], piece) for part, piece in pieces.items())
