"""Joins a loaded model, its KV and an attention backend to the runner that the configuration asks for."""

from collections.abc import Callable

from services.engine.attention.device_batch import CapturableBackend
from services.engine.attention.select import is_capturable, make_backend
from services.engine.config import EngineConfig
from services.engine.graph_runner import SPARE_BLOCKS, GraphRunner, with_graphs
from services.engine.load import LoadedModel
from services.engine.paged_kv import PagedKv
from services.engine.runner import Runner


def num_spare_blocks(config: EngineConfig, attention: str) -> int:
    """Blocks that the KV must have beyond those that requests may get."""
    return SPARE_BLOCKS if config.cuda_graphs and is_capturable(attention) else 0


def make_runner(
    config: EngineConfig,
    loaded: LoadedModel,
    kv: PagedKv,
    max_model_len: int,
    attention: str,
    report: Callable[[str], None],
) -> Runner | GraphRunner:
    """The runner of this rank; with graphs where they are wanted and the attention backend can be captured.

    Raises:
        ConfigError: graphs are wanted, and the model's forward pass cannot be captured.
    """
    backend = make_backend(attention, kv.tensor, loaded.kernels)
    eager = Runner(loaded.forward, loaded.slot, backend)
    if not config.cuda_graphs:
        return eager
    if not isinstance(backend, CapturableBackend):
        report(f"decode steps are no CUDA graphs: attention {attention} chooses shapes by lengths")
        return eager
    report("capturing decode steps as CUDA graphs")
    return with_graphs(eager, backend, kv, max_model_len, config.max_num_seqs)
