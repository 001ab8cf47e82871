"""Links from a page of docs/ to a file outside of it: relative on GitHub, to the repository in the site."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

LINK = re.compile(r"\]\((\.\.?/[^)#\s]+)")


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, **_: Any) -> str:
    """Replace each relative link that leaves docs/ by the address of the file in the repository."""
    docs = Path(config.docs_dir).resolve()
    directory = Path(str(page.file.abs_src_path)).resolve().parent

    def address(match: re.Match[str]) -> str:
        target = directory.joinpath(match[1]).resolve()
        if target.is_relative_to(docs):
            return match[0]
        view = "tree" if target.is_dir() else "blob"
        return f"]({config.repo_url}/{view}/main/{target.relative_to(docs.parent).as_posix()}"

    return LINK.sub(address, markdown)
