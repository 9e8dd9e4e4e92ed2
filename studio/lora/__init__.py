"""LoRA adapters: in memory, on a model, in files."""
