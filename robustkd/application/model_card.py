"""A trained defense as a model card: Markdown below YAML metadata, whose ``model-index`` Hugging Face's hub reads.

Source: Mitchell et al.: Model Cards for Model Reporting (FAT* 2019); huggingface.co/docs/hub/model-cards.
"""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from robustkd.contracts import Modality, UsageError
from robustkd.contracts.json_value import JsonObject, JsonValue
from robustkd.reporting.formatting import counted, interval, threat
from robustkd.reporting.presentation import terms_of
from robustkd.scoring.results import DefenseResult, Results
from robustkd.tracking import descriptions

TASKS: dict[Modality, str] = {"images": "image-classification", "text": "text-generation", "text-to-image": "text-to-image"}


def model_card(results: Results, defense: str, seed: int, gates: Sequence[str]) -> str:
    """The card of a trained defense. Its robust accuracy stands beside the interval and the verdict in the metadata too.

    Args:
        gates: what each of the campaign's gates on it said.

    Raises:
        UsageError: it has no number.
    """
    for trained in results.defenses:
        if (trained.defense, trained.seed) == (defense, seed) and trained.robust_accuracy is not None:
            metadata = yaml.safe_dump(_metadata(results, trained), sort_keys=False, allow_unicode=True, width=1000)
            body = descriptions.card(results, trained, gates, ())
            return f"---\n{metadata}---\n\n# {defense}\n\n## Adversarial robustness\n\n{body}\n"
    raise UsageError(f"'{defense}' has no robust accuracy with seed {seed}", fix="robustkd run the campaign to its end")


def _metadata(results: Results, trained: DefenseResult) -> dict[str, JsonValue]:
    under = f"{threat(trained.budget)}, {counted(len(trained.attacks), 'attack')}, n = {trained.n}"
    bounds = f"95 % interval {interval(trained.ci_low, trained.ci_high)}, verdict: {trained.verdict or 'not checked'}"
    robust: JsonObject = {
        "type": "robust_accuracy",
        "name": f"Robust accuracy, worst case ({under}; {bounds})",
        "value": _percent(trained.robust_accuracy),
        "args": {
            "norm": trained.norm,
            "eps": trained.eps,
            "attacks": list(trained.attacks),
            "n": trained.n,
            **({} if trained.budget.region is None else {"where": str(trained.budget.region)}),
            "ci_low": _percent(trained.ci_low),
            "ci_high": _percent(trained.ci_high),
            "verdict": trained.verdict,
        },
    }
    clean: JsonObject = {"type": "accuracy", "name": terms_of(results).clean, "value": _percent(trained.clean_accuracy)}
    data: JsonObject = {
        "name": results.data.name,
        "type": results.data.name,
        "split": "test",
        "args": {"sha256": results.data.identity},
    }
    result: JsonObject = {
        "task": {"type": TASKS[results.modality]},
        "dataset": data,
        "metrics": [*([clean] if clean["value"] is not None else []), robust],
    }
    return {
        "tags": ["adversarial-robustness", "robustkd"],
        "model-index": [{"name": trained.defense, "results": [result]}],
    }


def _percent(share: float | None) -> float | None:
    return None if share is None else round(100 * share, 2)
