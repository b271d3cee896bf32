"""What transformers and diffusers load from a folder or the hub: whole, from safetensors, and without running code of its own.

Left to themselves they fill what is missing in a file with random numbers and go on, and they ask on the terminal whether a model's
own code may run.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from robustkd.contracts import TargetError
from robustkd.contracts.extras import installation
from robustkd.targets.fit import require_fit

ADAPTER = "adapter_config.json"
"""The file by which a folder is one of an adapter."""
_CONFIGS = ("config.json", "tokenizer_config.json")
_COMMIT = re.compile(r"[0-9a-f]{7,40}")


def moving_revision(hub: str | None, revision: str | None) -> str | None:
    """One sentence where ``revision`` of a model on the hub is a branch, or left out: what it holds may change, a commit may not."""
    if hub is None or (revision is not None and _COMMIT.fullmatch(revision)):
        return None
    where = f"its branch or tag {revision}" if revision else "it"
    return (
        f"{hub} comes from the hub, where {where} may change, and finished cells would not notice: name a commit (revision: ..)"
    )


def pretrained_network(kind: Any, source: str | Path, *, subfolder: str = "", unused: str = "", **options: Any) -> Any:
    """``kind.from_pretrained(source, ..)`` of a network, of which every tensor comes from the file.

    Args:
        kind: a class of transformers or diffusers, or an Auto class of the former.
        source: a folder, or a name on the hub.
        unused: a regular expression; tensors with such names may be missing or left over, because nobody looks at them.

    Raises:
        TargetError: the weights do not cover the network, a file is damaged, or the model needs code of its own.
    """
    place = Path(source, subfolder or options.get("gguf_file", ""))
    library = kind.__module__.partition(".")[0]
    if library == "transformers":
        options |= {"trust_remote_code": False, "ignore_mismatched_sizes": True}  # the latter are told, and refused below
    if subfolder:
        options["subfolder"] = subfolder
    with _explained(place), _without_report(library):
        network, told = kind.from_pretrained(source, output_loading_info=True, **options)
    wrong: dict[str, list[str]] = {}
    for key in ("missing", "unexpected", "mismatched"):
        names = [item if isinstance(item, str) else item[0] for item in told[f"{key}_keys"]]
        wrong[key] = [name for name in names if not (unused and re.search(unused, name))]
    require_fit(place, missing=wrong["missing"], unexpected=wrong["unexpected"], mismatched=wrong["mismatched"])
    return network


def fresh_network(kind: Any, source: str | Path, *, subfolder: str, **options: Any) -> Any:
    """The network that ``kind.from_pretrained(source, ..)`` would load, in random weights: its configuration alone is read.

    Args:
        kind: a class of transformers or diffusers.
        source: a folder, or a name on the hub.
    """
    with _explained(Path(source, subfolder)):
        if kind.__module__.partition(".")[0] == "transformers":
            return kind(kind.config_class.from_pretrained(source, subfolder=subfolder, trust_remote_code=False, **options))
        return kind.from_config(kind.load_config(source, subfolder=subfolder, **options))


def merged_adapter(network: Any, adapter: Path) -> Any:
    """A network of transformers with the weights of an adapter's folder added to its own.

    Raises:
        TargetError: it is no folder of peft's with safetensors, the adapter does not fit the network, or peft is not installed.
    """
    if not (adapter / ADAPTER).is_file() or not any(adapter.glob("adapter_model.safetensors")):
        raise TargetError(f"{adapter} holds no {ADAPTER} with adapter_model.safetensors", fix="give the folder that peft wrote")
    try:
        from peft import PeftModel
    except ImportError as error:
        raise TargetError("adapters need peft", fix=installation("llm")) from error
    try:
        return PeftModel.from_pretrained(network, adapter, use_safetensors=True).merge_and_unload()
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, SafetensorError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TargetError(
            f"the adapter {adapter} does not fit the model: {said}", fix="give the model that it was trained on"
        ) from error


def pretrained_tokenizer(kind: Any, source: str | Path, **options: Any) -> Any:
    """``kind.from_pretrained(source, ..)`` of a tokenizer of transformers.

    Raises:
        TargetError: it needs code of its own.
    """
    with _explained(Path(source, options.get("subfolder", ""))):
        return kind.from_pretrained(source, trust_remote_code=False, **options)


@contextmanager
def _explained(place: Path) -> Iterator[None]:
    """Code of a model's own and damaged files in a sentence; whatever else is raised is passed on."""
    try:
        yield
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise TargetError(
                f"{place} names code of its own (auto_map{_code_files(place)}), which robustkd never runs",
                fix="take a model whose architecture and tokenizer transformers has, or convert it on a machine where you trust it",
            ) from error
        if damaged := _damaged(place):
            raise TargetError(f"{damaged[0]} is damaged: {damaged[1]}", fix="copy it again") from error
        if isinstance(error, SafetensorError):
            raise TargetError(f"the weights of {place} are damaged: {error}", fix="download them again") from error
        if isinstance(error, ValueError) and (
            shape := re.search(r"because (\S+) expected shape", str(error))
        ):  # diffusers' words
            require_fit(place, mismatched=[shape[1]])
        raise


def _damaged(place: Path) -> tuple[Path, str] | None:
    """The first file of weights in a folder that cannot be opened, and why."""
    for file in sorted(place.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            return file, str(error)
    return None


def _code_files(place: Path) -> str:
    """The Python files that a folder's configurations name, as far as they can be told."""
    named = []
    for name in _CONFIGS:
        try:
            maps = json.loads((place / name).read_text()).get("auto_map", {})
        except (OSError, ValueError, AttributeError):
            continue
        named += re.findall(r"([\w/-]+)\.\w+[\"']", repr(maps))
    files = sorted({f"{file.rpartition('--')[2]}.py" for file in named})
    return f": {', '.join(files)}" if files else ""


@contextmanager
def _without_report(library: str) -> Iterator[None]:
    """Without the library's own table of what does not fit: the error says it."""
    logging = importlib.import_module(f"{library}.utils.logging")
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
