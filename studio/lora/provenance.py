"""What a trained file says about itself: kohya's `ss_*` and `modelspec.*`. Pure; nothing private, no path, the same text for the same run."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import PurePath
from typing import Any, Literal

from studio import __version__
from studio.config import TrainConfig, safe_stem
from studio.families import get
from studio.families.base import Base

Tags = Literal["auto", "always", "never"]
_PRECISION = {"fp32": "no", "float32": "no", "bfloat16": "bf16", "float16": "fp16"}
SENTENCE_WORDS = 4  # a piece between commas with more words than this is no tag
TAGS = 10  # of the most frequent that modelspec.tags names
# Settings of sd-scripts that this studio has no counterpart of, as its files state them when off.
_OFF = {
    "ss_adaptive_noise_scale": "None",
    "ss_caption_dropout_every_n_epochs": "0",
    "ss_clip_skip": "None",
    "ss_color_aug": "False",
    "ss_debiased_estimation": "False",
    "ss_face_crop_aug_range": "None",
    "ss_fp8_base": "False",
    "ss_fp8_base_unet": "False",
    "ss_full_fp16": "False",
    "ss_huber_c": "0.1",
    "ss_huber_scale": "1.0",
    "ss_huber_schedule": "snr",
    "ss_ip_noise_gamma": "None",
    "ss_ip_noise_gamma_random_strength": "False",
    "ss_lowram": "False",
    "ss_max_token_length": "None",
    "ss_max_validation_steps": "None",
    "ss_multires_noise_discount": "0.3",
    "ss_multires_noise_iterations": "None",
    "ss_network_dropout": "None",
    "ss_noise_offset_random_strength": "False",
    "ss_num_reg_images": "0",
    "ss_num_validation_images": "0",
    "ss_prior_loss_weight": "1.0",
    "ss_random_crop": "False",
    "ss_reg_dataset_dirs": "{}",
    "ss_resize_interpolation": "None",
    "ss_scale_weight_norms": "None",
    "ss_sd_scripts_commit_hash": "None",
    "ss_text_encoder_lr": "None",
    "ss_training_comment": "None",
    "ss_v2": "False",
    "ss_validate_every_n_epochs": "None",
    "ss_validate_every_n_steps": "None",
    "ss_validation_seed": "None",
    "ss_validation_split": "0.0",
    "ss_zero_terminal_snr": "False",
}


@dataclass(frozen=True)
class Trained:
    """How a run went, beyond its settings."""

    steps: int
    started: float  # Unix seconds
    finished: float
    images: str  # name of the image set
    captions: Sequence[str]  # one a picture, as trained on
    buckets: Mapping[tuple[int, int], int] = field(default_factory=dict)  # (width, height) -> pictures
    objective: str = ""  # as loaded; empty takes the family's
    precision: str = "fp32"
    base_sha256: str = ""


def training_metadata(config: TrainConfig, base: Base, run: Trained, tags: Tags = "auto") -> dict[str, str]:
    """The metadata of the exported file; config is the resolved one. tags: whether the words of the captions are counted in it."""
    facts = get(base.family).facts
    objective = run.objective or str(base.habits.get("objective", facts.objective))
    found = {
        **_OFF,
        **_training(config, base, run),
        **_pictures(config, run),
        **_tags(config, run, tags),
        **(_flow(config) if objective == "flow" else {}),
        "ss_base_model_version": facts.kohya_version,
        "ss_network_module": facts.kohya_module,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": str(base.habits.get("modelspec", facts.modelspec)),
        "modelspec.implementation": facts.implementation,
        "modelspec.implementation_version": f"lora-studio/{__version__}",
        "modelspec.title": config.name,
        "modelspec.date": datetime.fromtimestamp(run.finished, UTC).isoformat(timespec="seconds"),
        "modelspec.resolution": f"{config.resolution}x{config.resolution}",
        "modelspec.description": f"LoRA for {facts.title}, rank {config.rank}, trained {run.steps} steps on {len(run.captions)} pictures.",
        "modelspec.lora_default_weight": "1.0",
    }
    if objective in ("epsilon", "v"):
        found["modelspec.prediction_type"] = objective
    trigger = config.trigger or ", ".join(config.new_words)
    if trigger:
        found["modelspec.trigger_phrase"] = trigger
        found["modelspec.usage_hint"] = f"Write {trigger} in the prompt."
    return dict(sorted(found.items()))


def tag_frequency(captions: Iterable[str]) -> dict[str, int]:
    """How often each comma-separated piece occurs, lower-cased, the most frequent first."""
    tags = Counter(tag for caption in captions for piece in caption.split(",") if (tag := piece.strip().lower()))
    return dict(sorted(tags.items(), key=lambda item: (-item[1], item[0])))


def _training(config: TrainConfig, base: Base, run: Trained) -> dict[str, str]:
    values: dict[str, Any] = {
        "ss_output_name": safe_stem(config.name),
        "ss_session_id": int.from_bytes(hashlib.sha256(f"{config.name} {config.seed} {run.started}".encode()).digest()[:4]),
        "ss_training_started_at": run.started,
        "ss_training_finished_at": run.finished,
        "ss_steps": run.steps,
        "ss_max_train_steps": config.steps or run.steps,
        "ss_learning_rate": config.learning_rate,
        "ss_unet_lr": config.learning_rate,
        "ss_lr_scheduler": config.lr_schedule,
        "ss_lr_warmup_steps": config.warmup_steps,
        "ss_optimizer": f"torch.optim.adamw.AdamW(weight_decay={config.weight_decay})",
        "ss_max_grad_norm": config.max_gradient_norm,
        "ss_gradient_accumulation_steps": config.gradient_accumulation,
        "ss_gradient_checkpointing": bool(config.gradient_checkpointing),
        "ss_network_dim": config.rank,
        "ss_network_alpha": float(config.alpha or config.rank or 1),
        "ss_mixed_precision": _PRECISION.get(run.precision, run.precision),
        "ss_seed": config.seed,
        "ss_caption_dropout_rate": config.caption_dropout,
        "ss_caption_tag_dropout_rate": config.tag_dropout,
        "ss_shuffle_caption": config.caption_shuffle,
        "ss_keep_tokens": config.keep_tokens if config.caption_shuffle or config.tag_dropout else 0,
        "ss_noise_offset": config.noise_offset or None,
        "ss_min_snr_gamma": config.min_snr_gamma,
        "ss_loss_type": "l2",
        "ss_cache_latents": True,
        "ss_sd_model_name": PurePath(base.name).name,
    }
    if run.base_sha256:
        values["ss_new_sd_model_hash"] = run.base_sha256
    return {key: str(value) for key, value in values.items()}


def _pictures(config: TrainConfig, run: Trained) -> dict[str, str]:
    n, batch = len(run.captions), config.batch_size or 1
    per_epoch = max(1, math.ceil(n * config.repeats / batch))
    epochs = math.ceil(run.steps * config.gradient_accumulation / per_epoch)
    folder = _folder(config, run)
    buckets = {str(i): {"resolution": list(size), "count": count} for i, (size, count) in enumerate(sorted(run.buckets.items()))}
    values: dict[str, Any] = {
        "ss_num_train_images": n * config.repeats,
        "ss_num_batches_per_epoch": per_epoch,
        "ss_num_epochs": epochs,
        "ss_epoch": epochs,
        "ss_batch_size_per_device": batch,
        "ss_total_batch_size": batch * config.gradient_accumulation,
        "ss_resolution": f"{config.resolution},{config.resolution}",
        "ss_flip_aug": config.flip,
        "ss_enable_bucket": True,
        "ss_bucket_no_upscale": True,
        "ss_min_bucket_reso": None,
        "ss_max_bucket_reso": None,
        "ss_dataset_dirs": _json({folder: {"n_repeats": config.repeats, "img_count": n}}),
        "ss_datasets": json.dumps([_dataset(config, folder, n, buckets)], ensure_ascii=False),
        "ss_bucket_info": _json({"buckets": buckets}),
    }
    return {key: str(value) for key, value in values.items()}


def tag_style(captions: Sequence[str]) -> bool:
    """Whether the captions are lists of short tags rather than sentences."""
    told = [caption for caption in captions if caption.strip()]
    pieces = [piece.strip() for caption in told for piece in caption.split(",") if piece.strip()]
    short = sum(len(piece.split()) <= SENTENCE_WORDS and not piece.endswith((".", "!", "?")) for piece in pieces)
    return bool(pieces) and short >= 0.9 * len(pieces) and 2 * sum("," in caption for caption in told) >= len(told)


def _tags(config: TrainConfig, run: Trained, tags: Tags) -> dict[str, str]:
    """Counts of tags; sentences would fill card editors with fragments."""
    if tags == "never" or (tags == "auto" and not tag_style(run.captions)):
        return {}
    counted = tag_frequency(run.captions)
    found = {"ss_tag_frequency": _json({_folder(config, run): counted})}
    named = [tag for tag in counted if tag != config.trigger.lower()][:TAGS]
    return {**found, "modelspec.tags": ", ".join(named)} if named else found


def _folder(config: TrainConfig, run: Trained) -> str:
    """The image set as kohya's folders are called: repeats, then name."""
    return f"{config.repeats}_{safe_stem(run.images)}"


def _dataset(config: TrainConfig, folder: str, n: int, buckets: Mapping[str, Any]) -> dict[str, Any]:
    subset = {
        "img_count": n,
        "num_repeats": config.repeats,
        "color_aug": False,
        "flip_aug": config.flip,
        "random_crop": False,
        "shuffle_caption": config.caption_shuffle,
        "keep_tokens": config.keep_tokens if config.caption_shuffle or config.tag_dropout else 0,
        "keep_tokens_separator": config.keep_separator,
        "image_dir": folder,
        "class_tokens": config.trigger or None,
        "is_reg": False,
    }
    return {
        "is_dreambooth": True,
        "batch_size_per_device": config.batch_size or 1,
        "num_train_images": n * config.repeats,
        "num_reg_images": 0,
        "resolution": [config.resolution, config.resolution],
        "enable_bucket": True,
        "min_bucket_reso": None,
        "max_bucket_reso": None,
        "tag_frequency": {},
        "bucket_info": {"buckets": buckets},
        "subsets": [subset],
    }


def _flow(config: TrainConfig) -> dict[str, str]:
    return {
        "ss_guidance_scale": "1.0",
        "ss_model_prediction_type": "raw",
        "ss_timestep_sampling": "shift" if config.flow_shift else "flux_shift",
        "ss_discrete_flow_shift": str(config.flow_shift or "None"),
        "ss_weighting_scheme": "none",
        "ss_logit_mean": "0.0",
        "ss_logit_std": "1.0",
        "ss_mode_scale": "1.29",
        "ss_sigmoid_scale": "1.0",
        "ss_model_type": "flux",
        "ss_apply_t5_attn_mask": "False",
    }


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False)
