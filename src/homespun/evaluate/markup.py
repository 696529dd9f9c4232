"""HTML that is safe by construction: text is escaped unless it was built here."""

import html


class Html(str):
    """Text that is HTML already. Every other string counts as plain text and is escaped when it is put into a page."""


def element(name: str, /, *children: str, **attributes: str | int | float | bool) -> Html:
    """`<name attribute="...">children</name>`.

    Children that are no `Html` are escaped, attribute values always are. `class_` is written as `class`, `data_x` as
    `data-x`; True gives a bare attribute, False none.
    """
    written = "".join(_attribute(key, value) for key, value in attributes.items() if value is not False)
    inside = join(*children)
    return Html(f"<{name}{written}>" if name in _VOID else f"<{name}{written}>{inside}</{name}>")


def join(*children: str) -> Html:
    """Children one after the other, escaped where they are plain text."""
    return Html("".join(child if isinstance(child, Html) else html.escape(child) for child in children))


_VOID = {"input", "meta", "br"}


def _attribute(key: str, value: str | int | float | bool) -> str:
    key = key.rstrip("_").replace("_", "-")
    return f" {key}" if value is True else f' {key}="{html.escape(str(value))}"'
