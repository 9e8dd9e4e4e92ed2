"""The table of programs in the documentation is what the rules say."""

import math
import re
from collections.abc import Iterator
from pathlib import Path

from studio.lora.clients import CLIENTS, Verdict, check
from tests.lora.test_clients import FLUX, SDXL, Shapes, dora, encoder, flux, full_size, peft, sdxl, t5

PAGE = Path(__file__).parents[2] / "assets" / "docs" / "formats.md"
SOURCE = "python -m tests.lora.test_client_table"
SHOWN = [client for client in CLIENTS if client not in ("LoRA Manager", "Civitai", "SwarmUI")]


def files() -> dict[str, tuple[Shapes, dict[str, str]]]:
    full = full_size()
    return {
        "SDXL, kohya, all linear layers and both encoders": (sdxl(full), SDXL),
        "the same under diffusers names with kohya's prefix": (sdxl(full, spelling="diffusers"), SDXL),
        "SDXL, kohya, every layer, embedders too": (sdxl(full, everything=True), SDXL),
        "SDXL, kohya, no alpha": (sdxl(full, alpha=False), SDXL),
        "SDXL, PEFT names": (peft(full, "sdxl"), SDXL),
        "SDXL, DoRA, lengths by input": (dora(sdxl(full), "input"), SDXL),
        "SDXL, DoRA, lengths by output": (dora(sdxl(full), "output"), SDXL),
        "SDXL, LoHa": (loha(sdxl(full)), SDXL),
        "SDXL, LoKr": (lokr(sdxl(full)), SDXL),
        "SDXL, kohya, with a new word": ({**sdxl(full), "bundle_emb.zib.clip_l": (2, 768), "bundle_emb.zib.clip_g": (2, 1280)}, SDXL),
        "FLUX.1, LoHa": (loha(flux(full, text=False)), FLUX),
        "FLUX.1, LoKr, q, k and v apart": (lokr(apart(peft(full, "flux"))), FLUX),
        "FLUX.1, DoRA, lengths by output": (dora(flux(full, text=False), "output"), FLUX),
        "FLUX.1, kohya, all blocks and CLIP-L": (flux(full), FLUX),
        "FLUX.1, kohya, layers outside the blocks too": (flux(full, outside=True, text=False), FLUX),
        "FLUX.1, kohya, no alpha": (flux(full, alpha=False), FLUX),
        "FLUX.1, kohya, with T5": ({**flux(full), **t5("lora_te3")}, FLUX),
        "FLUX.1, kohya, with a new word": ({**flux(full), "bundle_emb.zib.clip_l": (2, 768)}, FLUX),
        "FLUX.1, PEFT names, no alpha": (peft(full, "flux"), FLUX),
        "FLUX.1, PEFT names and alpha": (peft(full, "flux", alpha=True), FLUX),
        "FLUX.1, PEFT names and CLIP-L": ({**peft(full, "flux"), **encoder("text_encoder", 12, 768, ("lora_A.weight", "lora_B.weight"), alpha=False)}, FLUX),
    }


def pairs(shapes: Shapes) -> Iterator[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """Module, and the shapes of its down and up."""
    for key, shape in shapes.items():
        for down, up in ((".lora_down.weight", ".lora_up.weight"), (".lora_A.weight", ".lora_B.weight")):
            if key.endswith(down):
                yield key.removesuffix(down), shape, shapes[key.removesuffix(down) + up]


def loha(shapes: Shapes) -> Shapes:
    """The same modules as LoHa, as the writer names them."""
    found: dict[str, tuple[int, ...]] = {}
    for name, down, up in pairs(shapes):
        into = math.prod(down[1:])
        found |= {f"{name}.hada_w{n}_a": (up[0], down[0]) for n in (1, 2)} | {f"{name}.hada_w{n}_b": (down[0], into) for n in (1, 2)} | {f"{name}.alpha": ()}
    return found


def lokr(shapes: Shapes) -> Shapes:
    found: dict[str, tuple[int, ...]] = {}
    for name, down, up in pairs(shapes):
        found |= {f"{name}.lokr_w1": (8, 8), f"{name}.lokr_w2": (up[0] // 8, down[1] // 8, *down[2:]), f"{name}.alpha": ()}
    return found


def apart(shapes: Shapes) -> Shapes:
    """Names of ComfyUI for modules as diffusers has them."""
    return {"lycoris_" + key.removeprefix("transformer.").replace(".", "_", key.count(".") - 3): shape for key, shape in shapes.items()}


def word(verdict: Verdict) -> str:
    if verdict.loads in ("no", "not applicable"):
        return "no" if verdict.loads == "no" else "-"
    count = "all" if verdict.loads == "yes" else f"{verdict.matched} of {verdict.total}"
    count = count if verdict.words is not False else f"{count}, not the word"
    return count if verdict.strength is not False else f"{count}, wrong strength"


def table() -> str:
    lines = [f"| file | {' | '.join(SHOWN)} |", f"| --- |{' --- |' * len(SHOWN)}"]
    for title, (shapes, metadata) in files().items():
        found = {verdict.client: verdict for verdict in check(shapes, metadata)}
        lines.append(f"| {title} | {' | '.join(word(found[client]) for client in SHOWN)} |")
    return "\n".join(lines)


def test_the_table_in_the_documentation_is_what_the_rules_say() -> None:
    text = PAGE.read_text(encoding="utf-8")
    found = re.search(r"<!-- clients -->\n(.*?)\n<!-- /clients -->", text, re.DOTALL)
    assert found and found[1] == table(), f"write it anew: {SOURCE}"


if __name__ == "__main__":
    old = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(re.sub(r"(<!-- clients -->\n).*?(<!-- /clients -->)", lambda m: f"{m[1]}{table()}\n{m[2]}", old, flags=re.DOTALL), encoding="utf-8")
