"""Imports go one way, stay below their layer's dependencies, and are light."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

import cgspn

PACKAGE = Path(cgspn.__file__).parent
# A folder may import itself, those before it and the single files of the package's root.
LAYERS = [
    {"ops"},
    {"operators"},
    {"blocks"},
    {"backbones"},
    {"text", "losses", "teachers", "data"},
    {"modules", "segmentation", "reports"},
    {"cli"},
]
LIGHTNING = {"data", "modules", "segmentation", "cli"}
MMSEG = {"segmentation"}
# Not matplotlib and transformers, which torchmetrics imports where they are installed.
EXTRAS = ["mmseg", "mmcv", "webdataset", "timm", "open_clip", "torchvision"]


def layer_of(part):
    return next((index for index, layer in enumerate(LAYERS) if part in layer), None)


def imports(tree, file):
    """Absolute names of all modules that a file imports, at any depth in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules():
    for file in sorted(PACKAGE.rglob("*.py")):
        relative = file.relative_to(PACKAGE)
        yield pytest.param(relative.parts[0].removesuffix(".py"), file, id=str(relative))


def test_every_folder_has_a_layer():
    folders = {p.name for p in PACKAGE.iterdir() if (p / "__init__.py").exists()}
    assert folders <= set().union(*LAYERS)


@pytest.mark.parametrize(("part", "file"), list(modules()))
def test_imports_of_a_file(part, file):
    names = set(imports(ast.parse(file.read_text()), file))
    own = layer_of(part)
    for name in names:
        top, _, rest = name.partition(".")
        if top == "cgspn":
            target = layer_of(rest.partition(".")[0])
            if own is not None and target is not None:
                assert target <= own, f"{part} must not import {name}"
            if part == "registry":
                assert target is None, f"registry must not import {name}"
        if top in ("lightning", "pytorch_lightning"):
            assert part in LIGHTNING, f"{part} must not import {name}"
            assert name.startswith("lightning.pytorch") or part == "env", (
                f"import lightning.pytorch, not {name}"
            )
        if top in ("mmseg", "mmcv"):
            assert part in MMSEG, f"{part} must not import {name}"
        assert top != "torchvision", f"{part} must not import torchvision"


def run(code):
    """Runs code with a fresh interpreter in which the extras' packages cannot be imported."""
    block = f"import sys\nsys.modules.update(dict.fromkeys({EXTRAS}))\n"
    environment = {"PYTHONPATH": str(PACKAGE.parent), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", block + code], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_package_imports_at_once():
    start = time.perf_counter()
    out = run("import cgspn; print('torch' in sys.modules)")
    assert time.perf_counter() - start < 1.5
    assert out == "False\n"


def test_everything_imports_without_the_extras():
    folders = [
        "ops",
        "operators",
        "blocks",
        "backbones",
        "losses",
        "teachers",
        "data",
        "modules",
        "segmentation",
    ]
    run("".join(f"import cgspn.{name}\n" for name in [*folders, "reports", "cli.trainer"]))


def test_models_import_no_lightning():
    code = "import cgspn.backbones, cgspn.teachers, cgspn.losses\n"
    out = run(code + "print([name for name in ('lightning', 'transformers') if name in sys.modules])")
    assert out == "[]\n"
