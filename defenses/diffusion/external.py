"""A text-to-image model that was trained elsewhere: Stable Diffusion 1.x or 2.x, SDXL, or one of their erased forms."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, model_validator
from typing_extensions import override

from robustkd.contracts import CampaignPath, Defense, FitContext, Modality, Params, Prompts, TargetError, UsageError
from robustkd.contracts.params import AddedLater, ModelPath, saved_target
from robustkd.contracts.target import of_kind
from robustkd.defenses.diffusion.lora_file import merge_lora
from robustkd.defenses.diffusion.part_file import load_checkpoint, load_part
from robustkd.lazy import nn
from robustkd.targets.files import CARD, WEIGHTS, load_target
from robustkd.targets.pretrained import fresh_network, moving_revision, pretrained_network, pretrained_tokenizer
from robustkd.targets.text_encoders import SecondEncoder
from robustkd.targets.text_to_image import TextToImageTarget, in_precision, require_diffusers, scheduler_class, unsupported

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_WEIGHTED = ("unet", "text_encoder", "vae")
_SECOND = "text_encoder_2"
_OTHER_PARTS = ("text_encoder_3", "transformer", "prior")
_INDEX = "model_index.json"
_ONLY = "give a model like Stable Diffusion 1.x, 2.x or XL (base), of one or two text encoders and a UNet"
_WEIGHTS = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
_CONVERT = (
    "convert it once, on a machine where you trust it: StableDiffusionPipeline.from_pretrained(..)"
    ".save_pretrained(.., safe_serialization=True)"
)


class TextToImageParams(Params):
    model_config = ConfigDict(json_schema_extra={"examples": [{"hub": "CompVis/stable-diffusion-v1-4"}]})

    folder: ModelPath | None = Field(
        None,
        description="a folder as diffusers' save_pretrained writes it; or a trained defense of a campaign that was run: "
        "first.yaml#erased, runs/first#erased/1 or the folder of its target",
    )
    hub: str | None = Field(
        None, pattern=r"^[\w.-]+/[\w.-]+$", description="instead: a repository of the Hugging Face hub, which is downloaded"
    )
    revision: str | None = Field(
        None, description="of the hub's repository; name one, so that the model cannot change under you"
    )
    checkpoint: Annotated[CampaignPath | None, AddedLater()] = Field(
        None,
        description="a file with the weights of all parts, .safetensors or .ckpt, with the names of CompVis' or Stability's code; "
        "folder or hub then say how the networks are built, and need no weights",
    )
    unet: CampaignPath | None = Field(
        None,
        description="another UNet, such as an erased one: a folder (config.json, safetensors), or a file of its weights, .pt or "
        ".safetensors, as ESD and UnlearnDiffAtk publish them",
    )
    text_encoder: CampaignPath | None = Field(None, description="the same for the text encoder")
    text_encoder_2: Annotated[CampaignPath | None, AddedLater()] = Field(
        None, description="the same for the second text encoder of SDXL"
    )
    partial: Annotated[bool, AddedLater()] = Field(
        False, description="whether these files may hold only the tensors that were changed; the others are the model's own"
    )
    lora: Annotated[CampaignPath | None, AddedLater()] = Field(
        None, description="a safetensors file of LoRA weights, which are added to the model's own"
    )
    lora_scale: Annotated[float, AddedLater()] = Field(1.0, description="what the LoRA weights are multiplied with")
    precision: Literal["float32", "float16", "bfloat16"] = Field("float32", description="of the weights; half of them on CUDA")
    guidance: float = Field(7.5, ge=1, description="classifier-free guidance to draw with")
    steps: int = Field(50, ge=1, description="of drawing")
    negative_prompt: Annotated[str, AddedLater()] = Field(
        "", description="what every drawing is led away from, by guidance; a request's own stands behind it"
    )

    @model_validator(mode="after")
    def _one_source(self) -> TextToImageParams:
        if (self.folder is None) == (self.hub is None):
            raise ValueError("give either folder or hub")
        if self.revision is not None and self.hub is None:
            raise ValueError("revision belongs to hub")
        if self.negative_prompt and self.guidance == 1:
            raise ValueError("a negative prompt has no effect at the guidance 1")
        if self.saved and (own := sorted(self.model_fields_set - {"folder"})):
            raise ValueError(f"a trained defense has its own {' and '.join(own)}; leave out {', '.join(own)}")
        return self

    @property
    def saved(self) -> Path | None:
        """The folder of a trained target of robustkd's own; None where the model is another one."""
        return saved_target(self.folder)


class TextToImage(Defense):
    """A text-to-image model that was trained elsewhere, loaded as it is."""

    Params = TextToImageParams
    modalities: ClassVar[tuple[Modality, ...]] = ("text-to-image", "images")
    uses_data = False
    source = "Rombach et al., High-resolution image synthesis with latent diffusion models, CVPR 2022, arXiv:2112.10752"

    @property
    @override
    def may_change(self) -> str | None:
        return moving_revision(self.params.hub, self.params.revision)

    def files(self) -> list[Path]:
        """Every file of the folders that is read.

        Raises:
            UsageError: a part is missing, or its weights are pickled.
        """
        p = self.params
        if p.saved is not None:
            return [p.saved / name for name in (CARD, WEIGHTS)]  # what else lies there says when it was trained
        found = [] if p.folder is None else _pipeline_files(p.folder, weights=p.checkpoint is None)
        found += [] if p.checkpoint is None else [_checkpoint_file(p.checkpoint)]
        others = [other for other in (p.unet, p.text_encoder, p.text_encoder_2) if other is not None]
        found += [] if p.lora is None else [_lora_file(p.lora)]
        if p.folder is not None:
            _require_one_model(p.folder, p.unet, p.text_encoder_2)
        return [*found, *(file for other in others for file in ([other] if _is_weights(other) else _part_files(other)))]

    def fit(self, context: FitContext[Prompts]) -> TextToImageTarget:
        """Load it.

        Raises:
            UsageError: a part is missing, its weights are pickled, or the trained defense draws nothing, or behind a guard.
            TargetError: it cannot be loaded.
        """
        p = self.params
        if p.saved is not None:
            trained = of_kind(load_target(p.saved), str(p.saved), TextToImageTarget)
            return trained.to(context.device)
        self.files()
        require_diffusers()
        try:
            target = _loaded(p)
        except (OSError, ValueError, RuntimeError) as error:
            said = str(error).strip().splitlines() or [type(error).__name__]
            raise TargetError(
                f"the model {p.folder or p.hub} cannot be loaded: {said[0]}",
                fix="check its files, or the connection to the hub",
            ) from error
        in_precision(target.module, p.precision)
        target.to(context.device)
        target.module.eval()
        return target


def _loaded(p: TextToImageParams) -> TextToImageTarget:
    import diffusers
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    source, options = str(p.folder or p.hub), {} if p.revision is None else {"revision": p.revision}

    def part(kind: Any, name: str, instead: Path | None = None) -> Any:
        if instead is not None and not instead.is_file():
            return pretrained_network(kind, instead, use_safetensors=True)
        network = (
            pretrained_network(kind, source, subfolder=name, use_safetensors=True, **options)
            if p.checkpoint is None
            else fresh_network(kind, source, subfolder=name, **options)
        )
        whole[name] = network
        if instead is not None:
            replaced.append((network, instead))
        return network

    whole: dict[str, nn.Module] = {}
    replaced: list[tuple[nn.Module, Path]] = []
    index = _index(p.folder) if p.folder is not None else _present(diffusers.DiffusionPipeline.load_config(source, **options))
    if reason := _other_pipeline(index):
        raise TargetError(f"{source} {reason}", fix=_ONLY)
    parts: dict[str, nn.Module] = {
        "unet": part(diffusers.UNet2DConditionModel, "unet", p.unet),
        "text_encoder": part(CLIPTextModel, "text_encoder", p.text_encoder),
    }
    tokenizer = pretrained_tokenizer(_tokenizer_class(p.folder), source, subfolder="tokenizer", **options)
    second = None
    if _SECOND in index:
        parts[_SECOND] = part(CLIPTextModelWithProjection, _SECOND, p.text_encoder_2)
        other = pretrained_tokenizer(_tokenizer_class(p.folder), source, subfolder="tokenizer_2", **options)
        zeros = bool(index.get("force_zeros_for_empty_prompt", True))
        second = SecondEncoder(_bare(other).to_str(), other.pad_token_id, zeros)
    if p.folder is None or (p.folder / "vae").is_dir():
        parts["vae"] = part(diffusers.AutoencoderKL, "vae")
    if p.checkpoint is not None:
        load_checkpoint(whole, p.checkpoint)
    for network, file in replaced:
        load_part(network, file, partial=p.partial)
    special = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
    settings = diffusers.DDIMScheduler.load_config(source, subfolder="scheduler", **options)
    scheduler = scheduler_class(settings["_class_name"]).from_config(settings)
    module = nn.ModuleDict(parts)
    if p.lora is not None:
        merge_lora(module, tokenizer, scheduler, p.lora, p.lora_scale)
    return TextToImageTarget(
        module,
        _bare(tokenizer),
        special,
        scheduler,
        guidance=p.guidance,
        steps=p.steps,
        second=second,
        negative_prompt=p.negative_prompt,
    )


def _tokenizer_class(folder: Path | None) -> Any:
    """CLIP's, unless the folder says that its tokenizer is any other of the package tokenizers, as that of an exported small model."""
    from transformers import CLIPTokenizer, PreTrainedTokenizerFast

    said = _json(file) if folder is not None and (file := folder / "tokenizer" / "tokenizer_config.json").is_file() else {}
    return (
        PreTrainedTokenizerFast
        if said.get("tokenizer_class") in ("PreTrainedTokenizerFast", "TokenizersBackend")
        else CLIPTokenizer
    )


def _bare(tokenizer: Any) -> Tokenizer:
    """A tokenizer of transformers as the package tokenizers has it, without the padding and truncation of its last use."""
    from tokenizers import Tokenizer as Reader  # late: listing plug-ins must not wait for it

    bare = Reader.from_str(tokenizer.backend_tokenizer.to_str())
    bare.no_padding()
    bare.no_truncation()
    return bare


def _lora_file(file: Path) -> Path:
    if not file.is_file() or file.suffix != ".safetensors":
        raise UsageError(f"{file} is no safetensors file of LoRA weights", fix="give the file that save_lora_weights wrote")
    return file


def _is_weights(place: Path) -> bool:
    return place.is_file() and place.suffix in _WEIGHTS


def _checkpoint_file(file: Path) -> Path:
    if not _is_weights(file):
        raise UsageError(f"{file} is no file of weights", fix=f"give a checkpoint: {', '.join(_WEIGHTS)}")
    return file


def _pipeline_files(folder: Path, *, weights: bool) -> list[Path]:
    """The files of a pipeline's folder that are read: without ``weights``, those that say how the networks are built."""
    if folder.is_file():
        raise UsageError(
            f"{folder} is a single file",
            fix="name it as 'checkpoint', and as 'folder' or 'hub' a model of its kind, such as stable-diffusion-v1-5",
        )
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}", fix="give a folder as diffusers' save_pretrained writes it")
    index = _index(folder)
    if reason := _other_pipeline(index):
        raise UsageError(f"{folder} {reason}", fix=_ONLY)
    needed = [name for name in _WEIGHTED if name != "vae" or "vae" in index]
    tokenizers = ["tokenizer"]
    if _SECOND in index:
        needed, tokenizers = [*needed, _SECOND], [*tokenizers, "tokenizer_2"]
    missing = [name for name in (*needed, *tokenizers, "scheduler") if not (folder / name).is_dir()]
    if missing:
        raise UsageError(
            f"{folder} lacks the part '{missing[0]}'", fix=f"copy {', '.join(missing)} there, as save_pretrained does"
        )
    for name in tokenizers:
        if not any((folder / name / file).is_file() for file in ("tokenizer.json", "vocab.json")):
            raise UsageError(f"{folder / name} has no vocab.json", fix="copy the folder whole, as save_pretrained writes it")
    small = [file for name in (*tokenizers, "scheduler") for file in sorted((folder / name).iterdir()) if file.is_file()]
    named = [folder / _INDEX] if _SECOND in index else []  # it says what SDXL is told of an empty prompt
    return [*(file for name in needed for file in _part_files(folder / name, weights=weights)), *small, *named]


def _index(folder: Path) -> dict[str, Any]:
    """What ``model_index.json`` says, without the parts that it names as missing; without that file, a latent model is presumed.

    Raises:
        UsageError: it is no JSON.
    """
    file = folder / _INDEX
    if not file.is_file():
        return {"vae": []} | ({_SECOND: []} if (folder / _SECOND).is_dir() else {})
    return _present(_json(file))


def _present(index: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in index.items() if not (isinstance(value, list) and value and value[-1] is None)}


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text())
    except ValueError as error:
        raise UsageError(f"{file} is no JSON: {error}", fix="copy the folder whole") from error
    return found if isinstance(found, dict) else {}


def _other_pipeline(index: Mapping[str, Any]) -> str | None:
    """Why a pipeline draws in another way: with a transformer in the place of the UNet, or from another picture."""
    kind = index.get("_class_name", "pipeline")
    if other := next((name for name in _OTHER_PARTS if name in index), None):
        return f"is a {kind} with the part '{other}', which is not supported"
    if _SECOND in index and "_class_name" in index and "text_encoder" not in index:
        return f"is a {kind} without the first text encoder, as SDXL's refiner is, which is not supported"
    return None


def _require_one_model(folder: Path, unet: Path | None, second: Path | None) -> None:
    """The UNet is of a model with as many text encoders as the folder has.

    Raises:
        UsageError: it is not.
    """
    encoders = 2 if _SECOND in _index(folder) else 1
    if second is not None and encoders == 1:
        raise UsageError(f"{folder} has no second text encoder that '{_SECOND}' could replace", fix="leave it out")
    place = unet if unet is not None and unet.is_dir() else folder / "unet"
    if reason := unsupported(_json(place / "config.json"), encoders):
        raise UsageError(f"the UNet in {place} {reason}", fix="take all parts from one model that draws by its text alone")


def _part_files(folder: Path, *, weights: bool = True) -> list[Path]:
    if folder.is_file():
        raise UsageError(
            f"{folder} is neither the folder of a part nor a file of its weights",
            fix=f"give a folder as save_pretrained writes it, or a file: {', '.join(_WEIGHTS)}",
        )
    if not (folder / "config.json").is_file():
        raise UsageError(f"{folder} has no config.json", fix="copy the part whole, as save_pretrained writes it")
    if not weights:
        return [folder / "config.json"]
    found = sorted(folder.glob("*.safetensors"))
    pickled = sorted(file.name for pattern in ("*.bin", "*.pt", "*.ckpt") for file in folder.glob(pattern))
    if not found and pickled:
        raise UsageError(f"{folder / pickled[0]} is pickled and could run code when it is read", fix=_CONVERT)
    if not found:
        raise UsageError(f"{folder} has no weights (*.safetensors)", fix="copy the part whole, as save_pretrained writes it")
    return [folder / "config.json", *found]
