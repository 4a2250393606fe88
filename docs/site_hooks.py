"""What the site needs beyond docs/: the pages at the repository's root, and links that reach into the repository.

A link to a page of the site stays a link wherever the page lies; one to any other file of the repository becomes its
path as text, since the site does not hold it. A link to a file that does not exist fails the build.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
ROOT_PAGES = ("RESULTS.md", "REPRODUCE.md", "CHANGELOG.md")
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
ELSEWHERE = re.compile(r"[a-z]+:|#")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the repository's root, as if they lay in docs/."""
    for name in ROOT_PAGES:
        files.append(File(name, str(ROOT), str(config.site_dir), use_directory_urls=False))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point every link at where its target lies in the site."""
    folder = "" if page.file.src_uri in ROOT_PAGES else "docs"  # where the page's links start, in the repository

    def turned(link: re.Match[str]) -> str:
        mark, text, target = link.groups()
        if ELSEWHERE.match(target):
            return link[0]
        path, hash_mark, anchor = target.partition("#")
        in_repository = posixpath.normpath(posixpath.join(folder, path))
        if not (ROOT / in_repository).exists():
            raise PluginError(f"{page.file.src_uri}: the link to {target} leads to no file of the repository.")
        in_site = in_repository.removeprefix("docs/") if in_repository not in ROOT_PAGES else in_repository
        if in_repository in ROOT_PAGES or (in_repository.startswith("docs/") and files.get_file_from_path(in_site)):
            return f"{mark}[{text}]({in_site}{hash_mark}{anchor})"
        return text if text.strip("`") == in_repository else f"{text} (`{in_repository}`)"

    return LINK.sub(turned, markdown)
