"""Renders a conversation with the checkpoint's own chat template, as `transformers` does.

Templates come with checkpoints, so they run in jinja2's sandbox. Knows nothing of tokens.
"""

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from services.common.errors import FieldViolation, InvalidRequest
from services.frontend.request import ChatMessage

_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class ChatTemplate:
    """One compiled template with the special tokens that it may name."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self._template = _environment().from_string(source)
        self._special_tokens = dict(special_tokens)

    def render(self, messages: Sequence[ChatMessage]) -> str:
        """The conversation as text, up to where the assistant's answer begins.

        Raises:
            InvalidRequest: the template does not take these messages; says what it said.
        """
        plain = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return self._template.render(
                messages=plain, tools=None, documents=None, add_generation_prompt=True, **self._special_tokens
            )
        except Exception as error:
            # A template is foreign code: whatever it raises is about the messages it was given.
            what = str(error) or type(error).__name__
            raise InvalidRequest(FieldViolation("chat", f"was refused by the chat template: {what}")) from error


def load_chat_template(folder: Path) -> ChatTemplate | None:
    """Loads a checkpoint's template; None where it has none.

    `chat_template.jinja` wins over the template inside `tokenizer_config.json`, as in `transformers`.
    """
    config = _read_json(folder / "tokenizer_config.json")
    file = folder / "chat_template.jinja"
    source = file.read_text(encoding="utf-8") if file.is_file() else _default_of(config.get("chat_template"))
    return ChatTemplate(source, _special_tokens(folder, config)) if source else None


def _default_of(entry: object) -> str | None:
    """The template of an entry that is one template or a list of named ones."""
    if isinstance(entry, list):
        named = {item["name"]: item["template"] for item in cast("list[dict[str, str]]", entry)}
        return named.get("default")
    return entry if isinstance(entry, str) else None


def _special_tokens(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    entries = {**_read_json(folder / "special_tokens_map.json"), **config}
    found: dict[str, str] = {}
    for name in _TOKEN_NAMES:
        entry = entries.get(name)
        content = cast("dict[str, Any]", entry).get("content") if isinstance(entry, dict) else entry
        if isinstance(content, str):
            found[name] = content
    return found


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


class _GenerationBlock(Extension):
    """Accepts `{% generation %}`, which marks the assistant's words for training, and renders what is inside."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it as an instance attribute

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Replaces the block by its body."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    names = cast("dict[str, Any]", environment.globals)
    names["raise_exception"] = _raise_exception
    names["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON; jinja2's own filter escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    """The date where the server runs, as templates expect it."""
    return datetime.datetime.now().strftime(form)
