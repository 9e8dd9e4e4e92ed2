"""A caption model of some kilobytes: BLIP built from a config, with random weights and a tokenizer of a dozen words."""

from pathlib import Path

import torch
from transformers import BertTokenizerFast, BlipConfig, BlipForConditionalGeneration, BlipImageProcessorPil, BlipProcessor

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "a", "red", "blue", "circle", "number", "on", "paper"]


def tiny_blip(folder: Path) -> Path:
    """The folder, with the model in it."""
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    small = {"hidden_size": 16, "intermediate_size": 32, "projection_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    marks = {"bos_token_id": 5, "pad_token_id": 0, "eos_token_id": 3, "sep_token_id": 3}
    text = {**small, **marks, "vocab_size": len(WORDS), "encoder_hidden_size": 16, "max_position_embeddings": 64}
    torch.manual_seed(0)
    BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config={**small, "image_size": 32, "patch_size": 16}, projection_dim=16)).save_pretrained(
        folder
    )
    BlipProcessor(BlipImageProcessorPil(size={"height": 32, "width": 32}), BertTokenizerFast(str(folder / "vocab.txt"), bos_token="[DEC]")).save_pretrained(
        folder
    )
    return folder
