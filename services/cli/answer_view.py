"""Shows an answer while it comes, or collects it into one JSON object."""

import dataclasses
import json
import sys
from typing import Any

from services.common.types import StageTimes
from services.frontend.fallback import Fallback
from services.frontend.request import Completion, Delta, Output
from services.frontend.routing.shortcut import Shortcut

_MS = 1e-6


class TextAnswer:
    """Writes the text to standard output as it comes; several choices one after the other, at the end."""

    def __init__(self, num_choices: int) -> None:
        self._texts: list[list[str]] = [[] for _ in range(max(1, num_choices))]
        self._completion: Completion | None = None

    def add(self, output: Output) -> None:
        """Takes the next piece."""
        for delta in output.deltas:
            self._texts[delta.choice].append(delta.text)
            if len(self._texts) == 1:
                sys.stdout.write(delta.text)
        sys.stdout.flush()
        self._completion = output.completion or self._completion

    def fail(self) -> None:
        """Ends the line that was being written."""
        if len(self._texts) == 1 and self._texts[0]:
            sys.stdout.write("\n")
            sys.stdout.flush()

    def end(self) -> None:
        """Ends the text and says on standard error where the time went."""
        if len(self._texts) == 1:
            sys.stdout.write("\n")
        else:
            sys.stdout.writelines(f"[{choice}] {''.join(text)}\n" for choice, text in enumerate(self._texts))
        sys.stdout.flush()
        if self._completion is not None:
            sys.stderr.write(f"{stage_line(self._completion)}\n")


class JsonAnswer:
    """Collects the answer and prints it as one JSON object."""

    def __init__(self) -> None:
        self._request_id = ""
        self._choices: dict[int, dict[str, Any]] = {}
        self._completion: Completion | None = None

    def add(self, output: Output) -> None:
        """Takes the next piece."""
        self._request_id = output.request_id
        for delta in output.deltas:
            self._add(delta)
        self._completion = output.completion or self._completion

    def fail(self) -> None:
        """Prints nothing: an answer without its end is none."""

    def end(self) -> None:
        """Prints the object."""
        facts = dataclasses.asdict(self._completion) if self._completion is not None else {}
        choices = [self._choices[choice] for choice in sorted(self._choices)]
        sys.stdout.write(f"{json.dumps({'request_id': self._request_id, 'choices': choices, **facts})}\n")

    def _add(self, delta: Delta) -> None:
        empty: dict[str, Any] = {"text": "", "token_ids": [], "finish_reason": None, "stop_match": ""}
        choice = self._choices.setdefault(delta.choice, {"index": delta.choice, **empty})
        choice["text"] += delta.text
        choice["token_ids"].extend(token.id for token in delta.tokens)
        choice["finish_reason"] = delta.finish.value if delta.finish else None
        choice["stop_match"] = delta.stop_match


def stage_line(completion: Completion) -> str:
    """One line: tokens, time of each stage that took place, who did the work, what went another way."""
    stages = completion.stages
    names = [field.name for field in dataclasses.fields(StageTimes)]
    times = [f"{name.removesuffix('_ns')} {_spell(getattr(stages, name))}" for name in names if getattr(stages, name)]
    usage = completion.usage
    tokens = f"{usage.prompt_tokens} → {usage.completion_tokens} tokens"
    workers = [completion.prefill_worker_id, completion.decode_worker_id]
    who = " → ".join(dict.fromkeys(worker for worker in workers if worker))
    marks = [f"fell back: {completion.fallback.replace('_', ' ')}"] if completion.fallback is not Fallback.NONE else []
    if completion.shortcut is not Shortcut.NONE:
        marks.append(f"shortcut: {completion.shortcut.replace('_', ' ')}")
    if completion.hedged:
        marks.append("hedged")
    if completion.moves:
        marks.append(f"moved {completion.moves} times" if completion.moves > 1 else "moved once")
    return " · ".join([tokens, *times, f"{who}{' (colocated)' if completion.colocated else ''}", *marks])


def _spell(nanoseconds: int) -> str:
    milliseconds = nanoseconds * _MS
    return f"{milliseconds / 1000:.2f} s" if milliseconds >= 1000 else f"{milliseconds:.1f} ms"
