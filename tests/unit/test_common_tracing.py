"""Export of spans."""

import importlib.util

import pytest

from services.common.config import ConfigError
from services.common.tracing import configure_tracing


def test_without_an_endpoint_nothing_is_set_up():
    """And closing it does nothing."""
    configure_tracing("", "baton-test")()


@pytest.mark.skipif(
    importlib.util.find_spec("opentelemetry.exporter") is not None, reason="the exporter is installed here"
)
def test_an_endpoint_without_the_exporter_says_what_to_install():
    """Instead of losing every span in silence."""
    with pytest.raises(ConfigError, match=r"baton\[otel\]"):
        configure_tracing("http://127.0.0.1:4317", "baton-test")
