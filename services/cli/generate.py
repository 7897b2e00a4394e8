"""`baton generate`: sends one prompt to a frontend and shows the answer as it comes."""

import asyncio
import contextlib
import json
import sys
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from services.cli.answer_view import JsonAnswer, TextAnswer
from services.common.errors import BatonError, InvalidRequest
from services.common.ports import FRONTEND
from services.common.priority import Priority
from services.common.sampling import SamplingParams
from services.frontend.client import GenerationClient, deadline_in
from services.frontend.request import (
    NO_CHAT_TEMPLATE,
    ChatMessage,
    ChatPrompt,
    GenerationRequest,
    Prompt,
    TextPrompt,
)

EXIT_ERROR = 1
EXIT_INVALID = 2
EXIT_INTERRUPTED = 130

_DEFAULTS = SamplingParams()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What to send where; `is_chat` None means chat where the checkpoint has a template, else plain text."""

    address: str
    prompt: str
    is_chat: bool | None
    model: str
    sampling: SamplingParams
    priority: Priority = Priority.NORMAL
    deadline_s: float
    session_id: str = ""
    resumable: bool = False


def generate(
    prompt: Annotated[str, typer.Argument(help="What to say to the model; - reads standard input.")],
    address: Annotated[str, typer.Option(help="host:port of a frontend.")] = f"127.0.0.1:{FRONTEND}",
    model: Annotated[str, typer.Option(help="Served model name; empty takes the only one.")] = "",
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = _DEFAULTS.temperature,
    top_p: Annotated[float, typer.Option(help="Smallest set of tokens with this probability.")] = _DEFAULTS.top_p,
    top_k: Annotated[int, typer.Option(help="Most likely tokens kept; 0 keeps all.")] = _DEFAULTS.top_k,
    max_tokens: Annotated[int | None, typer.Option(help="Most tokens; none: what the context leaves.")] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same output; none: drawn by the frontend.")] = None,
    n: Annotated[int, typer.Option("-n", "--n", help="Independent answers.")] = _DEFAULTS.n,
    stop: Annotated[list[str] | None, typer.Option(help="The answer ends before this string; repeatable.")] = None,
    chat: Annotated[
        bool | None,
        typer.Option("--chat/--raw", help="Use the chat template, or not; by default where there is one."),
    ] = None,
    priority: Annotated[str, typer.Option(help="Class wherever the request queues: low, normal or high.")] = "normal",
    deadline: Annotated[float, typer.Option(min=0.001, help="Seconds that the answer may take.")] = 120.0,
    session: Annotated[str, typer.Option(help="What the prompt belongs to; kept on the same workers.")] = "",
    resumable: Annotated[
        bool, typer.Option("--resumable", help="Go on where the answer stopped when the connection is lost.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
) -> None:
    """Generate text: the answer goes to standard output as it comes, where its time went to standard error."""
    ask = Ask(
        address=address,
        prompt=sys.stdin.read() if prompt == "-" else prompt,
        is_chat=chat,
        model=model,
        sampling=SamplingParams(
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            max_tokens=max_tokens,
            seed=seed,
            n=n,
            stop=tuple(stop or ()),
        ),
        priority=_priority(priority),
        deadline_s=deadline,
        session_id=session,
        resumable=resumable,
    )
    answer = JsonAnswer() if as_json else TextAnswer(n)
    try:
        asyncio.run(send(ask, answer))
    except BatonError as error:
        answer.fail()
        _report(error, as_json=as_json)
        sys.exit(EXIT_INVALID if isinstance(error, InvalidRequest) else EXIT_ERROR)
    except KeyboardInterrupt:
        answer.fail()
        sys.exit(EXIT_INTERRUPTED)
    answer.end()


async def send(ask: Ask, answer: JsonAnswer | TextAnswer) -> None:
    """Sends the prompt; a checkpoint without a chat template gets plain text, unless chat was asked for.

    Raises:
        BatonError: the request failed.
    """
    chat = ChatPrompt((ChatMessage("user", ask.prompt),))
    async with GenerationClient(ask.address) as client:
        try:
            await _stream(client, ask, TextPrompt(ask.prompt) if ask.is_chat is False else chat, answer)
        except InvalidRequest as error:
            if ask.is_chat is not None or not _lacks_template(error):
                raise
            await _stream(client, ask, TextPrompt(ask.prompt), answer)


async def _stream(client: GenerationClient, ask: Ask, prompt: Prompt, answer: JsonAnswer | TextAnswer) -> None:
    request = GenerationRequest(
        request_id="",
        model=ask.model,
        prompt=prompt,
        sampling=ask.sampling,
        priority=ask.priority,
        deadline=deadline_in(ask.deadline_s),
        session_id=ask.session_id,
        resumable=ask.resumable,
    )
    async with contextlib.aclosing(client.generate(request)) as outputs:
        async for output in outputs:
            answer.add(output)


def _priority(name: str) -> Priority:
    names = {each.name.lower(): each for each in Priority}
    if name not in names:
        raise typer.BadParameter(f"{name!r} is none of {', '.join(names)}", param_hint="--priority")
    return names[name]


def _lacks_template(error: InvalidRequest) -> bool:
    return any(each.field == "chat" and each.description == NO_CHAT_TEMPLATE for each in error.violations)


def _report(error: BatonError, *, as_json: bool) -> None:
    """One line for people, one object for programs."""
    retry = f" (retry in {error.retry_after_s:g} s)" if error.retry_after_s is not None else ""
    typer.echo(f"{type(error).__name__}: {error.message}{retry}", err=True)
    if as_json:
        facts: dict[str, Any] = {"class": type(error).__name__, "message": error.message, **error.details}
        typer.echo(json.dumps({"error": facts}))
