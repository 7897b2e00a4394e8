"""What the processes of each role are made of: their settings and what builds them."""

from typing import Any

from services.decode.config import DecodeSettings
from services.decode.server import build as build_decode
from services.frontend.config import FrontendSettings
from services.frontend.server import FrontendProcess
from services.kvtransfer.directory.config import DirectorySettings
from services.kvtransfer.directory.server import DirectoryProcess
from services.prefill.config import PrefillSettings
from services.prefill.server import build as build_prefill

DIRECTORY = "kvtransfer"
ROLES = ("prefill", "decode", "frontend")
SETTINGS: dict[str, Any] = {
    "prefill": PrefillSettings,
    "decode": DecodeSettings,
    "frontend": FrontendSettings,
    DIRECTORY: DirectorySettings,
}
BUILD: dict[str, Any] = {
    "prefill": build_prefill,
    "decode": build_decode,
    "frontend": FrontendProcess,
    DIRECTORY: DirectoryProcess,
}
