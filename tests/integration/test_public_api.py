"""What a frontend asks of its clients, by its settings."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from services.common.errors import RateLimited, Unauthenticated
from services.common.rpc.security import (
    SecurityFiles,
    client_security,
    new_client_security,
    use_client_security,
)
from services.frontend.client import GenerationClient
from tests.harness.certificates import OTHER_TOKEN, TOKEN, token_file
from tests.harness.scripted_frontend import cluster, ids_of, text_of
from tests.harness.scripted_workers import Script, within

ANSWER = "it is Paris"


@pytest.fixture(autouse=True)
def clients_as_before() -> Iterator[None]:
    before = client_security()
    yield
    use_client_security(before)


async def test_clients_show_a_token(tmp_path: Path) -> None:
    """With a file of tokens the public API serves those who show one of them; the workers are asked as before."""
    tokens = token_file(tmp_path / "public", OTHER_TOKEN, TOKEN)
    async with cluster(Script(ids_of(ANSWER)), auth_token_file=tokens) as running:
        with pytest.raises(Unauthenticated):
            await running.outputs()
        assert not running.prefill.asked.is_set()
        use_client_security(new_client_security(SecurityFiles(tokens=token_file(tmp_path / "mine", TOKEN))))
        running.client = GenerationClient(f"127.0.0.1:{running.process.port}")
        assert text_of(await running.outputs()) == ANSWER


async def test_each_caller_has_its_rate(tmp_path: Path) -> None:
    """A caller that has used up its burst waits as long as it is told; another caller is served meanwhile."""
    public = token_file(tmp_path / "public", TOKEN, OTHER_TOKEN)
    limits = {"auth_token_file": public, "max_requests_per_s": 0.01, "request_burst": 1}
    async with cluster(Script(ids_of(ANSWER)), **limits) as running:
        for token in (TOKEN, OTHER_TOKEN):
            mine = SecurityFiles(tokens=token_file(tmp_path / token, token))
            use_client_security(new_client_security(mine))
            async with GenerationClient(f"127.0.0.1:{running.process.port}") as client:
                assert await client.list_models()
                with pytest.raises(RateLimited) as caught:
                    await within(client.list_models())
                assert caught.value.retry_after_s == pytest.approx(100, rel=0.1)
