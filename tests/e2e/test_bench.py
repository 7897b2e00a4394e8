"""`python -m benchmarks` as a user runs it, with very few requests: it measures something and says on what."""

import asyncio
import json
import pathlib
import subprocess
import sys

import pytest

from services.common.checkpoint import resolve_checkpoint
from tests.harness.processes import processes

ROOT = pathlib.Path(__file__).resolve().parents[2]
PERCENTILES = {
    f"{statistic}_{metric}_ms"
    for statistic in ("mean", "median", "std", "p95", "p99")
    for metric in ("ttft", "tpot", "itl", "e2el")
}
STAGES = {f"median_{stage}_ms" for stage in ("queue", "prefill", "handoff", "admission", "decode")}
FIGURES = {
    "completed", "failed", "duration", "total_input_tokens", "total_output_tokens", "request_throughput",
    "output_throughput", "total_token_throughput", "slo_attainment", "request_goodput",
}  # fmt: skip

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a benchmark to its end."""
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)


def test_both_clusters_are_measured_in_one_run(tmp_path: pathlib.Path) -> None:
    """Split and colocated answer the same requests; the report has every figure, the machine and the command."""
    out = tmp_path / "found.json"
    sizes = ("--requests", "3", "--concurrency", "2", "--prompt-tokens", "20:40", "--output-tokens", "5")
    done = bench(*sizes, "--rounds", "2", "--slo-ttft-ms", "60000", "--slo-tpot-ms", "60000", "--out", str(out))
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert report["benchmark"] == "serve"
    assert "--requests 3" in report["command"]
    assert {"processor", "cores", "python", "versions", "commit"} <= report["machine"].keys()
    assert report["workload"]["num_prompts"] == 3
    assert set(report["results"]) == {"split", "colocated"}
    for result in report["results"].values():
        assert result.keys() >= FIGURES | PERCENTILES | STAGES
        assert (result["completed"], result["failed"], result["errors"]) == (6, 0, {})
        assert (result["total_output_tokens"], result["total_cached_tokens"]) == (15, 0)
        assert result["slo_attainment"] == 1.0
        assert len(result["rounds"]) == 2
    split, colocated = (report["results"][name] for name in ("split", "colocated"))
    assert split["total_input_tokens"] == colocated["total_input_tokens"]
    assert (split["colocated_requests"], colocated["colocated_requests"]) == (0, 3)
    assert split["median_handoff_ms"] > colocated["median_handoff_ms"]
    assert "TTFT median" in done.stdout


def test_a_frontend_that_is_not_there_fails_the_benchmark(tmp_path: pathlib.Path) -> None:
    """Every request is counted as failed, none as fast, and the exit code tells."""
    out = tmp_path / "found.json"
    done = bench("--address", "127.0.0.1:1", "--requests", "2", "--rounds", "1", "--timeout-s", "5", "--out", str(out))
    assert done.returncode == 1, done.stderr
    result = json.loads(out.read_text())["results"]["frontend"]
    assert (result["completed"], result["failed"]) == (0, 2)
    assert "median_ttft_ms" not in result


def test_goodput_is_searched_on_a_mixed_load(tmp_path: pathlib.Path) -> None:
    """Every target takes probes in turn; the report has them all, and what a target met is its goodput."""
    out = tmp_path / "found.json"
    short = ("--prompt-tokens", "20:40", "--output-tokens", "4", "--long-share", "0.25", "--long-prompt-tokens", "200")
    size = ("--requests", "4", "--probe-s", "0.5", "--probes", "2", "--first-rate", "4", "--warmups", "1")
    done = bench(
        "goodput", "--clusters", "split,colocated-64", *short, "--long-output-tokens", "2", *size,
        "--slo-ttft-ms", "60000", "--slo-itl-ms", "60000", "--out", str(out),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads(out.read_text())["results"]
    assert set(results) == {"split", "colocated-64"}
    for result in results.values():
        assert (result["goodput"], result["missed_rate"]) == (8.0, None)
        assert [probe["request_rate"] for probe in result["probes"]] == [4.0, 8.0]
        assert all((probe["completed"], probe["failed"]) == (4, 0) for probe in result["probes"])
        assert all(probe["total_output_tokens"] == 3 * 4 + 2 for probe in result["probes"])
        assert all((probe["short_completed"], probe["long_completed"]) == (3, 1) for probe in result["probes"])


@pytest.mark.parametrize(
    ("arguments", "figures"),
    [
        (
            ("decode", "--batches", "1,2", "--contexts", "32", "--steps", "2", "--rounds", "1"),
            {"median_tpot_ms", "output_throughput", "bandwidth_share", "gemm_share", "limit_share"},
        ),
        (
            ("prefill", "--lengths", "48", "--batches", "1,3", "--step-tokens", "32", "--rounds", "1"),
            {"prefill_ms", "prompt_throughput", "gemm_share"},
        ),
        (
            ("transfer", "--message-bytes", "64KiB,1MiB", "--fetch-bytes", "4MiB", "--repeats", "2"),
            {"setup_ms", "message_ms", "gb_per_s", "raw_message_ms", "raw_gb_per_s"},
        ),
    ],
    ids=["decode", "prefill", "transfer"],
)
def test_a_part_is_measured_alone(arguments: tuple[str, ...], figures: set[str], tmp_path: pathlib.Path) -> None:
    """A row for each case, and every figure was measured."""
    out = tmp_path / "found.json"
    done = bench(*arguments, "--out", str(out))
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert len(report["rows"]) == 2
    assert all(row[name] > 0 for row in report["rows"] for name in figures)


def test_engines_are_measured_in_turn(tmp_path: pathlib.Path) -> None:
    """Each in its rows and under its name, and it is the one that it is called."""
    out = tmp_path / "found.json"
    cases = ("--engines", "torch,kernels,int8", "--contexts", "16", "--batches", "1,2", "--steps", "2", "--rounds", "2")
    done = bench("decode", *cases, "--out", str(out))
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert [(row["engine"], row["batch"]) for row in report["rows"]] == [
        (name, batch) for batch in (1, 2) for name in ("torch", "kernels", "int8")
    ]
    told = {name: (each["native_kernels"], each["quantization"]) for name, each in report["engines"].items()}
    assert told == {"torch": (False, "none"), "kernels": (True, "none"), "int8": (True, "int8")}


async def test_each_tier_is_measured_on_a_worker_that_runs(tmp_path: pathlib.Path) -> None:
    """Over gRPC, and from the prefill worker also KV: a row for each case, and every figure was measured."""
    cases = [
        ("prefill", "prefill-0", ("--lengths", "40", "--batches", "1,3", "--rounds", "1"), "prompt_throughput"),
        ("prefill", "decode-0", ("--lengths", "40", "--batches", "1,3", "--rounds", "1"), "prompt_throughput"),
        (
            "decode",
            "decode-0",
            ("--contexts", "40", "--batches", "1,3", "--steps", "4", "--rounds", "1"),
            "median_tpot_ms",
        ),
        ("transfer", "prefill-0", ("--lengths", "20,200", "--repeats", "2"), "gb_per_s"),
    ]
    out = tmp_path / "found.json"
    async with processes(resolve_checkpoint("demo"), tmp_path, {"prefill": 1, "decode": 1}) as cluster:
        for word, worker, sizes, figure in cases:
            done = await asyncio.to_thread(bench, word, "--address", cluster.address(worker), *sizes, "--out", str(out))
            assert done.returncode == 0, done.stderr
            report = json.loads(out.read_text())
            assert report["worker"]["tier"] == worker.removesuffix("-0")
            assert len(report["rows"]) == 2
            assert all(row[figure] > 0 for row in report["rows"])
        wrong = await asyncio.to_thread(bench, "transfer", "--address", cluster.address("decode-0"))
        assert (wrong.returncode, "no prefill worker" in wrong.stderr) == (2, True)


def test_the_control_plane_is_measured_without_a_model(tmp_path: pathlib.Path) -> None:
    """Real processes, every answer complete, and CPU time of each of them for each number of streams."""
    out = tmp_path / "found.json"
    size = ("--streams", "1,8", "--requests", "8", "--turns", "1", "--output-tokens", "8", "--rounds", "1")
    done = bench("control", "--queued", "1,20", *size, "--step-ms", "2", "--out", str(out))
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert [row["queued"] for row in report["schedulers"]] == [1, 20]
    for part in ("answers", "requests", "paced"):
        assert [(row["streams"], row["failed"]) for row in report[part]] == [(1, 0), (8, 0)]
        assert all(row["output_throughput"] > 0 for row in report[part])
        assert all(row[f"{name}_cores"] >= 0 for row in report[part] for name in ("frontend", "worker", "client"))


def test_growth_is_measured_in_one_run(tmp_path: pathlib.Path) -> None:
    """Engine, schedulers and frontend, each over its sizes, and an exponent of each curve."""
    out = tmp_path / "found.json"
    engine = ("--contexts", "16,32", "--context-batches", "1", "--batches", "1,2", "--batch-context", "16")
    streams = ("--queued", "1,20", "--streams", "1,4", "--output-tokens", "8", "--step-ms", "2")
    done = bench("growth", *engine, "--steps", "2", "--rounds", "1", *streams, "--out", str(out))
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert [row["context"] for row in report["contexts"]] == [16, 32]
    assert [row["batch"] for row in report["batches"]] == [1, 2]
    assert [row["queued"] for row in report["schedulers"]] == [1, 20]
    assert all(row["frontend_us_per_token"] > 0 for row in report["streams"])
    assert len(report["exponents"]) == 7


def test_the_crossover_is_searched_in_one_run(tmp_path: pathlib.Path) -> None:
    """Every target at every rate and length, with prompts that no cache has, and who is better where."""
    out = tmp_path / "found.json"
    sizes = ("--lengths", "16,48", "--rates", "8,9", "--output-tokens", "3", "--requests", "2", "--rounds", "1")
    done = bench("crossover", "--clusters", "split,colocated-64", *sizes, "--out", str(out))
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert [(each["rate"], each["prompt_tokens"]) for each in report["points"]] == [(8, 16), (8, 48), (9, 16), (9, 48)]
    for result in (result for point in report["points"] for result in point["results"].values()):
        assert (result["completed"], result["failed"], result["total_cached_tokens"]) == (2, 0, 0)
    assert len(report["crossovers"]) == 2 * 4


def test_hedging_is_measured_with_and_without(tmp_path: pathlib.Path) -> None:
    """Only one of both frontends hedges, and every request is answered although a worker keeps standing still.

    With a factor this small every first token is late.
    """
    out = tmp_path / "found.json"
    stalls = ("--stall-s", "0.1", "--every-s", "0.5", "--factor", "0.05")
    done = bench("hedging", *stalls, "--requests", "20", "--rate", "20", "--rounds", "1", "--out", str(out))
    assert done.returncode == 0, done.stderr
    plain, hedged = (json.loads(out.read_text())["results"][name] for name in ("plain", "hedged"))
    assert (plain["completed"], plain["hedged_requests"]) == (20, 0)
    assert hedged["completed"] == 20
    assert hedged["hedged_requests"] > 0
