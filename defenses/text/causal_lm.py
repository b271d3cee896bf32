"""A language model from elsewhere: a folder, a GGUF file, or a name on Hugging Face's hub."""

from __future__ import annotations

import datetime
import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator
from typing_extensions import override

from robustkd.contracts import CampaignPath, FitContext, Params, Prompts, TargetError
from robustkd.contracts.extras import installation
from robustkd.contracts.params import AddedLater, ModelPath, saved_target
from robustkd.contracts.target import of_kind
from robustkd.defenses.text.text_defense import TextDefense
from robustkd.lazy import torch
from robustkd.targets.causal_lm import CausalLMTarget
from robustkd.targets.chat import DATE
from robustkd.targets.files import CARD, WEIGHTS, load_target
from robustkd.targets.pretrained import ADAPTER, merged_adapter, moving_revision, pretrained_network, pretrained_tokenizer

if TYPE_CHECKING:
    pass


_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_CONVERT = (
    "convert them where you trust them: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder) writes safetensors"
)
# Parts that a model of text and images or sound has beside the one that writes, and layers that guess several tokens ahead.
_OTHER_SENSES = r"(^|\.)(vision_\w+|visual|audio_\w+|multi_modal_projector|mtp)\."


class CausalLMParams(Params):
    model_config = ConfigDict(json_schema_extra={"examples": [{"hub": "HuggingFaceTB/SmolLM2-135M-Instruct"}]})

    path: ModelPath | None = Field(
        None,
        description="a folder as save_pretrained writes it, with safetensors; a .gguf file; or a trained defense of a campaign that was "
        "run: first.yaml#student, runs/first#student/1 or the folder of its target",
    )
    package: str | None = Field(
        None,
        pattern=r"^[\w.]+:[^/\\]+$",
        description="instead: package:file, a folder or .gguf file that an installed package brings",
    )
    hub: str | None = Field(None, pattern=r"^[\w.-]+(/[\w.-]+)?$", description="instead: a name on Hugging Face's hub")
    revision: str | None = Field(None, description="of the hub's: a commit; a branch may move")
    chat_template: str | None = Field(None, description="Jinja, in place of the tokenizer's own")
    system: str = Field("", description="the system's message")
    chat_template_kwargs: Annotated[dict[str, bool | int | float | str], AddedLater()] = Field(
        {}, description="what the chat template is told beside the conversation, such as {enable_thinking: false}"
    )
    max_new_tokens: int = Field(128, ge=1, description="the most tokens of an answer")
    context: int | None = Field(
        None,
        ge=1,
        description="the most tokens that the model takes, where neither its configuration nor its tokenizer says it",
    )
    date: datetime.date = Field(DATE, description="what a chat template that writes today's date (strftime_now) is told")
    adapter: Annotated[CampaignPath | None, AddedLater()] = Field(
        None, description="a folder of peft's, such as LoRA's, that is merged into the model's weights"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bfloat16 on CUDA, else float32")

    @model_validator(mode="after")
    def _one_model(self) -> CausalLMParams:
        if sum(given is not None for given in (self.path, self.package, self.hub)) != 1:
            raise ValueError("give one of path, package and hub")
        if self.revision is not None and self.hub is None:
            raise ValueError("a revision belongs to hub")
        if self.saved and (own := sorted(self.model_fields_set - {"path"})):
            raise ValueError(f"a trained defense has its own {' and '.join(own)}; leave out {', '.join(own)}")
        return self

    @property
    def saved(self) -> Path | None:
        """The folder of a trained target of robustkd's own; None where the model is another one."""
        return saved_target(self.path)


class CausalLM(TextDefense):
    """A language model that was trained elsewhere. Code that comes with a model is never run, and no pickle is read."""

    Params = CausalLMParams
    uses_data = False
    source = "the user's own model"
    version = "2"  # 1 told templates today's date

    @property
    @override
    def may_change(self) -> str | None:
        return moving_revision(self.params.hub, self.params.revision)

    def files(self) -> list[Path]:
        """What is on this machine: the file, or the folder's files."""
        if saved := self.params.saved:
            return [saved / name for name in (CARD, WEIGHTS)]  # what else lies there says when it was trained
        found: list[Path] = []
        for place in (self._place(), self.params.adapter):
            if place is not None:
                found += _files_in(place) if place.is_dir() else [place]
        return found

    def fit(self, context: FitContext[Prompts]) -> CausalLMTarget:
        """Load it.

        Raises:
            UsageError: the trained defense is no language model, or one behind a guard.
            TargetError: it is not there, its weights are pickled or quantised, it wants code of its own to run, or it cannot chat.
        """
        p, place = self.params, self._place()
        if p.saved is not None:
            trained = of_kind(load_target(p.saved), str(p.saved), CausalLMTarget)
            return trained.to(context.device)
        if place is not None:
            _refuse_missing_and_pickled(place)
        wanted = p.dtype if p.dtype != "auto" else "bfloat16" if context.device.type == "cuda" else "float32"
        source, options = p.hub or str(place), {"revision": p.revision} if p.revision else {}
        if place is not None and place.suffix == ".gguf":
            source, options = str(place.parent), {"gguf_file": place.name}
            _without_a_bar()
        with _told(p.hub or place):
            from transformers import AutoModelForCausalLM, AutoTokenizer

            tokenizer = pretrained_tokenizer(AutoTokenizer, source, **options)
            weights: dict[str, Any] = {"dtype": getattr(torch, wanted), "use_safetensors": "gguf_file" not in options or None}
            module = pretrained_network(AutoModelForCausalLM, source, unused=_OTHER_SENSES, **options, **weights)
        if "gguf_file" in options:
            _forget_the_quantisation(module)
        if getattr(module, "is_quantized", False):
            raise TargetError(
                f"{p.hub or place} is quantised, which a target that is stored and trained on cannot be",
                fix="give it dequantised (model.dequantize(), then save_pretrained), or serve it and use chat-endpoint",
            )
        if p.adapter is not None:
            module = merged_adapter(module, p.adapter)
        if p.chat_template is not None:
            tokenizer.chat_template = p.chat_template
        target = CausalLMTarget(
            module.eval(),
            tokenizer,
            max_new_tokens=p.max_new_tokens,
            system=p.system,
            context=p.context,
            date=p.date,
            template_options=p.chat_template_kwargs,
        )
        target.to(context.device)
        return target

    def _place(self) -> Path | None:
        """The file or folder; None for the hub's."""
        p = self.params
        if p.package is None:
            return None if p.path is None else Path(p.path)
        name, _, file = p.package.partition(":")
        found = importlib.util.find_spec(name)  # the package is not imported: it is wanted for its file
        if found is None or not found.submodule_search_locations:
            raise TargetError(f"there is no package '{name}' here", fix=f"pip install {name.replace('_', '-')}")
        return Path(found.submodule_search_locations[0]) / file


def _files_in(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix in (".safetensors", ".json", ".jinja", ".model", ".txt"))


def _refuse_missing_and_pickled(place: Path) -> None:
    if not place.exists():
        raise TargetError(f"there is no model at {place}", fix="correct the path; a folder is as save_pretrained writes it")
    if place.is_file():
        if place.suffix != ".gguf":
            reason = "is pickled" if place.suffix in _PICKLED else "is no .gguf file"
            raise TargetError(f"{place} {reason}", fix=f"give a .gguf file, or a folder with safetensors; {_CONVERT}")
        return
    if (place / ADAPTER).is_file():
        raise TargetError(
            f"{place} is an adapter{' beside a model' * (place / 'config.json').is_file()}, which says that it belongs to {_base(place)}",
            fix="give that model as path or hub, in a folder of its own, and this folder as 'adapter'",
        )
    if not (place / "config.json").is_file():
        raise TargetError(f"{place} has no config.json", fix="give the folder that save_pretrained wrote")
    pickled = sorted(file.name for file in place.iterdir() if file.suffix in _PICKLED)
    if not any(place.glob("*.safetensors")):
        what = f"only pickled weights ({', '.join(pickled)})" if pickled else "no weights"
        raise TargetError(f"{place} holds {what}, no safetensors", fix=_CONVERT)


def _forget_the_quantisation(module: Any) -> None:
    """A GGUF file is dequantised as it is read, and the model still says that it is quantised."""
    module.is_quantized, module.hf_quantizer = False, None
    if hasattr(module.config, "quantization_config"):
        del module.config.quantization_config


def _without_a_bar() -> None:
    """The reader of GGUF files draws a bar of tqdm's own, which transformers' switch does not reach."""
    with suppress(ImportError):  # then _told says what is missing
        from tqdm.auto import tqdm
        from transformers import modeling_gguf_pytorch_utils

        modeling_gguf_pytorch_utils.tqdm = partial(tqdm, disable=True)


def _base(adapter: Path) -> str:
    """The model that an adapter's folder names."""
    try:
        return f"'{json.loads((adapter / ADAPTER).read_text(encoding='utf-8'))['base_model_name_or_path']}'"
    except (OSError, ValueError, KeyError, TypeError):
        return "a model that it does not name"


@contextmanager
def _told(what: object) -> Iterator[None]:
    """Whatever the loading raises, as one error that names the model; without progress bars."""
    try:
        from transformers.utils import logging
    except ImportError as error:
        raise TargetError("language models need transformers", fix=installation("llm")) from error
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise TargetError(
            f"{what} cannot be loaded as a language model: {type(error).__name__}: {str(error).strip().splitlines()[0]}",
            fix="it must be a causal model of transformers with a fast tokenizer and safetensors, that needs no code of its own; "
            "without a network, give its folder as 'path'",
        ) from error
    finally:
        if shown:
            logging.enable_progress_bar()
