"""Words with vectors of their own (pivotal tuning): only their rows change, every loss reads them as they are, and others read the same."""

import pytest
import torch
from safetensors.torch import load_file

from studio import families
from studio.errors import FormatError, SettingsError
from studio.families import sources
from studio.jobs import exporting
from studio.lora import formats
from studio.training import checkpoint

from .test_loop import told
from .test_networks import everything

ENCODERS = {"demo-sdxl": {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}, "demo-flux": {"text_encoder": "clip_l", "text_encoder_2": "t5"}}
WORDS = {"new_words": "zib", "trigger": "zib"}
SAID = ("a photo of zib, and zib again", "zib", "nothing new", "")


def loaded(name: str, *parts: str):
    base = sources.find(name)
    return families.get(base.family).load(base, parts or ("text",), torch.float32, torch.device("cpu"))


def at(folder, step: int):
    return checkpoint.adapter(folder / "checkpoints" / f"step-{step:06d}")


LESS = [pytest.param("demo-sdxl", marks=pytest.mark.long), "demo-flux"]


@pytest.mark.parametrize("base", LESS)
def test_only_the_new_rows_change_and_they_move_from_the_words_they_start_from(studio, tmp_path, base):
    """Every other row of every table, and every other weight of the encoders, stays the same bit for bit; so does what other words encode to."""
    fresh, seen = loaded(base), []
    family = families.get(fresh.facts.name)

    def preview(c, step, folder):
        for part in ENCODERS[base]:
            theirs, ours = c.parts[part].state_dict(), fresh.parts[part].state_dict()
            assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
        for one in (c, fresh):
            with torch.no_grad():
                seen.append([family.encode_captions(one, [said]) for said in ("a yellow sun", "zib")])
        return iter(())

    values = {**WORDS, "word_init": "yellow sun", "word_vectors": 3, "word_t5": base == "demo-flux", "steps": 2, "sample_every": 2, "learning_rate": 2e-3}
    list(studio.run(studio.config(base, **values), tmp_path, preview=preview))
    (other, word), (other_before, word_before) = seen
    assert all(torch.equal(other[key], other_before[key]) and not torch.equal(word[key], word_before[key]) for key in other)
    for part, key in ENCODERS[base].items():
        table = fresh.parts[part].get_input_embeddings().weight
        ids = fresh.parts[part.replace("text_encoder", "tokenizer")]("yellow sun", add_special_tokens=False).input_ids
        start = table[[ids[i % len(ids)] for i in range(3)]]
        moved = at(tmp_path, 2).embeddings["zib"][key] - start
        # AdamW's first two steps move every number by about the rate each; five times the run's.
        assert bool((moved != 0).all()) and moved.abs().max() < 1.1 * 2 * 5 * values["learning_rate"]


@pytest.mark.parametrize("base", LESS)
def test_words_resume_to_the_bit_and_stop_when_told(studio, tmp_path, base):
    values = {**WORDS, "word_learning_rate": 1e-2, "word_stop": 2, "ema_decay": 0.5, "precision": "bf16", "caption_dropout": 0.3, "steps": 3}
    values |= {"base": base, "keep_checkpoints": 9, "word_t5": base == "demo-flux", "save_every": 1}
    events = list(studio.run(studio.config(**values), tmp_path / "straight"))
    for cut in (1, 2):
        start = str(tmp_path / "straight" / "checkpoints" / f"step-{cut:06d}")
        assert told(studio.run(studio.config(**values, start_from=start), tmp_path / f"cut{cut}")) == told(events)[cut:]
        straight, again = everything(tmp_path / "straight", 3), everything(tmp_path / f"cut{cut}", 3)
        assert any("bundle_emb.zib" in key for key in straight)
        assert [key for key in straight if not torch.equal(straight[key], again[key])] == []
    raw = [load_file(tmp_path / "straight" / "checkpoints" / f"step-{step:06d}" / "ema.safetensors") for step in (2, 3)]
    kept = [name for name in raw[0] if ":zib" in name and name.startswith("weights/")]
    assert kept and all(torch.equal(raw[0][name], raw[1][name]) for name in kept)
    assert any(not torch.equal(raw[0][name], raw[1][name]) for name in raw[0] if name.startswith("weights/")), "the layers went on"


def test_previews_and_held_out_losses_read_the_vectors_as_they_are_now(studio, tmp_path, of_kind):
    """The denoiser stands still, so only the vectors can change a held-out loss; with vectors that stand still too, nothing does."""
    values = {**WORDS, "steps": 1, "learning_rate": 1e-12, "weight_decay": 0, "validation_fraction": 0.2, "validation_every": 1, "sample_every": 1}
    shown = []

    def preview(c, step, folder):
        from studio.generation.conditioning import encode

        shown.append(encode(c, "zib", "")["prompt_embeds"])
        return iter(())

    for rate, kinds in ((5e-2, 2), (1e-12, 1)):
        events = list(studio.run(studio.config(**values, word_learning_rate=rate), tmp_path / str(rate), preview=preview))
        assert len({round(event.loss, 7) for event in of_kind(events, "validation")}) == kinds
    assert not torch.equal(shown[0], shown[1])


@pytest.mark.parametrize("base", ENCODERS)
def test_diffusers_reads_the_words_written_apart_and_encodes_the_same(studio, tmp_path, base):
    """Its own loader for textual inversions, from the file beside a PEFT export."""
    list(studio.run(studio.config(base, **WORDS, word_t5=base == "demo-flux", word_learning_rate=5e-2, steps=2), tmp_path))
    adapter = at(tmp_path, 2)
    report = exporting.publish(adapter, tmp_path / "out" / "mine.safetensors", "peft", "fp32", {})
    assert report["words"] == ["mine-words/zib.safetensors"] and not formats.read(tmp_path / "out" / "mine.safetensors").embeddings
    vectors = load_file(tmp_path / "out" / report["words"][0])

    ours = loaded(base)
    family = families.get(ours.facts.name)
    from studio.generation.words import brought

    ours.words = dict(brought(ours, [("key", "mine", adapter)]).vectors)
    theirs = loaded(base, "denoiser", "vae", "text")
    pipeline = family.pipeline(theirs)
    for part, key in ENCODERS[base].items():
        tokenizer = theirs.parts[part.replace("text_encoder", "tokenizer")]
        pipeline.load_textual_inversion(vectors[{"t5": "t5xxl"}.get(key, key)], token="zib", text_encoder=theirs.parts[part], tokenizer=tokenizer)
    plain = loaded(base)
    for said in SAID:
        with torch.no_grad():
            mine, without = (family.encode_captions(one, [said]) for one in (ours, plain))
            if base == "demo-sdxl":
                embeds, _, pooled, _ = pipeline.encode_prompt(said, device="cpu", do_classifier_free_guidance=False)
            else:
                embeds, pooled, _ = pipeline.encode_prompt(said, said, device="cpu", max_sequence_length=mine["prompt_embeds"].shape[1])
        torch.testing.assert_close(mine["prompt_embeds"], embeds, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(mine["pooled_prompt_embeds"], pooled, atol=2e-5, rtol=1e-5)
        spoken = "zib" in said
        assert torch.equal(mine["prompt_embeds"], without["prompt_embeds"]) == (not spoken), said


def test_a_word_is_found_as_such_in_upper_and_lower_case_and_the_longer_one_first():
    c = loaded("demo-sdxl")
    c.words = {"text_encoder": {"zib": torch.zeros(2, 128), "zib-la": torch.zeros(1, 128)}}
    from studio.families import words

    def found(text: str) -> list[int]:
        return [number for number in words.tokenize(c, "text_encoder", [text], 77)[0].tolist() if number < 0]

    assert found("a ZIB, zib-la and zib") == [-1, -2, -3, -1, -2]
    assert found("zibber azib zib_") == []
    assert found("zib " * 60) == [-1, -2] * 37 + [-1], "75 places, and the end in the last one"


def test_no_window_of_a_long_prompt_cuts_a_word_in_two():
    c = loaded("demo-sdxl")
    new = {"zib": torch.zeros(4, 128)}
    from studio.families import prompts

    for before in range(70, 77):
        windows = prompts.clip_windows(c.parts["tokenizer"], [(("a " * before + "zib", 1.0),)], new)
        assert [sum(number < 0 for number, _ in window) for window in windows] in ([4], [0, 4]), before
        assert all(len(window) <= prompts.WINDOW for window in windows)


def test_the_end_of_a_text_is_found_by_old_configurations_too():
    """Real bases say eos_token_id 2, with which CLIP takes the largest id for the end; one beyond the table would be larger."""
    for part in ENCODERS["demo-sdxl"]:
        c = loaded("demo-sdxl")
        encoder = c.parts[part]
        c.words = {part: {"zib": torch.randn(2, encoder.config.hidden_size, generator=torch.Generator().manual_seed(0))}}
        from studio.families import words

        ids = words.tokenize(c, part, ["a photo of zib, blue"], 77)
        now = words.read(c, part, ids)[0 if part.endswith("2") else 1]
        inner = encoder.text_model if hasattr(encoder, "text_model") else encoder
        inner.eos_token_id = 2
        torch.testing.assert_close(words.read(c, part, ids)[0 if part.endswith("2") else 1], now)


def test_words_that_could_not_be_learned_are_refused_with_the_way_out(studio, tmp_path):
    with pytest.raises(SettingsError, match="'zab' is in no caption, so nothing would be learned: write it into captions, or set trigger to zab"):
        list(studio.run(studio.config(new_words="zab"), tmp_path))
    with pytest.raises(SettingsError, match=r"word_t5 is for bases with a T5"):
        list(studio.run(studio.config(**WORDS, word_t5=True), tmp_path))
    with pytest.raises(SettingsError, match="prodigy finds one rate"):
        list(studio.run(studio.config(**WORDS, optimizer="prodigy", learning_rate=1.0, word_learning_rate=0.5), tmp_path))
    for values, message in (
        ({"word_stop": 3}, "word_stop means nothing without new_words"),
        ({"new_words": "zib", "word_init": "a\nb"}, "word_init has 2 lines for 1 new words"),
        ({"new_words": "zib,Zib"}, "upper and lower case alone"),
        ({"new_words": "a.b"}, "pattern"),
    ):
        with pytest.raises(ValueError, match=message):
            studio.config(**values)


def test_a_file_carries_the_words_a_changed_one_is_noticed_and_a_run_goes_on_with_them(studio, tmp_path):
    values = {**WORDS, "steps": 1, "word_vectors": 3, "resolution": 64, "batch_size": 1}
    list(studio.run(studio.config(**values), tmp_path / "a"))
    adapter, file = at(tmp_path / "a", 1), tmp_path / "file.safetensors"
    formats.write(adapter, file, dtype="fp32")
    assert {"bundle_emb.zib.clip_l", "bundle_emb.zib.clip_g"} <= set(load_file(file))
    again = formats.read(file)
    assert all(torch.equal(rows, again.embeddings["zib"][name]) for name, rows in adapter.embeddings["zib"].items())

    still = {**values, "word_learning_rate": 1e-12, "weight_decay": 0, "start_from": str(file)}
    list(studio.run(studio.config(**still), tmp_path / "b"))
    one, two = (at(tmp_path / name, 1).embeddings["zib"] for name in "ab")
    assert all(torch.allclose(one[name], two[name], atol=1e-9) for name in one)
    with pytest.raises(FormatError, match="brings the new word 'zib', which is not trained here; name it in new_words"):
        list(studio.run(studio.config(steps=1, start_from=str(file)), tmp_path / "c"))
    with pytest.raises(FormatError, match=r"vectors \[3, 128\] for it, here \[2, 128\]; set word_vectors"):
        list(studio.run(studio.config(**WORDS, steps=1, start_from=str(file)), tmp_path / "d"))

    adapter.embeddings["zib"]["clip_g"][0, 0] += 1
    with pytest.raises(FormatError, match=r"the word zib \(clip_g\) differs"):
        formats.verify(file, adapter)


@pytest.mark.parametrize("base", ["demo-sdxl", pytest.param("demo-flux", marks=pytest.mark.long)])
def test_words_alone_make_a_file_of_their_own_that_draws(studio, tmp_path, base, of_kind):
    """Without any network: the base's own layers are all there are, and the word is all that is kept."""
    from studio.generation.conditioning import encode
    from studio.generation.stack import Stack

    values = {**WORDS, "network": "none", "word_learning_rate": 1e-2, "steps": 2}
    events = list(studio.run(studio.config(base, **values, save_every=1), tmp_path))
    assert of_kind(events, "started")[0].facts["modules"] == 0
    assert any("new words alone" in event.message for event in of_kind(events, "warned"))
    again = told(studio.run(studio.config(base, **values, start_from=str(tmp_path / "checkpoints" / "step-000001")), tmp_path / "cut"))
    assert again == told(events)[1:]

    adapter, file = at(tmp_path, 2), tmp_path / "out" / "mine.safetensors"
    report = exporting.publish(adapter, file, "kohya", "fp32", {})
    read = {row["client"]: (row["loads"], row["words"]) for row in report["clients"]}
    assert read["A1111"] == (("yes", True) if base == "demo-sdxl" else ("not applicable", None)) and read["ComfyUI"] == ("no", False)
    found = formats.read(file)
    assert not found.layers and found.family == adapter.family
    assert all(torch.equal(rows, found.embeddings["zib"][name]) for name, rows in adapter.embeddings["zib"].items())
    with pytest.raises(FormatError, match="new words alone, which PEFT files cannot carry; export as kohya, with side files"):
        exporting.publish(adapter, tmp_path / "out" / "peft.safetensors", "peft", "fp32", {})

    c = loaded(base, "denoiser", "vae", "text")
    stack = Stack(c)
    plain = encode(c, "zib", stack.fingerprint(c.facts.text_encoders))
    stack.set([(found, 0.5)], ["mine"])
    on = encode(c, "zib", stack.fingerprint(c.facts.text_encoders))
    assert not torch.equal(on["pooled_prompt_embeds"], plain["pooled_prompt_embeds"])


def test_no_network_and_no_words_is_refused(studio):
    with pytest.raises(ValueError, match="there are none: name them in new_words"):
        studio.config(network="none")
    with pytest.raises(ValueError, match="leave text_encoder_learning_rate out"):
        studio.config(**WORDS, network="none", text_encoder_learning_rate=1e-4)
