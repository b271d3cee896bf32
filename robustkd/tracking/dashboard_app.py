"""MLflow's own server with its side bar of models: what ``mlflow server --app-name robustkd`` runs.

MLflow opens every page whose address names no workflow, which is where its own links lead, in its side bar for language models. The
one way out is a choice that a person makes on the page, which the browser keeps. Its assistant opens by itself on a first visit, and covers
a quarter of the page. This makes both choices where nobody has made one.
"""

from __future__ import annotations

import json
import os
from importlib import import_module
from pathlib import Path
from typing import Any

from flask import Response
from mlflow.server import app as pages

CHOICES = {"mlflow.workflowType_v1": '"machine_learning"', "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true"}
"""Where MLflow's pages keep choices in the browser, and ours, as JSON: the side bar, and that the assistant has opened by itself."""
SCRIPT = (
    f"<script>try{{for(const [key,choice] of Object.entries({json.dumps(CHOICES)}))"
    "if(localStorage.getItem(key)===null)localStorage.setItem(key,choice)}catch(e){}</script>"
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
