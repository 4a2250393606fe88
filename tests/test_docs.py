"""docs/: every page is in the site, quotes what the program says, and names commands and files that exist."""

import fnmatch
import re
import shlex
from pathlib import Path

import pytest
import yaml

from transformers_agci import cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))


def site() -> dict:
    return yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def pages_of(nav: list) -> list[str]:
    """The files of the navigation, those of its sections included."""
    found: list[str] = []
    for entry in nav:
        for held in entry.values():
            found += pages_of(held) if isinstance(held, list) else [held]
    return found


def test_every_page_is_in_the_navigation_and_the_other_way_round() -> None:
    named = set(pages_of(site()["nav"]))
    root_pages = {name for name in named if not (ROOT / "docs" / name).is_file()}
    assert named - root_pages == {page.name for page in PAGES}
    assert all((ROOT / name).is_file() for name in root_pages)
    assert site()["strict"] is True and site()["theme"]["font"] is False


def test_what_is_refused_is_quoted_as_the_program_says_it() -> None:
    said = " ".join(
        re.sub(r'"\s*f?"', "", path.read_text(encoding="utf-8").replace("\n", " ").replace('" "', ""))
        for path in (ROOT / "transformers_agci").rglob("*.py")
    )
    said = re.sub(r"\s+", " ", said)
    page = (ROOT / "docs" / "refused.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^\| `([^`]+)`", page, flags=re.MULTILINE)
    assert len(quoted) >= 6
    missing = [words for words in quoted if words not in said]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_can_be_typed(page: Path) -> None:
    blocks = "".join(re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL))
    for line in blocks.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["agci"]:
            command = cli.find_command(words[1:])
            assert command is not None, line
            cli.command_parser(command).parse_args(words[1:])


def test_the_reference_holds_every_public_name() -> None:
    import transformers_agci

    listed = re.findall(r"^::: (\S+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert {name.rpartition(".")[2] for name in listed} == set(transformers_agci.__all__)
    for name in listed:
        module, _, last = name.rpartition(".")
        assert transformers_agci._PUBLIC[last] == module


def test_every_file_of_tests_has_its_place_in_their_page() -> None:
    patterns = set(re.findall(r"`(test_[a-z_*]+)`", (ROOT / "tests" / "README.md").read_text(encoding="utf-8")))
    files = {file.stem for file in (ROOT / "tests").glob("test_*.py")}
    assert {name for name in files if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns)} == set()
    assert {pattern for pattern in patterns if not fnmatch.filter(files, pattern)} == set()
