"""`baton up`: a whole deployment on this machine, one process each as in production."""

import asyncio
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Sequence

from rich.console import Console

from services.cli import generate
from services.cli.answer_view import TextAnswer
from services.cli.cluster_plan import plan_cluster
from services.cli.cores import ordered_cores
from services.cli.free_ports import FreePorts, is_free
from services.cli.serving import Ask, ServeOptions, serve
from services.cli.status_view import StatusView
from services.cli.up_settings import UpSettings, client_security, cluster_settings
from services.common.checkpoint import resolve_checkpoint
from services.common.config import ConfigError, load_settings
from services.common.errors import BatonError
from services.common.ports import join_address
from services.common.rpc.security import use_client_security
from services.common.sampling import SamplingParams

_NVIDIA_SMI_TIMEOUT_S = 10.0
_ANSWER_TIMEOUT_S = 120.0


def main(argv: Sequence[str]) -> int:
    """Starts a cluster, serves until it is stopped, and returns the exit code: 2 where the settings are wrong."""
    try:
        settings = load_settings(UpSettings, argv, prog="baton up", env_prefix="BATON_UP_").value
        return _up(settings)
    except ConfigError as error:
        sys.stderr.write(f"baton up: {error}\n")
        return 2


def _up(settings: UpSettings) -> int:
    use_client_security(client_security(settings))
    view = StatusView(Console(), has_table=not settings.verbose)
    if settings.port and not is_free(settings.host, settings.port):
        raise ConfigError(f"{join_address(settings.host, settings.port)} is in use; choose another --port")
    num_gpus = count_gpus() if settings.device != "cpu" else 0
    if settings.device == "cuda" and not num_gpus:
        raise ConfigError("device cuda: nvidia-smi finds no GPU; use --device cpu")
    device = "cuda" if num_gpus else "cpu"
    # Found here, so that a hub model is downloaded once and a wrong name is reported once.
    checkpoint = str(resolve_checkpoint(settings.model))
    wanted = cluster_settings(settings, checkpoint, device)
    plan = plan_cluster(wanted, ordered_cores(), num_gpus, FreePorts(settings.host).take)
    options = ServeOptions(
        log_folder=pathlib.Path(settings.log_folder),
        start_timeout_s=settings.start_timeout_s,
        drain_timeout_s=settings.drain_timeout_s,
        ready_file=pathlib.Path(settings.ready_file) if settings.ready_file else None,
        ask=_asker(settings.prompt) if settings.prompt else None,
        is_once=settings.once,
        is_verbose=settings.verbose,
    )
    return asyncio.run(serve(plan, options, view))


def _asker(prompt: str) -> Ask:
    """Sends the prompt to a frontend and shows the answer, greedily chosen so that it is the same each time."""

    async def ask(address: str) -> None:
        sys.stdout.write(f"> {prompt}\n")
        answer = TextAnswer(num_choices=1)
        greedy = SamplingParams(temperature=0.0)
        wanted = generate.Ask(
            address=address, prompt=prompt, is_chat=None, model="", sampling=greedy, deadline_s=_ANSWER_TIMEOUT_S
        )
        try:
            await generate.send(wanted, answer)
        except BatonError:
            answer.fail()
            raise
        answer.end()

    return ask


def count_gpus() -> int:
    """CUDA devices of this machine, as the NVIDIA driver lists them; 0 without one."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return 0
    try:
        listed = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=_NVIDIA_SMI_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
