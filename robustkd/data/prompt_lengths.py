"""How many tokens a text-to-image model makes of a request, before there is a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from robustkd.contracts import DataError

_FIX = "give the folder 'tokenizer' of the model, with vocab.json and merges.txt, or tokenizer.json"


class Measure:
    """Counts tokens as CLIP's text encoder does, the beginning and the end left out.

    Args:
        folder: a model's tokenizer, as diffusers saves it: vocab.json and merges.txt, or tokenizer.json.

    Raises:
        DataError: transformers is not installed, or the folder holds no such tokenizer.
    """

    def __init__(self, folder: Path) -> None:
        # From a folder without them transformers makes a tokenizer that knows no word.
        if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
            raise DataError(f"{folder} holds no tokenizer", fix=_FIX)
        try:
            from transformers import CLIPTokenizer

            self._tokenizer = CLIPTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
        except ImportError as error:
            raise DataError("counting tokens needs transformers", fix="pip install 'robustkd[diffusion]'") from error
        except (OSError, ValueError, TypeError) as error:
            raise DataError(
                f"{folder} holds no tokenizer of CLIP: {' '.join(str(error).split())[:100]}",
                fix=_FIX,
            ) from error

    def ends(self, texts: Sequence[str]) -> list[list[int]]:
        """Of each text, where its tokens end, as places in the text."""
        found = self._tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return [[stop for _, stop in offsets] for offsets in found["offset_mapping"]]
