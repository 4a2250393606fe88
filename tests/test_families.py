"""Everything that differs between families is declared in families/: every capability, for every family."""

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest

from transformers_agci import SUPPORTED_FAMILIES, InputError
from transformers_agci.cli import main
from transformers_agci.families import REFUSED_FAMILIES, Family, Lacks, paper_families, require
from transformers_agci.families.declaration import CAPABILITIES, TRAINING_CAPABILITIES, Works
from transformers_agci.families.llava import anyres_layout, anyres_tokens, twin_of_original
from transformers_agci.families.training_support import TrainingSupport

PACKAGE = Path(__file__).resolve().parents[1] / "transformers_agci"
ROOT = PACKAGE.parent
MAY_NAME_FAMILIES = ("families", "embedded", "conversion")
MAY_NAME_MODEL_TYPES = (
    *(f"transformers_agci/{folder}/" for folder in MAY_NAME_FAMILIES),
    *("scripts/", "configs/", "tests/", "docs/"),
    "transformers_agci/api/",  # its examples are about the embedded model; what it decides is held to the next test
)

families = pytest.mark.parametrize("family", SUPPORTED_FAMILIES.values(), ids=list(SUPPORTED_FAMILIES))


def declared(family: Family) -> dict[str, object]:
    """Capability -> what the family declares; those of fine-tuning only where it can be fine-tuned."""
    found = {name: getattr(family, name) for name in CAPABILITIES}
    if not isinstance(family.training, Lacks):
        found |= {name: getattr(family.training, name) for name in TRAINING_CAPABILITIES}
    return found


@families
def test_every_capability_is_there_or_lacks_with_a_reason(family: Family) -> None:
    for name, value in declared(family).items():
        assert value is not None, f"{family.model_type} says nothing about {name}: declare it, or Lacks(reason)"
        if not isinstance(value, Lacks):
            assert require(family, name, value) is value
            continue
        assert re.fullmatch(r"\S.{10,}[^.\s]", value.reason), f"{family.model_type}.{name}: {value.reason!r}"
        with pytest.raises(InputError) as error:
            require(family, name, value)
        assert family.name in str(error.value)
        assert value.reason in str(error.value)
    assert callable(family.images.lengths)
    assert family.refusal is not None


def test_the_capabilities_are_the_fields_that_may_lack() -> None:
    """A field that may be Lacks has words for its message, so that asking for it can never be a KeyError."""
    names = {"ImageInfo": object, "TokenGrid": object, "TrainingSupport": TrainingSupport}
    for cls, capabilities in ((Family, CAPABILITIES), (TrainingSupport, TRAINING_CAPABILITIES)):
        hints = get_type_hints(cls, localns=names)
        may_lack = {name for name, hint in hints.items() if Lacks in getattr(hint, "__args__", ())}
        assert may_lack == set(capabilities)


@families
def test_what_works_is_of_its_kind(family: Family) -> None:
    found = declared(family)
    kinds = {"probe": Works, "layout": object, "flow": Works, "training": TrainingSupport, "conversion": tuple}
    for name, kind in kinds.items():
        assert isinstance(found[name], kind | Lacks)
    if isinstance(family.training, TrainingSupport):
        assert family.training.templates
        assert all(template.image_token and "{tokens}" in template.image for template in family.training.templates)


def test_the_paper_s_models_lack_nothing_that_the_paper_does() -> None:
    assert len(paper_families()) == 6
    for family in paper_families().values():
        assert not any(isinstance(getattr(family, name), Lacks) for name in ("probe", "layout", "flow", "training"))


def test_no_model_type_outside_the_families() -> None:
    """As `grep` sees it, comments and docstrings included, in whatever git tracks but prose."""
    names = "|".join(SUPPORTED_FAMILIES)
    # not a part of a longer word or path, such as llava-hf or convert-llava
    word = re.compile(rf"(?<![\w./-])(?:{names})(?![\w/-]|\.\w)")
    found = [
        f"{path}:{number}: {line.strip()}"
        for path in tracked_files()
        if not path.startswith(MAY_NAME_MODEL_TYPES) and not path.endswith(".md")
        for number, line in enumerate((ROOT / path).read_text(errors="replace").splitlines(), 1)
        if word.search(line)
    ]
    assert not found, "families/ is the place for what one family needs:\n" + "\n".join(found)


def tracked_files() -> list[str]:
    """Paths below the root; those of the package where this is no git checkout."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    files = listed.split("\0") if listed else [str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*.py")]
    return sorted(path for path in files if (ROOT / path).is_file())


def test_nothing_else_reads_the_model_type_to_decide() -> None:
    """No comparison with a model_type outside the families, whatever it is compared with."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.relative_to(PACKAGE).parts[0] in MAY_NAME_FAMILIES:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare) and any(
                isinstance(side, ast.Constant) and side.value in SUPPORTED_FAMILIES
                for side in (node.left, *node.comparators)
            ):
                found.append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
    assert not found


def test_the_table_is_the_readme_s(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["families"]) == 0
    printed = capsys.readouterr().out
    table = printed[: printed.index("\n\n")]
    assert len(table.splitlines()) == 2 + len(SUPPORTED_FAMILIES)
    page = PACKAGE.parent / "docs" / "families.md"
    assert table in page.read_text(), "write what `agci families` prints into docs/families.md"
    assert all(family.reason in printed for family in REFUSED_FAMILIES.values())


def test_the_table_says_why_a_family_lacks_what(capsys: pytest.CaptureFixture[str]) -> None:
    """Every reason that a family declares for a column of the table, and for methods that move positions."""
    assert main(["families"]) == 0
    printed = capsys.readouterr().out
    for family in SUPPORTED_FAMILIES.values():
        for capability in ("probe", "layout", "flow", "training", "conversion", "positions"):
            found = getattr(family, capability)
            if isinstance(found, Lacks):
                assert f": {found.reason}." in printed, (family.model_type, capability)
            if capability == "positions" and isinstance(found, Lacks):
                assert re.search(rf"No methods that move.*`{family.model_type}`.*: {re.escape(found.reason)}", printed)


def test_every_family_of_transformers_is_served_or_refused_by_name() -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as MAPPING

    missing = set(MAPPING) - set(SUPPORTED_FAMILIES) - set(REFUSED_FAMILIES) - {"pixtral"}  # LLaVA's tower in 4.57
    assert not missing, f"declare {missing} in families/, or refuse them there with a reason"
    assert not set(SUPPORTED_FAMILIES) & set(REFUSED_FAMILIES)


def test_declarations_load_no_torch() -> None:
    code = (
        "import sys, transformers_agci; table = transformers_agci.SUPPORTED_FAMILIES; "
        "from transformers_agci.cli import main; main(['families']); "
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "| Qwen2.5-VL | `qwen2_5_vl` |" in done.stdout


def test_no_family_imports_model_code() -> None:
    for path in sorted((PACKAGE / "families").glob("*.py")):
        imported = [
            node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        names = {alias.name for node in imported for alias in node.names} | {
            node.module or "" for node in imported if isinstance(node, ast.ImportFrom)
        }
        assert not [name for name in names if name.partition(".")[0] == "transformers"], path.name


class _NextConfig:
    image_grid_pinpoints = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))

    class vision_config:
        image_size, patch_size = 336, 14


@pytest.mark.parametrize(
    ("height", "width", "grid", "tokens"),
    [(840, 840, (48, 48), 2928), (400, 800, (24, 48), 1752), (500, 800, (30, 48), 2046)],
)
def test_the_worked_examples_of_llava_next(height: int, width: int, grid: tuple[int, int], tokens: int) -> None:
    layout = anyres_layout(_NextConfig, height, width)
    assert (layout.side, layout.rows, layout.columns) == (24, *grid)
    assert anyres_tokens(_NextConfig, height, width) == tokens


@pytest.mark.parametrize(
    ("config", "family"),
    [
        ({"model_type": "llava_llama"}, "llava"),
        ({"model_type": "llava_mistral"}, "llava_next"),
        ({"model_type": "llava_llama", "image_aspect_ratio": "anyres"}, "llava_next"),
        ({"model_type": "llava", "mm_vision_tower": "clip"}, "llava"),
    ],
)
def test_the_twin_of_an_original_checkpoint(config: dict[str, str], family: str) -> None:
    assert twin_of_original(config).model_type == family
