"""What must hold in the model after every event, and once nothing disturbs it any more."""

from collections import Counter
from collections.abc import Sequence

from tests.harness.lifecycle.attempt import SIZE
from tests.harness.lifecycle.lives import Lives

MAX_TURNS = 150
# Whatever can happen happens many times within a lease.
TURNS_PER_WAIT = 10


def check(lives: Lives) -> None:
    """Raises AssertionError where a rule is broken."""
    lives.source.pool.check()
    lives.sink.pool.check()
    lives.source.table.check()
    _check_source(lives)
    _check_sink(lives)
    for request in lives.requests:
        assert len(request.ends) <= 1, f"{request.name} has ended twice"
        assert request.answer == request.expected[: len(request.answer)], f"{request.name} has a wrong token"
        assert request.ends != ["OK"] or request.answer == request.expected, f"{request.name} lacks tokens"


def _check_source(lives: Lives) -> None:
    source = lives.source
    prompts = list(source.held.values())
    _check_owners([(prompt.block_ids, prompt.computed) for prompt in prompts], source.pool.stats().held)
    for read in source.reads:
        held = source.held.get(read.ticket.ticket_id)
        assert held is not None, "a block is free under a reader"
        assert tuple(held.block_ids) == read.ticket.block_ids, "a reader reads blocks of another prompt"


def _check_sink(lives: Lives) -> None:
    sink = lives.sink
    runs = sink.holders
    _check_owners([(run.block_ids, run.computed) for run in runs], sink.pool.stats().held)
    for write in sink.writes:
        run = sink.loading.get(write.fetch.attempt.key)
        assert run is not None, "a block is free under a writer"
        assert run.block_ids == write.fetch.block_ids, "a writer writes into blocks of another request"
    written = [block for write in sink.writes for block in write.block_ids]
    assert len(written) == len(set(written)), "two messages are written into one block"
    assert not any(request.attempt and request.attempt.was_joined_late for request in lives.requests), (
        "KV is used whose lease had ended when it was copied"
    )


def _check_owners(owners: Sequence[tuple[Sequence[int], int]], held: int) -> None:
    """Blocks with the first position that is still written: who writes a block has it alone."""
    holders = Counter(block for block_ids, _ in owners for block in block_ids)
    assert len(holders) == held, "a block is held by nobody, or used by somebody who does not hold it"
    for block_ids, computed in owners:
        for block in block_ids[computed // SIZE :]:
            assert holders[block] == 1, "a block has two writers, or a reader beside its writer"


def settle(lives: Lives) -> None:
    """Lets everything go on, undisturbed: each request ends, once, by itself, and nothing is left."""
    for turn in range(MAX_TURNS):
        if not _is_occupied(lives):
            break
        for name in lives.progress():
            if name in lives.progress():
                lives.play(name)
                check(lives)
        if turn % TURNS_PER_WAIT == TURNS_PER_WAIT - 1:
            lives.play("wait")
    for request in lives.requests:
        assert len(request.ends) == 1, f"{request.name} has not ended"
    assert not _is_occupied(lives), "something is left"


def _is_occupied(lives: Lives) -> bool:
    source, sink = lives.source, lives.sink
    books = (source.held, source.attempts, source.reads, source.sending, sink.attempts, sink.fetches, sink.writes)
    held = source.pool.stats().held + sink.pool.stats().held + len(source.table)
    return held > 0 or any(books) or bool(lives.network) or any(not request.ends for request in lives.requests)
