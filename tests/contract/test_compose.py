"""The files of compose/ fit together and fit the processes that they start."""

import re

import pytest
import yaml
from typer.main import get_command

from services.cli.main import app
from services.common import ports
from services.common.config import Settings, describe_settings
from services.decode.config import DecodeSettings
from services.frontend.config import FrontendSettings
from services.kvtransfer.directory.config import DirectorySettings
from services.prefill.config import PrefillSettings
from tests.harness.compose_files import FOLDER, load, merge

PROCESSES: dict[str, tuple[type[Settings], int]] = {
    "kvtransfer": (DirectorySettings, ports.KVTRANSFER),
    "prefill": (PrefillSettings, ports.PREFILL),
    "decode": (DecodeSettings, ports.DECODE),
    "frontend": (FrontendSettings, ports.FRONTEND),
}
OVERLAYS = [
    ("compose.gpu.yaml",),
    ("compose.prometheus.yaml",),
    ("compose.tls.yaml",),
    ("compose.gpu.yaml", "compose.prometheus.yaml", "compose.tls.yaml"),
]
# Of the `baton` command that health checks and operators run inside of a container.
OF_CLIENTS = "BATON_CLIENT_"


@pytest.mark.parametrize("process", PROCESSES)
def test_every_variable_is_a_setting(process: str) -> None:
    """Each BATON_ variable of a service is a setting of its process, so no container dies of an unknown one."""
    settings, _ = PROCESSES[process]
    known = {doc.env for doc in describe_settings(settings, f"BATON_{process.upper()}_")}
    for names in ((), *OVERLAYS):
        service = load("compose.yaml", *names)["services"][process]
        given = {
            name for name in service["environment"] if name.startswith("BATON_") and not name.startswith(OF_CLIENTS)
        }
        assert given <= known
        assert service["command"] == [process]


@pytest.mark.parametrize("process", PROCESSES)
def test_a_health_check_asks_the_port_that_the_process_listens_on(process: str) -> None:
    """The check runs `baton health` against the process's default port."""
    service = load("compose.yaml")["services"][process]
    assert service["healthcheck"]["test"] == ["CMD", "baton", "health", f"localhost:{PROCESSES[process][1]}"]


def test_everybody_finds_the_directory() -> None:
    """Workers and frontend are given the directory's service name and port."""
    services = load("compose.yaml")["services"]
    for process in ("prefill", "decode", "frontend"):
        address = services[process]["environment"][f"BATON_{process.upper()}_DIRECTORY"]
        assert address == f"kvtransfer:{ports.KVTRANSFER}"


def test_containers_outlive_the_drain() -> None:
    """Docker waits longer for a stopping process than the process waits for its requests."""
    for name, service in load("compose.yaml")["services"].items():
        settings, _ = PROCESSES[name]
        assert float(service["stop_grace_period"].rstrip("s")) > settings.model_fields["drain_timeout_s"].default


def test_workers_do_not_share_cores() -> None:
    """The default cores of prefill and decode are disjoint."""
    services = load("compose.yaml")["services"]
    assert not set(services["prefill"]["cpuset"].split(",")) & set(services["decode"]["cpuset"].split(","))


def test_the_gpu_overlay_changes_what_it_must() -> None:
    """Workers compute on CUDA, on different devices, from an image with CUDA's torch; the rest stays."""
    base, services = load("compose.yaml")["services"], load("compose.yaml", "compose.gpu.yaml")["services"]
    devices = []
    for process in ("prefill", "decode"):
        assert services[process]["environment"][f"BATON_{process.upper()}_DEVICE"] == "cuda"
        assert "pypi.org" in services[process]["build"]["args"]["TORCH_INDEX"]
        assert services[process]["image"] != base[process]["image"]
        devices += services[process]["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"]
    assert len(set(devices)) == 2
    assert services["frontend"] == base["frontend"]


def test_the_tls_overlay_secures_every_process() -> None:
    """Each process has a certificate of its own, wants one of its peers, and takes tokens; so does its health check."""
    services = load("compose.yaml", "compose.tls.yaml")["services"]
    certificates = set()
    for process, (settings, _) in PROCESSES.items():
        prefix, environment = f"BATON_{process.upper()}_", services[process]["environment"]
        given = {name.removeprefix(prefix).lower(): value for name, value in environment.items() if prefix in name}
        secured = settings.model_validate(given)
        assert secured.tls_require_client_cert  # type: ignore[attr-defined]
        assert secured.cluster_token_file == "/certs/cluster-tokens"  # type: ignore[attr-defined]
        certificates.add(secured.tls_cert)  # type: ignore[attr-defined]
        options = {parameter.envvar for parameter in get_command(app).params if parameter.envvar}
        assert {name for name in environment if name.startswith(OF_CLIENTS)} <= options
        assert "./certs:/certs:ro" in services[process]["volumes"]
    assert len(certificates) == len(PROCESSES)
    assert services["frontend"]["environment"]["BATON_FRONTEND_AUTH_TOKEN_FILE"] == "/certs/public-tokens"


def test_prometheus_scrapes_every_process() -> None:
    """Each process is scraped at its metrics port, under its service name, and Prometheus is on their network."""
    configured = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    found = {job["job_name"]: job["dns_sd_configs"][0] for job in configured}
    wanted = {name: {"names": [name], "type": "A", "port": port + 1000} for name, (_, port) in PROCESSES.items()}
    assert found == wanted
    services = load("compose.yaml", "compose.prometheus.yaml")["services"]
    assert services["prometheus"]["networks"] == services["frontend"]["networks"]


def test_every_image_is_a_stage_of_the_dockerfile() -> None:
    """Each service is built from a stage that exists; only workers get the stage with torch."""
    stages = set(re.findall(r"^FROM \S+ AS (\w+)$", (FOLDER / "Dockerfile").read_text(), re.MULTILINE))
    targets = {name: service["build"]["target"] for name, service in load("compose.yaml")["services"].items()}
    assert set(targets.values()) <= stages
    assert {name for name, target in targets.items() if target == "worker"} == {"prefill", "decode"}


def test_overlays_merge_as_in_compose() -> None:
    """Mappings merge, sequences are appended, commands are replaced: what these tests rest on."""
    base = {"a": {"x": 1, "y": [1]}, "command": ["old"]}
    assert merge(base, {"a": {"y": [2]}, "command": ["new"]}) == {"a": {"x": 1, "y": [1, 2]}, "command": ["new"]}
