"""Settings that processes share."""

import socket

import pytest
from pydantic import ValidationError

from services.common.config import describe_settings
from services.common.settings import ProcessSettings, WorkerSettings, parse_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [("512", 512), ("512B", 512), ("1KiB", 1024), ("4 GiB", 4 * 2**30), ("1.5mib", 3 * 2**19), ("2TiB", 2**41), (7, 7)],
)
def test_bytes_are_understood(text: object, expected: int):
    """Binary units, any case, with or without a space."""
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "GiB", "1GB", "1 000", "-1KiB", "1KiBs"])
def test_what_is_no_size_is_refused(text: str):
    """Decimal units are refused instead of being guessed at."""
    with pytest.raises(ValueError, match="KiB"):
        parse_bytes(text)


def test_a_worker_reads_sizes_with_units():
    """From the environment all values are text."""
    assert WorkerSettings.model_validate({"cpu_kv_bytes": "64MiB", "port": "9100"}).cpu_kv_bytes == 64 * 2**20


@pytest.mark.parametrize(
    "values",
    [
        {"port": 65536},
        {"port": -1},
        {"gpu_memory_utilization": 0},
        {"gpu_memory_utilization": 1.1},
        {"block_size": -1},
        {"kv_lease_s": 0},
        {"kv_lease_s": "inf"},
        {"kv_lease_s": "nan"},
        {"log_level": "loud"},
        {"kv_transport": "pigeon"},
        {"unknown": 1},
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, object]):
    """Before a process starts."""
    with pytest.raises(ValidationError):
        WorkerSettings.model_validate(values)


def test_defaults_are_within_their_own_ranges():
    """Every default is validated too, and described."""
    assert WorkerSettings() == WorkerSettings.model_validate({})
    names = {doc.name for doc in describe_settings(WorkerSettings, "BATON_PREFILL_")}
    assert {"model", "max_num_seqs", "kv_checksum", "directory", "metrics_port"} <= names


def test_the_advertised_host_is_one_that_others_can_use():
    """A wildcard to listen on is never told to peers."""
    assert ProcessSettings(host="0.0.0.0").advertised_host == socket.gethostname()
    assert ProcessSettings(host="10.0.0.7").advertised_host == "10.0.0.7"
    assert ProcessSettings(host="0.0.0.0", advertise_host="pod-7").advertised_host == "pod-7"


def test_a_worker_has_a_name_of_its_own():
    """Made of what tells it apart on its machine, kept over restarts at the same port."""
    assert WorkerSettings().worker_name("prefill", 9100) == f"prefill-{socket.gethostname()}-9100"
    assert WorkerSettings(worker_id="blue").worker_name("prefill", 9100) == "blue"
