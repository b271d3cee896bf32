"""A CLIP model from a folder of transformers, as an image encoder with the vectors of the classes' texts.

    logits_k(x) = s cos( image(x), v_k ),      v_k the mean direction of the text tower's vectors of the templates, s the model's own scale

Good to attack a public encoder, and as the ``encoder`` or ``teacher`` of the others here. Weights are read from safetensors alone, no code
of the folder's own is run, and the processor's resizing and normalisation are part of the network, so eps is in pixels of [0, 1].

From the authors: zero-shot classification, and the templates of the paper where they are given. From us: the folder.

Source: Radford et al.: Learning transferable visual models from natural language supervision (ICML 2021), section 3.1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from robustkd.contracts import CampaignPath, Defense, FitContext, Params, Target, UsageError
from robustkd.defenses.image.representations.encoders.class_texts import Templates

_READ = (".json", ".safetensors", ".txt", ".model")


class ClipFolderParams(Params):
    folder: Annotated[
        CampaignPath,
        Field(
            description="what CLIPModel.save_pretrained and its processor's wrote: config.json, safetensors, preprocessor_config.json "
            "and the tokenizer's files",
            examples=["clip"],
        ),
    ]
    templates: Templates = ("a photo of a {}.",)
    names: tuple[str, ...] | None = Field(
        None,
        min_length=2,
        description="what the classes are called in the texts, in their order; default: their names in the data",
    )


class ClipFolder(Defense):
    """A CLIP model of transformers."""

    Params = ClipFolderParams
    uses_data = False
    source = "Radford et al. 2021, arXiv:2103.00020"

    @property
    def rebuilt(self) -> bool:
        """All that is read is in ``files()``."""
        return False

    @property
    def reads_class_names(self) -> bool:
        """Where it is given no others."""
        return self.params.names is None

    def files(self) -> list[Path]:
        """The configurations, the weights and the tokenizer."""
        folder = self.params.folder
        return sorted(path for path in folder.iterdir() if path.suffix in _READ) if folder.is_dir() else []

    def fit(self, context: FitContext) -> Target:
        """Load both towers, and read the classes' texts.

        Raises:
            TargetError: the folder holds no such model.
            UsageError: the classes have no names, or there are not as many.
        """
        from robustkd.targets.clip_folders import open_clip_folder  # late: it imports torch

        p = self.params
        names = p.names or context.classes
        if len(names) != context.num_classes:
            raise UsageError(
                f"{len(names)} names of classes, the data have {context.num_classes}", fix="names: [..], one for each class"
            )
        texts = [[template.format(name) for template in p.templates] for name in names]
        return open_clip_folder(p.folder, texts, context.input_shape, names).to(context.device)
