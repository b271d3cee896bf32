"""AutoAttack under the name and with the calls that RobustBench's ``benchmark`` expects, on robustkd's own engine.

    from robustkd.integrations.autoattack import AutoAttack
    adversary = AutoAttack(model, norm="Linf", eps=8 / 255)
    x_adv = adversary.run_standard_evaluation(x_test, y_test, bs=250)

With ``state_path`` an interrupted evaluation goes on where it stopped: the file is written after every batch, and belongs to
this model, these images and this budget alone.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from robustkd import plugins
from robustkd.contracts import DataError, ThreatModel, UsageError
from robustkd.contracts.threat import Norm
from robustkd.evaluation.images import evaluate_attack, make_batch, with_clean_logits
from robustkd.lazy import torch
from robustkd.targets import ClassifierTarget, frozen
from robustkd.targets.precision import evaluating

if TYPE_CHECKING:
    from torch import Tensor, nn

NORMS: dict[str, Norm] = {"Linf": "linf", "L2": "l2", "L1": "l1"}
_UNKNOWN = -1


class AutoAttack:
    """Adversarial examples for a classifier, by the plug-in ``autoattack``.

    Args:
        model: (N, C, H, W) in [0, 1] -> (N, K) logits.
        norm: ``Linf``, ``L2`` or ``L1``.
        eps: the budget.
        version: ``standard``, ``plus``, ``rand`` or ``adaptive``.
        seed: of the random streams; 0 by default.
        device: where model and images are moved; by default where the model is.
        log_path: a file that the closing line is added to.
        verbose: whether that line is printed.
        params: further parameters of the plug-in (``robustkd describe autoattack``).

    Raises:
        UsageError: unknown norm, version or parameter.
    """

    def __init__(
        self,
        model: nn.Module,
        norm: str = "Linf",
        eps: float = 8 / 255,
        seed: int | None = None,
        verbose: bool = True,
        version: str = "standard",
        device: torch.device | str | None = None,
        log_path: str | Path | None = None,
        **params: Any,
    ) -> None:
        if norm not in NORMS:
            raise UsageError(f"AutoAttack has no norm '{norm}'", fix=f"one of: {', '.join(NORMS)}")
        self._attack = plugins.make("attacks", {"kind": "autoattack", "version": version, **params})
        self.model, self.version = model, version
        self.threat = ThreatModel(NORMS[norm], float(eps))
        self.seed = seed or 0
        self.verbose, self.log_path = verbose, log_path
        self.device = torch.device(device) if device is not None else next((p.device for p in model.parameters()), None)

    @evaluating()
    def run_standard_evaluation(
        self,
        x_orig: Tensor,
        y_orig: Tensor,
        bs: int = 250,
        return_labels: bool = False,
        state_path: str | Path | None = None,
    ) -> Any:
        """Attack every image. One is robust to a model that draws random numbers if it is classified rightly on most draws.

        Args:
            x_orig: (N, C, H, W) in [0, 1].
            y_orig: (N,) labels.
            bs: images at once.
            return_labels: also return the (N,) predictions on what is returned.
            state_path: where to keep what is done, and to go on from.

        Returns:
            (N, C, H, W) on the device of ``x_orig``: adversarial where one was found, else the image itself.
        """
        state = EvaluationState.open(state_path, self._digest(x_orig, y_orig), x_orig)
        with torch.no_grad(), frozen(self.model):
            classes = self.model(x_orig[:1].to(self.device)).shape[1]
        target = ClassifierTarget(self.model, num_classes=classes, input_shape=x_orig.shape[1:])
        for rows in torch.arange(len(x_orig)).split(bs):
            rows = rows[state.flags[rows] == _UNKNOWN]
            if not len(rows):
                continue
            with frozen(target.module):
                batch = make_batch(x_orig[rows], y_orig[rows], index=rows, device=self.device or "cpu")
                evaluation = evaluate_attack(
                    target, self._attack, with_clean_logits(target, batch), self.threat, seed=self.seed, batch_size=bs
                )
            broken = torch.as_tensor(evaluation.outcome.success)
            state.adversarial[rows[broken]] = evaluation.adversarial[broken].to(state.adversarial)
            state.flags[rows] = torch.as_tensor(evaluation.outcome.standing).to(state.flags)
            state.save()
        self._log(f"AutoAttack ({self.version}): robust accuracy {float(state.flags.float().mean()):.2%}, n = {len(x_orig)}")
        adversarial = state.adversarial.to(x_orig)
        if not return_labels:
            return adversarial
        with torch.no_grad(), frozen(self.model):
            predicted = [self.model(part.to(self.device)).argmax(1).to(y_orig) for part in adversarial.split(bs)]
        return adversarial, torch.cat(predicted)

    def _log(self, line: str) -> None:
        if self.verbose:
            print(line)
        if self.log_path is not None:
            with Path(self.log_path).open("a", encoding="utf-8") as log:
                log.write(line + "\n")

    def _digest(self, x: Tensor, y: Tensor) -> str:
        state = hashlib.sha256(
            f"{self._attack.params!r} {self._attack.version_for(self.threat)} {self.threat} {self.seed}".encode()
        )
        for tensor in (x, y, *self.model.state_dict().values()):
            state.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return state.hexdigest()


class EvaluationState:
    """The progress of an evaluation, kept in one safetensors file.

    Attributes:
        path: the file, or None to keep nothing.
        digest: of everything that the evaluation depends on.
        flags: (N,) int8: 1 robust (classified rightly and not broken), 0 not robust, -1 not attacked yet.
        adversarial: (N, *shape) on the CPU.
    """

    def __init__(self, path: Path | None, digest: str, flags: Tensor, adversarial: Tensor) -> None:
        self.path, self.digest = path, digest
        self.flags, self.adversarial = flags, adversarial

    @property
    def robust_flags(self) -> Tensor | None:
        """(N,) 1.0 where an image is robust, else 0.0; None until every one has been attacked."""
        return None if bool((self.flags == _UNKNOWN).any()) else self.flags.float()

    @classmethod
    def from_disk(cls, path: str | Path) -> EvaluationState:
        """The state in a file.

        Raises:
            DataError: there is none, or it cannot be read.
        """
        try:
            with safe_open(path, "pt") as file:
                return cls(
                    Path(path), (file.metadata() or {})["digest"], file.get_tensor("flags"), file.get_tensor("adversarial")
                )
        except (OSError, SafetensorError, KeyError) as error:
            raise DataError(
                f"{path} holds no state of an evaluation: {error}", fix="remove it to evaluate from the start"
            ) from error

    @classmethod
    def open(cls, path: str | Path | None, digest: str, images: Tensor) -> EvaluationState:
        """The state in a file, which must belong to this evaluation; a new one where there is no file.

        Raises:
            DataError: the file is damaged, or belongs to another model, other images or another budget.
        """
        if path is None or not Path(path).exists():
            flags = torch.full((len(images),), _UNKNOWN, dtype=torch.int8)
            return cls(None if path is None else Path(path), digest, flags, images.detach().cpu().clone())
        state = cls.from_disk(path)
        if state.digest != digest:
            raise DataError(
                f"{path} belongs to another evaluation: model, images, norm, eps, version or seed differ",
                fix="remove it, or give another state_path",
            )
        return state

    def save(self) -> None:
        """Replace the file in one step, so that nobody reads half of it."""
        from safetensors.torch import save_file  # late: it imports torch

        if self.path is None:
            return
        draft = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        save_file({"flags": self.flags, "adversarial": self.adversarial.contiguous()}, draft, {"digest": self.digest})
        draft.replace(self.path)
