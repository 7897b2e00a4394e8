"""Whatever the command line talks to, in one server whose answers are hostile: good ones with some of it changed."""

import copy
import random
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from tests.harness.fuzz.hostility import hostile

THREADS = 4
Context = grpc.ServicerContext


class RogueServer:
    """Serves methods (`/package.Service/Method`), each with the messages of its good answer, on threads of its own."""

    def __init__(self, seed: int, share: float, answers: Mapping[str, list[Any]], streams: frozenset[str]) -> None:
        self._rng = random.Random(seed)
        self._share = share
        self._answers = answers
        self._server = grpc.server(ThreadPoolExecutor(THREADS))
        port = self._server.add_insecure_port("127.0.0.1:0")
        self.address = f"127.0.0.1:{port}"
        for method in answers:
            service, name = method.strip("/").split("/")
            make = grpc.unary_stream_rpc_method_handler if method in streams else grpc.unary_unary_rpc_method_handler
            handler = make(self._stream(method) if method in streams else self._answer(method))
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {name: handler}),))

    def __enter__(self) -> "RogueServer":
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(0).wait()

    def say(self, method: str, message: Any) -> None:
        """Changes the good answer of a method."""
        self._answers[method][:] = [message]

    def _stream(self, method: str) -> Any:
        def stream(request: bytes, context: Context) -> Iterator[bytes]:
            for message in self._answers[method]:
                yield from self._hurt(message)

        return stream

    def _answer(self, method: str) -> Any:
        def answer(request: bytes, context: Context) -> bytes:
            return (self._hurt(self._answers[method][0]) or [b""])[0]

        return answer

    def _hurt(self, message: Any) -> list[bytes]:
        if self._rng.random() >= self._share:
            return [message.SerializeToString()]
        return hostile(self._rng, copy.deepcopy(message))
