"""Loads the engine of a worker process."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from services.common.log import get_logger
from services.common.settings import WorkerSettings
from services.engine.engine import Engine, load_engine
from services.engine.warm_up import warm_up
from services.worker.placement import RankCores
from services.worker.settings import engine_config

_log = get_logger(__name__)


async def load_apart(settings: WorkerSettings, rank_cores: RankCores = ()) -> Engine:
    """As `load_warm`, on a thread that ends with it; cancelled, it returns at once.

    OpenMP keeps threads for each thread that ever computed. With those of a second one there are more than cores, and
    then they sleep whenever they wait: a decode step of one request took 22 ms instead of 11 (two cores, `small`).
    """
    apart = ThreadPoolExecutor(1, "load")
    try:
        return await asyncio.get_running_loop().run_in_executor(apart, load_warm, settings, rank_cores)
    finally:
        apart.shutdown(wait=False)


def load_warm(settings: WorkerSettings, rank_cores: RankCores = ()) -> Engine:
    """An engine that has run; takes as long as the weights do, so call it on a thread of its own.

    Args:
        settings: Of the worker.
        rank_cores: Cores of each rank, where several share the model.

    Raises:
        ConfigError: the checkpoint, the device or the memory does not allow it; says what to change.
        RankLost: a rank died meanwhile.
    """
    config = engine_config(settings, rank_cores)
    engine = load_engine(config, lambda line: _log.info("engine_loading", step=line))
    try:
        warm_up(engine)
    except BaseException:
        engine.close()
        raise
    return engine
