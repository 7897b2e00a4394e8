"""Loads the engine of a worker process."""

from services.common.log import get_logger
from services.common.settings import WorkerSettings
from services.engine.engine import Engine, load_engine
from services.engine.warm_up import warm_up
from services.worker.settings import engine_config

_log = get_logger(__name__)


def load_warm(settings: WorkerSettings) -> Engine:
    """An engine that has run; takes as long as the weights do, so call it on a thread of its own.

    Raises:
        ConfigError: the checkpoint, the device or the memory does not allow it; says what to change.
    """
    engine = load_engine(engine_config(settings), lambda line: _log.info("engine_loading", step=line))
    warm_up(engine)
    return engine
