"""SDXL module names: diffusers' U-Net <-> the names of the original model (LDM), which checkpoints and kohya files use. Pure.

Table: kohya-ss/sd-scripts, library/sdxl_model_util.py; block i, layer j.
"""

import re

PREFIXES = {"lora_te1": "text_encoder", "lora_te2": "text_encoder_2"}
TEXT = re.compile(r"text_model\.encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])|text_projection")

_BLOCK = re.compile(r"(down_blocks|up_blocks)\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)(\.conv)?(?:\.|$)")
_MIDDLE = {"mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1", "mid_block.resnets.1": "middle_block.2"}
_SINGLE = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_SINGLE_BACK = {value: key for key, value in _SINGLE.items()}
_RESNET_BACK = {value: key for key, value in _RESNET.items()}
_MIDDLE_BACK = {value: key for key, value in _MIDDLE.items()}
_MODULE = re.compile(
    r"(?:down_blocks\.[0-2]|up_blocks\.[0-2]|mid_block)\."
    r"(?:attentions\.[0-2]\.(?:proj_in|proj_out|transformer_blocks\.\d\.(?:attn[12]\.to_(?:q|k|v|out\.0)|ff\.net\.(?:0\.proj|2)))"
    r"|resnets\.[0-2]\.(?:conv1|conv2|time_emb_proj|conv_shortcut)|(?:down|up)samplers\.0\.conv)"
    r"|conv_in|conv_out|(?:time|add)_embedding\.linear_[12]"
)


def is_module(path: str) -> bool:
    """Whether an SDXL U-Net has a linear or convolution of that diffusers name. SD 1's deeper blocks are not among them."""
    return _MODULE.fullmatch(path) is not None and not path.startswith(("down_blocks.0.attentions", "up_blocks.2.attentions"))


def is_convolution(path: str) -> bool:
    return path.rpartition(".")[2] in ("conv1", "conv2", "conv_shortcut", "conv", "conv_in", "conv_out")


def to_ldm(path: str) -> str:
    """The LDM name of a diffusers U-Net module, of its norms too."""
    for name, ldm in _SINGLE.items():
        if path == name:
            return ldm
    for name, ldm in _MIDDLE.items():
        if path.startswith(name + "."):
            return f"{ldm}.{_inside(path[len(name) + 1 :], 'resnets' in name, _RESNET)}"
    found = _BLOCK.match(path)
    if found is None:
        raise KeyError(path)
    side, i, kind, j = found[1], int(found[2]), found[3], int(found[4])
    rest = path[found.end() :]
    if kind == "downsamplers":
        return f"input_blocks.{3 * (i + 1)}.0.op"
    if kind == "upsamplers":
        return f"output_blocks.{3 * i + 2}.2.conv"
    block = f"input_blocks.{3 * i + j + 1}" if side == "down_blocks" else f"output_blocks.{3 * i + j}"
    return f"{block}.{0 if kind == 'resnets' else 1}.{_inside(rest, kind == 'resnets', _RESNET)}"


def from_ldm(path: str) -> str:
    """The diffusers name of an LDM U-Net module. Raises KeyError if SDXL has none such."""
    if path in _SINGLE_BACK:
        return _SINGLE_BACK[path]
    head, _, rest = path.partition(".")
    number, _, rest = rest.partition(".")
    if head == "middle_block":
        name = _MIDDLE_BACK[f"{head}.{number}"]
        return f"{name}.{_inside(rest, 'resnets' in name, _RESNET_BACK)}"
    slot, _, rest = rest.partition(".")
    n = int(number) if number.isdigit() else -1
    if head == "input_blocks" and 1 <= n <= 8:
        i, j = divmod(n - 1, 3)
        if j == 2:
            if (slot, rest) != ("0", "op"):
                raise KeyError(path)
            return f"down_blocks.{i}.downsamplers.0.conv"
        return _layer("down_blocks", i, j, slot, rest)
    if head == "output_blocks" and 0 <= n <= 8:
        i, j = divmod(n, 3)
        if rest == "conv" and (slot == "2" or (slot == "1" and i == 2)):
            return f"up_blocks.{i}.upsamplers.0.conv"
        return _layer("up_blocks", i, j, slot, rest)
    raise KeyError(path)


def _layer(side: str, i: int, j: int, slot: str, rest: str) -> str:
    kind = {"0": "resnets", "1": "attentions"}[slot]
    return f"{side}.{i}.{kind}.{j}.{_inside(rest, kind == 'resnets', _RESNET_BACK)}"


def _inside(rest: str, resnet: bool, table: dict[str, str]) -> str:
    return table[rest] if resnet else rest
