"""PrefillService: translates calls for the worker."""

from baton.v1 import prefill_pb2 as pb
from baton.v1 import prefill_pb2_grpc as rpc

from services.common.rpc.channel import deadline_of
from services.common.rpc.interceptor import Context
from services.common.rpc.stages import set_stage_metadata
from services.prefill.convert import request_from_proto, result_to_proto
from services.prefill.metrics import PrefillMetrics
from services.prefill.worker import PrefillWorker


class PrefillServicer(rpc.PrefillServiceServicer):
    """Serves one worker; calls without a deadline get `default_deadline_s`."""

    def __init__(self, worker: PrefillWorker, metrics: PrefillMetrics, default_deadline_s: float) -> None:
        self._worker = worker
        self._metrics = metrics
        self._default_deadline_s = default_deadline_s

    async def Prefill(self, request: pb.PrefillRequest, context: Context) -> pb.PrefillResponse:
        """Runs one prompt to its first token."""
        result = await self._worker.prefill(request_from_proto(request, deadline_of(context, self._default_deadline_s)))
        self._metrics.observe(result)
        set_stage_metadata(context, result.stages)
        return result_to_proto(result)
