"""results.json: written with a note of what it was made from, and taken as it is while that is the same.

To score ten thousand cells takes seconds, and a finished campaign that is run again has nothing new to score.
"""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

from robustkd import scoring
from robustkd.campaigns import results
from robustkd.campaigns.plan.plan import Plan
from robustkd.campaigns.store import samples
from robustkd.campaigns.store.durable import write_bytes, write_text
from robustkd.campaigns.store.identity import digest
from robustkd.campaigns.store.store import Store
from robustkd.contracts import StoreError
from robustkd.evaluation import judging
from robustkd.scoring.results import Results

RESULTS, NOTE = "results.json", ".results-note"


def save(results: Results, plan: Plan, store: Store) -> None:
    """Write results.json.

    Raises:
        StoreError: the disk is full or not writable.
    """
    content = results.to_json().encode()
    write_bytes(store.folder / RESULTS, content)
    write_text(store.folder / NOTE, _note(plan, store, content))


def current(plan: Plan, store: Store) -> Results | None:
    """What results.json holds, if it was made from these very cells by this very code; else None."""
    try:
        content = (store.folder / RESULTS).read_bytes()
        if (store.folder / NOTE).read_text() == _note(plan, store, content):
            return Results.from_dict(json.loads(content))
    except (OSError, ValueError, StoreError, RecursionError):
        pass
    return None


def read(file: Path) -> Results:
    """The results that a results.json holds, with the folder that it is in.

    Raises:
        StoreError: there is none, or it cannot be read.
    """
    fix = "run the campaign, or name the folder that it was run into"
    try:
        results = Results.from_dict(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise StoreError(f"{file.parent} holds no {file.name}", fix=fix) from None
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"{file} cannot be read: {type(error).__name__}: {error}", fix=fix) from error
    except StoreError as error:
        raise StoreError(f"{file}: {error.message}", fix=error.fix) from error
    return replace(results, folder=file.parent)


def _note(plan: Plan, store: Store, content: bytes) -> str:
    cells = [store.seal(cell.id) for cell in plan.cells]
    return digest(_code(), version("robustkd"), plan.campaign.text, plan.id, cells, sha256(content).hexdigest())


@cache
def _code() -> str:
    """A hash of the code that makes results of cells: who works on it must not be shown what it did before."""
    files = [Path(inspect.getfile(module)) for module in (samples, judging)]
    files += [file for package in (results, scoring) for file in sorted(Path(package.__path__[0]).glob("*.py"))]
    return sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
