"""Captions by a model that looks at pictures: whatever transformers loads as image-to-text, from a folder or the hub.

BLIP, BLIP-2, GIT and Florence-2 are asked for a caption; models that chat (Qwen-VL, LLaVA and their like) are asked in words.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from studio.errors import BaseError

if TYPE_CHECKING:
    from PIL.Image import Image

ASKED = "Describe this picture in one sentence. Name what is to be seen, without any introduction."
TASKS = {"florence2": "<DETAILED_CAPTION>"}  # models whose prompts are names of tasks
EXAMPLES = "Salesforce/blip-image-captioning-base or microsoft/Florence-2-base"


@dataclass(frozen=True)
class Captioner:
    """A loaded model; `caption` draws nothing at random, so that the same picture gets the same words."""

    model: Any
    processor: Any

    def caption(self, image: "Image", prompt: str = "", max_tokens: int = 75) -> str:
        """One line of text for an RGB picture; empty if the model has nothing to say. prompt: words to begin with, or the question."""
        import torch

        asked = self._asked(image, prompt).to(self.model.device)
        for name, tensor in asked.items():
            if torch.is_tensor(tensor) and tensor.is_floating_point():
                asked[name] = tensor.to(self.model.dtype)
        with torch.inference_mode():
            tokens = self.model.generate(**asked, max_new_tokens=max_tokens, do_sample=False)
        if self._chats:  # it answers behind the question
            tokens = tokens[:, asked["input_ids"].shape[1] :]
        return " ".join(self.processor.batch_decode(tokens, skip_special_tokens=True)[0].split())

    @property
    def _chats(self) -> bool:
        return bool(getattr(self.processor, "chat_template", None))

    def _asked(self, image: "Image", prompt: str) -> Any:
        if self._chats:
            content = [{"type": "image", "image": image}, {"type": "text", "text": prompt or ASKED}]
            options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
            return self.processor.apply_chat_template([{"role": "user", "content": content}], **options)
        text = prompt or TASKS.get(self.model.config.model_type)
        return self.processor(images=image, return_tensors="pt", **({"text": text} if text else {}))


def open_model(name: str, device: str, offline: bool = False) -> Captioner:
    """The model of a folder or hub id, on the device. Raises BaseError if it is not there, or cannot caption. Only safetensors are read."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    options: dict[str, Any] = {"local_files_only": offline, "trust_remote_code": False}
    try:
        processor = AutoProcessor.from_pretrained(name, **options)
        model: Any = AutoModelForImageTextToText.from_pretrained(name, use_safetensors=True, dtype=dtype, **options)
    except (OSError, ValueError, KeyError, ImportError, AttributeError) as error:  # as transformers tells of foreign and absent files
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise BaseError(f"caption model {name}: cannot be used ({reason[:200]}); name an image-to-text model, such as {EXAMPLES}") from error
    return Captioner(model.to(device).eval(), processor)
