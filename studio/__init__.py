"""LoRA Studio: from pictures to a LoRA that works everywhere."""

__version__ = "0.1.0"
