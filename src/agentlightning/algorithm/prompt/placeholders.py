"""Placeholders of prompt templates: which there are, and whether a new text has the same. Knows no prompts' meaning.

A template that lost a placeholder would run without its input; one that invented a placeholder would fail in every
rollout. Neither may run: it is repaired where that is safe, else dropped.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

from agentlightning.kit.errors import BadInputError

_ROOT = re.compile(r"[.\[]")


def placeholders(template: str, engine: str = "f-string") -> tuple[str, ...]:
    """Names of the placeholders, in order of appearance, each once.

    Raises:
        BadInputError: The template is malformed, or its engine is not supported.
    """
    if engine == "f-string":
        return _of_format_string(template)
    if engine == "jinja":
        return _of_jinja(template)
    raise BadInputError(
        f"Templates of the engine {engine!r} cannot be optimised.", hint="Use engine='f-string' or engine='jinja'."
    )


def _of_format_string(template: str) -> tuple[str, ...]:
    names: dict[str, None] = {}
    try:
        for _, field, spec, _ in string.Formatter().parse(template):
            if field is None:
                continue
            name = _ROOT.split(field, maxsplit=1)[0]
            if not name.isidentifier():
                raise BadInputError(f"The placeholder {{{field}}} has no name.", hint="Write braces twice: {{ }}.")
            names[name] = None
            names.update(dict.fromkeys(_of_format_string(spec) if spec else ()))
    except ValueError as error:
        if isinstance(error, BadInputError):
            raise
        raise BadInputError(f"The template is malformed: {error}.", hint="Write braces twice: {{ }}.") from error
    return tuple(names)


def _of_jinja(template: str) -> tuple[str, ...]:
    from jinja2 import Environment, TemplateSyntaxError, meta

    try:
        parsed = Environment(autoescape=False).parse(template)
    except TemplateSyntaxError as error:
        raise BadInputError(f"The template is malformed: {error.message} (line {error.lineno}).") from error
    return tuple(sorted(meta.find_undeclared_variables(parsed), key=template.find))


def fault_of(template: str, engine: str, expected: Sequence[str]) -> str | None:
    """What is wrong with the placeholders of a new text, or `None`."""
    try:
        found = set(placeholders(template, engine))
    except BadInputError as error:
        return error.message
    lost, invented = sorted(set(expected) - found), sorted(found - set(expected))
    faults = [f"lost {_named(lost)}"] * bool(lost) + [f"invented {_named(invented)}"] * bool(invented)
    return ", ".join(faults) or None


def _named(names: Sequence[str]) -> str:
    return ", ".join(f"{{{name}}}" for name in names)


def repaired(template: str, engine: str, expected: Sequence[str]) -> str | None:
    """The text with exactly the expected placeholders, or `None` when it cannot be had by safe means.

    Braces that are no expected placeholder become text, over-escaped ones become placeholders again, and what is
    still missing is appended as a line of its own.
    """
    if fault_of(template, engine, expected) is None:
        return template
    if engine == "f-string":
        template = _escaped(template, expected)
    try:
        found = placeholders(template, engine)
    except BadInputError:
        return None
    missing = [name for name in expected if name not in found]
    form = "{{{{ {0} }}}}" if engine == "jinja" else "{{{0}}}"
    for name in missing:
        template = f"{template.rstrip()}\n\n{name.replace('_', ' ').capitalize()}: {form.format(name)}"
    return template if fault_of(template, engine, expected) is None else None


def _escaped(template: str, expected: Sequence[str]) -> str:
    names = "|".join(map(re.escape, expected)) or "(?!)"
    template = re.sub(rf"\{{\s*({names})\s*\}}", r"{\1}", template)
    token = re.compile(rf"\{{\{{|\}}\}}|\{{({names})(?:[.\[!:][^{{}}]*)?\}}|[{{}}]")
    present = {match[1] for match in token.finditer(template)}
    for name in expected:
        if name not in present:
            template = template.replace(f"{{{{{name}}}}}", f"{{{name}}}")
    return token.sub(lambda match: _one(match[0]), template)


def _one(token: str) -> str:
    return token * 2 if token in ("{", "}") else token


def literal(text: str, engine: str) -> str:
    """`text` so that the engine leaves it as it is; for quoting examples in a template."""
    if engine == "jinja":
        return re.sub(r"\{[{%#]", lambda match: f"{{{{ '{match[0]}' }}}}", text)
    return text.replace("{", "{{").replace("}", "}}")
