"""HTML pages about results: each template lies beside the code that fills it, all begin with page_head.html."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render_page(template: str, **values: Any) -> bytes:
    """template: its path below this package. values: what it names, `title` among them; text in them is escaped."""
    environment = Environment(
        loader=PackageLoader("sdscratch", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template(template).render(**values).encode()
