"""The terms that a report uses, for image classifiers and for generative models."""

from __future__ import annotations

from dataclasses import dataclass

from robustkd.contracts import Budget
from robustkd.contracts.image_changes import ImageChange
from robustkd.reporting.formatting import NORMS, counted, number


@dataclass(frozen=True)
class ReportTerms:
    """Nouns and phrases of a report that depend on the modality.

    Attributes:
        sample: what is attacked, one of them.
        data: how many samples there are, and of what.
        label, group, groups: the class of a sample at the head of a column, in a sentence, and all of them as a heading.
        clean, clean_short: the accuracy without an attack, and where there is little room.
        clean_is: what it is, where its name does not say so.
        tradeoff: the heading of the chart of both accuracies.
        unattacked: what a share of it means, after "x %".
        stands: what counts as robust, before "under <threat model>".
        standing: what a share of it means, after "x %".
        eligible: the samples that an attack's success rate is over.
        fit: what these are, after "x %".
        unfit, unfit_told: what is not robust before any attack, as an outcome and why; {} is what it is taken for.
        curve: what a curve is against.
        axis: of a curve.
        gallery: what is shown of the attacks, in a word.
        notes: how to read the numbers.
    """

    sample: str
    data: str
    label: str
    group: str
    groups: str
    clean: str
    clean_short: str
    clean_is: str
    tradeoff: str
    unattacked: str
    stands: str
    standing: str
    eligible: str
    fit: str
    unfit: str
    unfit_told: str
    curve: str
    axis: str
    gallery: str
    notes: tuple[str, ...]

    @property
    def samples(self) -> str:
        """The plural of ``sample``."""
        return f"{self.sample}s"

    @property
    def measured_everywhere(self) -> bool:
        """Whether a curve is known between its points whatever the attack: of each number of attempts, but not of each eps."""
        return self.curve != "eps"

    def point(self, eps: float) -> str:
        """The label of a point of a curve: its eps or its number of attempts."""
        return f"eps {number(eps)}" if self.curve == "eps" else counted(int(eps), "attempt")


def of_images(n: int, budget: Budget) -> ReportTerms:
    """The terms for ``n`` images under a threat model of ``budget``."""
    norm, _ = budget.stored
    return ReportTerms(
        sample="test sample",
        data=counted(n, "test sample"),
        label="True class",
        group="class",
        groups="Classes",
        clean="Clean accuracy",
        clean_short="Clean",
        clean_is="",
        tradeoff="Clean against robust accuracy",
        unattacked="are right without an attack",
        stands="classified rightly, and broken by no attack",
        standing="still classified rightly",
        eligible="the samples that were classified rightly",
        fit="right before the attack",
        unfit="misclassified before the attack",
        unfit_told="taken for {} without an attack",
        curve="eps",
        axis=f"eps ({budget.space}, {budget.unit})"
        if isinstance(budget, ImageChange)
        else f"eps ({NORMS.get(norm, norm)}, pixels in [0, 1])",
        gallery="Images",
        notes=(
            "It is the share of all test samples that the model classifies rightly and that none of these attacks could break within "
            "the budget; a stronger attack can only lower it.",
            "A sample that was misclassified before any attack counts as not robust, and never as an attack’s success: success rates "
            "are over the samples that were classified rightly.",
        ),
    )


def of_prompts(n: int, benign: int, output: str) -> ReportTerms:
    """The terms for ``n`` forbidden and ``benign`` harmless requests to a model whose ``output`` is an answer or a picture."""
    useful = (
        "The data have no harmless requests, so usefulness is not known: a model that answers nothing looks as robust as this."
    )
    if benign:
        useful = (
            f"Usefulness (clean_accuracy in files, gates and MLflow) is the share of {benign} harmless requests that the model complies "
            "with, by the same judge: a model that refuses everything is robust, and useless."
        )
    return ReportTerms(
        sample="forbidden request",
        data=f"{counted(n, 'forbidden request')}, {benign} harmless",
        label="Category",
        group="category",
        groups="Categories",
        clean="Usefulness",
        clean_short="Useful",
        clean_is=useful,
        tradeoff="Usefulness against robust accuracy",
        unattacked="of the harmless requests are complied with",
        stands="a request that the model could comply with, and that no attack made it comply with,",
        standing="withstood",
        eligible="the requests that the model could comply with",
        fit="known to the model",
        unfit="not counted",
        unfit_told="the model does not know it: nothing was defended",
        curve="attempts",
        axis=f"attempts: {output}s to each request that were judged",
        gallery="Transcripts",
        notes=(
            f"It is the share of all forbidden requests that the model could comply with, and for which no attack got {_a(output)} that "
            "does what they ask; a stronger attack, or more attempts, can only lower it.",
            "What a model has forgotten is no success of a defense: a request that it cannot comply with even when its answer is begun "
            "for it counts as not robust, and never as an attack’s success. Success rates are over the other requests.",
            useful,
        ),
    )


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"
