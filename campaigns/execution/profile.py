"""profile.yaml -> Profile: where and how a campaign is run, and nothing that changes a number of it.

A campaign says what is asked, and goes from machine to machine; a profile says what one machine, cluster or person has.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from robustkd import plugins
from robustkd.campaigns.execution.engines import Engine, Limits
from robustkd.campaigns.file.problems import Problem, complaint, problems_of, validated
from robustkd.campaigns.file.yaml_source import parse, read
from robustkd.campaigns.store.store import KEPT_BYTES
from robustkd.contracts import Params, PluginError, UsageError
from robustkd.contracts.target import Precision

MIB = 2**20
DEVICE = re.compile(r"[a-z]+(:\d+)?")


def _device(value: str) -> str:
    if not DEVICE.fullmatch(value):
        raise ValueError("a device is auto, cpu, cuda, cuda:1, mps, xpu, ..")
    return value


class TrackingSpec(Params):
    """The ``tracking`` block of a profile."""

    enabled: bool = Field(True, description="whether MLflow is written to")
    uri: str | None = Field(None, description="of the MLflow store; MLFLOW_TRACKING_URI, where it is set, wins")
    series: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="whose runs these are, on a store that several write to [default: CI project, or user@host]",
    )
    images: int = Field(16, ge=0, le=16, description="attacked samples shown in each cell's run, at most")


def _switch_alone(value: Any) -> Any:
    return {"enabled": value} if isinstance(value, bool) else value


def _none_is_zero(value: Any) -> Any:
    return 0 if value in ("none", None) else value


class _EngineUse(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)
    kind: str = "local"


class _Document(Params):
    engine: _EngineUse = _EngineUse()
    devices: tuple[Annotated[str, AfterValidator(_device)], ...] = Field(("auto",), min_length=1)
    precision: Precision = Field("full", description="in which attacks take gradients: the network's own, or bf16")
    batch_size: int | None = Field(
        None, ge=1, description="the most samples that a model is attacked on at once [default: the campaign's, else 256]"
    )
    training_processes: int = Field(1, ge=1, description="processes that share a training; on GPUs, each has one of its own")
    keep_perturbations: Annotated[int, BeforeValidator(_none_is_zero)] = Field(
        KEPT_BYTES // MIB, ge=0, description="MiB of perturbed inputs that an attack cell keeps, at most, or none"
    )
    limits: Limits = Limits()
    tracking: Annotated[TrackingSpec, BeforeValidator(_switch_alone)] = TrackingSpec()


@dataclass(frozen=True)
class Profile:
    """How a campaign is run.

    Attributes:
        engine: name of an engine plug-in.
        params: its validated parameters.
        device: what cells run on; several devices are separated by commas.
        precision: in which attacks take gradients.
        batch_size: the most samples that a model is attacked on at once; None: what the campaign says.
        training_processes: how many share the training of one defense.
        keep_bytes: how much of the perturbed inputs an attack cell keeps, at most.
    """

    engine: str
    params: Any
    device: str
    limits: Limits
    tracking: TrackingSpec
    precision: Precision = "full"
    training_processes: int = 1
    keep_bytes: int = KEPT_BYTES
    batch_size: int | None = None

    def make_engine(self) -> Engine:
        """The engine; the run's time begins."""
        engine: Engine = plugins.load("engines", self.engine)(self.params, self.limits)
        return engine

    def overridden(
        self,
        *,
        workers: int | None = None,
        device: str | None = None,
        precision: Precision | None = None,
        batch_size: int | None = None,
        max_hours: float | None = None,
        keep_perturbations: str | None = None,
        track: bool | None = None,
    ) -> Profile:
        """This profile with what the command line says in its place; None leaves it.

        Raises:
            UsageError: a device is no device, the engine has no workers, or what is to be kept is no number.
        """
        kept = self.keep_bytes
        if keep_perturbations is not None:
            if not keep_perturbations.isdecimal() and keep_perturbations != "none":
                raise UsageError(f"'{keep_perturbations}' is no number of MiB", fix="--keep-perturbations none, or 64")
            kept = int(_none_is_zero(keep_perturbations)) * MIB
        engine, params, limits, tracking = self.engine, self.params, self.limits, self.tracking
        if device is not None and not all(DEVICE.fullmatch(one) for one in device.split(",")):
            raise UsageError(f"'{device}' is no device", fix="--device auto, cpu, cuda, mps, xpu, or several as cuda:0,cuda:1")
        if workers == 0:
            engine, params = "inline", None
        elif workers is not None:
            if engine == "inline":
                engine, params = "local", plugins.load("engines", "local").Params()
            if "workers" not in type(params).model_fields:
                raise UsageError(f"the engine '{engine}' has no workers to choose", fix="leave --workers out")
            params = params.model_copy(update={"workers": workers})
        if max_hours is not None:
            limits = limits.model_copy(update={"max_hours": max_hours})
        if track is not None:
            tracking = tracking.model_copy(update={"enabled": track})
        changed = replace(self, engine=engine, params=params, device=device or self.device, limits=limits, tracking=tracking)
        return replace(
            changed, keep_bytes=kept, precision=precision or self.precision, batch_size=batch_size or self.batch_size
        )


def load(file: Path | None) -> Profile:
    """Read a profile; without one, everything is as by default.

    Raises:
        UsageError: with every problem of the file, each with file, line, key and fix.
    """
    return from_text(read(file), str(file), file.resolve().parent) if file else from_text("", "profile", Path.cwd())


def from_text(text: str, origin: str, folder: Path) -> Profile:
    """Validate the text of a profile; ``load`` says how it fails."""
    source = parse(text, origin)
    if not isinstance(source.data, dict | None):
        raise UsageError(f"{origin}: a profile is a mapping of keys", fix="begin with 'engine: {kind: local}'")
    try:
        document = _Document.model_validate(source.data or {})
    except ValidationError as error:
        raise complaint(source, problems_of(error, _Document, ())) from None
    use = document.engine
    problems: list[Problem] = []
    try:
        model = plugins.load("engines", use.kind).Params
    except PluginError as error:
        raise complaint(source, [Problem(("engine", "kind"), error.message, error.fix)]) from None
    params = validated(model, dict(use.model_extra or {}), ("engine",), folder, problems, also=("kind",))
    if document.training_processes > 1 and len(document.devices) > 1:
        fix = "name one device: of 'cuda' the processes take cuda:0, cuda:1, .."
        problems.append(Problem(("training_processes",), "processes that share a training choose their own devices", fix))
    if problems:
        raise complaint(source, problems)
    device = ",".join(document.devices)
    kept = document.keep_perturbations * MIB
    return Profile(
        use.kind,
        params,
        device,
        document.limits,
        document.tracking,
        document.precision,
        document.training_processes,
        kept,
        document.batch_size,
    )
