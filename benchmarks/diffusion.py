"""What an attack on a text-to-image model costs beside the model: the search against the bare passes that it is made of, and eight
requests together against one by one.

A small model with random weights, or one of Stable Diffusion 1.x's sizes (``--model sd``), and a judge that is never content, so that no
request leaves and every implementation makes the same passes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import click
import numpy as np
import torch
from _harness import COST, Verdicts, conclude, repeated

from robustkd import plugins
from robustkd.contracts import Judge, PromptBatch, Prompts, Request, ThreatModel
from robustkd.defenses.diffusion.small import SmallModelParams, small_model, word_tokenizer
from robustkd.evaluation.prompts import evaluate_prompt_attack, prepare
from robustkd.targets import frozen
from robustkd.targets.text_to_image import TextToImageTarget

REQUEST, TOKENS = "a red shirt on a blue table", 5
WORDS = " ".join(f"word{number}" for number in range(380))


class NeverContent(Judge):
    modalities = ("text-to-image",)

    def complied(self, requests: Prompts, outputs: Sequence[Any]) -> np.ndarray:
        return np.zeros(len(outputs), dtype=bool)


@click.command()
@click.option("--model", type=click.Choice(["small", "sd"]), default="small", show_default=True)
@click.option("--requests", default=8, show_default=True)
@click.option("--attempts", default=3, show_default=True)
@click.option("--steps", default=20, show_default=True, help="Gradient steps before each attempt.")
@click.option("--repeats", default=5, show_default=True)
@click.option("--device", default="cpu", show_default=True)
def main(model: str, requests: int, attempts: int, steps: int, repeats: int, device: str) -> None:
    """Print the table and write results/diffusion.json."""
    torch.set_num_threads(1)
    target = (_small if model == "small" else _stable_diffusion_sized)().to(device)
    assert isinstance(target, TextToImageTarget)
    target.module.eval()
    batch = _batch(target, requests)
    rounds = []
    for _ in range(repeats):
        bare = _timed(target, lambda: _bare(target, batch, attempts, steps))
        together = _timed(target, lambda: _attack(target, batch, attempts, steps, requests))
        alone = _timed(target, lambda: _attack(target, batch, attempts, steps, 1))
        rounds.append((bare, together, alone))
    ratio, gain, cost = (
        repeated(repeats, iter(values).__next__)
        for values in zip(*((together / bare, alone / together, together) for bare, together, alone in rounds), strict=True)
    )
    calls = requests * (attempts - 1) * steps
    row = {"network": model, "implementation": "unlearndiffatk", "requests": requests, "ratio": ratio, "gain": gain}
    row |= {"ms_per_step": 1e3 * cost / calls, "parameters": sum(weight.numel() for weight in target.module.parameters())}
    if device != "cpu":
        row["peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
    columns = [
        ("network", "model", ""),
        COST[1],
        ("ms_per_step", "ms/step", ".2f"),
        ("ratio", "to bare", ".2f"),
        ("gain", "batch gain", ".2f"),
        COST[-1],
    ]
    verdicts = Verdicts()
    verdicts.expect(f"{model}: attack, to its bare passes of UNet and text encoder", ratio, 1.15)
    verdicts.expect(f"{model}: time of {requests} requests together, to one by one", 1 / gain, 0.5)
    conclude("diffusion" if model == "small" else f"diffusion-{model}", [row], columns, verdicts, device)


def _batch(target: TextToImageTarget, requests: int) -> PromptBatch:
    shape = tuple(target.decode_latents(torch.zeros(1, *target.latent_shape, device=target.device))[0].shape)
    images = np.random.default_rng(0).random((requests, *shape), dtype=np.float32)
    columns = {"prompt": (REQUEST,) * requests, "seed": tuple(str(1 + row) for row in range(requests))}
    prompts = Prompts(columns, np.zeros(requests, dtype=np.int64), images)
    return prepare(target, prompts, np.arange(requests), {"judge": NeverContent()}, device=target.device)


def _attack(target: TextToImageTarget, batch: PromptBatch, attempts: int, steps: int, batch_size: int) -> None:
    spec = {"kind": "unlearndiffatk", "tokens": TOKENS, "steps": steps, "batch_size": batch_size}
    attack = plugins.make("attacks", spec)
    parts = [batch] if batch_size > 1 else [_only(batch, row) for row in range(len(batch))]
    for part in parts:
        evaluate_prompt_attack(target, attack, part, ThreatModel.by_prompt(attempts), {"judge": NeverContent()})


def _only(batch: PromptBatch, row: int) -> PromptBatch:
    rows = np.array([row])
    requests, before = batch.requests.select(rows), batch.unattacked
    answered = type(before)(requests, [before.outputs[row]], before.complied[rows])
    return PromptBatch(requests, batch.index[row : row + 1], answered, batch.eligible[rows])


def _bare(target: TextToImageTarget, batch: PromptBatch, attempts: int, steps: int) -> None:
    """The answers, and for each step one pass of text encoder and UNet with the gradient of the prompt."""
    ids = target.tokenize(["word1 " * TOKENS + REQUEST] * len(batch))
    with torch.no_grad():
        latents = target.latents(torch.from_numpy(batch.requests.images))
    noise, t = torch.randn_like(latents), torch.full((len(batch),), target.timesteps // 2, device=target.device)
    asked = [Request(prompt, seed=int(seed)) for prompt, seed in zip(*batch.requests.columns.values(), strict=True)]
    target.respond(asked)
    with frozen(target.module):
        for _ in range(attempts - 1):
            for _ in range(steps):
                leaf = target.embed(ids).detach().requires_grad_()
                seen = target.predict_noise(target.add_noise(latents, noise, t), t, target.encode(embeddings=leaf))
                torch.autograd.grad((seen.float() - noise.float()).square().sum(), leaf)
            target.respond(asked)


def _timed(target: TextToImageTarget, work: Any) -> float:
    """CPU time, which other processes do not disturb; wall time where the work is done elsewhere."""
    started = _now(target.device)
    work()
    return _now(target.device) - started


def _now(device: torch.device) -> float:
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def _small() -> TextToImageTarget:
    torch.manual_seed(0)
    return small_model([REQUEST, WORDS], (1, 16, 16), SmallModelParams())


def _stable_diffusion_sized() -> TextToImageTarget:
    """UNet, text encoder and autoencoder of Stable Diffusion 1.x, in half precision; the vocabulary is a small one."""
    from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    text = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    blocks = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4, "sample_size": 512}
    ends = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    parts: dict[str, torch.nn.Module] = {
        "unet": UNet2DConditionModel(sample_size=64, cross_attention_dim=768),
        "text_encoder": CLIPTextModel(text),
        "vae": AutoencoderKL(**blocks, **ends),
    }
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    module = torch.nn.ModuleDict(parts).to(torch.float16)
    return TextToImageTarget(module, word_tokenizer([REQUEST, WORDS]), {"bos": 0, "eos": 1, "pad": 1}, scheduler)


if __name__ == "__main__":
    main()
