"""A model's folder comes with Python files, and "y" waits on stdin: nothing of it runs, and one sentence says why the model is refused."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from robustkd.cli import main
from support.model_folders import PICTURES, TEXT, clip, encoder, language_model, stable_diffusion

LINE = ("run", "c.yaml", "--workers", "0", "--no-track", "--device", "cpu")
TRAP = """\
from pathlib import Path
Path({mark!r}).write_text("ran")
from transformers import LlamaConfig as MyConfig, LlamaForCausalLM as MyModel, PreTrainedTokenizerFast as MyTokenizer
from diffusers import DDIMScheduler as MyScheduler, UNet2DConditionModel as MyUNet
def generate(*arguments, **options):
    raise SystemExit(3)
"""
CONFIG = {"AutoConfig": "my_code.MyConfig", "AutoModel": "my_code.MyModel", "AutoModelForCausalLM": "my_code.MyModel"}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "requests.csv").write_text("prompt,evaluation_seed\nsay it,1\n")
    return tmp_path


def trapped(folder: Path, file: str, changes: dict[str, Any]) -> None:
    """Code in the folder, and a JSON file that names it."""
    mark = str(folder.parent / "ran")
    for code in ("my_code.py", "pipeline.py", "custom_generate/generate.py"):
        (folder / code).parent.mkdir(exist_ok=True)
        (folder / code).write_text(TRAP.format(mark=mark))
    about = json.loads((folder / file).read_text()) if (folder / file).is_file() else {}
    (folder / file).write_text(json.dumps(about | changes))


def answered_yes(place: Path, campaign: str) -> str:
    """What ``robustkd run`` prints where every question is answered with y."""
    (place / "c.yaml").write_text(campaign)
    printed = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
        contextlib.suppress(SystemExit),
    ):
        patch.chdir(place)
        patch.setattr(sys, "stdin", io.StringIO("y\n" * 50))
        patch.setattr(sys, "argv", ["robustkd", *LINE])
        main()
    return quiet(place, printed.getvalue())


def quiet(place: Path, said: str) -> str:
    assert not [path for path in place.rglob("ran") if path.is_file()], "the folder's code ran"
    assert "Traceback" not in said
    assert "[y/N]" not in said
    return " ".join(said.split())


def test_the_command_itself_asks_nothing(place: Path) -> None:
    architecture(language_model(place / "model"))
    (place / "c.yaml").write_text(TEXT)
    line = [sys.executable, "-m", "robustkd", *LINE]
    done = subprocess.run(line, cwd=place, input="y\n" * 50, capture_output=True, text=True, timeout=300, check=False)
    assert "names code of its own (auto_map: my_code.py), which robustkd never runs" in quiet(place, done.stdout + done.stderr)


def architecture(folder: Path) -> None:
    trapped(folder, "config.json", {"model_type": "my", "auto_map": CONFIG})


def model_alone(folder: Path) -> None:
    trapped(folder, "config.json", {"model_type": "bert-generation-x", "auto_map": CONFIG})


def tokenizer(folder: Path) -> None:
    maps = {"AutoTokenizer": ["my_code.MyTokenizer", "my_code.MyTokenizer"]}
    trapped(folder, "tokenizer_config.json", {"tokenizer_class": "MyTokenizer", "auto_map": maps})


@pytest.mark.parametrize("trap", [architecture, model_alone, tokenizer])
def test_a_language_model(place: Path, trap: Callable[[Path], None]) -> None:
    trap(language_model(place / "model"))
    said = answered_yes(place, TEXT)
    assert "names code of its own (auto_map: my_code.py), which robustkd never runs" in said


def test_code_beside_a_model_that_needs_none(place: Path) -> None:
    trapped(language_model(place / "model"), "config.json", {"auto_map": CONFIG})  # a Llama, which transformers has
    assert "never runs" not in answered_yes(place, TEXT)


def test_an_encoder_of_sentences(place: Path) -> None:
    trapped(encoder(place / "encoder"), "config.json", {"model_type": "my", "auto_map": CONFIG})
    language_model(place / "model")
    (place / "examples.csv").write_text("completion,final_label\nsorry,2_full_refusal\nhello,1_full_compliance\n")
    judge = "{kind: refusal-classifier, encoder: encoder, examples: examples.csv}"
    said = answered_yes(place, TEXT.replace("{kind: refusal-match}", judge))
    assert "names code of its own (auto_map: my_code.py), which robustkd never runs" in said


def test_a_text_to_image_model(place: Path) -> None:
    model = stable_diffusion(place / "model")
    clip(place / "clip")
    trapped(model, "model_index.json", {"_class_name": ["my_code", "MyPipeline"], "unet": ["my_code", "MyUNet"]})
    for part in ("unet", "text_encoder", "vae"):
        trapped(model / part, "config.json", {"auto_map": CONFIG | {"AutoModel": "my_code.MyUNet"}})
    trapped(model / "tokenizer", "tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["my_code.MyTokenizer", None]}})
    trapped(model / "scheduler", "scheduler_config.json", {"auto_map": {"AutoScheduler": "my_code.MyScheduler"}})
    answered_yes(place, PICTURES)


def test_a_text_to_image_model_with_a_scheduler_of_its_own(place: Path) -> None:
    model = stable_diffusion(place / "model")
    clip(place / "clip")
    trapped(model / "scheduler", "scheduler_config.json", {"_class_name": "MyScheduler"})
    assert "diffusers has no scheduler 'MyScheduler'" in answered_yes(place, PICTURES)


def test_a_judges_clip(place: Path) -> None:
    stable_diffusion(place / "model")
    judge = clip(place / "clip")
    trapped(judge, "tokenizer_config.json", {"tokenizer_class": "My", "auto_map": {"AutoTokenizer": ["my_code.My", None]}})
    (judge / "tokenizer.json").rename(judge / "own.json")
    answered_yes(place, PICTURES)


def test_nothing_is_loaded_without_saying_that_no_code_runs() -> None:
    """Every call of transformers' loaders goes through the module that forbids it."""
    import robustkd

    package = Path(robustkd.__file__).parent
    linked = [package / name for name in ("attacks", "campaigns", "defenses")]  # rglob does not follow links
    files = [file for folder in (package, *linked) for file in folder.rglob("*.py")]
    assert {str(file.relative_to(package)) for file in files if loads(ast.parse(file.read_text()))} == {"targets/pretrained.py"}


def loads(tree: ast.AST) -> bool:
    calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    return any(isinstance(called, ast.Attribute) and called.attr == "from_pretrained" for called in calls)
