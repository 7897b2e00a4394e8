"""The transports that a worker can use, by the names that layouts carry."""

from services.kvtransfer.transport.base import Transports
from services.kvtransfer.transport.gloo import open_gloo
from services.kvtransfer.transport.nccl import open_nccl

AVAILABLE: Transports = {"gloo": open_gloo, "nccl": open_nccl}
