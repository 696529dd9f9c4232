"""The program that fills a chat template, in a process of its own: `sandbox.py` starts it; nothing imports it.

It reads lines of JSON: first the template and its limits, then the values to fill it with, again and again. Each of
these it answers with a line: the text, or what is wrong. When one takes too long the process ends.
"""

from __future__ import annotations

import datetime
import faulthandler
import json
import sys
from collections.abc import Iterator
from typing import Any


def fill(settings: dict[str, Any], requests: Iterator[str]) -> Iterator[dict[str, str]]:
    """One answer for each request: `text`, or `refused` by the template itself, or `failed`."""
    from jinja2 import TemplateError

    environment, template = _environment(), None
    _limit(settings["memory"])
    for request in requests:
        faulthandler.dump_traceback_later(settings["seconds"], exit=True)  # a thread that needs nothing of Python's
        try:
            template = template or environment.from_string(settings["template"])
            text = ""
            for piece in template.generate(json.loads(request)):
                text += piece
                if len(text) > settings["characters"]:
                    raise MemoryError(f"it writes more than {settings['characters']:,} characters")
            answer = {"text": text}
        except TemplateError as error:
            refused = type(error) is TemplateError  # by raise_exception; Jinja itself raises kinds of it
            answer = {"refused" if refused else "failed": str(error)}
        except Exception as error:  # whatever a template does wrong is its own fault, and is told
            answer = {"failed": f"{type(error).__name__} {error}"}
        faulthandler.cancel_dump_traceback_later()
        yield answer


def _environment() -> Any:
    """Jinja as transformers sets it up for chat templates."""
    from jinja2 import TemplateError
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks what is trained on; here it changes nothing."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def strftime_now(form: str) -> str:
        return datetime.datetime.now().strftime(form)

    def tojson(value: Any, **options: Any) -> str:
        return json.dumps(value, **({"ensure_ascii": False} | options))

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    environment.filters["tojson"] = tojson
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
    return environment


def _limit(memory: int) -> None:
    """No more memory than this, and no files are written, where the system has such limits."""
    try:
        import resource
    except ImportError:  # Windows: the time is limited all the same
        return
    for kind, most in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        try:
            resource.setrlimit(kind, (most, most))
        except ValueError:  # macOS refuses some
            continue


if __name__ == "__main__":
    sys.path[:] = json.loads(sys.argv[1])
    for told in fill(json.loads(sys.stdin.readline()), iter(sys.stdin.readline, "")):
        sys.stdout.buffer.write(f"{json.dumps(told)}\n".encode())
        sys.stdout.buffer.flush()
