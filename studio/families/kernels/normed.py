# pyright: reportMissingImports=false, reportPossiblyUnboundVariable=false, reportIndexIssue=false, reportReturnType=false
"""GroupNorm, with SiLU behind it or not, over channels-last pictures, whose own weights are frozen: (B, C, h, w) lies in memory as B h w C.

The library's version rearranges such pictures before and after. Here each direction reads them twice: once for sums over the pixels of
every channel, once to apply what follows from the sums.
"""

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

if find_spec("triton"):
    import triton
    import triton.language as tl

    @triton.jit
    def _slope(z, SILU: tl.constexpr):
        if SILU:
            gate = tl.sigmoid(z)
            return gate * (1.0 + z * (1.0 - gate))
        else:
            return z * 0.0 + 1.0

    @triton.jit
    def _sums(x, grad, factor, offset, sums, pixels, channels, per, BACK: tl.constexpr, SILU: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
        """Over the pixels of a chunk, of every channel: forward x and x squared; backward the gradient before SiLU, and that times x."""
        picture, chunk = tl.program_id(0), tl.program_id(1)
        column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
        known = column < channels
        first, second = tl.zeros((COLUMNS,), tl.float32), tl.zeros((COLUMNS,), tl.float32)
        if BACK:
            a = tl.load(factor + picture * channels + column, known, 0.0)
            b = tl.load(offset + picture * channels + column, known, 0.0)
        for start in range(0, per, ROWS):
            row = chunk * per + start + tl.arange(0, ROWS)
            inside = ((row < pixels) & (row < (chunk + 1) * per))[:, None] & known[None, :]
            place = (picture.to(tl.int64) * pixels + row)[:, None] * channels + column[None, :]
            value = tl.load(x + place, inside, 0.0).to(tl.float32)
            if BACK:
                back = tl.load(grad + place, inside, 0.0).to(tl.float32) * _slope(value * a[None, :] + b[None, :], SILU)
                first += tl.sum(back, 0)
                second += tl.sum(back * value, 0)
            else:
                first += tl.sum(value, 0)
                second += tl.sum(value * value, 0)
        place = ((picture * tl.num_programs(1) + chunk) * 2) * channels + column
        tl.store(sums + place, first, known)
        tl.store(sums + place + channels, second, known)

    @triton.jit
    def _settle(sums, weight, bias, factor, offset, stats, chunks, channels, width, pixels, eps, BACK: tl.constexpr, CHUNKS: tl.constexpr, WIDTH: tl.constexpr):
        """Of one group: forward the factor and offset of every channel; backward what x is multiplied by and what is added in its gradient."""
        picture, group = tl.program_id(0), tl.program_id(1)
        groups = tl.num_programs(1)
        chunk, inner = tl.arange(0, CHUNKS), tl.arange(0, WIDTH)
        column = group * width + inner
        known = inner < width
        place = ((picture * chunks + chunk)[:, None] * 2) * channels + column[None, :]
        inside = (chunk < chunks)[:, None] & known[None, :]
        first = tl.sum(tl.load(sums + place, inside, 0.0), 0)
        second = tl.sum(tl.load(sums + place + channels, inside, 0.0), 0)
        gamma = tl.load(weight + column, known, 0.0).to(tl.float32)
        n = pixels * width * 1.0
        at = stats + (picture * groups + group) * 2
        if BACK:
            mean, scale = tl.load(at), tl.load(at + 1)
            one = tl.sum(gamma * first, 0)
            two = scale * (tl.sum(gamma * second, 0) - mean * one)
            slope = -scale * scale * two / n
            level = -scale * one / n - mean * slope
            tl.store(factor + picture * channels + column, slope + inner * 0.0, known)
            tl.store(offset + picture * channels + column, level + inner * 0.0, known)
        else:
            mean = tl.sum(first, 0) / n
            spread = tl.sum(second, 0) / n - mean * mean
            scale = 1.0 / tl.sqrt(tl.maximum(spread, 0.0) + eps)
            tl.store(at, mean)
            tl.store(at + 1, scale)
            beta = tl.load(bias + column, known, 0.0).to(tl.float32)
            tl.store(factor + picture * channels + column, gamma * scale, known)
            tl.store(offset + picture * channels + column, beta - mean * gamma * scale, known)

    @triton.jit
    def _apply(x, grad, factor, offset, slope, level, out, pixels, channels, BACK: tl.constexpr, SILU: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
        picture = tl.program_id(1)
        row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)  # the first place of a grid has room for more than 65535 programs
        column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
        known = column < channels
        inside = (row < pixels)[:, None] & known[None, :]
        place = (picture.to(tl.int64) * pixels + row)[:, None] * channels + column[None, :]
        a = tl.load(factor + picture * channels + column, known, 0.0)[None, :]
        b = tl.load(offset + picture * channels + column, known, 0.0)[None, :]
        value = tl.load(x + place, inside, 0.0).to(tl.float32)
        z = value * a + b
        if BACK:
            back = tl.load(grad + place, inside, 0.0).to(tl.float32) * _slope(z, SILU)
            c = tl.load(slope + picture * channels + column, known, 0.0)[None, :]
            d = tl.load(level + picture * channels + column, known, 0.0)[None, :]
            found = back * a + value * c + d
        elif SILU:
            found = z * tl.sigmoid(z)
        else:
            found = z
        tl.store(out + place, found.to(out.dtype.element_ty), inside)


ROWS, COLUMNS = 32, 64  # pixels and channels of one tile
PROGRAMS = 528  # programs that fill a large card


@torch.library.custom_op("lora_studio::normed", mutates_args=())
def normed(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The normed picture, like x; then what the backward pass needs: factor and offset (B, C), mean and scale (B, groups, 2), fp32."""
    b, c, h, w = x.shape
    factor, offset = (torch.empty(b, c, device=x.device) for _ in range(2))
    stats = torch.empty(b, groups, 2, device=x.device)
    if not x.is_cuda:
        spread, mean = torch.var_mean(x.float().reshape(b, groups, -1), dim=-1, correction=0)
        stats.copy_(torch.stack([mean, (spread + eps).rsqrt()], dim=-1))
        factor.copy_(weight.float() * stats[..., 1].repeat_interleave(c // groups, 1))
        offset.copy_(bias.float() - stats[..., 0].repeat_interleave(c // groups, 1) * factor)
        z = x.float() * factor[..., None, None] + offset[..., None, None]
        return (torch.nn.functional.silu(z) if silu else z).to(x.dtype).contiguous(memory_format=torch.channels_last), factor, offset, stats
    x = x.contiguous(memory_format=torch.channels_last)
    out = torch.empty_like(x)
    chunks, per, sums = _chunks(b, c, h * w, x.device)
    columns = triton.cdiv(c, COLUMNS)
    _sums[(b, chunks, columns)](x, x, factor, offset, sums, h * w, c, per, BACK=False, SILU=silu, ROWS=ROWS, COLUMNS=COLUMNS)
    sizes = {"CHUNKS": triton.next_power_of_2(chunks), "WIDTH": triton.next_power_of_2(c // groups)}
    _settle[(b, groups)](sums, weight, bias, factor, offset, stats, chunks, c, c // groups, h * w, eps, BACK=False, **sizes)
    grid = (triton.cdiv(h * w, ROWS), b, columns)
    _apply[grid](x, x, factor, offset, factor, offset, out, h * w, c, BACK=False, SILU=silu, ROWS=ROWS, COLUMNS=COLUMNS)
    return out, factor, offset, stats


@normed.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    b, c = x.shape[:2]
    like = torch.empty_like(x, memory_format=torch.channels_last)
    return like, *(torch.empty(b, c, device=x.device) for _ in range(2)), torch.empty(b, groups, 2, device=x.device)


@torch.library.custom_op("lora_studio::normed_backward", mutates_args=())
def normed_backward(grad: Tensor, x: Tensor, weight: Tensor, factor: Tensor, offset: Tensor, stats: Tensor, silu: bool) -> Tensor:
    """Gradient of `normed` on x."""
    b, c, h, w = x.shape
    groups = stats.shape[1]
    if not x.is_cuda:
        return _plain_backward(grad, x, weight, factor, offset, stats, silu)
    grad, x = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (grad, x))
    out, (slope, level) = torch.empty_like(x), (torch.empty_like(factor) for _ in range(2))
    chunks, per, sums = _chunks(b, c, h * w, x.device)
    columns = triton.cdiv(c, COLUMNS)
    _sums[(b, chunks, columns)](x, grad, factor, offset, sums, h * w, c, per, BACK=True, SILU=silu, ROWS=ROWS, COLUMNS=COLUMNS)
    sizes = {"CHUNKS": triton.next_power_of_2(chunks), "WIDTH": triton.next_power_of_2(c // groups)}
    _settle[(b, groups)](sums, weight, weight, slope, level, stats, chunks, c, c // groups, h * w, 0.0, BACK=True, **sizes)
    grid = (triton.cdiv(h * w, ROWS), b, columns)
    _apply[grid](x, grad, factor, offset, slope, level, out, h * w, c, BACK=True, SILU=silu, ROWS=ROWS, COLUMNS=COLUMNS)
    return out


@normed_backward.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, factor: Tensor, offset: Tensor, stats: Tensor, silu: bool) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


def _plain_backward(grad: Tensor, x: Tensor, weight: Tensor, factor: Tensor, offset: Tensor, stats: Tensor, silu: bool) -> Tensor:
    b, c = x.shape[:2]
    groups = stats.shape[1]
    z = x.float() * factor[..., None, None] + offset[..., None, None]
    gate = z.sigmoid()
    back = grad.float() * (gate * (1 + z * (1 - gate)) if silu else torch.ones_like(z))
    mean, scale = (stats[..., i].repeat_interleave(c // groups, 1)[..., None, None] for i in (0, 1))
    level = (x.float() - mean) * scale
    weighted = back * weight.float()[:, None, None]

    def average(tensor: Tensor) -> Tensor:
        return tensor.reshape(b, groups, -1).mean(-1).repeat_interleave(c // groups, 1)[..., None, None]

    found = scale * (weighted - average(weighted) - level * average(weighted * level))
    return found.to(x.dtype).contiguous(memory_format=torch.channels_last)


def _chunks(pictures: int, channels: int, pixels: int, device: torch.device) -> tuple[int, int, Tensor]:
    """How many parts the pixels are summed in, pixels of a part, and a place for the sums (B, parts, 2, C)."""
    columns = -(-channels // COLUMNS)
    wanted = max(1, min(64, PROGRAMS // (pictures * columns), -(-pixels // ROWS)))
    per = -(-pixels // wanted)
    chunks = -(-pixels // per)
    return chunks, per, torch.empty(pictures, chunks, 2, channels, device=device)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, _, _, _, ctx.silu = inputs
    ctx.save_for_backward(x, weight, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _back(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    return normed_backward(grad, *ctx.saved_tensors, ctx.silu), None, None, None, None, None


normed.register_autograd(_back, setup_context=_keep)
