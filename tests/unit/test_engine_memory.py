"""How many KV blocks an engine gets."""

from pathlib import Path

import pytest
import torch

from services.common.config import ConfigError
from services.engine.config import EngineConfig
from services.engine.memory import available_cpu_bytes, choose_num_blocks

CPU = torch.device("cpu")


def choose(max_model_len: int = 100, **settings: int) -> int:
    config = EngineConfig(checkpoint=Path("unused"), max_num_seqs=4, **settings)  # type: ignore[arg-type]
    return choose_num_blocks(config, block_bytes=1000, block_size=16, max_model_len=max_model_len, device=CPU)


def test_an_explicit_count_wins() -> None:
    """num_blocks is taken as it is, over the budget and over what could be used."""
    assert choose(num_blocks=999, cpu_kv_bytes=1) == 999


def test_the_budget_is_spent_on_whole_blocks() -> None:
    """A budget of 10,999 bytes is 10 blocks of 1,000."""
    assert choose(cpu_kv_bytes=10_999) == 10


def test_no_more_than_could_be_used() -> None:
    """Four requests of 100 tokens need 28 blocks of 16, however large the budget."""
    assert choose(cpu_kv_bytes=10**9) == 28


@pytest.mark.parametrize("setting", ["num_blocks", "cpu_kv_bytes"])
def test_too_few_for_one_request_is_refused_with_the_way_out(setting: str) -> None:
    """The error names the setting that decided, what is needed, and what to change."""
    with pytest.raises(
        ConfigError, match=rf"{setting} gives \d+ KV blocks .* needs 7 .*raise {setting} or lower max_model_len"
    ):
        choose(**{setting: 6 if setting == "num_blocks" else 6999})


def test_exactly_one_request_is_enough() -> None:
    """The border of the rule above."""
    assert choose(num_blocks=7) == 7


def test_a_control_group_limits_what_is_available(tmp_path: Path) -> None:
    """The smaller of the machine's memory and the group's remainder; "max" is no limit."""
    for name, content in (
        ("proc/meminfo", "MemTotal: 9 kB\nMemAvailable:    5000 kB\n"),
        ("sys/fs/cgroup/memory.max", "3000000\n"),
        ("sys/fs/cgroup/memory.current", "1000000\n"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert available_cpu_bytes(tmp_path) == 2_000_000
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("max\n")
    assert available_cpu_bytes(tmp_path) == 5000 * 1024


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"dtype": "int8"}, "dtype is 'int8'; use one of auto, float32"),
        ({"attention": "magic"}, "attention is 'magic'"),
        ({"device": "tpu"}, "device is 'tpu'"),
        ({"block_size": -1}, "block_size is -1"),
        ({"max_num_seqs": 0}, "max_num_seqs is 0; use 1 or more"),
        ({"gpu_memory_utilization": 1.5}, "gpu_memory_utilization is 1.5"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object], reason: str) -> None:
    """Each says what is wrong and what is allowed."""
    with pytest.raises(ConfigError, match=reason):
        EngineConfig(checkpoint=Path("unused"), **settings)  # type: ignore[arg-type]
