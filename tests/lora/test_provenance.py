"""What a file says about itself: the types that clients parse, nothing private, the same for the same run."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from studio.config import TrainConfig, resolve
from studio.families import get, sources
from studio.families.base import Base
from studio.lora import cards, formats
from studio.lora.adapter import Adapter, LowRank
from studio.lora.header import completed
from studio.lora.provenance import Trained, tag_frequency, tag_style, training_metadata

REQUIRED = """session_id training_started_at output_name learning_rate text_encoder_lr unet_lr num_train_images num_validation_images num_reg_images
num_batches_per_epoch num_epochs gradient_checkpointing gradient_accumulation_steps max_train_steps lr_warmup_steps lr_scheduler network_module network_dim
network_alpha network_dropout mixed_precision full_fp16 v2 base_model_version clip_skip max_token_length cache_latents seed lowram noise_offset
multires_noise_iterations multires_noise_discount adaptive_noise_scale zero_terminal_snr training_comment sd_scripts_commit_hash optimizer max_grad_norm
caption_dropout_rate caption_dropout_every_n_epochs caption_tag_dropout_rate face_crop_aug_range prior_loss_weight min_snr_gamma scale_weight_norms
ip_noise_gamma debiased_estimation noise_offset_random_strength ip_noise_gamma_random_strength loss_type huber_schedule huber_scale huber_c fp8_base
fp8_base_unet validation_seed validation_split max_validation_steps validate_every_n_epochs validate_every_n_steps resize_interpolation
training_finished_at steps epoch sd_model_name datasets dataset_dirs reg_dataset_dirs tag_frequency bucket_info batch_size_per_device total_batch_size
resolution color_aug flip_aug random_crop shuffle_caption enable_bucket bucket_no_upscale min_bucket_reso max_bucket_reso keep_tokens"""
RUN = Trained(
    steps=300,
    started=1_700_000_000.0,
    finished=1_700_000_060.5,
    images="my set",
    captions=["ohwx, Cat face, red", "ohwx, dog", "ohwx"],
    buckets={(1024, 1024): 2, (896, 1152): 1},
)


def described(family: str = "sdxl", run: Trained = RUN, **changes: object) -> dict[str, str]:
    facts = get(family).facts
    base = Base("some-base", family, "file", Path("/home/someone/secret/some-base.safetensors"))
    config = TrainConfig.model_validate({"images": "/home/someone/pictures", "name": "style", "trigger": "ohwx", "repeats": 2, "seed": 5, **changes})
    return training_metadata(resolve(config, facts.defaults["train"]), base, run)


@pytest.mark.parametrize(
    ("family", "base_version", "module", "architecture"),
    [
        ("sdxl", "sdxl_base_v1-0", "networks.lora", "stable-diffusion-xl-v1-base/lora"),
        ("flux", "flux1", "networks.lora_flux", "flux-1-dev/lora"),
    ],
)
def test_clients_can_tell_the_family(family: str, base_version: str, module: str, architecture: str) -> None:
    found = described(family)
    assert (found["ss_base_model_version"], found["ss_network_module"], found["modelspec.architecture"]) == (base_version, module, architecture)
    assert found["modelspec.sai_model_spec"] == "1.0.1" and found["modelspec.implementation"] == get(family).facts.implementation
    assert ("modelspec.prediction_type" in found) == (family == "sdxl") and ("ss_guidance_scale" in found) == (family == "flux")


def test_every_value_is_text_and_json_where_clients_parse_json() -> None:
    found = described()
    assert all(isinstance(value, str) for value in found.values()) and list(found) == sorted(found)
    assert json.loads(found["ss_tag_frequency"]) == {"2_my-set": {"ohwx": 3, "cat face": 1, "dog": 1, "red": 1}}
    assert json.loads(found["ss_dataset_dirs"]) == {"2_my-set": {"n_repeats": 2, "img_count": 3}}
    assert json.loads(found["ss_bucket_info"])["buckets"]["1"] == {"resolution": [1024, 1024], "count": 2}
    assert float(found["ss_training_started_at"]) == RUN.started and int(found["ss_session_id"]) >= 0
    assert (found["ss_network_dim"], found["ss_network_alpha"], found["ss_steps"], found["ss_v2"]) == ("32", "32.0", "300", "False")
    assert (found["ss_num_train_images"], found["ss_num_batches_per_epoch"], found["ss_epoch"]) == ("6", "6", "50")
    assert found["modelspec.date"] == "2023-11-14T22:14:20+00:00" and found["modelspec.trigger_phrase"] == "ohwx"


def test_nothing_private_is_told() -> None:
    text = json.dumps(described())
    assert "someone" not in text and "/home" not in text and "secret" not in text


def test_the_same_run_says_the_same_and_another_base_says_so() -> None:
    assert described() == described()
    v = described(run=dataclasses.replace(RUN, objective="v", precision="bf16"))
    assert (v["modelspec.prediction_type"], v["ss_mixed_precision"]) == ("v", "bf16")
    config = TrainConfig(images="x", resolution=1024, rank=4)
    schnell = Base("s", "flux", "file", Path("s"), habits={"modelspec": "flux-1-schnell/lora"})
    assert training_metadata(config, schnell, RUN)["modelspec.architecture"] == "flux-1-schnell/lora"


def test_alpha_is_the_one_that_was_trained_with() -> None:
    assert described(alpha=8.0, rank=16)["ss_network_alpha"] == "8.0"


def test_captions_that_were_shuffled_or_thinned_say_so_and_new_words_are_the_trigger() -> None:
    plain, mixed = described(), described(caption_shuffle=True, tag_dropout=0.2, keep_tokens=2, noise_offset=0.0357)
    keys = ("ss_shuffle_caption", "ss_keep_tokens", "ss_caption_tag_dropout_rate", "ss_noise_offset")
    assert [plain[key] for key in keys] == ["False", "0", "0.0", "None"]
    assert [mixed[key] for key in keys] == ["True", "2", "0.2", "0.0357"]
    assert json.loads(mixed["ss_datasets"])[0]["subsets"][0]["shuffle_caption"] is True
    assert described(trigger="", new_words="zib,zab")["modelspec.trigger_phrase"] == "zib, zab"


def test_tags_are_counted_as_others_count_them() -> None:
    assert tag_frequency([" A b ,c,,C", "c"]) == {"c": 3, "a b": 1}
    assert tag_frequency([]) == {}


SENTENCES = ["ohwx, A man in a red coat walks through the rain, holding an umbrella.", "ohwx, A dog sleeps on the old sofa in the sun."]


def test_tags_are_counted_but_not_sentences() -> None:
    assert tag_style(RUN.captions) and tag_style(["1girl, solo, smile", "1boy, hat"])
    assert not tag_style(SENTENCES) and not tag_style(["a cat", "a dog"]) and not tag_style(["", ""])
    base, config = Base("b", "sdxl", "file", Path("b")), TrainConfig(images="x", rank=4, resolution=64, trigger="ohwx")
    told = dataclasses.replace(RUN, captions=SENTENCES)
    assert "ss_tag_frequency" not in training_metadata(config, base, told)
    assert "ss_tag_frequency" in training_metadata(config, base, told, "always")
    tagged = training_metadata(config, base, RUN)
    assert tagged["modelspec.tags"] == "cat face, dog, red"
    never = training_metadata(config, base, RUN, "never")
    assert "ss_tag_frequency" not in never and "modelspec.tags" not in never


def test_every_key_of_a_trainer_is_there() -> None:
    """The names that sd-scripts writes in every file of a training from folders; datasets as the list that LoRA Manager takes them for."""
    found = described()
    for key in REQUIRED.split():
        assert f"ss_{key}" in found, key
    (dataset,) = json.loads(found["ss_datasets"])
    assert dataset["subsets"][0]["class_tokens"] == "ohwx" and dataset["resolution"] == [1024, 1024]
    assert {"weighting_scheme", "logit_mean", "sigmoid_scale"} <= {key.removeprefix("ss_") for key in described("flux")}
    assert found["modelspec.lora_default_weight"] == "1.0" and "rank 32" in found["modelspec.description"]


CANARY = "canary-user-7f3a"
PRIVATE = {
    "ss_sd_model_name": f"/home/{CANARY}/models/base.safetensors",
    "ss_output_dir": f"C:\\Users\\{CANARY}\\out",
    "ss_dataset_dirs": json.dumps({f"/mnt/{CANARY}/10_cats": {"n_repeats": 10, "img_count": 2}}),
    "ss_datasets": json.dumps([{"subsets": [{"image_dir": f"D:\\{CANARY}\\My Pictures\\cats"}]}]),
    "note": f"made from /home/{CANARY} Smith/my pictures/cats and ~/{CANARY}/x",
    "url": "https://example.org/some/page",
    "sshs_model_hash": "0" * 64,
    "ss_base_model_version": "sd_v1",
}


def test_files_of_others_are_cleared_and_completed() -> None:
    adapter = Adapter("sdxl", {"unet.conv_in": LowRank(torch.zeros(4, 4, 3, 3), torch.zeros(320, 4, 1, 1), 2.0)})
    found = completed(PRIVATE, adapter, "my file")
    assert CANARY not in json.dumps(found)
    assert found["ss_sd_model_name"] == "base.safetensors" and found["url"] == PRIVATE["url"]
    assert json.loads(found["ss_dataset_dirs"]) == {"10_cats": {"n_repeats": 10, "img_count": 2}}
    assert json.loads(found["ss_datasets"])[0]["subsets"][0]["image_dir"] == "cats"
    assert (found["ss_base_model_version"], found["ss_output_name"], found["ss_network_dim"], found["ss_network_alpha"]) == (
        "sdxl_base_v1-0",
        "my-file",
        "4",
        "2.0",
    )
    assert "sshs_model_hash" not in found and found["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert completed(found, adapter, "my file") == found


def test_the_same_words_and_layers_give_the_same_bytes(tmp_path: Path) -> None:
    adapter = Adapter("sdxl", {"unet.conv_in": LowRank(torch.ones(4, 4, 3, 3), torch.ones(320, 4, 1, 1), 2.0)})
    for name in ("a", "b"):
        formats.write(adapter, tmp_path / name, metadata=completed(dict(reversed(described().items())) if name == "b" else described(), adapter, "f"))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_cards_are_as_web_uis_and_civitai_want_them() -> None:
    words = described("flux") | {"modelspec.lora_default_weight": "0.8"}
    card = json.loads(cards.card(words))
    assert set(card) == {"description", "sd version", "activation text", "preferred weight", "negative text", "notes"}
    assert (card["activation text"], card["preferred weight"], card["sd version"]) == ("ohwx", 0.8, "Other")
    assert json.loads(cards.card(described()))["sd version"] == "SDXL"
    page = cards.civitai_page("style", "flux", words)
    for line in (
        "| Base model | Flux.1 D |",
        "| Trigger words | ohwx |",
        "| Recommended strength | 0.8 (from 0.4 to 1.0) |",
        "`<lora:style:0.8>`",
        "- Rank: 16",
    ):
        assert line in page, line
    assert "Flux.1 S" in cards.civitai_page("s", "flux", {"modelspec.architecture": "flux-1-schnell/lora"})


def test_a_demo_run_can_be_described() -> None:
    base = sources.find("demo-flux")
    config = resolve(TrainConfig(images="x"), base.habits["train"], get("flux").facts.defaults["train"])
    assert training_metadata(config, base, RUN)["modelspec.resolution"] == "128x128"
