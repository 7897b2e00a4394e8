"""What the flags of `baton up` mean for each process."""

import pytest

from services.cli import up
from services.cli.up_settings import UpSettings, cluster_settings, parse_flags
from services.common.config import ConfigError
from services.common.settings import WorkerSettings
from services.frontend.config import FrontendSettings


def test_vllms_flags_go_to_workers_and_only_to_them() -> None:
    """A worker's setting reaches prefill and decode and not the frontend."""
    flags = cluster_settings(UpSettings(max_num_seqs=7, dtype="bfloat16"), "/m", "cpu").flags
    assert flags["prefill"]["max-num-seqs"] == flags["decode"]["max-num-seqs"] == "7"
    assert flags["prefill"]["dtype"] == "bfloat16"
    assert "max-num-seqs" not in flags["frontend"]


def test_settings_that_are_not_given_are_left_to_the_process() -> None:
    """Without a value no flag is passed, so that a worker's own environment and defaults count."""
    assert set(cluster_settings(UpSettings(), "/m", "cpu").flags["prefill"]) == {"model", "served-model-name"}


def test_tiers_are_tuned_apart() -> None:
    """Settings of one tier stay there and win over common ones."""
    settings = UpSettings(max_num_seqs=7, prefill_args="max-num-seqs=2 --block_size=32", decode_args="worker-id='a b'")
    flags = cluster_settings(settings, "/m", "cpu").flags
    assert (flags["prefill"]["max-num-seqs"], flags["prefill"]["block-size"]) == ("2", "32")
    assert (flags["decode"]["max-num-seqs"], flags["decode"]["worker-id"]) == ("7", "a b")


def test_tiers_choose_their_degrees_of_tensor_parallelism_apart() -> None:
    """One tier's does not reach the other; 1 is left to the process, and further settings of the tier win."""
    flags = cluster_settings(UpSettings(prefill_tensor_parallel=2), "/m", "cpu").flags
    assert flags["prefill"]["tensor-parallel-size"] == "2"
    assert "tensor-parallel-size" not in flags["decode"]
    given = UpSettings(decode_tensor_parallel=2, decode_args="tensor-parallel-size=4")
    flags = cluster_settings(given, "/m", "cpu").flags
    assert flags["decode"]["tensor-parallel-size"] == flags["colocated"]["tensor-parallel-size"] == "4"


def test_every_flag_that_is_passed_exists() -> None:
    """Workers and frontends know every flag that `baton up` can pass on, so none dies of an unknown one."""
    given = UpSettings(
        dtype="auto",
        max_model_len=1,
        max_num_seqs=1,
        max_num_batched_tokens=1,
        block_size=1,
        num_blocks=1,
        prefill_tensor_parallel=2,
        decode_tensor_parallel=2,
    )
    flags = cluster_settings(given, "/m", "cpu").flags
    for role, known in (("prefill", WorkerSettings), ("decode", WorkerSettings), ("frontend", FrontendSettings)):
        assert {name.replace("-", "_") for name in flags[role]} <= known.model_fields.keys()


def test_the_checkpoint_is_passed_by_path_and_served_by_name() -> None:
    """All processes use the same directory, and clients the name that the user gave."""
    flags = cluster_settings(UpSettings(model="org/model"), "/cache/x", "cpu").flags
    with_model = [each for role, each in flags.items() if role != "kvtransfer"]
    assert {(each["model"], each["served-model-name"]) for each in with_model} == {("/cache/x", "org/model")}


def test_every_process_is_secured_alike() -> None:
    """Certificates and cluster tokens reach all roles, the directory too; clients' tokens reach the frontends alone."""
    secured = UpSettings(
        tls_cert="c", tls_key="k", tls_ca="a", tls_require_client_cert=True, cluster_token_file="t", auth_token_file="p"
    )
    flags = cluster_settings(secured, "/cache/x", "cpu").flags
    wanted = {"tls-cert": "c", "tls-key": "k", "tls-ca": "a", "tls-require-client-cert": "", "cluster-token-file": "t"}
    assert set(flags) == {"kvtransfer", "prefill", "decode", "colocated", "frontend"}
    assert all(wanted.items() <= each.items() for each in flags.values())
    assert [role for role, each in flags.items() if "auth-token-file" in each] == ["frontend"]


@pytest.mark.parametrize("text", ["max-num-seqs", "=3", "a=1 b"])
def test_what_is_not_a_setting_is_refused(text: str) -> None:
    """A word without name or value is an error that names the setting."""
    with pytest.raises(ConfigError, match="prefill_args"):
        parse_flags("prefill_args", text)


@pytest.mark.parametrize("counts", [{"prefill": 0}, {"decode": 0}])
def test_half_a_deployment_is_refused(counts: dict[str, int]) -> None:
    """Prefill without decode, or decode without prefill, is refused before anything starts."""
    with pytest.raises(ConfigError, match="nothing could be served"):
        cluster_settings(UpSettings(**counts), "/m", "cpu")


def test_colocated_workers_suffice() -> None:
    """Colocated workers alone make a deployment, and are told their role."""
    flags = cluster_settings(UpSettings(prefill=0, decode=0, colocated=1), "/m", "cpu").flags
    assert flags["colocated"]["role"] == "colocated"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--prefil", "1"], "--prefil"),
        (["--prefill", "many"], "flag --prefill"),
        (["--model", "./no/such/model"], "no such directory"),
        (["--prefill", "0"], "nothing could be served"),
    ],
)
def test_wrong_flags_end_with_exit_code_2_and_say_which(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mistake on the command line is reported in a line, without a traceback and before any process starts."""
    assert up.main([*argv, "--device", "cpu"]) == 2
    assert message in capsys.readouterr().err
