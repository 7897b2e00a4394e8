"""The first messages on a data connection: each side proves that it was introduced.

    sink ──its proof──▶ source ──probe: its proof, then a known pattern──▶ sink

Nothing else moves before both were found right. Every method runs on the channel's thread.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from services.common.errors import BatonError, ChannelBroken
from services.kvtransfer.checksum import checksum_of, probe_bytes, read_bytes, write_bytes
from services.kvtransfer.events import ChannelOffer, ChannelProbe
from services.kvtransfer.proof import PROOF_BYTES, Introduction, is_same
from services.kvtransfer.rendezvous import SourceKeys
from services.kvtransfer.staging import Staging
from services.kvtransfer.transport.base import Transport

PROBE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Joining:
    """One side's part in it; `timeout_s` says how long a message of so many bytes may take."""

    introduction: Introduction
    timeout_s: Callable[[int], float]

    def send_proof(self, link: Transport, staging: Staging) -> None:
        """At the sink: shows the source that its data connection leads here."""
        data = staging.take(PROOF_BYTES)
        try:
            write_bytes(data, self.introduction.proof("sink"))
            link.send(data, self.timeout_s(PROOF_BYTES))
        finally:
            staging.give(data)

    def receive_proof(self, link: Transport, staging: Staging) -> None:
        """At the source: learns whether the sink that it made the offer to is at the other end.

        Raises:
            ChannelBroken: a stranger is, or nobody.
        """
        data = staging.take(PROOF_BYTES)
        try:
            link.receive(data, self.timeout_s(PROOF_BYTES))
            if not is_same(read_bytes(data), self.introduction.proof("sink")):
                channel_id = self.introduction.channel_id
                raise ChannelBroken(f"whoever joined the data connection of channel {channel_id} is not its sink")
        finally:
            staging.give(data)

    def stage_probe(self, _: Transport, staging: Staging) -> tuple[ChannelProbe, Tensor]:
        """At the source: fills a staging buffer with its proof and the known pattern."""
        data = staging.take(min(PROBE_BYTES, staging.buffer_bytes))
        write_bytes(data, self._probe(data.numel()))
        return ChannelProbe(sequence=0, num_bytes=data.numel(), checksum=checksum_of(data)), data

    def receive_probe(self, probe: ChannelProbe, link: Transport, staging: Staging) -> BatonError | None:
        """At the sink: receives the probe and says what is wrong with it."""
        data = staging.take(probe.num_bytes)
        try:
            link.receive(data, self.timeout_s(probe.num_bytes))
            if checksum_of(data) == probe.checksum and is_same(read_bytes(data), self._probe(probe.num_bytes)):
                return None
            channel_id = self.introduction.channel_id
            return ChannelBroken(f"the probe of channel {channel_id} arrived changed; a new one is built")
        finally:
            staging.give(data)

    def _probe(self, num_bytes: int) -> bytes:
        return probe_bytes(num_bytes, self.introduction.epoch, self.introduction.proof("source"))


@dataclass(frozen=True, slots=True)
class Opening:
    """What the source's side starts from: the offer, how its ends prove themselves, the keys where they meet."""

    offer: ChannelOffer
    joining: Joining
    keys: SourceKeys
