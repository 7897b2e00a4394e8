"""What is asked of a cluster: how many requests at once, how long, how many tokens each."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """`num_requests` prompts sent at once, each answered with exactly `output_tokens` tokens."""

    name: str
    num_requests: int
    prompt_tokens: int
    output_tokens: int


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload(name="w1", num_requests=1, prompt_tokens=512, output_tokens=128),
        Workload(name="w2", num_requests=16, prompt_tokens=256, output_tokens=128),
        Workload(name="w3", num_requests=16, prompt_tokens=1024, output_tokens=8),
        Workload(name="w4", num_requests=32, prompt_tokens=32, output_tokens=256),
    )
}
