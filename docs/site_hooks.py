"""Lets one set of pages work both on GitHub and as a site.

README, CONTRIBUTING and CHANGELOG stay where GitHub wants them and become pages of the site. Their links to docs/
become links between pages. A link from any page to a file that is not a page (an example, a script, the licence)
becomes one to the repository, and fails the build if the file does not exist.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Files of the repository's root -> the pages that they become."""
LINK = re.compile(r'(\]\(|(?:src|srcset)=")(?!https?://|mailto:|#|/)([^)"#\s]+)')
"""The start of a relative link or picture in Markdown, or of a picture in HTML, and its target without an anchor."""


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that are made of the root's files."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, **_: Any) -> str:
    """Point every relative link to where its target is on the site, or in the repository."""
    here = page.file.src_uri
    from_root = next((source for source, made in PAGES.items() if made == here), f"docs/{here}")

    def point(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(from_root), match[2]))
        return match[1] + destination(target, here, from_root, str(config.repo_url))

    return LINK.sub(point, markdown)


def destination(target: str, here: str, from_root: str, repository: str) -> str:
    """Where a link leads on the site.

    Args:
        target: The file that is meant, relative to the repository's root.
        here: The page with the link, relative to the site's root.
        from_root: The file that the page is made of, relative to the repository's root.
        repository: Address of the repository.

    Raises:
        PluginError: There is no such file.
    """
    if not (ROOT / target).exists():
        raise PluginError(f"{from_root}: a link leads to {target}, which does not exist")
    if target in PAGES:
        return posixpath.relpath(PAGES[target], posixpath.dirname(here) or ".")
    if target.startswith("docs/"):
        return posixpath.relpath(target.removeprefix("docs/"), posixpath.dirname(here) or ".")
    return f"{repository}/blob/main/{target}"
