"""Claims about the cache, on the real demo base."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from studio import families
from studio.data import buckets
from studio.data.ahead import AHEAD, ahead
from studio.data.cache import Cache, Want, identity, pixels
from studio.data.images import Picture, read_set
from studio.errors import ImageError
from studio.families import sources

CPU = torch.device("cpu")
AREA = 64 * 64


class Counting:
    """The family, noting which parts were loaded and optionally spoiling the latents."""

    def __init__(self, family, spoil=False):
        self.family, self.facts, self.spoil, self.loaded = family, family.facts, spoil, []

    def __getattr__(self, name):
        return getattr(self.family, name)

    def load(self, base, parts, dtype, device):
        self.loaded += parts
        return self.family.load(base, parts, dtype, device)

    def encode_images(self, c, pixels):
        latents = self.family.encode_images(c, pixels)
        return latents * float("nan") if self.spoil else latents


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Models of this size gain nothing from a second thread, and waiting threads crawl on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def pictures(tmp_path) -> tuple[Picture, ...]:
    folder = tmp_path / "set"
    folder.mkdir()
    for name, size, colour in (("a", (90, 64), "red"), ("b", (64, 64), "green"), ("c", (64, 64), "blue")):
        image = Image.new("RGB", size, "white")
        ImageDraw.Draw(image).rectangle((0, 0, 20, 40), fill=colour)
        image.save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"a {name}")
    return read_set(folder).pictures


@pytest.fixture
def cache(tmp_path) -> Cache:
    base = sources.find("demo-sdxl")
    return Cache(tmp_path / "cache", base, Counting(families.get(base.family)), torch.float32, CPU)  # type: ignore[arg-type]


def wants(pictures, **values) -> list[Want]:
    return [Want(p, buckets.crop((p.width, p.height), AREA, 8), **({"mirrored": False, "caption": p.caption} | values)) for p in pictures]


def again(cache: Cache, **values) -> Cache:
    return Cache(cache.folder, values.get("base", cache.base), Counting(cache.family.family), values.get("dtype", cache.dtype), CPU)  # type: ignore


def files(cache: Cache) -> set[Path]:
    return {path for path in cache.folder.rglob("*") if path.is_file()}


def test_a_batch_is_what_the_family_encodes(cache, pictures):
    list(cache.fill(wants(pictures)))
    chosen = wants(pictures)[1:]
    batch = cache.batch(chosen)
    c = cache.family.load(cache.base, ["vae", "text"], torch.float32, CPU)
    expected = torch.cat([cache.family.encode_images(c, pixels(want)[None]) for want in chosen])
    assert torch.equal(batch.latents, expected)
    for name, tensor in cache.family.encode_captions(c, ["a b", "a c"]).items():
        torch.testing.assert_close(batch.conditioning[name], tensor, atol=1e-5, rtol=1e-5)
    assert batch.sizes.tolist() == [[64, 64, 0, 0, 64, 64]] * 2
    assert batch.names == ("b.png", "c.png")


def test_encoders_are_loaded_only_for_what_is_missing(cache, pictures):
    events = list(cache.fill(wants(pictures)))
    assert cache.family.loaded == ["text", "vae"]
    assert [(e.done, e.total) for e in events] == [(0, 3), (1, 3), (2, 3), (3, 3)] * 2
    second = again(cache)
    assert list(second.fill(wants(pictures))) == [] and second.family.loaded == []
    list(second.fill(wants(pictures, caption="other words")))
    assert second.family.loaded == ["text"]
    list(second.fill(wants(pictures, mirrored=True)))
    assert second.family.loaded == ["text", "vae"]


def test_every_input_is_in_the_key(cache, pictures, tmp_path):
    want = wants(pictures)[0]
    other_vae = again(cache, base=replace(cache.base, vae=sources.find("demo-flux").path / "vae"))
    latent_keys = {
        cache.latent_key(want),
        cache.latent_key(replace(want, mirrored=True)),
        cache.latent_key(replace(want, crop=replace(want.crop, left=want.crop.left + 1))),
        cache.latent_key(replace(want, crop=replace(want.crop, bucket=(56, 64)))),
        cache.latent_key(replace(want, picture=replace(want.picture, sha256="other"))),
    }
    assert len(latent_keys) == 5
    text_keys = {
        cache.text_key("a"),
        cache.text_key(""),
        again(cache, dtype=torch.bfloat16).text_key("a"),
        again(cache, base=replace(cache.base, habits={"text_tokens": 32})).text_key("a"),
        again(cache, base=sources.find("demo-flux")).text_key("a"),
    }
    assert len(text_keys) == 5
    assert cache.latent_key(want) == cache.latent_key(replace(want, caption="other", picture=replace(want.picture, name="renamed")))
    assert other_vae.text_key("a") == cache.text_key("a")


def test_a_changed_weight_changes_the_identity(cache, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(cache.base.path, copy)
    base = replace(cache.base, path=copy)
    assert identity(base, "sdxl", "vae") == identity(cache.base, "sdxl", "vae")
    weights = copy / "vae" / "diffusion_pytorch_model.safetensors"
    weights.chmod(0o644)
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert identity(base, "sdxl", "vae") != identity(cache.base, "sdxl", "vae")
    assert identity(base, "sdxl", "text") == identity(cache.base, "sdxl", "text")


def test_the_mirrored_latents_are_those_of_the_mirrored_picture(cache, pictures):
    plain, mirrored = wants(pictures)[0], wants(pictures, mirrored=True)[0]
    assert torch.equal(pixels(mirrored), pixels(plain).flip(-1))
    list(cache.fill([plain, mirrored]))
    assert not torch.equal(cache.batch([plain]).latents, cache.batch([mirrored]).latents)


def test_pixels_are_the_planned_cut(pictures):
    want = wants(pictures)[0]
    assert want.crop.bucket != (90, 64)
    found = pixels(want)
    assert found.shape == (3, want.crop.bucket[1], want.crop.bucket[0])
    assert found.min() >= -1 and found.max() == 1
    assert found[:, -1, -1].tolist() == [1, 1, 1]


def test_latents_that_are_not_finite_name_the_picture_and_are_not_kept(cache, pictures):
    cache.family.spoil = True
    with pytest.raises(ImageError, match=r"a\.png: its latents are not finite"):
        list(cache.fill(wants(pictures)))
    cache.family.spoil = False
    assert len(files(cache)) == 3  # the captions
    assert len(list(cache.fill(wants(pictures)))) == 4


def test_stopping_midway_keeps_whole_files_only(cache, pictures):
    filling = cache.fill(wants(pictures))
    for _ in range(6):
        next(filling)
    filling.close()
    assert len(files(cache)) == 4 and all(path.suffix == ".safetensors" for path in files(cache))
    resumed = again(cache)
    assert [e.total for e in resumed.fill(wants(pictures))] == [2, 2, 2]


def test_a_torn_file_is_made_again(cache, pictures):
    list(cache.fill(wants(pictures)))
    expected = cache.batch(wants(pictures)[1:]).latents
    for path in files(cache):
        path.write_bytes(path.read_bytes()[:-7])
    second = again(cache)
    list(second.fill(wants(pictures)))
    assert torch.equal(second.batch(wants(pictures)[1:]).latents, expected)


def test_a_picture_changed_since_it_was_read_is_refused(cache, pictures):
    Image.new("RGB", (70, 70)).save(pictures[1].path)
    with pytest.raises(ImageError, match=r"b\.png: is 70x70 now, was 64x64"):
        list(cache.fill(wants(pictures)))


def test_a_base_whose_silence_becomes_zeros_reads_no_older_entry_for_it(tmp_path):
    import json
    import shutil

    folder = tmp_path / "base"
    shutil.copytree(sources.find("demo-sdxl").path, folder, copy_function=shutil.copyfile)
    base, family = sources.identify(folder), families.get("sdxl")

    def keys() -> tuple[str, str]:
        store = Cache(tmp_path / "cache", base, family, torch.float32, CPU)
        return store.text_key(""), store.text_key("a cat")

    before = keys()
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"force_zeros_for_empty_prompt": True}))
    assert keys()[0] != before[0] and keys()[1] == before[1]


def test_text_encoders_that_come_block_by_block_give_the_same_conditioning(tmp_path, pictures):
    base = sources.find("demo-flux")
    plain, apart = (
        Cache(tmp_path / str(n), base, Counting(families.get("flux")), torch.float32, CPU, parts)  # type: ignore[arg-type]
        for n, parts in enumerate((frozenset(), frozenset({"text"})))
    )
    events = [list(cache.fill(wants(pictures))) for cache in (plain, apart)]
    assert [event.done for event in events[1]][:2] == [0, 3]
    one, other = (cache.batch(wants(pictures)[1:]).conditioning for cache in (plain, apart))
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, atol=1e-5, rtol=1e-5)


def test_work_is_done_ahead_in_order_and_fails_at_its_own_place():
    made: list[int] = []

    def square(n: int) -> int:
        made.append(n)
        if n == 11:
            raise ValueError("eleven")
        return n * n

    found = []
    with pytest.raises(ValueError, match="eleven"), ahead(range(1000), square) as coming:
        for n, squared in coming:
            found.append((n, squared))
    assert found == [(n, n * n) for n in range(11)] and max(made) <= 11 + AHEAD
