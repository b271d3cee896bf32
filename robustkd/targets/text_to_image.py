"""Latent and pixel diffusion models that draw what a text says.

One code path for Stable Diffusion 1.x/2.x, for SDXL and for the small models that a campaign trains: the same classes of diffusers and
transformers, and without an autoencoder the latents are the pixels, in [-1, 1]. What differs with the number of text encoders is in
``text_encoders``.
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from typing_extensions import TypedDict, override

from robustkd.contracts import Card, DataError, GenerativeTarget, Request, TargetError
from robustkd.contracts.capability import ORDINARY
from robustkd.contracts.extras import installation
from robustkd.contracts.json_value import JsonObject, JsonValue
from robustkd.contracts.params import AddedLater
from robustkd.lazy import nn, torch
from robustkd.scoring.finite import require_finite
from robustkd.targets.frozen import without_gradients
from robustkd.targets.memory import in_memory
from robustkd.targets.text_encoders import Conditioning, OneTextEncoder, SecondEncoder, TextEncoders, TwoTextEncoders

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

_TOGETHER = 2**17  # latent values that are denoised together: 8 images of Stable Diffusion 1.x, 512 of 16x16 pixels


def dtype_named(precision: str) -> torch.dtype:
    """The type of ``float32``, ``float16`` or ``bfloat16``."""
    return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[precision]


SchedulerCard = TypedDict("SchedulerCard", {"class": str, "config": JsonObject})
"""A scheduler of diffusers: the name of its class, and its configuration."""


class TextToImageCard(Card):
    """The card of a text-to-image model: the configurations of its networks, by their names, and how it draws.

    Attributes:
        second: of a model with two text encoders.
        negative_prompt: see ``TextToImageTarget``.
    """

    parts: dict[str, JsonObject]
    tokenizer: str
    special: dict[str, int]
    scheduler: SchedulerCard
    guidance: float
    steps: int
    precision: str
    second: Annotated[SecondEncoder | None, AddedLater()] = None
    negative_prompt: Annotated[str, AddedLater()] = ""


class _Settings(NamedTuple):
    """What pictures that are drawn together have in common."""

    guidance: float
    negative: str
    shape: tuple[int, int, int]


class TextToImageTarget(GenerativeTarget):
    """A conditional diffusion model with classifier-free guidance.

    Args:
        module: ``unet`` (UNet2DConditionModel), ``text_encoder`` (CLIPTextModel) and, of a latent model, ``vae`` (AutoencoderKL); of
            SDXL ``text_encoder_2`` (CLIPTextModelWithProjection), too.
        tokenizer: lower-cases and splits; it adds no special tokens.
        special: the ids ``bos``, ``eos`` and ``pad``.
        scheduler: any of diffusers that adds noise by ``alphas_cumprod``.
        guidance: how far the prediction is moved from the one for an empty prompt to that for the prompt, where a request does not
            say it; 1 leaves the first out.
        steps: of denoising.
        second: what there is to know of the second text encoder, where there is one.
        negative_prompt: what every drawing is led away from; a request's own stands behind it.

    Raises:
        TargetError: the parts are not of one model, or of one that draws otherwise.

    Attributes:
        max_tokens: T, positions of a prompt, ``bos`` and ``eos`` included.
        timesteps: how many noise levels there are.
        latent_shape: (C', H', W') of what is denoised.
        pixels: along each side of what is drawn, for each of the latents.
    """

    kind = "text-to-image"
    capabilities = ORDINARY["text-to-image"]
    module: nn.ModuleDict

    def __init__(
        self,
        module: nn.ModuleDict,
        tokenizer: Tokenizer,
        special: Mapping[str, int],
        scheduler: Any,
        *,
        guidance: float = 7.5,
        steps: int = 50,
        second: SecondEncoder | None = None,
        negative_prompt: str = "",
    ) -> None:
        self.module, self.tokenizer, self.scheduler = module, tokenizer, scheduler
        self.guidance, self.steps = guidance, steps
        self.second, self.negative_prompt = second, negative_prompt
        parts: Any = module
        self.unet, self.text_encoder, self.vae = parts["unet"], parts["text_encoder"], getattr(parts, "vae", None)
        self.special = dict(special)
        self.bos, self.eos, self.pad = (self.special[name] for name in ("bos", "eos", "pad"))
        self.encoders: TextEncoders = (
            OneTextEncoder(self.text_encoder, self.pad)
            if second is None
            else TwoTextEncoders(self.text_encoder, parts["text_encoder_2"], second, tokenizer, self.decode, self.special)
        )
        config = self.unet.config
        if reason := unsupported(config if isinstance(config, Mapping) else vars(config), len(self.encoders.networks)):
            raise TargetError(f"the UNet {reason}", fix="take all parts from one model that draws by its text alone")
        self.max_tokens = int(self.text_encoder.config.max_position_embeddings)
        self.timesteps = int(scheduler.config.num_train_timesteps)
        side = self.unet.config.sample_size
        height, width = (side, side) if isinstance(side, int) else side
        self.latent_shape = (int(self.unet.config.in_channels), int(height), int(width))
        self.pixels = 1 if self.vae is None else 2 ** (len(self.vae.config.block_out_channels) - 1)
        if not hasattr(scheduler, "alphas_cumprod"):
            raise TargetError(
                f"the scheduler {type(scheduler).__name__} adds no noise by alphas_cumprod",
                fix="use the model's own DDPM, DDIM, PNDM, Euler or DPM++ scheduler; flow matching models are not supported",
            )

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the weights."""
        return next(self.module.parameters()).dtype

    @property
    def embedding(self) -> nn.Embedding:
        """The (first) text encoder's table of token embeddings; ``embed`` looks up in those of all encoders."""
        table: nn.Embedding = self.text_encoder.get_input_embeddings()
        return table

    def picture_shape(self, size: tuple[int, int] | None = None) -> tuple[int, int, int]:
        """(C, H, W) of what is drawn, at (height, width) or at the model's own size."""
        channels = self.latent_shape[0] if self.vae is None else int(self.vae.config.out_channels)
        height, width = size or (side * self.pixels for side in self.latent_shape[1:])
        return channels, height, width

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """(B, T) int64: bos, the prompt, eos, padding.

        Raises:
            DataError: a prompt is longer than T - 2 tokens.
        """
        rows = [encoded.ids for encoded in self.tokenizer.encode_batch(list(prompts), add_special_tokens=False)]
        room = self.max_tokens - 2
        for prompt, ids in zip(prompts, rows, strict=True):
            if len(ids) > room:
                raise DataError(
                    f"a prompt of {len(ids)} tokens is too long, the model reads {room}: {prompt[:60]!r}..",
                    fix="shorten it: what is cut off silently would not be what was asked",
                )
        filled = [[self.bos, *ids, self.eos, *[self.pad] * (room - len(ids))] for ids in rows]
        return torch.tensor(filled, dtype=torch.int64, device=self.device).reshape(-1, self.max_tokens)

    def decode(self, ids: Sequence[int] | Tensor) -> str:
        """The text of some tokens, special ones left out."""
        listed = [int(token) for token in ids if int(token) not in self.special.values()]
        text: str = self.tokenizer.decode(listed, skip_special_tokens=True)
        return text.replace("</w>", " ").strip()  # how CLIP's byte pairs mark the end of a word

    def embed(self, ids: Tensor) -> Tensor:
        """(B, T) -> (B, T, E), the tokens' embeddings without positions."""
        return self.encoders.embed(ids.to(self.device))

    @override
    def embedding_distance(self, asked: Request) -> float:
        """See ``GenerativeTarget.embedding_distance``: of each position from the nearest token's embedding."""
        assert asked.embeddings is not None
        table = (
            self.embed(torch.arange(self.embedding.num_embeddings, device=self.device).unsqueeze(1)).squeeze(1).detach().float()
        )
        given = asked.embeddings.to(table)
        return float(
            torch.cdist(given, table, compute_mode="donot_use_mm_for_euclid_dist").min(1).values.max()
            / table.norm(dim=1).mean()
        )

    def encode(self, ids: Tensor | None = None, embeddings: Tensor | None = None) -> Conditioning:
        """What the UNet is told of B prompts.

        Args:
            ids: (B, T), as ``tokenize`` gives them.
            embeddings: (B, T, E) in place of ids, laid out as ``embed`` gives them; the result is differentiable in them.
        """
        if (ids is None) == (embeddings is None):
            raise TargetError("a prompt is encoded from ids or from embeddings", fix="give one of the two")
        if embeddings is None:
            assert ids is not None
            return self.encoders.of_ids(ids.to(self.device))
        return self.encoders.of_embeddings(embeddings.to(self.device, self.dtype))

    def unconditional(self, negative: str = "") -> Conditioning:
        """What the UNet is told where nothing is asked for, one row: the other end of classifier-free guidance.

        Args:
            negative: what is to be led away from, in the place of nothing.
        """
        other = self.encode(self.tokenize([negative]))
        return other.zeros() if not negative and self.second is not None and self.second.zeros_for_empty else other

    def latents(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, C', H', W'), the mean of the autoencoder's latents, scaled; differentiable."""
        scaled = 2 * images.to(self.device, self.dtype) - 1
        if self.vae is None:
            return scaled
        z: Tensor = self.vae.encode(scaled.to(_dtype(self.vae, self.dtype))).latent_dist.mode()
        mean, std = self._of_latents(z)
        z = z * self.vae.config.scaling_factor if std is None else (z - mean) * self.vae.config.scaling_factor / std
        return z.to(self.dtype)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """(B, C', H', W') -> (B, C, H, W) float32 in [0, 1]."""
        drawn = latents.to(self.dtype)
        if self.vae is not None:
            drawn = drawn.to(_dtype(self.vae, self.dtype))
            mean, std = self._of_latents(drawn)
            scaled = drawn / self.vae.config.scaling_factor
            if std is not None:
                scaled = drawn * std / self.vae.config.scaling_factor + mean
            drawn = self.vae.decode(scaled).sample
        require_finite(drawn.detach(), "the decoder's pictures")
        return (drawn.float() / 2 + 0.5).clamp(0, 1)

    def _of_latents(self, like: Tensor) -> tuple[Tensor, Tensor | None]:
        """The mean and the standard deviation of the autoencoder's latents by channel, None for the latter where it says neither."""
        vae: Any = self.vae
        mean, std = (getattr(vae.config, name, None) for name in ("latents_mean", "latents_std"))
        if self.second is None or mean is None or std is None:  # Stable Diffusion 1.x and 2.x have but a factor
            return torch.zeros(()), None
        channels = (torch.tensor(values, dtype=like.dtype, device=like.device).reshape(1, -1, 1, 1) for values in (mean, std))
        return next(channels), next(channels)

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """sqrt(a_t) z_0 + sqrt(1 - a_t) noise, with t (B,) int64 in [0, timesteps)."""
        kept = self._kept(t)
        return (kept.sqrt() * latents + (1 - kept).sqrt() * noise).to(latents.dtype)

    def unet_output(self, latents: Tensor, t: Tensor, hidden: Conditioning) -> Tensor:
        """(B, C', H', W') what the UNet says about noised latents, in its own terms: noise, velocity or latents."""
        said = self._asked(latents.to(self.dtype), t.to(self.device), hidden)
        require_finite(said.detach(), "the UNet's outputs", "noised pictures")
        return said

    def _asked(self, latents: Tensor, t: Tensor, hidden: Conditioning) -> Tensor:
        """What the UNet says; one of SDXL is told the size of the picture, and that nothing was cropped from it."""
        if hidden.pooled is None:
            said: Tensor = self.unet(latents, t, encoder_hidden_states=hidden.tokens).sample
            return said
        height, width = (side * self.pixels for side in latents.shape[-2:])
        size = torch.tensor([height, width, 0, 0, height, width], dtype=hidden.tokens.dtype, device=latents.device)
        added = {"text_embeds": hidden.pooled, "time_ids": size.expand(len(latents), -1)}
        said = self.unet(latents, t, encoder_hidden_states=hidden.tokens, added_cond_kwargs=added).sample
        return said

    def training_target(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """(B, C', H', W') what ``unet_output`` is trained to say of the latents when noised."""
        kind = self.scheduler.config.prediction_type
        if kind == "epsilon":
            return noise
        if kind == "sample":
            return latents
        kept = self._kept(t)
        return (kept.sqrt() * noise - (1 - kept).sqrt() * latents).to(latents.dtype)

    def predict_noise(self, latents: Tensor, t: Tensor, hidden: Conditioning) -> Tensor:
        """(B, C', H', W') the noise that the UNet sees in noised latents, whatever its own terms."""
        output, kind = self.unet_output(latents, t, hidden), self.scheduler.config.prediction_type
        if kind == "epsilon":
            return output
        kept = self._kept(t)
        if kind == "v_prediction":
            return kept.sqrt() * output + (1 - kept).sqrt() * latents
        return (latents - kept.sqrt() * output) / (1 - kept).sqrt()

    def predict_x0(self, latents: Tensor, t: Tensor, hidden: Conditioning) -> Tensor:
        """(B, C', H', W') the latents without noise that the UNet sees in noised ones, whatever its own terms."""
        return self.output_as_x0(self.unet_output(latents, t, hidden), latents, t)

    def output_as_x0(self, output: Tensor, latents: Tensor, t: Tensor) -> Tensor:
        """(B, C', H', W') the latents without noise that an output of the UNet about noised ones stands for."""
        kind = self.scheduler.config.prediction_type
        if kind == "sample":
            return output
        kept = self._kept(t)
        if kind == "v_prediction":
            return kept.sqrt() * latents - (1 - kept).sqrt() * output
        return (latents - (1 - kept).sqrt() * output) / kept.sqrt()

    @without_gradients()
    def respond(self, asked: Sequence[Request]) -> list[Tensor]:
        """One (C, H, W) image in [0, 1] each, on the CPU. What is drawn depends on a request's own seed (None is 0), guidance, negative
        prompt and size.

        Raises:
            DataError: the model draws no picture of a request's size.
        """
        # Those that are drawn alike together, so that what one asks for does not change what another one gets.
        alike: dict[_Settings, list[int]] = {}
        for place, question in enumerate(asked):
            alike.setdefault(self._settings(question), []).append(place)
        drawn: dict[int, Tensor] = {}
        for settings, places in alike.items():
            empty = self.unconditional(settings.negative) if settings.guidance != 1 else None
            together = max(1, min(64, _TOGETHER // torch.Size(settings.shape).numel()))
            parts = in_memory(partial(self._drawn, asked, empty, settings), torch.tensor(places), together)
            drawn |= dict(zip(places, chain.from_iterable(parts), strict=True))
        return [drawn[place] for place in range(len(asked))]

    def _settings(self, question: Request) -> _Settings:
        scale = self.guidance if question.guidance_scale is None else question.guidance_scale
        negative = ", ".join(text for text in (self.negative_prompt, question.negative_prompt) if text)
        if question.size is None:
            return _Settings(scale, negative, self.latent_shape)
        height, width = question.size
        if height % self.pixels or width % self.pixels:
            raise DataError(
                f"a request is for a picture of {width}x{height}, and the model draws multiples of {self.pixels} pixels",
                fix="ask for another width and height, or leave the request out",
            )
        return _Settings(scale, negative, (self.latent_shape[0], height // self.pixels, width // self.pixels))

    def _drawn(self, asked: Sequence[Request], empty: Conditioning | None, settings: _Settings, rows: Tensor) -> Tensor:
        """(B, C, H, W) on the CPU, the pictures of the requests in (B,) ``rows``, which are drawn alike."""
        some = [asked[row] for row in rows.tolist()]
        # The CPU's generators: the same seed draws the same image on every device.
        draws = [torch.Generator().manual_seed(question.seed or 0) for question in some]
        hidden = self._asked_for(some)
        return self.decode_latents(self.denoise(draws, hidden, empty, settings.guidance, shape=settings.shape)).cpu()

    def _asked_for(self, asked: Sequence[Request]) -> Conditioning:
        """Each request's prompt, or what stands in its place."""
        soft = [question.embeddings for question in asked]
        if all(given is None for given in soft):
            return self.encode(self.tokenize([question.prompt for question in asked]))
        rows = [
            self.embed(self.tokenize([question.prompt]))[0] if given is None else given.to(self.device)
            for question, given in zip(asked, soft, strict=True)
        ]
        return self.encode(embeddings=torch.stack(rows))

    def denoise(
        self,
        draws: Sequence[torch.Generator],
        hidden: Conditioning,
        empty: Conditioning | None = None,
        guidance: float = 1.0,
        steps: int | None = None,
        shape: tuple[int, int, int] | None = None,
    ) -> Tensor:
        """(B, C', H', W') float32 latents, from noise that each of the B generators (the CPU's) draws.

        Args:
            hidden: the B prompts.
            empty: ``unconditional()``, which is needed for guidance.
            steps: how many are done, to see a drawing that is not finished; it is at the noise level ``sampling_times()[steps]``.
            shape: (C', H', W'), by default ``latent_shape``.
        """
        scheduler = self._scheduler()
        z = torch.stack([torch.randn(shape or self.latent_shape, generator=draw) for draw in draws]).to(self.device)
        return self._down(
            scheduler, scheduler.timesteps[:steps], z * scheduler.init_noise_sigma, draws, hidden, empty, guidance
        )

    def redraw(
        self,
        latents: Tensor,
        draws: Sequence[torch.Generator],
        hidden: Conditioning,
        empty: Conditioning | None = None,
        guidance: float = 1.0,
        *,
        steps: int,
    ) -> Tensor:
        """(B, C', H', W') float32 latents, noised to where the last ``steps`` steps of drawing begin and drawn from there.

        Args:
            latents: (B, C', H', W'); the result is differentiable in them.
            draws: B generators of the noise (the CPU's).
            hidden, empty, guidance: see ``denoise``.
        """
        scheduler = self._scheduler()
        first = (self.steps - steps) * scheduler.order
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(first)
        times = scheduler.timesteps[first:]
        noise = torch.stack([torch.randn(self.latent_shape, generator=draw) for draw in draws]).to(self.device)
        z = scheduler.add_noise(latents.float(), noise, times[:1].expand(len(latents)))
        return self._down(scheduler, times, z, draws, hidden, empty, guidance)

    def _down(
        self,
        scheduler: Any,
        times: Tensor,
        z: Tensor,
        draws: Sequence[torch.Generator],
        hidden: Conditioning,
        empty: Conditioning | None,
        guidance: float,
    ) -> Tensor:
        """From noised latents through the noise levels ``times``."""
        random = {"generator": list(draws)} if "generator" in inspect.signature(scheduler.step).parameters else {}
        predict = self._predictor(hidden, empty, guidance)
        for t in times:
            output = predict(scheduler.scale_model_input(z, t).to(self.dtype), t)
            z = scheduler.step(output, t, z, **random).prev_sample
        require_finite(z.detach(), "the latents that the UNet draws")
        return z

    def _predictor(
        self, hidden: Conditioning, empty: Conditioning | None, guidance: float
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """What one drawing asks the UNet at each of its levels, one after the other: from (B, C', H', W') and t to float32."""
        both = None if empty is None else empty.expand(len(hidden)).then(hidden)

        def predict(seen: Tensor, t: Tensor) -> Tensor:
            if both is None:
                return self._asked(seen, t, hidden).float()
            without, given = self._asked(torch.cat([seen, seen]), t, both).float().chunk(2)
            return without + guidance * (given - without)

        return predict

    def sampling_times(self) -> Tensor:
        """The noise levels of drawing, (steps,), falling."""
        times: Tensor = self._scheduler().timesteps
        return times

    def _scheduler(self) -> Any:
        # One for each drawing, because some remember their last steps; a copy, because from_config imports half of diffusers.
        scheduler = copy.deepcopy(self.scheduler)
        scheduler.set_timesteps(self.steps, device=self.device)
        return scheduler

    def _kept(self, t: Tensor) -> Tensor:
        """a_t, (B, 1, 1, 1)."""
        alphas: Tensor = self.scheduler.alphas_cumprod.to(self.device)[t.to(self.device)]
        return alphas.reshape(-1, 1, 1, 1)

    def drawing_by(self, scheduler: Any, *, guidance: float, steps: int) -> TextToImageTarget:
        """The same networks, which draw in another way."""
        return TextToImageTarget(
            self.module,
            self.tokenizer,
            self.special,
            scheduler,
            guidance=guidance,
            steps=steps,
            second=self.second,
            negative_prompt=self.negative_prompt,
        )

    @override
    def card(self) -> JsonObject:
        read = {name: _config(network.config.to_diff_dict()) for name, network in self.encoders.networks.items()}
        parts = {"unet": _config(self.unet.config)} | read
        return TextToImageCard(
            target=self.kind,
            parts=parts | ({} if self.vae is None else {"vae": _config(self.vae.config)}),
            tokenizer=self.tokenizer.to_str(),
            special=self.special,
            scheduler={"class": type(self.scheduler).__name__, "config": _config(self.scheduler.config)},
            guidance=self.guidance,
            steps=self.steps,
            precision=str(self.dtype).removeprefix("torch."),
            second=self.second,
            negative_prompt=self.negative_prompt,
        ).to_json()

    @classmethod
    @override
    def from_card(cls, card: JsonObject) -> TextToImageTarget:
        require_diffusers()
        import diffusers
        from tokenizers import Tokenizer
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

        own = TextToImageCard.read(card)
        configs = own.parts
        parts: dict[str, nn.Module] = {
            "unet": diffusers.UNet2DConditionModel.from_config(configs["unet"]),
            "text_encoder": CLIPTextModel(CLIPTextConfig.from_dict(dict(configs["text_encoder"]))),
        }
        if "text_encoder_2" in configs:
            config = CLIPTextConfig.from_dict(dict(configs["text_encoder_2"]))
            parts["text_encoder_2"] = CLIPTextModelWithProjection(config)
        if "vae" in configs:
            parts["vae"] = diffusers.AutoencoderKL.from_config(configs["vae"])
        module = in_precision(nn.ModuleDict(parts), own.precision)
        scheduler = scheduler_class(own.scheduler["class"]).from_config(own.scheduler["config"])
        tokenizer = Tokenizer.from_str(own.tokenizer)
        return cls(
            module,
            tokenizer,
            own.special,
            scheduler,
            guidance=own.guidance,
            steps=own.steps,
            second=own.second,
            negative_prompt=own.negative_prompt,
        )


def in_precision(parts: nn.ModuleDict, precision: str) -> nn.ModuleDict:
    """Give the networks the type of ``float32``, ``float16`` or ``bfloat16``, and return them.

    SDXL's autoencoder overflows in float16, says so in its configuration, and stays in float32 then, as diffusers has it.
    """
    parts.to(dtype_named(precision))
    named: Any = parts
    if precision == "float16" and "text_encoder_2" in parts and getattr(named["vae"].config, "force_upcast", False):
        named["vae"].float()
    return parts


def unsupported(unet: Mapping[str, Any], encoders: int) -> str | None:
    """Why a UNet of this configuration cannot be drawn with, beside so many text encoders; None where it can."""
    added = unet.get("addition_embed_type")
    if added not in (None, "text_time"):
        return f"takes an input that is not supported, addition_embed_type '{added}'"
    if (added is not None) != (encoders == 2):
        if added is None:
            return "is that of a model with one text encoder, and there are two"
        return "is that of a model with two text encoders (SDXL), and there is one"
    if unet.get("time_cond_proj_dim") is not None:
        return "takes the guidance as an input, as those of latent consistency models do, which is not supported"
    taken, given = unet.get("in_channels"), unet.get("out_channels")
    if None not in (taken, given) and taken != given:
        return f"takes {taken} channels and gives {given}: it fills in or edits a picture, which is not supported"
    return None


def require_diffusers() -> None:
    """Diffusers and transformers can be imported.

    Raises:
        TargetError: they are not installed.
    """
    try:
        import diffusers  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise TargetError(f"text-to-image models need {error.name}", fix=installation("diffusion")) from error


def scheduler_class(name: str) -> Any:
    """A scheduler of diffusers by its class name.

    Raises:
        TargetError: diffusers has none of that name.
    """
    import diffusers

    found = getattr(diffusers, name, None)
    if not (inspect.isclass(found) and issubclass(found, diffusers.SchedulerMixin)):
        raise TargetError(f"diffusers has no scheduler '{name}'", fix="one of its own, such as DDIMScheduler")
    return found


def _dtype(network: nn.Module, without: torch.dtype) -> torch.dtype:
    """The floating-point type of a network's weights; ``without`` of one that has none."""
    return next((weight.dtype for weight in network.parameters()), without)


def _config(config: Mapping[str, Any]) -> dict[str, JsonValue]:
    """What decides the network, as JSON: not where it was read from or by which release."""
    about = ("architectures", "dtype", "torch_dtype", "transformers_version")
    kept = {key: value for key, value in config.items() if not key.startswith("_") and key not in about}
    plain: dict[str, JsonValue] = json.loads(json.dumps(kept))
    return plain
