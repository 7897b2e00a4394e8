"""Settings of the transfer library, as plain data.

Each worker process fills this from its own settings; every default is meant for workers on one network.
"""

from dataclasses import dataclass

from services.common.errors import FieldViolation, InvalidRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferConfig:
    """How KV leaves and enters this process.

    Attributes:
        kv_host: Address from which this process's data connections start and at which peers reach them.
        kv_interface: Network interface of the data connections; empty takes the one that `kv_host` names.
        checksum: Whether every message is hashed at the source and verified at the sink. A sink with checksums refuses
            messages that carry none.
        max_message_bytes: Most bytes of one message, at least one token's KV.
        staging_bytes: Most bytes of staging that one channel holds; a source stages this far ahead of the network.
        lease_s: Time a finished ticket is kept for a sink that does not show up.
        reservation_s: Time that blocks reserved at the sink wait for more KV; a lease that every message renews.
        tombstone_s: Time a ticket that is gone is remembered, so that a late fetch fails at once.
        max_tombstones: Most tickets that are remembered after they are gone.
        max_channels: Most channels that a source keeps open.
        connect_timeout_s: Time for opening a channel, probe included.
        channel_wait_s: Time that a request waits for a channel that is being opened; then it is for other workers.
        operation_floor_s: Time that every send or receive has besides what its bytes need. A message is received from
            its announcement on, so this is how long a data link that carries nothing goes unnoticed.
        refetch_s: Time for which a fetch whose channel broke goes on trying without a verified message.
        min_bytes_per_s: Slowest network that is still served; slower counts as broken.
        min_backoff_s: Shortest pause before a broken channel is rebuilt; doubles with each failure.
        max_backoff_s: Longest such pause.
        call_timeout_s: Time for a short control call (renew, release).
        probe_interval_s: Time without a message after which a sink tries a channel out; 0 never.
        pin_staging: Whether staging on the host is page-locked, as it should be where the KV is on a GPU.
    """

    kv_host: str = "127.0.0.1"
    kv_interface: str = ""
    checksum: bool = True
    max_message_bytes: int = 8 * 2**20
    staging_bytes: int = 16 * 2**20
    lease_s: float = 30.0
    reservation_s: float = 60.0
    tombstone_s: float = 60.0
    max_tombstones: int = 4096
    max_channels: int = 64
    connect_timeout_s: float = 10.0
    channel_wait_s: float = 3.0
    operation_floor_s: float = 1.5
    refetch_s: float = 1.0
    min_bytes_per_s: float = 10e6
    min_backoff_s: float = 0.1
    max_backoff_s: float = 5.0
    call_timeout_s: float = 3.0
    probe_interval_s: float = 0.0
    pin_staging: bool = False

    def __post_init__(self) -> None:
        if self.staging_bytes < self.max_message_bytes:
            message = f"is {self.staging_bytes}, must hold one message of {self.max_message_bytes} bytes"
            raise InvalidRequest(FieldViolation("staging_bytes", message))

    def operation_timeout_s(self, num_bytes: int) -> float:
        """Longest time that moving `num_bytes` may take before the channel counts as broken."""
        return self.operation_floor_s + num_bytes / self.min_bytes_per_s

    @property
    def longest_operation_s(self) -> float:
        """Time after which no operation of a channel that broke can still run."""
        return self.operation_timeout_s(self.staging_bytes)
