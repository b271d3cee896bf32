"""Packaging. The built-in plug-ins are listed in ``entry_points/``, a file for each group: the same door that any package may use."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
FOLDERS = ("attacks", "defenses", "campaigns")
ENTRY_POINTS = "\n".join(
    ["[console_scripts]\nrobustkd = robustkd.cli:main", "[mlflow.app]\nrobustkd = robustkd.tracking.dashboard_app:app"]
    + [path.read_text(encoding="utf-8") for path in sorted((HERE / "entry_points").glob("*.ini"))]
)

# The four top-level folders are one distribution. Mapping them here keeps a wheel free of top-level packages with names
# as common as "attacks"; the links robustkd/attacks -> ../attacks and so on let tools that read the tree see one package.
package_dir = {"robustkd": "robustkd"} | {f"robustkd.{folder}": folder for folder in FOLDERS}
packages = find_packages(include=["robustkd", "robustkd.*"], exclude=[f"robustkd.{folder}*" for folder in FOLDERS])
for folder in FOLDERS:
    packages += [f"robustkd.{folder}"] + [f"robustkd.{folder}.{name}" for name in find_packages(folder)]

setup(
    name="robustkd",
    version="0.2.0",
    description="Does this defense hold? Robustness and adversarial-distillation evaluation from one declarative file",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    package_dir=package_dir,
    packages=packages,
    package_data={
        "robustkd": ["py.typed"],
        "robustkd.campaigns.file": ["presets/*.yaml", "starters/*"],
        "robustkd.data": ["imagenet.txt"],
        "robustkd.integrations": ["doctor.lock"],
        "robustkd.judges": ["*.safetensors", "*.yaml"],
        "robustkd.plugin_kit": ["templates/*"],
        "robustkd.reporting": ["*.yaml", "templates/*"],
        "robustkd.viewer": ["templates/*"],
    },
    install_requires=[
        "torch>=2.8",  # first with Python 3.13 wheels for every platform and torch.load safe by default
        "numpy>=1.26",
        "safetensors>=0.5",
        "pydantic>=2.12,<3",  # 2.11 makes no schema of plug-ins as parameters of plug-ins, and describes some of them wrongly
        # Defaults of type variables before Python 3.13, and recursive types and typed dicts that pydantic takes before 3.12.
        "typing_extensions>=4.12",
        "pyyaml>=6.0.1",
        "click>=8.2",  # the first whose test runner keeps the two streams of a command apart
        "rich>=13.9",
        # 3.x: logged models and run links; 3.9 is the first that works with SQLAlchemy 2.1, which the former ones allow. It brings pandas,
        # pyarrow, scikit-learn, matplotlib.
        "mlflow>=3.9,<4",
        "pyarrow>=17",
        "scikit-learn>=1.5",
        "matplotlib>=3.9",
        "jinja2>=3.1.4",
        "pillow>=10.4",
        # The server of `robustkd view`; MLflow brings both, by its own server.
        "starlette>=0.40",
        "uvicorn>=0.30",
        "foolbox>=3.3.4,<4",
        # Asks served models (chat-endpoint): repetitions with back-off and Retry-After, pools for threads. MLflow brings it, by requests,
        # which holds it below 3; from 2.0 on a body that is cut off is an error.
        "urllib3>=2.2,<3",
        "packaging>=24",  # `robustkd doctor` reads requirements
        # torchattacks and robustbench cannot be required here: torchattacks pins requests 2.25, which MLflow 3 refuses,
        # and drops a robustbench/ of its own over the real one. `robustkd doctor --fix` installs both rightly.
    ],
    extras_require={
        "robustbench": [  # what robustbench needs beside itself, without the exact pins that it carries
            "torchvision>=0.23",
            "timm>=1.0.9",
            "gdown>=5.1",
            "geotorch>=0.3",
            "torchdiffeq>=0.2.3",
            "tqdm>=4.60",  # first with tqdm.contrib.logging, which transformers 5 imports
            # Not setuptools<81 for the pkg_resources that its loaders import: see robustkd/integrations/robustbench.py.
        ],
        # A tracking store in PostgreSQL. What postgresql:// means is up to SQLAlchemy: psycopg2 to 2.0, psycopg from 2.1 on.
        "postgresql": ["psycopg2-binary>=2.9.10", "psycopg[binary]>=3.2"],
        # Language models. transformers 5.18 is the first that reads a GGUF file's merges with the tokenizers that it allows; up to 5.12
        # some models (GptOss, Qwen3Next, Mamba2) answer otherwise from their cache. peft for LoRA, 0.18 being the first that knows
        # transformers 5; gguf for GGUF files, which accelerate is not needed for.
        "llm": ["transformers>=5.18,<6", "peft>=0.18", "gguf>=0.17"],
        "diffusion": ["diffusers>=0.38", "transformers>=5.18,<6"],  # 0.38: the oldest that the tests are run with
        # The judge onnx-classifier and models in ONNX files; onnxruntime 1.20 is the first with Python 3.13, onnx2pytorch 0.6 the first
        # that is tested operator by operator.
        "onnx": ["onnxruntime>=1.20", "onnx>=1.17", "onnx2pytorch>=0.6"],
        "lm-eval": ["lm-eval>=0.4.13,<0.5"],  # the analysis 'lm-eval'; its interface changed within 0.4.x, 0.4.13 is tried
        "torchvision": ["torchvision>=0.23"],  # resnet101, resnext50-32x4d, densenet201, vgg19
        # The engine 'dask'. dask-jobqueue, for Slurm and PBS, is the user's to add: it is of no use elsewhere.
        "dask": ["distributed>=2025.1"],
        # The site. Sphinx because it is well kept: mkdocs 1.x had its last release in 2024 and its theme material ends in May 2027,
        # zensical is an alpha. Sphinx 9.1 and later want Python 3.12; MyST reads Markdown, furo needs no network.
        "docs": ["sphinx>=8.2,<10", "myst-parser>=5,<6", "myst-nb>=1.3", "furo>=2025.9.25"],
        "dev": [
            "nbclient>=0.10",  # runs the notebooks
            "ipykernel>=6.29",
            "distributed>=2025.1",
            "dask-jobqueue>=0.9,<0.10",  # jobs that a batch system refuses; the engine overrides a method of its jobs, as it is in 0.9
            "transformers>=5.18,<6",
            "diffusers>=0.38",  # has Safe Stable Diffusion where the test of the guidance looks for it
            "peft>=0.18",
            "gguf>=0.17",
            "onnx>=1.17",  # writes the file that the judge onnx-classifier is tested with
            "onnxruntime>=1.20",
            "onnx2pytorch>=0.6",
            "onnxscript>=0.6.2",  # torch's default exporter to ONNX needs it; 0.6.0 cannot write the versions that the tests ask for
            "pytest>=8.3",
            "pytest-xdist>=3.6",
            "pytest-randomly>=5.1,<6",  # the suite runs in random order; another major may make another order of the same seed
            "pytest-timeout>=2.4,<3",  # a test that hangs fails; its settings in pyproject.toml are those of 2.x
            "hypothesis>=6.112",
            "ruff>=0.12",
            "mypy>=1.16",
            "import-linter>=2.6",
            "types-PyYAML",
            "build>=1.2",
            "setuptools>=77",  # builds the wheel that the tests install, without a new environment for each
            "xmlschema>=3.4",  # validates JUnit files, where ROBUSTKD_SCHEMAS names the schema
            "jsonschema>=4.23",  # validates the schema that `robustkd schema` prints, and the campaigns against it
        ],
    },
    entry_points=ENTRY_POINTS,
)
