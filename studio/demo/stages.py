"""The stages of training demo bases from scratch: VAE, SDXL, FLUX.1, its guidance distillation. Each trains what it is given."""

import copy
import random
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from studio.demo.optimise import Budget, Optimiser, Say
from studio.demo.renderer import SIDE, Renderer
from studio.demo.shapes import LATENT_CHANNELS

CAPTION_DROPOUT = 0.1
DISTILLED_DROPOUT = 0.05
MIN_SNR_GAMMA = 5.0
KL_WEIGHT = 2e-3
HALF_SCALE_WEIGHT = 0.15
T5_TOKENS = 48
T5_LONG_TOKENS = 512  # diffusers' default length; every tenth step sees it
CLIP_FLUX_TOKENS = 32
ENCODED_AT_ONCE = 256
LATENT_ROWS = SIDE // 8


@dataclass(frozen=True)
class Recipe:
    """What tests shrink; the defaults are for one large GPU."""

    batch: int = 384
    vae_batch: int = 64
    long_batch: int = 64
    bank: int = 128 * 1024  # pictures encoded once and drawn from again and again
    dtype: torch.dtype = torch.bfloat16


@dataclass(frozen=True)
class Bank:
    """Latents (N, 16, 16, 16) with the token ids of their captions, on the training device."""

    latents: Tensor
    clip: Tensor
    t5: Tensor | None

    def batch(self, n: int) -> Tensor:
        return torch.randint(len(self.latents), (n,), device=self.latents.device)


def fill_bank(vae: Any, renderer: Renderer, recipe: Recipe, clip_tokenizer: Any, t5_tokenizer: Any | None = None) -> Bank:
    """Encode as many pictures as the recipe says, with captions tokenized to full length."""
    rng = random.Random(0)
    latents, captions = [], []
    with torch.no_grad():
        while len(captions) < recipe.bank:
            pixels, scenes = renderer.draw(min(ENCODED_AT_ONCE, recipe.bank - len(captions)))
            latents.append(vae.encode(pixels).latent_dist.mean)
            captions += renderer.captions(scenes, rng)
    clip = token_ids(clip_tokenizer, captions, 77, renderer.device)
    return Bank(torch.cat(latents), clip, token_ids(t5_tokenizer, captions, T5_TOKENS, renderer.device) if t5_tokenizer else None)


def token_ids(tokenizer: Any, captions: list[str], length: int, device: torch.device) -> Tensor:
    """(N, length) ids, padded."""
    return tokenizer(captions, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids.to(device)


def train_vae(vae: Any, renderer: Renderer, recipe: Recipe, budget: Budget, say: Say) -> None:
    """Reconstruction in pixels and gradients, a light KL, and smooth latents: halving them must halve the picture."""

    def loss(step: int) -> Tensor:
        with torch.no_grad():
            pixels = renderer.draw(recipe.vae_batch, free=True)[0]
        mean, logvar = vae.quant_conv(vae.encoder(pixels.to(recipe.dtype))).float().chunk(2, 1)
        logvar = logvar.clamp(-20, 10)
        latents = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        n = max(1, recipe.vae_batch // 4)
        halved = _decoded(vae, F.avg_pool2d(latents[:n], 2), recipe)
        whole = reconstruction(pixels, _decoded(vae, latents, recipe))
        return whole + HALF_SCALE_WEIGHT * reconstruction(F.avg_pool2d(pixels[:n], 2), halved) + KL_WEIGHT * kl

    optimiser = Optimiser([vae], peak=1e-3, weight_decay=0.0, average=0.999, dtype=recipe.dtype)
    say(f"VAE: {optimiser.run(loss, budget, say)} steps")
    optimiser.finish()


def normalise_latents(vae: Any, renderer: Renderer, n: int) -> None:
    """Fold the latents' mean and deviation, channel by channel, into the 1x1 convolutions around them: scaling factor 1, shift 0."""
    with torch.no_grad():
        latents = torch.cat([vae.encode(renderer.draw(min(n, ENCODED_AT_ONCE))[0]).latent_dist.mean for _ in range(-(-n // ENCODED_AT_ONCE))])
        mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3)) + 1e-6
        into, out = vae.quant_conv, vae.post_quant_conv
        into.weight[:LATENT_CHANNELS] /= deviation[:, None, None, None]
        into.bias[:LATENT_CHANNELS] = (into.bias[:LATENT_CHANNELS] - mean) / deviation
        into.bias[LATENT_CHANNELS:] -= 2 * deviation.log()
        out.bias += (out.weight[:, :, 0, 0] * mean).sum(1)
        out.weight *= deviation[None, :, None, None]


def train_sdxl(encoders: tuple[Any, Any], unet: Any, bank: Bank, empty: Tensor, recipe: Recipe, budget: Budget, say: Say) -> None:
    """Noise prediction over scaled-linear betas, min-SNR weighted, text encoders trained along."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, device=bank.latents.device) ** 2
    kept = torch.cumprod(1 - betas, 0)  # share of the signal's energy left at each timestep
    sizes = torch.tensor([[SIDE, SIDE, 0, 0, SIDE, SIDE]], device=bank.latents.device).float().expand(recipe.batch, -1)
    first, second = encoders

    def loss(step: int) -> Tensor:
        rows = bank.batch(recipe.batch)
        latents, noise = bank.latents[rows].float(), torch.randn_like(bank.latents[rows].float())
        dropped = torch.rand(recipe.batch, 1, device=latents.device) < CAPTION_DROPOUT
        ids = torch.where(dropped, empty, bank.clip[rows])
        timesteps = torch.randint(1000, (recipe.batch,), device=latents.device)
        share = kept[timesteps][:, None, None, None]
        noisy = share.sqrt() * latents + (1 - share).sqrt() * noise
        a, b = first(ids, output_hidden_states=True), second(ids, output_hidden_states=True)
        prompt = torch.cat([a.hidden_states[-2], b.hidden_states[-2]], -1)
        conditions = {"text_embeds": b.text_embeds, "time_ids": sizes}
        predicted = unet(noisy.to(recipe.dtype), timesteps, prompt, added_cond_kwargs=conditions).sample.float()
        snr = kept[timesteps] / (1 - kept[timesteps])
        return ((predicted - noise).pow(2).mean((1, 2, 3)) * snr.clamp(max=MIN_SNR_GAMMA) / snr).mean()

    optimiser = Optimiser([first, second, unet], peak=1e-3, weight_decay=0.01, average=0.9993, dtype=recipe.dtype)
    say(f"SDXL: {optimiser.run(loss, budget, say)} steps")
    optimiser.finish()


@dataclass(frozen=True)
class Flow:
    """A batch on straight paths from latents to noise: position, target, time, and the ids to condition on."""

    noisy: Tensor
    target: Tensor
    time: Tensor
    clip: Tensor
    t5: Tensor


def train_flux(encoders: tuple[Any, Any], transformer: Any, bank: Bank, empty: tuple[Tensor, Tensor], recipe: Recipe, budget: Budget, say: Say) -> None:
    """Rectified flow at logit-normal times, guidance told as 1, text encoders trained along."""

    def loss(step: int) -> Tensor:
        flow = _flow(bank, empty, recipe, step, CAPTION_DROPOUT)
        ones = torch.ones(len(flow.time), device=flow.time.device)
        return (velocity(transformer, encoders, flow, ones, recipe.dtype) - flow.target).pow(2).mean()

    optimiser = Optimiser([*encoders, transformer], peak=8e-4, weight_decay=0.01, average=0.9993, dtype=recipe.dtype)
    say(f"FLUX.1: {optimiser.run(loss, budget, say)} steps")
    optimiser.finish()


def distil_guidance(encoders: tuple[Any, Any], transformer: Any, bank: Bank, empty: tuple[Tensor, Tensor], recipe: Recipe, budget: Budget, say: Say) -> None:
    """Teach the transformer to give in one pass, for guidance 1 to 5, what it gives with classifier-free guidance."""
    teacher, *texts = (copy.deepcopy(module).to(recipe.dtype).requires_grad_(False) for module in (transformer, *encoders))
    frozen = (texts[0], texts[1])

    def loss(step: int) -> Tensor:
        flow = _flow(bank, empty, recipe, step, DISTILLED_DROPOUT)
        n, length = flow.t5.shape
        ones = torch.ones(n, device=flow.time.device)
        guidance = 1 + 4 * torch.rand(n, device=flow.time.device)
        blank = Flow(flow.noisy, flow.target, flow.time, empty[0].expand(n, -1), F.pad(empty[1], (0, length - len(empty[1]))).expand(n, -1))
        with torch.no_grad():
            told = velocity(teacher, frozen, flow, ones, recipe.dtype)
            untold = velocity(teacher, frozen, blank, ones, recipe.dtype)
            target = untold + guidance[:, None, None] * (told - untold)
        return (velocity(transformer, frozen, flow, guidance, recipe.dtype) - target).pow(2).mean()

    optimiser = Optimiser([transformer], peak=4e-4, weight_decay=0.0, average=0.999, dtype=recipe.dtype)
    say(f"guidance distillation: {optimiser.run(loss, budget, say)} steps")
    optimiser.finish()


def velocity(transformer: Any, encoders: tuple[Any, Any], flow: Flow, guidance: Tensor, dtype: torch.dtype) -> Tensor:
    """The transformer's prediction (B, tokens, 64) in fp32."""
    device = flow.noisy.device
    clip, t5 = encoders
    rows = LATENT_ROWS // 2
    places = torch.zeros(rows, rows, 3, device=device)
    places[..., 1], places[..., 2] = torch.arange(rows, device=device)[:, None], torch.arange(rows, device=device)[None]
    text_places = torch.zeros(flow.t5.shape[1], 3, device=device)
    pooled, prompt = clip(flow.clip).pooler_output, t5(flow.t5)[0]
    return transformer(flow.noisy.to(dtype), prompt, pooled, flow.time.to(dtype), places.flatten(0, 1), text_places, guidance.to(dtype), return_dict=False)[
        0
    ].float()


def _flow(bank: Bank, empty: tuple[Tensor, Tensor], recipe: Recipe, step: int, dropout: float) -> Flow:
    long = step % 10 == 9
    n = recipe.long_batch if long else recipe.batch
    rows = bank.batch(n)
    if bank.t5 is None:
        raise ValueError("this bank was made without T5 ids")
    latents = _packed(bank.latents[rows].float())
    noise = torch.randn_like(latents)
    time = torch.sigmoid(1.1 * torch.randn(n, device=latents.device) + 0.1)
    dropped = torch.rand(n, 1, device=latents.device) < dropout
    clip = torch.where(dropped, empty[0], bank.clip[rows][:, :CLIP_FLUX_TOKENS])
    t5 = torch.where(dropped, empty[1], bank.t5[rows])
    t5 = F.pad(t5, (0, T5_LONG_TOKENS - T5_TOKENS)) if long else t5
    mix = time[:, None, None]
    return Flow((1 - mix) * latents + mix * noise, noise - latents, time, clip, t5)


def _packed(latents: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h/2 * w/2, 4 C), as FLUX.1 lays out its tokens."""
    n, c, h, w = latents.shape
    return latents.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(n, h * w // 4, 4 * c)


def _decoded(vae: Any, latents: Tensor, recipe: Recipe) -> Tensor:
    return vae.decoder(vae.post_quant_conv(latents.to(recipe.dtype))).float()


def reconstruction(target: Tensor, found: Tensor) -> Tensor:
    """Error in pixels and in their differences to neighbours, which keeps edges sharp."""
    error = target - found
    slopes = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + 2 * error.pow(2).mean() + 0.5 * slopes
