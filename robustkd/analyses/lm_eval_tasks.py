"""Tasks of lm-evaluation-harness: what a defense costs on the benchmarks that language models are compared by.

Source: Gao et al.: The language model evaluation harness, https://github.com/EleutherAI/lm-evaluation-harness
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from pydantic import Field

from robustkd.contracts import (
    Analysis,
    CampaignPath,
    GenerativeTarget,
    Params,
    PromptBatch,
    Table,
    TargetError,
    ThreatModel,
    UsageError,
)
from robustkd.contracts.extras import installation
from robustkd.targets.causal_lm import CausalLMTarget


class LMEvalParams(Params):
    tasks: tuple[str, ...] = Field(min_length=1, description="names of tasks", examples=[["arc_easy", "hellaswag"]])
    include: CampaignPath | None = Field(None, description="a folder with tasks of your own; Python code that they name is run")
    limit: int | None = Field(None, ge=1, description="documents of each task at most; all by default")
    shots: int | None = Field(None, ge=0, description="examples before each question; as the task has it by default")
    chat: bool = Field(False, description="put the questions through the model's chat template")


class LMEval(Analysis[GenerativeTarget, PromptBatch]):
    """Tasks of lm-evaluation-harness, where it is installed."""

    Params = LMEvalParams
    modalities = ("text",)
    source = "Gao et al., doi:10.5281/zenodo.5371628"

    def files(self) -> list[Path]:
        """The files of the user's own tasks."""
        folder = self.params.include
        return [] if folder is None else sorted(file for file in folder.rglob("*") if file.is_file())

    def run(self, target: GenerativeTarget, batch: PromptBatch, threat: ThreatModel, seed: int) -> Table:
        """A row for each metric of each task; ``metrics`` likewise, such as ``arc_easy/acc``.

        Raises:
            UsageError: lm-evaluation-harness is not installed.
            TargetError: it is no language model, or the harness fails: a task is unknown, or its data cannot be had.
        """
        if not isinstance(target, CausalLMTarget):
            raise TargetError(f"lm-eval is for language models, this is a {target.kind}", fix="leave it out of 'defenses'")
        found = self._evaluated(target, seed)
        scores = {
            f"{task}/{key.partition(',')[0]}": [float(value), values.get(key.replace(",", "_stderr,", 1))]
            for task, values in found["results"].items()
            for key, value in values.items()
            if isinstance(value, float | int) and "," in key and "_stderr," not in key
        }
        known = all(isinstance(error, float) for _, error in scores.values())
        counts = ", ".join(f"{task} {count['effective']}" for task, count in found["n-samples"].items())
        return Table(
            caption=f"scores by lm-evaluation-harness; documents: {counts}",
            rows=list(scores),
            columns=["score", "standard error"] if known else ["score"],
            values=[score if known else score[:1] for score in scores.values()],
            metrics={name: score for name, (score, _) in scores.items()},
        )

    def _evaluated(self, target: CausalLMTarget, seed: int) -> dict[str, Any]:
        try:
            from lm_eval import simple_evaluate
            from lm_eval.models.huggingface import HFLM
            from lm_eval.tasks import TaskManager
        except ImportError as error:
            raise UsageError(f"lm-evaluation-harness cannot be imported: {error}", fix=installation("lm-eval")) from error
        p = self.params
        try:
            found: dict[str, Any] = simple_evaluate(
                model=HFLM(pretrained=target.module, tokenizer=copy.deepcopy(target.tokenizer), batch_size=8),
                tasks=list(p.tasks),
                task_manager=TaskManager(include_path=str(p.include) if p.include else None),
                limit=p.limit,
                num_fewshot=p.shots,
                apply_chat_template=p.chat,
                random_seed=seed,
                numpy_random_seed=seed,
                torch_random_seed=seed,
                fewshot_random_seed=seed,
                bootstrap_iters=100,  # of standard errors that have no formula
                log_samples=False,
            )
        except Exception as error:  # the harness raises what its tasks raise
            raise TargetError(
                f"lm-eval failed: {type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}",
                fix="`lm-eval ls tasks` names the tasks; most fetch their data from Hugging Face's hub",
            ) from error
        return found
