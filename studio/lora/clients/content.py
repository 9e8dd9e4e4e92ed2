"""What the client rules look at in a LoRA file: its modules, how they are spelled and what they hold. Pure."""

import json
import re
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from studio.container import read_header
from studio.lora.formats import names
from studio.lora.formats.identity import stated_family

Shapes = Mapping[str, tuple[int, ...]]

TOKEN_WIDTHS = {2048, 3072}  # what SDXL's text cross-attention and FLUX.1's transformer take in
_KIND = re.compile(
    r"\.(lora_(?P<side>down|up|mid)\.weight|lora_(?P<ab>[AB])(\.\w+)?\.weight|lora(_linear_layer)?\.(?P<plain>down|up)\.weight|(?P<own>down|up)"
    r"|(?P<magnitude>lora_magnitude_vector)(\.\w+)*|lora_[AB](\.\w+)?\.bias|(?P<bare>alpha|dora_scale|hada_(w[12]_[ab]|t[12])|lokr_(w[12](_[ab])?|t2)"
    r"|diff_b|diff|w_norm|b_norm|[ab][12]\.weight|oft_\w+))$"
)
_XLABS = re.compile(r"(double|single)_blocks\.\d+\.processor\.")
_NUMBERS = {"F32": "<f", "F16": "<e", "F64": "<d"}


@dataclass(frozen=True)
class Module:
    """One module of a file. family and paths are empty where the name means nothing to the studio."""

    name: str
    spelling: str  # ldm, diffusers, makers, onetrainer, encoder, peft, dotted, xlabs or unknown
    family: str
    paths: tuple[str, ...]  # canonical
    shapes: Shapes  # kind of tensor -> shape; kinds: down up mid alpha dora_scale magnitude hada_... lokr_... diff ...

    @property
    def part(self) -> str:
        """The pipeline part: unet, transformer, text_encoder or text_encoder_2; empty if unknown."""
        return self.paths[0].partition(".")[0] if self.paths else ""

    @property
    def inner(self) -> str:
        """The path inside the part."""
        return self.paths[0].partition(".")[2] if self.paths else ""

    @property
    def algorithm(self) -> str:
        """lora, loha, lokr, diff or other."""
        if "down" in self.shapes:
            return "lora"
        first = next(iter(self.shapes), "")
        return "loha" if first.startswith("hada") else "lokr" if first.startswith("lokr") else "diff" if "diff" in self.shapes else "other"

    @property
    def rank(self) -> int:
        shape = self.shapes.get("down") or self.shapes.get("hada_w1_b") or self.shapes.get("lokr_w2_b") or ()
        return shape[0] if shape else 0

    @property
    def axis(self) -> str:
        """Of DoRA's lengths: input, output, or flat for one dimension; empty without them."""
        shape = self.shapes.get("dora_scale")
        if shape is None:
            return ""
        up = self.shapes.get("up", (0,))
        return "flat" if len(shape) < 2 else "output" if shape[0] == up[0] else "input"

    @property
    def t5(self) -> bool:
        return ".block." in self.inner

    @property
    def linear_as_convolution(self) -> bool:
        """Whether a four-dimensional layer stands for a linear one."""
        convolution = self.inner.rpartition(".")[2] in ("conv1", "conv2", "conv_shortcut", "conv", "conv_in", "conv_out")
        return bool(self.paths) and len(self.shapes.get("down", ())) == 4 and not convolution


@dataclass(frozen=True)
class Content:
    """A file as the rules see it. alphas: by module name; None if the values are not known. digest: sha256 of the tensor section, if known."""

    modules: tuple[Module, ...]
    metadata: Mapping[str, str]
    alphas: Mapping[str, float] | None = None
    digest: str = ""
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # new words bundled with the layers -> the encoders they have vectors for

    @property
    def vectors(self) -> int:
        """Tensors of new words."""
        return sum(len(encoders) for encoders in self.words.values())

    @cached_property
    def family(self) -> str:
        """By the names of the modules, or where there are only new words by their encoders; empty if they belong to several or to none alone."""
        if not self.modules:
            encoders = {encoder for named in self.words.values() for encoder in named}
            return "sdxl" if "clip_g" in encoders else "flux" if "t5" in encoders else stated_family(self.metadata)
        found = {module.family for module in self.modules} - {""}
        return found.pop() if len(found) == 1 else ""

    @cached_property
    def spellings(self) -> frozenset[str]:
        return frozenset(module.spelling for module in self.modules)

    @cached_property
    def real(self) -> bool:
        """Whether the layers have the width of the real models; demo bases are narrower."""
        widths = {module.shapes["down"][1] for module in self.modules if _tells_width(module)}
        return not widths or bool(widths & TOKEN_WIDTHS)

    @cached_property
    def token_width(self) -> int:
        """Channels of the text that the first text cross-attention takes in, 0 if no layer tells."""
        return next((m.shapes["down"][1] for m in self.modules if "down" in m.shapes and m.inner.endswith(("attn2.to_k", "attn2.to_v"))), 0)

    @cached_property
    def deviating(self) -> frozenset[str]:
        """Modules whose alpha is not the commonest of the file."""
        if not self.alphas:
            return frozenset()
        common = Counter(self.alphas.values()).most_common(1)[0][0]
        return frozenset(name for name, alpha in self.alphas.items() if alpha != common)

    @cached_property
    def header_scales(self) -> bool:
        """Whether PEFT's settings in the header ask for another strength than alpha = rank."""
        try:
            table = dict(json.loads(self.metadata.get("lora_adapter_metadata", "{}")))
        except (ValueError, TypeError):
            return False
        ranks = {key.removesuffix(".r"): value for key, value in table.items() if key.endswith(".r")}
        return any(table.get(f"{part}.lora_alpha", rank) != rank or table.get(f"{part}.use_rslora") for part, rank in ranks.items())

    def any(self, **wanted: object) -> bool:
        """Whether some module has all of these attributes."""
        return any(all(getattr(module, key) == value for key, value in wanted.items()) for module in self.modules)

    def holds(self, kind: str) -> bool:
        """Whether some module has a tensor of that kind."""
        return any(kind in module.shapes for module in self.modules)


def content(shapes: Shapes, metadata: Mapping[str, str], alphas: Mapping[str, float] | None = None, digest: str = "") -> Content:
    """The modules behind the names and shapes of a file."""
    groups: dict[str, dict[str, tuple[int, ...]]] = {}
    words: dict[str, tuple[str, ...]] = {}
    for key, shape in shapes.items():
        if (found := names.embedding(key)) is not None:
            words[found[0]] = (*words.get(found[0], ()), found[1])
            continue
        name, kind = _split(key)
        groups.setdefault(name, {})[kind] = shape
    return Content(tuple(_module(name, kinds) for name, kinds in groups.items()), metadata, alphas, digest, words)


def read_alphas(path: Path) -> dict[str, float]:
    """The alpha of every module that has one, read without torch."""
    header = read_header(path)
    found = {}
    with path.open("rb") as file:
        for key, (begin, end) in header.offsets.items():
            if key.endswith(".alpha") and header.shapes[key] in ((), (1,)):
                file.seek(header.start + begin)
                number = _number(header.dtypes[key], file.read(end - begin))
                if number is not None:
                    found[key.removesuffix(".alpha")] = number
    return found


def _number(dtype: str, raw: bytes) -> float | None:
    if dtype == "BF16":
        return float(struct.unpack("<f", b"\0\0" + raw)[0])
    return float(struct.unpack(_NUMBERS[dtype], raw)[0]) if dtype in _NUMBERS else None


def _tells_width(module: Module) -> bool:
    told = ("attn2.to_k", "attn2.to_v") if module.part == "unet" else (".attn.to_q", ".attn.add_q_proj", ".norm.linear", ".norm1.linear")
    return "down" in module.shapes and module.part in ("unet", "transformer") and module.inner.endswith(told)


def _split(key: str) -> tuple[str, str]:
    found = _KIND.search(key)
    if found is None:
        return key, "unknown"
    side = found["side"] or found["plain"] or found["own"] or {"A": "down", "B": "up"}.get(found["ab"] or "")
    kind = side or ("magnitude" if found["magnitude"] else found["bare"]) or "bias"
    return key[: found.start()], kind


def _module(name: str, kinds: Shapes) -> Module:
    target = names.target(name)
    family, paths = (target.family, target.paths) if target else ("", ())
    return Module(name, _spelling(name, paths), family, paths, kinds)


def _spelling(name: str, paths: Iterable[str]) -> str:
    if name.startswith("lora_unet_"):
        own = next(iter(paths), "").partition(".")[2].replace(".", "_")
        blocks = name.startswith(("lora_unet_double_blocks", "lora_unet_single_blocks")) or any(path.startswith("transformer.") for path in paths)
        return "makers" if blocks else "diffusers" if own and name == f"lora_unet_{own}" else "ldm"
    if name.startswith("lora_transformer_"):
        return "onetrainer"
    if name.startswith("lycoris_"):
        return "lycoris"
    if name.startswith("lora_te"):
        return "encoder"
    if name.startswith("diffusion_model."):
        return "dotted"
    if _XLABS.match(name):
        return "xlabs"
    return "peft" if name.startswith(("unet.", "transformer.", "text_encoder.", "text_encoder_2.")) else "unknown"
