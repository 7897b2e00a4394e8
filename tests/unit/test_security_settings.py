"""What the settings make of certificates and tokens, before anything listens."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from services.common.config import ConfigError
from services.common.errors import PeerError, PermissionDenied, Unauthenticated
from services.common.settings import WorkerSettings
from services.common.types import Tier
from services.frontend.config import FrontendSettings
from services.frontend.outcomes import named
from tests.harness.certificates import OTHER_TOKEN, TOKEN, Authority, token_file
from tests.harness.fake_kv import FakeKv
from tests.harness.kv_pair import worker


def test_without_settings_nothing_is_asked() -> None:
    """Plaintext and no token, for servers and clients alike."""
    settings = WorkerSettings()
    assert settings.server_security().credentials() is None
    assert settings.server_security().tokens is None
    assert settings.client_security().is_plain


@pytest.mark.parametrize("given", [{"tls_cert": "c"}, {"tls_key": "k"}])
def test_certificate_and_key_belong_together(given: dict[str, str]) -> None:
    """Half of them is refused, for the process and for the public API."""
    with pytest.raises(ValidationError, match="belong together"):
        WorkerSettings.model_validate(given)
    with pytest.raises(ValidationError, match="belong together"):
        FrontendSettings.model_validate({f"public_{name}": value for name, value in given.items()})


def test_client_certificates_need_an_authority(tmp_path: Path) -> None:
    """A process that could verify nobody does not start."""
    files = Authority(tmp_path).issue()
    settings = WorkerSettings(tls_cert=files.cert, tls_key=files.key, tls_require_client_cert=True)
    with pytest.raises(ConfigError, match="authority"):
        settings.server_security()


def test_the_public_api_has_tokens_and_a_certificate_of_its_own(tmp_path: Path) -> None:
    """A frontend shows its clients another certificate than its workers, and takes other tokens than it sends."""
    inside, outside = Authority(tmp_path / "inside").issue(), Authority(tmp_path / "outside").issue()
    settings = FrontendSettings(
        tls_cert=inside.cert,
        tls_key=inside.key,
        tls_ca=inside.ca,
        public_tls_cert=outside.cert,
        public_tls_key=outside.key,
        cluster_token_file=token_file(tmp_path / "cluster", TOKEN),
        auth_token_file=token_file(tmp_path / "public", OTHER_TOKEN),
    )
    served, shown = settings.public_security(), settings.client_security()
    assert served.tls is not None
    assert shown.tls is not None
    assert served.tls.current().cert == Path(outside.cert).read_bytes()
    assert shown.tls.current().cert == Path(inside.cert).read_bytes()
    assert served.tokens is not None
    assert shown.tokens is not None
    assert served.tokens.current() == (OTHER_TOKEN,)
    assert shown.tokens.current() == (TOKEN,)


def test_the_cluster_tokens_do_not_open_the_public_api(tmp_path: Path) -> None:
    """Where clients need no token, a frontend with cluster tokens still asks its clients for none."""
    settings = FrontendSettings(cluster_token_file=token_file(tmp_path / "cluster", TOKEN))
    assert settings.public_security().tokens is None
    assert settings.client_security().tokens is not None


@pytest.mark.parametrize("refusal", [Unauthenticated, PermissionDenied])
def test_a_worker_that_refuses_its_frontend_is_no_fault_of_the_client(refusal: type[Unauthenticated]) -> None:
    """The client is told of a failed worker, which another one may stand in for, not that it lacks a token."""
    error = named(refusal("no"), worker("prefill-7", Tier.PREFILL, FakeKv()))
    assert type(error) is PeerError
    assert error.details["worker_id"] == "prefill-7"
