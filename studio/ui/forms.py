"""Forms out of the settings classes: one declaration gives widget, label, range and help.

A widget left empty means None, which the base's habit or the family's default fills; its placeholder shows that value.
"""

import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from pydantic.fields import FieldInfo

from studio.config import Settings

Widget = gr.Textbox | gr.Dropdown | gr.Checkbox

LABELS = {
    "base": "Base model",
    "batch": "At once",
    "batch_size": "Batch",
    "gradient_accumulation": "Accumulate",
    "lr_schedule": "Schedule",
    "lr_cycles": "Restarts",
    "lr_power": "Polynomial exponent",
    "huber_c": "Huber border",
    "zero_terminal_snr": "Zero terminal SNR",
    "flip": "Mirror pictures",
    "more_images": "Further sets",
    "more_resolutions": "Further resolutions",
    "caption_lines": "Caption lines",
    "regularization_images": "Regularisation sets",
    "keep_tokens": "Keep at the front",
    "keep_separator": "Keep up to",
    "masked_prior_weight": "Prior outside masks",
    "timestep_sampling": "Noise levels",
    "timestep_mean": "Level mean",
    "timestep_scale": "Level scale",
    "warmup_steps": "Warm-up steps",
    "min_snr_gamma": "Min-SNR gamma",
    "vae": "VAE",
    "sample_every": "Sample every",
    "save_every": "Save every",
    "keep_checkpoints": "Keep resumable",
    "anchor_every": "Keep for good every",
    "processes": "GPUs at once",
    "start_from": "Start from LoRA",
    "negative_prompt": "Negative prompt",
    "max_gradient_norm": "Gradient clip",
    "ema_decay": "EMA decay",
    "validation_fraction": "Held-out share",
    "validation_every": "Look every",
    "early_stop": "Stop after looks",
    "keep_best": "Keep the best",
    "rank_probe": "Rank probe",
    "gradient_checkpointing": "Checkpointing",
    "text_encoder_learning_rate": "Text encoder rate",
    "text_encoder_stop": "Text encoder stops at",
    "word_vectors": "Vectors a word",
    "word_init": "Words start from",
    "word_learning_rate": "Rate of the words",
    "word_stop": "Words stop at",
    "word_t5": "Words for T5 too",
    "base_format": "Bits of the base",
    "memory_budget": "Memory budget",
    "block_offload": "Blocks in main memory",
    "target_pattern": "Targets by pattern",
    "rank_stabilized": "Rank-stabilised scale",
    "final_rank": "Ranks left in the end",
    "lora_plus_ratio": "LoRA+ ratio",
    "init": "Start of the matrices",
    "block_ranks": "Ranks by block",
    "block_alphas": "Alphas by block",
    "block_rates": "Rates by block",
    "count": "Pictures",
    "true_cfg": "True CFG",
    "guidance_rescale": "Rescale",
    "mask_blur": "Mask blur",
    "hires_scale": "Hires scale",
    "hires_strength": "Hires strength",
    "hires_steps": "Hires steps",
    "upscale_strength": "Upscale strength",
    "tile_overlap": "Tile overlap",
    "variation_seed": "Variation seed",
    "variation_strength": "Variation",
    "format": "File format",
    "live_preview": "Preview every",
    "first_block_cache": "First-block cache",
}
LINES = {"prompt": 4, "negative_prompt": 2, "sample_prompts": 3, "word_init": 2, "block_ranks": 2, "block_alphas": 2, "block_rates": 2}
WIDE = frozenset(
    {
        "base",
        "target_pattern",
        "word_init",
        "block_ranks",
        "block_alphas",
        "block_rates",
        "prompt",
        "negative_prompt",
        "sample_prompts",
        "start_from",
        "encoders",
        "vae",
    }
)
# What an empty setting means where no base or family says it and the studio does not choose.
EMPTY = {
    "memory_budget": "what is free",
    "vae": "the base's own",
    "encoders": "the base's own",
    "epochs": "by steps",
    "target_pattern": "by targets",
    "alpha": "as the rank",
    "final_rank": "a quarter of the rank",
    "text_encoder_learning_rate": "off",
    "text_encoder_stop": "never",
    "start_from": "a new one",
    "word_learning_rate": "5 times the run's",
    "word_stop": "never",
    "ema_decay": "off",
    "min_snr_gamma": "off",
    "flow_shift": "the scheduler's",
    "preference_beta": "off",
    "early_stop": "never",
    "hires_scale": "off",
    "upscale": "off",
    "true_cfg": "off",
    "hires_steps": "as many",
    "tile": "the base's own",
}
MOST_SHOWN = 1_000_000  # a greater bound says nothing to people
ON_OFF = [("As the base wants", ""), ("On", "on"), ("Off", "off")]


@dataclass(frozen=True)
class Form:
    """Widgets of one settings class by field name."""

    kind: type[Settings]
    widgets: Mapping[str, Widget]

    @property
    def names(self) -> list[str]:
        return list(self.widgets)

    def values(self, given: Mapping[Any, Any]) -> dict[str, Any]:
        """Settings as the widgets say, empty ones left out. `given`: widget -> value, as Gradio passes them."""
        found = {name: _read(self.kind.model_fields[name], given[widget]) for name, widget in self.widgets.items()}
        return {name: value for name, value in found.items() if value is not None}

    def show(self, settings: Mapping[str, Any]) -> dict[Any, Any]:
        """Updates that put these settings into their widgets; settings without a widget are passed over."""
        return {widget: gr.update(value=_held(widget, settings[name])) for name, widget in self.widgets.items() if name in settings}

    def placeholders(self, defaults: Mapping[str, Any]) -> dict[Any, Any]:
        """Updates that show what an empty widget stands for."""
        shown = {name: widget for name, widget in self.widgets.items() if isinstance(widget, gr.Textbox) and _optional(self.kind.model_fields[name])}
        told = {**EMPTY, **{name: value for name, value in defaults.items() if value is not None}}
        return {widget: gr.update(placeholder=_words(told.get(name))) for name, widget in shown.items()}


def label_of(name: str) -> str:
    return LABELS.get(name, name.replace("_", " ").capitalize())


def choices_of(kind: type[Settings], name: str) -> list[str]:
    """The values of a setting that has a fixed few; none for any other."""
    bare = _bare(kind.model_fields[name].annotation)
    if bare is bool:
        return ["true", "false"]
    return [str(value) for value in typing.get_args(bare)] if typing.get_origin(bare) is typing.Literal else []


def widget(kind: type[Settings], name: str, choices: Sequence[Any] | None = None) -> Widget:
    """The widget of one field."""
    field = kind.model_fields[name]
    label, help = label_of(name), field.description
    common: dict[str, Any] = {"label": label, "info": help, "elem_id": f"{kind.__name__.removesuffix('Config').lower()}-{name}"}
    common["elem_classes"] = ["st-field", *(["is-wide"] if name in WIDE else [])]
    bare = _bare(field.annotation)
    default = field.get_default()
    if choices is not None:
        return gr.Dropdown(choices=list(choices), value=_shown(default), allow_custom_value=True, **common)
    if typing.get_origin(bare) is typing.Literal:
        named = [(_title(value), value) for value in typing.get_args(bare)]
        return gr.Dropdown(choices=[*([("As it comes", "")] if _optional(field) else []), *named], value=default or "", filterable=False, **common)
    if bare is bool:
        if _optional(field):
            return gr.Dropdown(choices=ON_OFF, value="", filterable=False, **common)
        return gr.Checkbox(value=bool(default), **common)
    if bare in (int, float):
        common["info"] = f"{help} ({_range(field)})"
        attributes = gr.InputHTMLAttributes(autocorrect="off", spellcheck=False)
        return gr.Textbox(
            value=_shown(default), max_lines=1, placeholder=_words(EMPTY.get(name)) if _optional(field) else None, html_attributes=attributes, **common
        )
    lines = LINES.get(name, 1)
    return gr.Textbox(
        value=_shown(default) or "", lines=lines, max_lines=1 if lines == 1 else 10, placeholder=_words(EMPTY.get(name)) if _optional(field) else None, **common
    )


def _bare(annotation: Any) -> Any:
    """The annotation without Annotated and None."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _bare(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return _bare(next(part for part in typing.get_args(annotation) if part is not type(None)))
    return annotation


def _optional(field: FieldInfo) -> bool:
    return type(None) in typing.get_args(field.annotation)


def _range(field: FieldInfo) -> str:
    """The bounds as people write them: "1 to 512", "above 0, up to 10"."""
    rules = {name: getattr(rule, name) for rule in field.metadata for name in ("ge", "gt", "le") if hasattr(rule, name)}
    low = f"{_words(rules['ge'])} to" if "ge" in rules else f"above {_words(rules['gt'])}, up to" if "gt" in rules else "up to"
    if "le" not in rules or rules["le"] > MOST_SHOWN:
        return low.removesuffix(" to").removesuffix(", up") + (" or more" if "ge" in rules else "")
    return f"{low} {_words(rules['le'])}"


def _read(field: FieldInfo, value: Any) -> Any:
    """The value as the settings class takes it; text that is no number stays text, and is refused there by name."""
    if isinstance(value, str):
        value = value.strip()
    if value is None or value == "":
        return None
    bare = _bare(field.annotation)
    if bare is bool and isinstance(value, str):
        return value == "on"
    return value


def _held(widget: Widget, value: Any) -> Any:
    """A setting for its widget; a list of choices shows what stands for none of them."""
    return "" if value is None and isinstance(widget, gr.Dropdown) else _shown(value)


def _shown(value: Any) -> Any:
    """A setting as its widget holds it."""
    if isinstance(value, list | tuple):
        return "\n".join(str(item) for item in value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _words(value)
    return value


def _title(value: Any) -> str:
    return str(value)


def _words(value: Any) -> str:
    if value is None:
        return "auto"
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:.10g}" if isinstance(value, float) else str(value)
