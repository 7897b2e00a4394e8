"""A client that tells the server its deadline and does not end its call at it: what is slow or hangs can be seen.

gRPC's own client ends a call at its timeout by itself, whatever the server does.
"""

from services.common.rpc.channel import timeout_left
from services.common.rpc.tracing import trace_metadata
from services.frontend.client import GenerationClient
from services.frontend.convert import request_to_proto
from services.frontend.request import GenerationRequest

# The header in which gRPC tells a timeout; here in milliseconds.
TIMEOUT_HEADER = "grpc-timeout"


class PatientClient(GenerationClient):
    """Its calls end when the server ends them, or its connection; whoever reads sets a limit of their own."""

    def _start(self, request: GenerationRequest):  # as the base class: what a stub returns has no public name
        left_ms = max(1, round(timeout_left(request.deadline) * 1000))
        metadata = (*trace_metadata(), (TIMEOUT_HEADER, f"{left_ms}m"))
        return self._stub.Generate(request_to_proto(request), metadata=metadata)
