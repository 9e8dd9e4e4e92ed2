"""What a kind of network asks for and what its file can be loaded by: told before a run begins."""

from typing import Any

from studio.config import TrainConfig
from studio.config.values import numbered
from studio.errors import SettingsError
from studio.families.base import Facts
from studio.lora.attach.adaptive import LEAST_STEPS, final_rank
from studio.lora.attach.origin import INITS

# What other programs make of the exported file; the table in the docs says it in full, program by program.
CARRIED = {
    "dora": (
        "network dora: in the exported file ComfyUI and Forge are about 1 % off the trained change, InvokeAI and A1111 some 20 times too strong, and "
        "diffusers and sd-scripts leave the lengths out; for them resize the file to a plain LoRA, or export as peft for diffusers"
    ),
    "loha": "network loha: ComfyUI, Forge, A1111 and InvokeAI load the exported file; diffusers and sd-scripts do not, unless it is resized to a plain LoRA",
    "lokr": "network lokr: ComfyUI, Forge, A1111 and InvokeAI load the exported file; diffusers and sd-scripts do not, unless it is resized to a plain LoRA",
}
ALONE = "network none: the file holds new words alone, which the studio and A1111 read; for others export it with side files and take the files of the words"
LOKR_APART = "network lokr on {title}: only ComfyUI and Forge load the exported file, because q, k and v cannot be written as one layer"


def resolved(config: TrainConfig) -> dict[str, Any]:
    """What a network chooses where the settings leave it open: recorded with the run, so that a later choice changes none that goes on."""
    return {"final_rank": final_rank(config)} if config.network == "adalora" and config.rank else {}


def check(config: TrainConfig, facts: Facts, steps: int, resumed: bool) -> tuple[str, ...]:
    """What to know about the file before it is trained. Raises SettingsError if the network does not go with the other settings."""
    rates = config.lora_plus_ratio != 1 or config.text_encoder_learning_rate is not None or set(numbered(config.block_rates).values()) - {1.0}
    if config.optimizer == "prodigy" and rates:
        raise SettingsError(
            "prodigy finds one rate for all layers: leave lora_plus_ratio, block_rates and text_encoder_learning_rate out, or choose another optimizer"
        )
    if config.network == "adalora" and (config.ema_decay or config.optimizer == "schedule-free"):
        raise SettingsError("adalora takes ranks away, which an average of the weights brings back: leave ema_decay out and choose another optimizer")
    if config.network == "adalora" and steps < LEAST_STEPS:
        raise SettingsError(f"steps {steps} is too short for adalora, which needs {LEAST_STEPS} to share ranks out; ask for more, or set network to lora")
    if config.init in INITS and config.start_from and not resumed:
        raise SettingsError(f"init {config.init} and start_from both say what the weights begin as; leave one of them out")
    found = []
    if config.network == "lokr" and facts.fuses:
        found.append(LOKR_APART.format(title=facts.title))
    elif config.network in CARRIED:
        found.append(CARRIED[config.network])
    if config.network == "none":
        found.append(ALONE)
    if config.init in INITS:
        found.append(f"init {config.init}: the saved LoRA has rank {2 * (config.rank or 0)}, because it also takes off again what it began as")
    return tuple(found)
