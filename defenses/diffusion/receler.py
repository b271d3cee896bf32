"""Receler: small erasers behind every cross-attention, trained against prompts that bring the concept back (Huang et al. 2024).

    e(h) = h + up(GELU(down(h)))    behind each cross-attention; ``up`` begins as 0, and no other weight of the model moves

    k times    v <- Adam(v, grad ||eps_e(z_t | c + v) - eps_0(z_t | c)||^2)          v: vectors behind the encoded concept
    then       min_e  ||eps_e(z_t | c + v) - [eps_0(z_t) - eta (eps_0(z_t | c) - eps_0(z_t))]||^2
                      + locality * mean over layers of  ||(1 - M) (e(h) - h)||^2 / (1 - M)

z_t is drawn by the model as it is. M is where the original looks at the concept's words, from its attention maps, scaled to [0, 1] and cut
at ``threshold``: outside of it an eraser is to do nothing.

Controls: ``attack_steps: 0`` (no adversarial prompt), and ``locality: 0``.

Source: Huang et al.: Receler (ECCV 2024), section 4. As read in the authors' code: the erasers' form and rank 128, 16 vectors behind the
concept's tokens in what the UNet is told, 50 steps of Adam at 0.1 with weight decay 0.1 which go on from the step before, the erasing loss
with the vectors of before the last of them, eta 1, start guidance 3, 500 steps at 3e-4, weight and threshold 0.1, one concept in each
step. Theirs begin as numbers in [0, 1), and the maps are those of 16x16 positions; here the maps are of the layers with the most
positions, and a step may have several texts, with a mask each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pydantic import Field
from typing_extensions import override

from robustkd.contracts import FitContext, Params, Prompts, UsageError
from robustkd.contracts.json_value import JsonObject
from robustkd.defenses.diffusion.erasing import Erasure, TuningParams, begin, partially_denoised
from robustkd.defenses.diffusion.esd import negative_guidance_target
from robustkd.defenses.diffusion.text_to_image_defense import TextToImageDefense
from robustkd.defenses.training.networks import seeded_init
from robustkd.defenses.training.steps import train_steps
from robustkd.lazy import F, nn, torch
from robustkd.targets import frozen
from robustkd.targets.activations import output_hooks
from robustkd.targets.altered_drawing import AlteredDrawing
from robustkd.targets.text_encoders import Conditioning
from robustkd.targets.text_to_image import TextToImageTarget

if TYPE_CHECKING:
    from torch import Tensor


class RecelerSettings(Params):
    """The shape of the erasers."""

    rank: int = Field(128, ge=1, description="numbers between the two layers of an eraser")


class RecelerParams(RecelerSettings, TuningParams):
    steps: int = Field(500, ge=1, description="updates of the erasers")
    lr: float = Field(3e-4, gt=0, description="their learning rate")
    eta: float = Field(1.0, ge=0, description="strength of the negative guidance")
    start_guidance: float = Field(3.0, ge=1, description="guidance of the drawings on which the models are compared")
    tokens: int = Field(16, ge=1, description="vectors behind the concept that are searched for")
    attack_steps: int = Field(50, ge=0, description="steps of the search for them, in each update; 0: the control without them")
    attack_lr: float = Field(0.1, gt=0, description="its learning rate, and the weight decay of its Adam")
    locality: float = Field(0.1, ge=0, description="weight of doing nothing where the concept is not looked for")
    threshold: float = Field(0.1, ge=0, le=1, description="of the attention, from which on a place counts as looked at")


class RecelerTarget(AlteredDrawing[RecelerSettings]):
    """A model with an eraser behind each cross-attention.

    Args:
        model: its weights are shared.
        settings: the erasers' shape.
        erasers: one for each layer; fresh ones by default.
    """

    kind = "receler"
    Settings = RecelerSettings

    def __init__(self, model: TextToImageTarget, settings: RecelerSettings, erasers: nn.ModuleList | None = None) -> None:
        super().__init__(model, settings)
        if erasers is None:
            widths = [int(layer.to_out[0].out_features) for layer in cross_attentions(self)]
            erasers = nn.ModuleList([_eraser(width, settings.rank) for width in widths]).to(model.device, model.dtype)
        parts: dict[str, Any] = dict(model.module.items())
        self.erasers, self.module = erasers, nn.ModuleDict({**parts, "erasers": erasers})

    @override
    def drawing_by(self, scheduler: Any, *, guidance: float, steps: int) -> TextToImageTarget:
        return type(self)(self.model.drawing_by(scheduler, guidance=guidance, steps=steps), self.settings, self.erasers)

    @override
    def _asked(self, latents: Tensor, t: Tensor, hidden: Conditioning) -> Tensor:
        with self.added():
            return super()._asked(latents, t, hidden)

    @contextmanager
    def added(self, seen: list[Tensor] | None = None) -> Iterator[None]:
        """Until the end of the block, the erasers add to the cross-attention; what each adds is put into ``seen``."""

        def adding(number: int) -> Any:
            def add(module: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
                change: Tensor = self.erasers[number](output)
                if seen is not None:
                    seen.append(change)
                return output + change

            return add

        layers = cross_attentions(self)
        with output_hooks(layers, [adding(number) for number in range(len(layers))]):
            yield


class Receler(TextToImageDefense):
    """Train erasers of a concept behind the cross-attention of a frozen model."""

    Params = RecelerParams
    source = "Huang et al., Receler: reliable concept erasing of text-to-image diffusion models, ECCV 2024, arXiv:2311.17717"

    def fit(self, context: FitContext[Prompts]) -> RecelerTarget:
        """Train the erasers.

        Raises:
            UsageError: a text leaves no room for the vectors; see also ``erasing.begin``.
            DataError: see ``erasing.begin``.
        """
        p, erasure = self.params, begin(context, self.params)
        with seeded_init(context, "erasers"):
            target = RecelerTarget(erasure.target, RecelerSettings(rank=p.rank))
        target.to(context.device).module.eval()
        with seeded_init(context, "vectors"):
            width = erasure.original.unconditional().tokens.shape[2]
            vectors = Vectors(erasure.forget.concepts, torch.rand(len(erasure.forget.concepts), p.tokens, width), p.attack_lr)
        vectors.to(context.device)
        place = {text: number for number, texts in enumerate(erasure.forget.texts) for text in texts}
        _refuse_long(erasure, p.tokens)

        def loss(draws: torch.Generator) -> Tensor:
            texts = erasure.forget.draw(1, draws)
            ids = erasure.original.tokenize(texts * p.batch_size)
            with torch.no_grad():
                told = erasure.original.encode(ids)
                z, t = partially_denoised(target, told, p.start_guidance, draws)
                given = erasure.original.unet_output(z, t, told).float()
            concept = place[texts[0]]
            with frozen(target.module):
                for _ in range(p.attack_steps):
                    before = vectors.values[concept].clone()
                    vectors.step(concept, _gradient(target, z, t, told, ids, before, given))
            hidden = with_vectors(erasure.original, told, ids, before) if p.attack_steps else told
            wanted = negative_guidance_target(erasure.original, z, t, ids, p.eta)
            added: list[Tensor] = []
            with target.added(added):
                value = F.mse_loss(target.model.unet_output(z, t, hidden).float(), wanted)
            if p.locality:
                masks = attended(erasure.original, z, t, told, ids, p.threshold)
                value = value + p.locality * outside(added, masks)
            return value

        train_steps(context, "erase", dict(target.erasers.named_parameters()), loss, p, memory=vectors)
        return target


class Vectors:
    """The adversarial vectors of C concepts and Adam's memory of each: the state that a training has beside its weights.

    Args:
        concepts: their names.
        values: (C, k, D), what they begin as.
        lr: the rate, and the weight decay (added to the gradient).
    """

    def __init__(self, concepts: Sequence[str], values: Tensor, lr: float) -> None:
        self.values, self._lr = values, lr
        self._first, self._second = torch.zeros_like(values), torch.zeros_like(values)
        self._taken = [0] * len(concepts)

    def to(self, device: torch.device) -> None:
        """Move to a device."""
        self.values, self._first, self._second = (part.to(device) for part in (self.values, self._first, self._second))

    def step(self, concept: int, gradient: Tensor) -> None:
        """One step of Adam (betas .9 and .999) on the (k, D) vectors of a concept."""
        self._taken[concept] += 1
        n, decayed = self._taken[concept], gradient + self._lr * self.values[concept]
        self._first[concept] = 0.9 * self._first[concept] + 0.1 * decayed
        self._second[concept] = 0.999 * self._second[concept] + 0.001 * decayed.square()
        mean, spread = self._first[concept] / (1 - 0.9**n), self._second[concept] / (1 - 0.999**n)
        self.values[concept] -= self._lr * mean / (spread.sqrt() + 1e-8)

    def state_dict(self) -> JsonObject:
        """See ``Memory``."""
        state: dict[str, Any] = {
            name: part.tolist() for name, part in (("v", self.values), ("m", self._first), ("s", self._second))
        }
        return {**state, "taken": list(self._taken)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See ``Memory``."""
        for part, name in ((self.values, "v"), (self._first, "m"), (self._second, "s")):
            part.copy_(torch.tensor(state[name]))
        self._taken = [int(count) for count in state["taken"]]


def cross_attentions(target: TextToImageTarget) -> list[Any]:
    """The layers by which the UNet looks at the text."""
    return [module for name, module in target.unet.named_modules() if name.endswith("attn2")]


def _eraser(width: int, rank: int) -> nn.Sequential:
    layers = nn.Sequential(nn.Linear(width, rank), nn.GELU(), nn.Linear(rank, width))
    for weight in layers[2].parameters():
        nn.init.zeros_(weight)
    return layers


def with_vectors(original: TextToImageTarget, told: Conditioning, ids: Tensor, vectors: Tensor) -> Conditioning:
    """What the UNet is told, with (k, D) vectors from the end of each of the (B, T) prompts on."""
    first = (ids == original.eos).int().argmax(1)
    at = first[:, None] + torch.arange(len(vectors), device=ids.device)
    rows = torch.arange(len(ids), device=ids.device)[:, None]
    given = vectors.to(told.tokens.dtype).expand(len(ids), -1, -1)
    return Conditioning(told.tokens.index_put((rows, at), given), told.pooled)


def _gradient(
    target: RecelerTarget, z: Tensor, t: Tensor, told: Conditioning, ids: Tensor, vectors: Tensor, given: Tensor
) -> Tensor:
    """(k, D) of the distance from what the original sees, in the vectors."""
    leaf = vectors.detach().requires_grad_()
    with torch.enable_grad():
        distance = F.mse_loss(target.unet_output(z, t, with_vectors(target, told, ids, leaf)).float(), given)
    return torch.autograd.grad(distance, leaf)[0]


def attended(
    original: TextToImageTarget, z: Tensor, t: Tensor, told: Conditioning, ids: Tensor, threshold: float
) -> list[Tensor]:
    """For each cross-attention (B, P) of its P positions, 1 where the original looks at the words of the (B, T) prompts, else 0."""
    maps: list[Tensor] = []
    words = (torch.arange(ids.shape[1], device=ids.device) < (ids == original.eos).int().argmax(1)[:, None]) & (
        torch.arange(ids.shape[1], device=ids.device) > 0
    )

    def looking(module: Any, args: tuple[Any, ...], told: dict[str, Any], output: Tensor) -> None:
        query, key = (
            module.head_to_batch_dim(part) for part in (module.to_q(args[0]), module.to_k(told["encoder_hidden_states"]))
        )
        scores = module.get_attention_scores(query, key).unflatten(0, (len(args[0]), -1)).float().mean(1)
        maps.append((scores * words[:, None]).sum(2) / words.sum(1)[:, None])

    hooks = [layer.register_forward_hook(looking, with_kwargs=True) for layer in cross_attentions(original)]
    try:
        with torch.no_grad():
            original.unet_output(z, t, told)
    finally:
        for hook in hooks:
            hook.remove()
    most = max(found.shape[1] for found in maps)
    mean = torch.stack([found for found in maps if found.shape[1] == most]).mean(0)
    low, high = mean.amin(1, keepdim=True), mean.amax(1, keepdim=True)
    mask = ((mean - low) / (high - low).clamp_min(1e-12) >= threshold).float()
    return [_sized(mask, found.shape[1], z.shape[2] / z.shape[3]) for found in maps]


def _sized(mask: Tensor, positions: int, ratio: float) -> Tensor:
    """(B, P) -> (B, positions), the nearest place of each; height to width is ``ratio``."""
    if mask.shape[1] == positions:
        return mask
    height, wanted = (round((count * ratio) ** 0.5) for count in (mask.shape[1], positions))
    square = mask.reshape(len(mask), 1, height, -1)
    return F.interpolate(square, (wanted, positions // wanted)).flatten(1)


def outside(added: Sequence[Tensor], masks: Sequence[Tensor]) -> Tensor:
    """The mean over layers of the mean square of what erasers add (B, P, D) outside of (B, P) masks."""
    found = [
        (change.float().square().mean(2) * (1 - mask)).sum() / ((1 - mask).sum() + 1e-9)
        for change, mask in zip(added, masks, strict=True)
    ]
    return torch.stack(found).mean()


def _refuse_long(erasure: Erasure, tokens: int) -> None:
    ids = erasure.target.tokenize(erasure.forget.every())
    longest = int((ids == erasure.target.eos).int().argmax(1).max())
    if longest + tokens > erasure.target.max_tokens:
        raise UsageError(
            f"a text of {longest} tokens leaves no room for {tokens} vectors behind it: the model reads {erasure.target.max_tokens}",
            fix="lower tokens",
        )
