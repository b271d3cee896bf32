"""A trained model that writes or draws as a folder that transformers or diffusers read, read back before it gets its name."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustkd.contracts import BaseTarget, RobustkdError, TargetError, ThreatModel, UsageError
from robustkd.evaluation.answering_models import answering_target
from robustkd.lazy import torch
from robustkd.targets.causal_lm import CausalLMTarget
from robustkd.targets.text_to_image import TextToImageTarget

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PROBE = "How do I open the red box? It is the 2nd of 3 boxes."
"""A text that both tokenizers must split alike."""
_KINDS: Mapping[str, type[BaseTarget]] = {"transformers": CausalLMTarget, "diffusers": TextToImageTarget}
FORMS = tuple(_KINDS)


def forms_of(target: BaseTarget) -> list[str]:
    """The forms in which ``target`` can be written."""
    return [form for form, kind in _KINDS.items() if isinstance(target, kind)]


def export(target: BaseTarget, path: Path, form: str, card: str) -> str:
    """Write the folder ``path``, and say what was written.

    Args:
        form: one of ``FORMS``.
        card: the text of README.md.

    Raises:
        UsageError: it is another model, or one behind a guard.
        TargetError: the folder does not give the model back.
    """
    kind = _KINDS[form]
    if not isinstance(target, kind):
        named = "a guard is no part of a network: " if "model" in target.card() else ""
        raise UsageError(
            f"{named}{form} is for a {kind.kind}, and this is a {target.kind}",
            fix=f"--format {' or '.join(['safetensors', *forms_of(target)])}",
        )
    with tempfile.TemporaryDirectory(dir=path.resolve().parent, prefix=".export-") as scratch:
        partial = Path(scratch, path.name)
        partial.mkdir()
        _WRITERS[form](target, partial)
        (partial / "README.md").write_text(card, encoding="utf-8")
        try:
            again = _read_back(partial)
        except RobustkdError as error:
            raise TargetError(f"this model cannot be written as {form}: {error.message}", fix="--format safetensors") from error
        if why := _differs(target, again):
            raise TargetError(f"written as {form} the model is another one: {why}", fix="--format safetensors")
        os.replace(partial, path)  # noqa: PTH105
    return f"{path}   ({_told(target)})"


def _write_transformers(target: BaseTarget, folder: Path) -> None:
    assert isinstance(target, CausalLMTarget)
    settings = target.module.generation_config
    if settings is not None:
        settings.eos_token_id = sorted(target.ends)
    target.module.save_pretrained(folder)
    target.tokenizer.save_pretrained(folder)


def _write_diffusers(target: BaseTarget, folder: Path) -> None:
    import diffusers
    from tokenizers import Tokenizer as Reader

    assert isinstance(target, TextToImageTarget)
    networks: dict[str, Any] = {"unet": target.unet, **target.encoders.networks}
    networks |= {} if target.vae is None else {"vae": target.vae}
    for name, network in networks.items():
        network.save_pretrained(folder / name)
    target.scheduler.save_pretrained(folder / "scheduler")
    tokenizers = {"tokenizer": _tokenizer(target.tokenizer, target.special, target.max_tokens)}
    if target.second is not None:
        other = Reader.from_str(target.second.tokenizer)
        tokenizers["tokenizer_2"] = _tokenizer(other, target.special | {"pad": target.second.pad}, target.max_tokens)
    for name, tokenizer in tokenizers.items():
        tokenizer.save_pretrained(folder / name)
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionPipeline" if target.second is None else "StableDiffusionXLPipeline",
        "_diffusers_version": diffusers.__version__,
        "scheduler": ["diffusers", type(target.scheduler).__name__],
        **{name: ["transformers", "PreTrainedTokenizerFast"] for name in tokenizers},
        **{name: [type(network).__module__.partition(".")[0], type(network).__name__] for name, network in networks.items()},
    }
    if target.second is not None:
        index["force_zeros_for_empty_prompt"] = target.second.zeros_for_empty
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))


def _tokenizer(backend: Tokenizer, special: Mapping[str, int], length: int) -> Any:
    """A tokenizer as transformers writes it: it puts ``bos`` and ``eos`` around a prompt, as pipelines expect."""
    from tokenizers import Tokenizer as Reader
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    whole = Reader.from_str(backend.to_str())
    named = {name: whole.id_to_token(number) for name, number in special.items()}
    if whole.post_processor is None:
        ends = [(named[name], special[name]) for name in ("bos", "eos")]
        whole.post_processor = TemplateProcessing(single=f"{named['bos']} $A {named['eos']}", special_tokens=ends)
    tokens = {f"{name}_token": token for name, token in named.items()}
    return PreTrainedTokenizerFast(tokenizer_object=whole, model_max_length=length, **tokens)  # type: ignore[no-untyped-call]


_WRITERS: Mapping[str, Callable[[BaseTarget, Path], None]] = {
    "transformers": _write_transformers,
    "diffusers": _write_diffusers,
}


def _read_back(folder: Path) -> BaseTarget:
    """The model in the folder, as a campaign would load it."""
    with tempfile.TemporaryDirectory() as answers:
        return answering_target(folder, answers=Path(answers), threat=ThreatModel.by_prompt(1))


def _differs(target: BaseTarget, again: BaseTarget) -> str:
    """What is not as it was: weights, tokens or the schedule; empty where all is."""
    before, after = target.module.state_dict(), again.module.state_dict()
    if before.keys() != after.keys() or any(not torch.equal(before[name], after[name].to(before[name])) for name in before):
        return "its weights differ"
    if isinstance(target, TextToImageTarget) and isinstance(again, TextToImageTarget):
        split = [one.tokenizer.encode(PROBE, add_special_tokens=False).ids for one in (target, again)]
        if split[0] != split[1] or target.special != again.special:
            return "its tokens differ"
        if not torch.equal(target.scheduler.alphas_cumprod, again.scheduler.alphas_cumprod):
            return "its schedule differs"
    if isinstance(target, CausalLMTarget) and isinstance(again, CausalLMTarget):
        if target.tokenizer(PROBE)["input_ids"] != again.tokenizer(PROBE)["input_ids"]:
            return "its tokens differ"
        if target.tokenizer.chat_template != again.tokenizer.chat_template:
            return "its chat template differs"
    return ""


def _told(target: BaseTarget) -> str:
    """What a folder does not say, and whoever uses the model has to."""
    if isinstance(target, TextToImageTarget):
        led_away = f", negative_prompt={target.negative_prompt!r}" if target.negative_prompt else ""
        return f"draw with guidance_scale={target.guidance:g}, num_inference_steps={target.steps}{led_away}"
    assert isinstance(target, CausalLMTarget)
    system = f", after the system's message {target.system!r}" if target.system else ""
    return f"AutoModelForCausalLM reads it; it was evaluated with max_new_tokens={target.max_new_tokens}{system}"
