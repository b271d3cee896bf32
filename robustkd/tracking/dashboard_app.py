"""MLflow's own server with its side bar of models: what ``mlflow server --app-name robustkd`` runs.

MLflow opens every page whose address names no workflow, which is where its own links lead, in its side bar for language models. The
one way out is a choice that a person makes on the page, which the browser keeps. This makes that choice where nobody has made one.
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any

from flask import Response
from mlflow.server import app as pages

KEPT, MODELS = "mlflow.workflowType_v1", '"machine_learning"'
"""Where MLflow's pages keep the choice in the browser, and the choice itself, as JSON."""
SCRIPT = (
    f"<script>try{{if(localStorage.getItem('{KEPT}')===null)localStorage.setItem('{KEPT}','{MODELS}')}}catch(e){{}}</script>"
)

_plain = pages.view_functions["serve"]


def _first_page() -> Any:
    """The page that all others of MLflow's are drawn in, with the choice made before its own scripts run."""
    file = Path(str(pages.static_folder), "index.html")
    if not file.is_file():
        return _plain()
    text = file.read_text(encoding="utf-8").replace("<head>", f"<head>{SCRIPT}", 1)
    return Response(text, mimetype="text/html", headers={"Cache-Control": "no-cache"})


pages.view_functions["serve"] = _first_page

app: Any = pages
# The process that serves it; the one that starts that process only looks at what ``app`` is.
if os.environ.get("_MLFLOW_SGI_NAME") == "uvicorn":
    app = import_module("mlflow.server.fastapi_app").app
