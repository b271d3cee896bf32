"""MLKD-OOD: a prompt is rejected that a student of the model, distilled on clean prompts alone, finds unlikely.

    min_s  KL(T(. | x_<i) || s(. | x_<i))  +  beta * mean_j sum_{l in best 2} a_jl || M_j h_s^j - h_T^l ||^2
    score(x) = mean_i  -log s(x_i | x_<i)

T is the watched model, s a small one with fresh weights and T's tokens. Each layer j of the student is led to two layers of the teacher:
those whose states its own, mapped by M_j, are most similar to (cosine, over the step), with weights a_jl that are learnt. The student has
seen nothing but clean prompts, so that it knows less of any other text than the model itself, whose perplexity is the plain filter's
score.

From the authors: the distillation on tokens at temperature 1, the best two matches among the teacher's layers with learnt weights, the
student's perplexity as the score. From us: it is a student of whatever model is watched, on the campaign's training prompts; the sizes.

Control: the detector ``perplexity``, and ``steps: 1``.

Source: Wu et al.: Multi-level knowledge distillation for out-of-distribution detection in text (ACL 2023), arXiv:2211.11300, section 3; the
authors' code for the choice of layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator
from typing_extensions import override

from robustkd.contracts import BaseTarget, DataError, Detector, FitContext, GenerativeTarget, Params
from robustkd.contracts.random import preserved_rng, seed_torch
from robustkd.defenses.text.guards.perplexity_filter import log_perplexity, reading
from robustkd.defenses.training.seeding import derived_seed
from robustkd.lazy import F, nn, torch
from robustkd.targets.causal_lm import CausalLMTarget
from robustkd.targets.chat import Tokens, TooLong
from robustkd.targets.frozen import frozen
from robustkd.targets.training import adamw, training_step

if TYPE_CHECKING:
    from torch import Tensor

_BEST = 2
"""How many layers of the teacher a layer of the student is led to."""


class MLKDOODParams(Params):
    """The student, and how it is trained."""

    width: int = Field(64, ge=2, description="of the student's residual stream")
    layers: int = Field(2, ge=1, description="of the student")
    heads: int = Field(2, ge=1, description="of the student's attention")
    steps: int = Field(300, ge=1, description="updates of the student's weights")
    batch_size: int = Field(16, ge=1, description="prompts in each step")
    lr: float = Field(3e-3, gt=0, description="learning rate of AdamW")
    beta: float = Field(1.0, ge=0, description="weight of the hidden states")

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> MLKDOODParams:
        if self.width % (2 * self.heads):
            raise ValueError(f"a width of {self.width} cannot be shared by {self.heads} heads of an even size")
        return self


class Student(nn.Module):
    """The score: a language model with the teacher's tokens, and its perplexity."""

    def __init__(self, teacher: CausalLMTarget, params: MLKDOODParams) -> None:
        super().__init__()
        from transformers import LlamaConfig, LlamaForCausalLM

        tokenizer = teacher.tokenizer
        config = LlamaConfig(
            vocab_size=len(teacher.embedding.weight),
            hidden_size=params.width,
            intermediate_size=8 * params.width // 3,
            num_hidden_layers=params.layers,
            num_attention_heads=params.heads,
            max_position_embeddings=teacher.chat.context,
            tie_word_embeddings=True,
            initializer_range=params.width**-0.5,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        )
        self.network = LlamaForCausalLM(config)
        chat = teacher.chat
        self.student = CausalLMTarget(
            self.network,
            tokenizer,
            max_new_tokens=teacher.max_new_tokens,
            system=chat.system,
            context=chat.context,
            date=chat.date,
            template_options=chat.options,
        )

    def forward(self, texts: Sequence[str]) -> Tensor:
        """N prompts -> (N,) nats a token, NaN of one that is longer than the context."""
        return log_perplexity(self.student, texts)


class Layers(nn.Module):
    """The loss on hidden states, with the maps and weights that it learns.

    Args:
        student, teacher: widths of the hidden states.
        layers: how many of either there are.
    """

    def __init__(self, student: int, teacher: int, layers: tuple[int, int]) -> None:
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(student, teacher) for _ in range(layers[0]))
        self.weights = nn.Parameter(torch.zeros(*layers))

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Each of the student's (M, D_s) states, and all of the teacher's (M, D_t) -> the mean over the student's layers."""
        total = []
        for number, own in enumerate(student):
            mapped = self.maps[number](own)
            alike = torch.stack([F.cosine_similarity(mapped.detach(), other, dim=1).mean() for other in teacher])
            best = alike.topk(min(_BEST, len(teacher))).indices
            share = self.weights[number][best].softmax(0)
            total.append(
                sum(weight * F.mse_loss(mapped, teacher[int(place)]) for weight, place in zip(share, best, strict=True))
            )
        return torch.stack(list(map(torch.as_tensor, total))).mean()


class MLKDOOD(Detector[GenerativeTarget]):
    """How unlikely a student of the model that knows clean prompts alone finds a prompt."""

    Params: ClassVar[type[Params]] = MLKDOODParams
    modalities = ("text",)
    source = "Wu et al. 2023, arXiv:2211.11300"

    @override
    def build(self, model: GenerativeTarget, others: Mapping[str, BaseTarget]) -> nn.Module:
        return Student(reading(model), self.params)

    @override
    def fit(self, scorer: nn.Module, model: GenerativeTarget, context: FitContext[Any]) -> None:
        """Distil.

        Raises:
            DataError: no training prompt fits into the context.
        """
        assert isinstance(scorer, Student)
        p, teacher, student = self.params, reading(model), scorer.student
        prompts = _laid(teacher, context.train["prompt"])
        generator = torch.Generator().manual_seed(derived_seed(context.seed, "mlkd-ood/order"))
        with preserved_rng(context.device), frozen(teacher.module):
            seed_torch(derived_seed(context.seed, "mlkd-ood/maps"))
            depths = (student.module.config.num_hidden_layers, teacher.module.config.get_text_config().num_hidden_layers)
            layers = Layers(p.width, teacher.embedding.weight.shape[1], depths).to(context.device)
            optimiser = adamw([*student.module.parameters(), *layers.parameters()], lr=p.lr)
            student.module.train()
            for _ in range(p.steps):
                rows = torch.randint(len(prompts), (p.batch_size,), generator=generator).tolist()
                items = [prompts[row] for row in rows]

                def backward(items: list[Tokens] = items) -> None:
                    optimiser.zero_grad()
                    token, hidden = losses(student, teacher, layers, items)
                    (token + p.beta * hidden).backward()

                training_step(optimiser, p.lr, backward)
            student.module.eval()


def losses(student: CausalLMTarget, teacher: CausalLMTarget, layers: Layers, items: Sequence[Tokens]) -> tuple[Tensor, Tensor]:
    """The divergence on the prompts' tokens, mean over these in nats, and the loss on hidden states."""
    batch = teacher.batch(items)
    told = {"input_ids": batch.ids, "attention_mask": batch.mask.long(), "output_hidden_states": True, "use_cache": False}
    with torch.no_grad():
        theirs = teacher.module(**told)
    ours = student.module(**told)
    asked = batch.completion[:, 1:]  # what is predicted is the next token
    log_t, log_s = (found.logits[:, :-1][asked].float().log_softmax(1) for found in (theirs, ours))
    divergence = (log_t.exp() * (log_t - log_s)).sum(1).mean()
    states = [[state[:, :-1][asked].float() for state in found.hidden_states[1:]] for found in (ours, theirs)]
    return divergence, layers(*states)


def _laid(teacher: CausalLMTarget, texts: Sequence[str]) -> list[Tokens]:
    found = []
    for text in texts:
        try:
            found.append(teacher.encode(text).reading())
        except TooLong:
            continue
    if not found:
        raise DataError(
            "no training request fits into the model's context", fix="watch another model, or take shorter requests"
        )
    return found
