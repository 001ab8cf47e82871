"""Headings of examples: docstrings have those of reStructuredText, with a double colon."""

from __future__ import annotations

from typing import Any


def on_page_content(html: str, **_: Any) -> str:
    """Give examples the same heading as parameters and errors."""
    return html.replace("<p>Example::</p>", "<p><strong>Example:</strong></p>").replace("::</p>", ":</p>")
