"""Every setting, declared once: command line, forms, HTTP and TOML files are generated from these classes.

A setting left at None takes its value from the base (`studio.json` in its folder), then from its family (`Facts.defaults`);
`resolve` does that, and the resolved values are recorded with the run and the image.
"""

from studio.config.bases import BaseChoice
from studio.config.generating import GenerateConfig
from studio.config.settings import S, Settings, build, resolve
from studio.config.training import TrainConfig
from studio.config.training.keeping import Tracker
from studio.config.training.network import Targets
from studio.config.values import LoraWeight, Name, Precision, parse_loras, parse_size, plain_loras, safe_stem

__all__ = [
    "BaseChoice",
    "GenerateConfig",
    "LoraWeight",
    "Name",
    "Precision",
    "S",
    "Settings",
    "Targets",
    "Tracker",
    "TrainConfig",
    "build",
    "parse_loras",
    "parse_size",
    "plain_loras",
    "resolve",
    "safe_stem",
]
