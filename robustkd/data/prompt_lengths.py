"""How many tokens a text-to-image model makes of a request, before there is a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from robustkd.contracts import DataError
from robustkd.contracts.extras import installation

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# How CLIP's tokenizer splits a text into words.
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class Measure:
    """Counts tokens as CLIP's text encoder does, the beginning and the end left out.

    Args:
        folder: a model's tokenizer, as diffusers saves it: tokenizer.json, or vocab.json and merges.txt.

    Raises:
        DataError: tokenizers is not installed, or the folder holds no such tokenizer.
    """

    def __init__(self, folder: Path) -> None:
        try:
            self._tokenizer = _tokenizer(folder)
        except ImportError as error:
            raise DataError("counting tokens needs tokenizers", fix=installation("diffusion")) from error
        except Exception as error:  # tokenizers raises Exception itself
            raise DataError(
                f"{folder} holds no tokenizer: {' '.join(str(error).split())[:100]}",
                fix="give the folder 'tokenizer' of the model, with tokenizer.json, or vocab.json and merges.txt",
            ) from error

    def ends(self, texts: Sequence[str]) -> list[list[int]]:
        """Of each text, where its tokens end, as places in the text."""
        found = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [[stop for _, stop in encoded.offsets] for encoded in found]


def _tokenizer(folder: Path) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    folder = folder.expanduser()
    if (folder / "tokenizer.json").is_file():
        made = Tokenizer.from_file(str(folder / "tokenizer.json"))
        made.no_truncation()
        made.no_padding()
        return made
    files = str(folder / "vocab.json"), str(folder / "merges.txt")
    made = Tokenizer(models.BPE.from_file(*files, unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    blanks = normalizers.Replace(Regex(r"\s+"), " ")
    made.normalizer = normalizers.Sequence([normalizers.NFC(), blanks, normalizers.Lowercase()])
    split = pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True)
    made.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return made
