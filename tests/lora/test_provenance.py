"""What a file says about itself: the types that clients parse, nothing private, the same for the same run."""

import dataclasses
import json
from pathlib import Path

import pytest

from studio.config import TrainConfig, resolve
from studio.families import get, sources
from studio.families.base import Base
from studio.lora.provenance import Trained, tag_frequency, training_metadata

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


def test_tags_are_counted_as_others_count_them() -> None:
    assert tag_frequency([" A b ,c,,C", "c"]) == {"c": 3, "a b": 1}
    assert tag_frequency([]) == {}


def test_a_demo_run_can_be_described() -> None:
    base = sources.find("demo-flux")
    config = resolve(TrainConfig(images="x"), base.habits["train"], get("flux").facts.defaults["train"])
    assert training_metadata(config, base, RUN)["modelspec.resolution"] == "128x128"
