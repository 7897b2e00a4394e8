"""DecodeService: translates calls for the worker."""

import contextlib
from collections.abc import AsyncIterator

from baton.v1 import decode_pb2 as pb
from baton.v1 import decode_pb2_grpc as rpc

from services.common.rpc.channel import deadline_of
from services.common.rpc.interceptor import Context
from services.common.rpc.stages import set_stage_metadata
from services.decode.convert import event_to_proto, request_from_proto, watched_to_proto
from services.decode.metrics import DecodeMetrics
from services.decode.place import Place
from services.decode.worker import DecodeWorker


class DecodeServicer(rpc.DecodeServiceServicer):
    """Serves one worker; calls without a deadline get `default_deadline_s`."""

    def __init__(self, worker: DecodeWorker, metrics: DecodeMetrics, default_deadline_s: float) -> None:
        self._worker = worker
        self._metrics = metrics
        self._default_deadline_s = default_deadline_s

    async def Decode(self, request: pb.DecodeRequest, context: Context) -> AsyncIterator[pb.DecodeResponse]:
        """Streams all tokens of one request."""
        work = request_from_proto(request, deadline_of(context, self._default_deadline_s))
        watch = Place(request.watch_id, request.watch_key) if request.watch_id else None
        async with contextlib.aclosing(self._worker.decode(work, watch)) as events:
            async for event in events:
                if event.summary is not None:
                    self._metrics.observe(event.summary)
                    set_stage_metadata(context, event.summary.stages)
                yield event_to_proto(event)

    async def WatchTokens(
        self, request: pb.WatchTokensRequest, context: Context
    ) -> AsyncIterator[pb.WatchTokensResponse]:
        """Streams the tokens of all requests that name the watch, until its caller leaves or the worker stops."""
        watch = self._worker.watches.open(request.watch_id)
        try:
            yield pb.WatchTokensResponse()
            while (tokens := await watch.take()) is not None:
                yield watched_to_proto(tokens)
        finally:
            self._worker.watches.close(request.watch_id)
