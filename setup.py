"""Packaging. The entry points below are the catalogue of built-in plug-ins: the same door that any package may use."""

from pathlib import Path

from setuptools import find_packages, setup

FOLDERS = ("attacks", "defenses", "campaigns")

# The four top-level folders are one distribution. Mapping them here keeps a wheel free of top-level packages with names
# as common as "attacks"; the links robustkd/attacks -> ../attacks and so on let tools that read the tree see one package.
package_dir = {"robustkd": "robustkd"} | {f"robustkd.{folder}": folder for folder in FOLDERS}
packages = find_packages(include=["robustkd", "robustkd.*"], exclude=[f"robustkd.{folder}*" for folder in FOLDERS])
for folder in FOLDERS:
    packages += [f"robustkd.{folder}"] + [f"robustkd.{folder}.{name}" for name in find_packages(folder)]

setup(
    name="robustkd",
    version="0.1.0",
    description="Does this defense hold? Robustness and adversarial-distillation evaluation from one declarative file",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    package_dir=package_dir,
    packages=packages,
    package_data={"robustkd.campaigns": ["presets/*.yaml"], "robustkd.report": ["*.j2"], "robustkd": ["py.typed"]},
    install_requires=[
        "torch>=2.8",  # first with Python 3.13 wheels for every platform and torch.load safe by default
        "numpy>=1.26",
        "safetensors>=0.5",
        "pydantic>=2.10,<3",
        "pyyaml>=6.0.1",
        "click>=8.1.8",
        "rich>=13.9",
        "mlflow>=3.1,<4",  # 3.x: logged models and run links; it brings pandas, pyarrow, scikit-learn, matplotlib
        "pyarrow>=17",
        "scikit-learn>=1.5",
        "matplotlib>=3.9",
        "jinja2>=3.1.4",
        "pillow>=10.4",
        "foolbox>=3.3.4,<4",
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
            "tqdm>=4.56",
            # Not setuptools<81 for the pkg_resources that its loaders import: see robustkd/robustbench_bridge.py.
        ],
        "dev": [
            "pytest>=8.3",
            "pytest-xdist>=3.6",
            "hypothesis>=6.112",
            "ruff>=0.12",
            "mypy>=1.16",
            "import-linter>=2.3",
            "types-PyYAML",
            "build>=1.2",
        ],
    },
    entry_points={
        "console_scripts": ["robustkd = robustkd.cli:main"],
        "robustkd.attacks": [
            "fgsm = robustkd.attacks.image.fgsm:FGSM",
            "bim = robustkd.attacks.image.bim:BIM",
            "pgd = robustkd.attacks.image.pgd:PGD",
            "mi-fgsm = robustkd.attacks.image.momentum:MIFGSM",
            "ni-fgsm = robustkd.attacks.image.ni_fgsm:NIFGSM",
            "di2-fgsm = robustkd.attacks.image.di2_fgsm:DI2FGSM",
            "ti-fgsm = robustkd.attacks.image.ti_fgsm:TIFGSM",
            "si-fgsm = robustkd.attacks.image.si_fgsm:SIFGSM",
            "vmi-fgsm = robustkd.attacks.image.vmi_fgsm:VMIFGSM",
            "apgd-ce = robustkd.attacks.image.apgd:APGDCE",
            "apgd-dlr = robustkd.attacks.image.apgd:APGDDLR",
            "apgd-t = robustkd.attacks.image.apgd:APGDT",
            "square = robustkd.attacks.image.square:Square",
            "nes = robustkd.attacks.image.nes:NES",
            "spsa = robustkd.attacks.image.spsa:SPSA",
            "autoattack = robustkd.attacks.image.autoattack:AutoAttack",
            "eot = robustkd.attacks.image.eot:EOT",
            "bpda = robustkd.attacks.image.bpda:BPDA",
            "transfer = robustkd.attacks.image.transfer:Transfer",
            "cw-l2 = robustkd.attacks.image.cw_l2:CWL2",
            "ddn = robustkd.attacks.image.ddn:DDN",
            "fmn = robustkd.attacks.image.fmn:FMN",
            "fab = robustkd.attacks.image.fab:FAB",
            "fab-t = robustkd.attacks.image.fab:FABT",
            "deepfool = robustkd.attacks.image.deepfool:DeepFool",
            "ead = robustkd.attacks.image.ead:EAD",
            "torchattacks = robustkd.attacks.adapters.torchattacks:FAMILY",
            "foolbox = robustkd.attacks.adapters.foolbox:FAMILY",
        ],
        "robustkd.defenses": [
            "standard = robustkd.defenses.image.standard:Standard",
            "pgd-at = robustkd.defenses.image.pgd_at:PGDAT",
            "trades = robustkd.defenses.image.trades:TRADES",
            "mart = robustkd.defenses.image.mart:MART",
            "fast = robustkd.defenses.image.fast:Fast",
            "free = robustkd.defenses.image.free:Free",
            "kd = robustkd.defenses.image.kd:KD",
            "ard = robustkd.defenses.image.ard:ARD",
            "rslad = robustkd.defenses.image.rslad:RSLAD",
            "iad = robustkd.defenses.image.iad:IAD",
            "adaad = robustkd.defenses.image.adaad:AdaAD",
            "defensive-distillation = robustkd.defenses.image.defensive_distillation:DefensiveDistillation",
            "mtard = robustkd.defenses.image.mtard:MTARD",
            "ciard = robustkd.defenses.image.ciard:CIARD",
            "ensemble = robustkd.defenses.image.ensemble:Ensemble",
            "input-transform = robustkd.defenses.image.transform:InputTransform",
            "external = robustkd.defenses.image.external:External",
            "robustbench = robustkd.defenses.image.robustbench:RobustBench",
        ],
        "robustkd.datasets": [
            "digits = robustkd.data.digits:Digits",
            "mnist = robustkd.data.idx:MNIST",
            "fashion-mnist = robustkd.data.idx:FashionMNIST",
            "cifar10 = robustkd.data.cifar:CIFAR10",
            "cifar100 = robustkd.data.cifar:CIFAR100",
            "image-folder = robustkd.data.image_folder:ImageFolder",
            "npz = robustkd.data.npz:NPZ",
        ],
        "robustkd.models": [
            "small-cnn = robustkd.models.small:SmallCNN",
            "tiny-cnn = robustkd.models.small:TinyCNN",
            "lenet5 = robustkd.models.small:LeNet5",
            "resnet20 = robustkd.models.resnet_cifar:ResNet20",
            "resnet32 = robustkd.models.resnet_cifar:ResNet32",
            "resnet44 = robustkd.models.resnet_cifar:ResNet44",
            "resnet56 = robustkd.models.resnet_cifar:ResNet56",
            "resnet18 = robustkd.models.resnet:ResNet18",
            "preact-resnet18 = robustkd.models.resnet:PreActResNet18",
            "wrn = robustkd.models.wide_resnet:WideResNet",
            "mobilenet-v2 = robustkd.models.mobilenet:MobileNetV2",
        ],
        "robustkd.transforms": [
            "bit-depth = robustkd.transforms.bit_depth:BitDepth",
            "jpeg = robustkd.transforms.jpeg:JPEG",
            "gaussian-noise = robustkd.transforms.noise:GaussianNoise",
            "resize-pad = robustkd.transforms.resize_pad:ResizePad",
        ],
        "robustkd.targets": [
            "classifier = robustkd.targets.classifier:ClassifierTarget",
            "ensemble = robustkd.targets.ensemble:EnsembleTarget",
            "pipeline = robustkd.targets.pipeline:PipelineTarget",
        ],
        "robustkd.checks": [
            "threat-model-audit = robustkd.checks.audit:ThreatModelAudit",
            "output-type = robustkd.checks.output:OutputType",
            "randomised-output = robustkd.checks.output:RandomisedOutput",
            "zero-gradient = robustkd.checks.gradient:ZeroGradient",
            "logit-scale-invariance = robustkd.checks.saturation:LogitScaleInvariance",
            "loss-disagreement = robustkd.checks.saturation:LossDisagreement",
            "one-step-beats-iterative = robustkd.checks.consistency:OneStepBeatsIterative",
            "black-box-beats-white-box = robustkd.checks.consistency:BlackBoxBeatsWhiteBox",
            "broken-graph = robustkd.checks.gradient:BrokenGraph",
            "dynamic-inference = robustkd.checks.dynamic:DynamicInference",
            "too-few-classes = robustkd.checks.output:TooFewClasses",
            "unstable-loss = robustkd.checks.landscape:UnstableLoss",
            "silent-success = robustkd.checks.trajectory:SilentSuccess",
            "incomplete-optimisation = robustkd.checks.trajectory:IncompleteOptimisation",
            "not-monotone-in-eps = robustkd.checks.budget:NotMonotone",
            "transfer-beats-white-box = robustkd.checks.transfer:TransferBeatsWhiteBox",
            "noise-beats-attack = robustkd.checks.noise:NoiseBeatsAttack",
            "unbounded-attack = robustkd.checks.budget:UnboundedAttack",
            "budget-sensitivity = robustkd.checks.budget:BudgetSensitivity",
            "binarization-test = robustkd.checks.binarization:BinarizationTest",
        ],
        "robustkd.engines": [
            "inline = robustkd.campaigns.engines.inline:InlineEngine",
            "local = robustkd.campaigns.engines.local:LocalEngine",
        ],
    },
)
