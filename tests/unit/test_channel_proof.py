"""What the two ends of a data connection prove to each other, and to nobody else."""

import dataclasses
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import ChannelBroken
from services.kvtransfer.events import ChannelProbe
from services.kvtransfer.joining import Joining
from services.kvtransfer.proof import SECRET_BYTES, Introduction, is_same, new_secret
from services.kvtransfer.staging import Staging
from services.kvtransfer.transport.base import SINK_RANK, SOURCE_RANK, Meeting, Transport
from services.kvtransfer.transport.memory import MemoryExchange

WAIT_S = 20.0
KNOWN = Introduction(
    secret=b"s" * SECRET_BYTES, channel_id="prefill-0-1", epoch=1, source_incarnation="a", sink_incarnation="b"
)
CHANGES = st.one_of(
    st.fixed_dictionaries({"secret": st.binary(min_size=32, max_size=32).filter(lambda s: s != KNOWN.secret)}),
    st.fixed_dictionaries({"channel_id": st.text(max_size=8)}),
    st.fixed_dictionaries({"epoch": st.integers(2, 9)}),
    st.fixed_dictionaries({"source_incarnation": st.text(max_size=8).filter(lambda s: s != "a")}),
    st.fixed_dictionaries({"sink_incarnation": st.text(max_size=8).filter(lambda s: s != "b")}),
)


@given(CHANGES)
def test_a_proof_holds_for_one_introduction(changed: dict[str, Any]) -> None:
    """Whoever differs in the secret, the channel, its epoch or an incarnation proves nothing."""
    other = dataclasses.replace(KNOWN, **changed)
    assert not is_same(other.proof("sink"), KNOWN.proof("sink"))
    assert not is_same(other.proof("source"), KNOWN.proof("source"))


def test_a_proof_cannot_be_sent_back() -> None:
    """What one side sends is not what it wants to receive."""
    assert KNOWN.proof("sink") != KNOWN.proof("source")


def test_a_secret_is_new_and_never_shown() -> None:
    """Two channels never share a secret, and none gets into a log by way of repr."""
    assert new_secret() != new_secret()
    assert "sss" not in repr(KNOWN)


def ends(source: Introduction, sink: Introduction) -> tuple[ChannelBroken | None, ChannelBroken | None]:
    """What each end says after both have proved themselves over a pair in memory; the sink goes on in any case."""
    exchange = MemoryExchange()
    outcomes: dict[int, ChannelBroken | None] = {}

    def run(rank: int, introduction: Introduction) -> None:
        link = exchange.open(Meeting(rank=rank, name="x", keys=None), WAIT_S)  # pyright: ignore[reportArgumentType]
        joining, staging = Joining(introduction, lambda _: WAIT_S), Staging(1024, 1024)
        try:
            outcomes[rank] = (_source_end if rank == SOURCE_RANK else _sink_end)(joining, link, staging)
        except ChannelBroken as error:
            outcomes[rank] = error
            link.abort()

    threads = [threading.Thread(target=run, args=each) for each in ((SOURCE_RANK, source), (SINK_RANK, sink))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * WAIT_S)
    return outcomes[SOURCE_RANK], outcomes[SINK_RANK]


def _source_end(joining: Joining, link: Transport, staging: Staging) -> None:
    joining.receive_proof(link, staging)
    _, data = joining.stage_probe(link, staging)
    link.send(data, WAIT_S)


def _sink_end(joining: Joining, link: Transport, staging: Staging) -> ChannelBroken | None:
    joining.send_proof(link, staging)
    content = Joining(joining.introduction, lambda _: WAIT_S).stage_probe(link, Staging(1024, 1024))[0]
    probe = ChannelProbe(sequence=0, num_bytes=1024, checksum=content.checksum)
    error = joining.receive_probe(probe, link, staging)
    assert error is None or isinstance(error, ChannelBroken)
    return error


def test_the_introduced_ends_find_each_other_right() -> None:
    """Both sides are content where both know the secret."""
    assert ends(KNOWN, KNOWN) == (None, None)


def test_a_stranger_at_the_sinks_end_gets_nothing() -> None:
    """The source breaks off before it sends anything at all."""
    stranger = dataclasses.replace(KNOWN, secret=b"?" * SECRET_BYTES)
    at_source, at_sink = ends(KNOWN, stranger)
    assert at_source is not None
    assert "is not its sink" in at_source.message
    assert at_sink is not None


def test_a_stranger_at_the_sources_end_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sink takes no probe from who cannot prove itself, although that one sends a probe of the right shape."""
    stranger = dataclasses.replace(KNOWN, secret=b"?" * SECRET_BYTES)
    monkeypatch.setattr(Joining, "receive_proof", _swallow)
    at_source, at_sink = ends(stranger, KNOWN)
    assert at_source is None
    assert at_sink is not None
    assert "arrived changed" in at_sink.message


def _swallow(_: Joining, link: Transport, staging: Staging) -> None:
    """What a stranger does with a proof: nothing."""
    data = staging.take(32)
    link.receive(data, WAIT_S)
    staging.give(data)
