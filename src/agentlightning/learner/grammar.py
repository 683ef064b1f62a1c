"""Which tokens may come next where a response has to follow a JSON schema or has to call a tool.

The grammars are llguidance's (a Lark dialect with JSON schemas inside); it is loaded when the first such request comes.
Knows nothing of sampling: it says what is allowed.
"""

from __future__ import annotations

import importlib
import json
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, cast

import numpy as np

from agentlightning.kit.errors import BadInputError, MissingExtraError, UpstreamError
from agentlightning.learner.toolcalls import ToolFormat
from agentlightning.schemas.generation import Constraint, GenerateRequest

_COMPILED_MAX = 256
_CALLS_MAX = 8  # a model that may always go on calling may never end
# One way to set white space, that of `json.dumps`: a model cannot fill an answer with blanks.
_SPACING = {"x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}}
_ANY_OBJECT: dict[str, Any] = {"type": "object"}
_LARGEST = 2**53  # llguidance reads numbers as doubles: beyond it, another number would be enforced than was asked for
_VALUES = frozenset({"const", "enum"})  # what is in them is no schema
_BY_NAME = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
_REMARKS = frozenset({"default", "examples", "example"})


class Matcher:
    """Follows one response through its grammar."""

    def __init__(self, matcher: Any, vocab_size: int, mask_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._words = np.zeros(-(-mask_size // 32), dtype=np.int32)

    def allowed(self) -> np.ndarray:
        """Bool [V]: the tokens that may come next; the end tokens alone once the grammar is through.

        Raises:
            UpstreamError: The grammar became too large to follow.
        """
        self._matcher.unsafe_compute_mask_ptr(self._words.ctypes.data, self._words.nbytes)
        self._check()
        bits = np.unpackbits(self._words.view(np.uint8), bitorder="little")
        return bits[0 : self._vocab_size].view(bool)

    def accept(self, token: int) -> None:
        """Note the token that was sampled; raises what `allowed` raises."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise UpstreamError(
                f"The required format cannot be followed any further: {self._matcher.get_error()}",
                hint="Simplify the schema.",
            )


class Grammars:
    """Compiles the constraints of one model's requests, each once.

    Args:
        tokenizer: A fast Hugging Face tokenizer.
        vocab_size: V, the width of the model's logits.
        eos_ids: The model's end tokens.
        form: How the model writes tool calls.
    """

    def __init__(self, tokenizer: Any, vocab_size: int, eos_ids: frozenset[int], form: ToolFormat) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._mask_size = max(vocab_size, len(tokenizer))
        self._eos_ids = sorted(eos_ids)
        self._form = form
        self._compiled: OrderedDict[str, Any] = OrderedDict()
        self._loaded: Any = None

    def matcher(self, request: GenerateRequest) -> Matcher | None:
        """The matcher for one response, `None` for a free one.

        Raises:
            BadInputError: A schema cannot be enforced, or a tool is named that is not there.
            MissingExtraError: llguidance is not installed.
        """
        if request.constraint is None:
            return None
        source = grammar_of(request.constraint, request.tools or [], self._form, self._special())
        found = self._compiled.get(source)
        if found is None:
            found = self._compile(source)
            self._compiled[source] = found
            if len(self._compiled) > _COMPILED_MAX:
                self._compiled.popitem(last=False)
        else:
            self._compiled.move_to_end(source)
        return Matcher(found.deep_copy(), self._vocab_size, self._mask_size)

    def _compile(self, source: str) -> Any:
        llguidance = _llguidance()
        if self._loaded is None:
            self._loaded = llguidance.hf.from_tokenizer(
                self._tokenizer, n_vocab=self._mask_size, eos_token=self._eos_ids
            )
        matcher = llguidance.LLMatcher(self._loaded, source, log_level=0)
        if matcher.is_error():
            reason = str(matcher.get_error()).splitlines()[0].partition("): ")[2] or matcher.get_error()
            raise BadInputError(
                f"The required format cannot be enforced: {reason}.",
                hint="Leave that keyword out of the schema, or check the answer yourself.",
            )
        return matcher

    def _special(self) -> dict[str, int]:
        added = self._tokenizer.added_tokens_decoder
        return {str(token): number for number, token in added.items() if token.special}


def grammar_of(constraint: Constraint, tools: list[dict[str, Any]], form: ToolFormat, special: dict[str, int]) -> str:
    """The grammar of a response.

    Args:
        constraint: What is required.
        tools: The request's tools.
        form: How the model writes calls.
        special: Special tokens by text.

    Raises:
        BadInputError: A tool is required that is not there, or a schema has a number that cannot be enforced exactly.
    """
    functions = [tool.get("function") or {} for tool in tools]
    if constraint.tool is not None:
        functions = [function for function in functions if function.get("name") == constraint.tool]
        if not functions:
            raise BadInputError(f"There is no tool {constraint.tool!r} among the request's tools.")
    free = not constraint.must_call and constraint.json_schema is None
    rules = [_start(constraint, has_tools=bool(functions))]
    if functions:
        named = [(str(function["name"]), f"arguments_{i}") for i, function in enumerate(functions)]
        single = constraint.tool is not None or not constraint.parallel
        rules += form.rules(named, special, most=1 if single else _CALLS_MAX)
        rules += form.opening(special, free=free)
        for i, function in enumerate(functions):
            place = f"the parameters of the tool {function['name']!r}"
            rules.append(f"arguments_{i}: {_json(function.get('parameters') or _ANY_OBJECT, place)}")
    if free:
        rules.append(f"TEXT: /{form.free_text}/")
    if constraint.json_schema is not None:
        rules.append(f"content: {_json(constraint.json_schema, 'the JSON schema')}")
    return "\n".join(rules)


def _start(constraint: Constraint, *, has_tools: bool) -> str:
    if not has_tools:
        if constraint.json_schema is None:
            raise BadInputError("A tool call is required, but the request has no tools.")
        return "start: content"
    if constraint.must_call:
        return "start: calls"
    return "start: TEXT | calls" if constraint.json_schema is None else "start: content | calls"


def _json(schema: Any, where: str) -> str:
    if not isinstance(schema, dict):
        schema = {} if schema is True else {"not": {}}
    too_large = next(_too_large(cast("dict[str, Any]", schema)), None)
    if too_large is not None:
        raise BadInputError(
            f"The required format cannot be enforced: a number beyond 2^53 at {too_large} of {where}.",
            hint="Such numbers are not told from their neighbours. Leave it out, or ask for a string.",
        )
    return "%json " + json.dumps({**schema, **_SPACING})


def _too_large(schema: dict[str, Any]) -> Iterator[str]:
    """The places (JSON pointers, RFC 6901) of numbers that cannot be enforced exactly; remarks do not matter."""
    # What a value is: a schema, schemas by name, or a value that the answer has to have. A list of schemas is one, too.
    waiting: list[tuple[str, str, Any]] = [("", "schema", schema)]
    while waiting:
        place, kind, value = waiting.pop()
        if isinstance(value, dict):
            for name, inner in cast("dict[str, Any]", value).items():
                if kind == "schema" and name in _REMARKS:
                    continue
                below = f"{place}/{name.replace('~', '~0').replace('/', '~1')}"
                waiting.append((below, _kind(kind, name), inner))
        elif isinstance(value, list):
            waiting += [(f"{place}/{i}", kind, inner) for i, inner in enumerate(cast("list[Any]", value))]
        elif isinstance(value, int | float) and abs(value) > _LARGEST:
            yield place


def _kind(outer: str, name: str) -> str:
    """What stands under a name."""
    if outer != "schema":
        return "schema" if outer == "names" else outer
    if name in _VALUES:
        return "value"
    return "names" if name in _BY_NAME else "schema"


def _llguidance() -> Any:
    try:
        importlib.import_module("llguidance.hf")
        return importlib.import_module("llguidance")
    except ImportError as error:
        raise MissingExtraError(
            f"Required formats (JSON schemas, forced tool calls) need llguidance: {error}.",
            hint="Install it: pip install 'agentlightning[learn]'.",
        ) from error
