"""What processes tell of themselves: a worker's counts over gRPC, any process's metrics."""

import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from services.common.rpc.channel import open_channel
from services.common.worker_client import WorkerClient

ASK_S = 5.0


async def asked(address: str, name: str) -> tuple[str, dict[str, int]]:
    """A worker's incarnation and all its counts."""
    channel = open_channel(address)
    try:
        info, load = await WorkerClient(channel, name).describe(ASK_S)
    finally:
        await channel.close()
    counts = {"handoffs": load.handoffs, "running_requests": load.running_requests, "channels": load.channels}
    return info.incarnation, {**load.counters, **counts}


def scraped(address: str) -> dict[str, float]:
    """Every sample of a process's metrics endpoint."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=ASK_S) as answer:
        return samples(answer.read().decode())


def samples(text: str) -> dict[str, float]:
    """Samples of a Prometheus page by name, as in `name{label=value}`."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found
