"""The start-up hook in programs that never import us: an environment that has the three files an install
puts there."""

import ast
import json
import os
import pkgutil
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from transformers_agci import LAMBDA_KEY

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
STARTUP = ROOT / "transformers_agci" / "startup"
REFERENCE = ["qwen2_5_vl", "llava_next"]

# A user's own program: no import of ours.
PROGRAM = """
import os, sys, torch
from safetensors.torch import load_file, save_file
from {module} import AutoModelForImageTextToText
model = AutoModelForImageTextToText.from_pretrained(sys.argv[1], attn_implementation="eager").eval()
logits = model(**load_file(sys.argv[2])).logits
save_file({{"logits": logits.detach()}}, sys.argv[3] + os.environ.get("RANK", ""))
"""


class Environment:
    """A Python of its own that sees the packages of this one."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, symlinks=True)
        self.python = folder / "bin" / "python"
        [self.site] = folder.glob("lib/python*/site-packages")
        own = (Path(sysconfig.get_path("stdlib")), Path(__file__).parent)  # each Python has its own library
        seen = [path for path in sys.path if Path(path).is_dir() and not _within(Path(path), own)]
        (self.site / "a_base.pth").write_text("\n".join([*seen, str(ROOT)]) + "\n")

    def install(self) -> "Environment":
        for file in STARTUP.iterdir():
            if file.is_file():
                shutil.copy(file, self.site)
        return self

    def run(self, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if name != "TRANSFORMERS_AGCI"}
        return subprocess.run(
            [str(self.python), *map(str, arguments)],
            env=kept | variables,
            check=False,
            capture_output=True,
            text=True,
            cwd=self.site,
        )


def _within(path: Path, folders: tuple[Path, ...]) -> bool:
    return "site-packages" not in path.parts and any(path.is_relative_to(folder) for folder in folders)


@pytest.fixture(scope="module")
def hooked(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp("hooked")).install()


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp("bare"))


@pytest.fixture(scope="module", params=REFERENCE)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """Family, checkpoint with the key at 0.5, and inputs of a recorded output of the published code."""
    import torch
    from test_reference_outputs import case_inputs, reference_model

    family = request.param
    folder = tmp_path_factory.mktemp(family)
    model = reference_model(family)
    setattr(model.config, LAMBDA_KEY, 0.5)
    model.save_pretrained(folder / "checkpoint")
    from safetensors.torch import save_file

    inputs = case_inputs(family, "single", model)
    save_file(
        {name: value.contiguous() for name, value in inputs.items() if isinstance(value, torch.Tensor)},
        folder / "inputs.safetensors",
    )
    return family, folder / "checkpoint", folder / "inputs.safetensors"


def recorded(family: str, lam: str) -> Any:
    return load_file(ROOT / "tests" / "reference" / family / "outputs.safetensors")[f"single/lam{lam}/logits"]


def difference(file: Path, family: str, lam: str) -> float:
    return float((load_file(file)["logits"] - recorded(family, lam)).abs().max())


def program(folder: Path, module: str = "transformers") -> Path:
    file = folder / "program.py"
    file.write_text(PROGRAM.format(module=module))
    return file


def test_plain_program_gives_the_recorded_logits(
    case: tuple[str, Path, Path], hooked: Environment, bare: Environment, tmp_path: Path
) -> None:
    family, checkpoint, inputs = case
    done = hooked.run(program(tmp_path), checkpoint, inputs, tmp_path / "on")
    assert "AGCI is on: lambda 0.5" in done.stderr
    assert difference(tmp_path / "on", family, "0.5") < 1e-5
    for name, environment, switch in (("bare", bare, {}), ("off", hooked, {"TRANSFORMERS_AGCI": "0"})):
        done = environment.run(program(tmp_path), checkpoint, inputs, tmp_path / name, **switch)
        assert "AGCI" not in done.stderr
        assert difference(tmp_path / name, family, "0") < 1e-5
        assert difference(tmp_path / name, family, "0.5") > 0.01
    drop_in = program(tmp_path, "transformers_agci")
    bare.run(drop_in, checkpoint, inputs, tmp_path / "drop_in")
    assert difference(tmp_path / "drop_in", family, "0.5") < 1e-5


def test_torchrun_children_give_the_recorded_logits(
    case: tuple[str, Path, Path], hooked: Environment, tmp_path: Path
) -> None:
    family, checkpoint, inputs = case
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", 2, "--master_port", 29517 + REFERENCE.index(family)]
    done = hooked.run(*launch, program(tmp_path), checkpoint, inputs, tmp_path / "child")
    assert done.returncode == 0, done.stderr
    for rank in "01":
        assert difference(tmp_path / f"child{rank}", family, "0.5") < 1e-5


def test_bad_value_stops_the_program_and_names_the_file(
    case: tuple[str, Path, Path], hooked: Environment, tmp_path: Path
) -> None:
    _, checkpoint, inputs = case
    bad = tmp_path / "bad"
    shutil.copytree(checkpoint, bad)
    config = json.loads((bad / "config.json").read_text())
    (bad / "config.json").write_text(json.dumps(config | {LAMBDA_KEY: "0.5"}))
    done = hooked.run(program(tmp_path), bad, inputs, tmp_path / "never")
    assert done.returncode == 1
    assert (
        done.stderr.rstrip()
        .splitlines()[-1]
        .endswith(
            "lambda must be a finite number >= 0 (0 is the unmodified model), "
            f"but {LAMBDA_KEY} in config.json of {bad} is '0.5'."
        )
    )


def test_start_up_loads_one_module_more(hooked: Environment, bare: Environment) -> None:
    """What it costs where transformers is not used: `python -X importtime -c pass` shows it in microseconds."""
    show = ("-c", "import sys; print(*sorted(sys.modules))")
    with_hook, without = (set(environment.run(*show).stdout.split()) for environment in (hooked, bare))
    assert with_hook - without == {"transformers_agci_startup"}
    off = set(hooked.run("-c", "import sys; print(len(sys.meta_path))", TRANSFORMERS_AGCI="0").stdout.split())
    assert off == set(bare.run("-c", "import sys; print(len(sys.meta_path))").stdout.split())


PRINT_ACTIVE = f"print(hasattr(m.PreTrainedModel, '{LAMBDA_KEY}'), m.PreTrainedModel.post_init.__module__)"


@pytest.mark.parametrize(
    "before",
    [
        "pass",
        "importlib.util.find_spec('transformers.modeling_utils')",
        "[importlib.util.find_spec('transformers.modeling_utils') for _ in range(3)]; import transformers.utils",
        # the first import fails in the middle, a second one does not
        "sys.modules['transformers.initialization'] = None\n"
        "try: import transformers.modeling_utils\nexcept ImportError: del sys.modules['transformers.initialization']",
    ],
)
def test_finder_is_not_used_up(hooked: Environment, before: str) -> None:
    code = f"import sys, importlib.util, transformers\n{before}\nimport transformers.modeling_utils as m\n"
    code += f"{PRINT_ACTIVE}\nfrom transformers_agci.method import autoload; print(autoload.active())"
    done = hooked.run("-c", code)
    assert done.stdout.split() == ["True", "transformers.modeling_utils", "True"], done.stderr
    assert done.stderr == ""


def test_reloaded_module_is_activated_again(hooked: Environment) -> None:
    code = "import importlib, transformers.modeling_utils as m; from transformers_agci.method import autoload\n"
    code += "importlib.reload(m); print(autoload.active(), '_agci_active' in vars(m.PreTrainedModel))"
    done = hooked.run("-c", code)
    assert done.stdout.split() == ["True", "True"], done.stderr


CONFIG_FIRST = """
import copy
from transformers import {name}
config = {name}(text_config=dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=2, vocab_size=40), vision_config=dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1,
    num_attention_heads=2, image_size=28, patch_size=14))
from transformers import AutoModelForImageTextToText
model = AutoModelForImageTextToText.from_config(config)
part = copy.deepcopy(model.config.text_config)
part.{key} = 0.5
print(model.{key})
model.config.text_config = part
print(model.{key})
"""


@pytest.mark.parametrize("name", ["LlavaConfig", "Gemma3Config"])
def test_config_class_that_was_imported_before_the_models(hooked: Environment, name: str) -> None:
    """transformers 5 has each config class keep the `__setattr__` that its base class had by then."""
    done = hooked.run("-c", CONFIG_FIRST.format(name=name, key=LAMBDA_KEY))
    assert done.stdout.split() == ["0.0", "0.5"], done.stderr


def test_wrapped_once_by_hook_and_drop_in(hooked: Environment) -> None:
    code = "import transformers_agci as t; print(hasattr(t.PreTrainedModel.post_init.__wrapped__, '__wrapped__'))"
    done = hooked.run("-c", code)
    assert done.stdout == "False\n", done.stderr


def test_start_file_names_what_the_pth_calls() -> None:
    """Python 3.15 reads the .start file and then ignores the .pth file's import line."""
    [entry] = (STARTUP / "transformers_agci.start").read_text().split()
    module, _, function = entry.partition(":")
    line = (STARTUP / "transformers_agci.pth").read_text()
    assert line.startswith("import ")
    assert line.count("\n") == 1
    assert f'__import__("{module}").{function}()' in line
    sys.path.insert(0, str(STARTUP))
    try:
        assert callable(pkgutil.resolve_name(entry))
    finally:
        sys.path.remove(str(STARTUP))
        del sys.modules[module]


def test_hook_imports_the_standard_library_only() -> None:
    tree = ast.parse((STARTUP / "transformers_agci_startup.py").read_text())
    at_start = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in at_start if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in at_start if isinstance(node, ast.ImportFrom)}
    assert names == {"os", "sys"}
    later = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom) and node not in at_start]
    assert {getattr(node, "module", None) for node in later} == {"types", "typing", "transformers_agci.method"}


USE = "import transformers.modeling_utils; print('running')"


@pytest.mark.parametrize(
    ("damage", "lines"),
    [
        ("module missing", 0),
        ("package missing", 1),
        ("package broken", 1),
        ("hook broken", None),  # Python's own report of a .pth line that fails
    ],
)
def test_a_damaged_install_never_stops_python(damage: str, lines: int | None, tmp_path: Path) -> None:
    environment = Environment(tmp_path / "env").install()
    hook = environment.site / "transformers_agci_startup.py"
    package = environment.site / "transformers_agci"
    if damage == "module missing":
        hook.unlink()
    elif damage == "hook broken":
        hook.write_text("raise RuntimeError('broken')")
    else:
        package.mkdir()  # stands before the real one on sys.path
        broken = "raise RuntimeError('torn')" if damage == "package broken" else "raise ModuleNotFoundError('torn')"
        (package / "__init__.py").write_text(broken)
    done = environment.run("-c", USE)
    assert done.stdout == "running\n"
    assert done.returncode == 0
    if lines is not None:
        assert len(done.stderr.splitlines()) == lines, done.stderr
        assert all(line.startswith("transformers_agci:") for line in done.stderr.splitlines())


@pytest.mark.parametrize("editable", [[], ["-e"]])
def test_pip_installs_and_removes_the_hook(editable: list[str], tmp_path: Path) -> None:
    environment = Environment(tmp_path / "env")
    pip = [sys.executable, "-m", "pip", "--python", str(environment.python), "-q"]
    install = [*pip, "install", "--no-deps", *editable, str(ROOT)]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if "No matching distribution found for hatchling" in done.stderr:
        pytest.skip("pip cannot fetch the build backend here")
    assert done.returncode == 0, done.stderr
    hook = sorted(file.name for file in STARTUP.iterdir() if file.is_file())
    assert hook == sorted(file.name for file in environment.site.glob("transformers_agci*") if file.is_file())
    done = environment.run("-c", "import sys; print(type(sys.meta_path[0]).__module__)", PYTHONPATH="")
    assert done.stdout.strip() == "transformers_agci_startup"
    subprocess.run([*pip, "uninstall", "-y", "transformers-agci"], check=True)
    left = [path for found in environment.site.glob("*transformers_agci*") for path in (found, *found.rglob("*"))]
    assert not [path for path in left if path.is_file()]  # pip may leave an empty folder
