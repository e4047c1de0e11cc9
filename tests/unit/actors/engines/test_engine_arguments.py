"""What an engine's spec becomes in vLLM's own terms."""

from dataclasses import replace

import pytest

from stargate.actors.engines.spec import (
    EngineSpec,
    engine_arguments,
    engine_environment,
    needed_memory_gb,
    sampling_arguments,
)
from stargate.config.run import EngineConfig
from stargate.types import Sampling


def test_cpu_arguments() -> None:
    spec = EngineSpec(role="questioner", model_dir="/models/m0", config=EngineConfig(), seed=7)
    assert engine_arguments(spec) == {
        "model": "/models/m0",
        "load_format": "safetensors",
        "trust_remote_code": False,
        "dtype": "bfloat16",
        "seed": 7,
        "max_model_len": 2048,
        "max_num_seqs": 64,
        "tensor_parallel_size": 1,
        "enable_prefix_caching": True,
        "disable_log_stats": True,
        "weight_transfer_config": {"backend": "stargate_file"},
        "kv_cache_memory_bytes": 1_000_000_000,
        "block_size": 32,
        "enforce_eager": True,
        "logprobs_mode": "processed_logits",
        "logits_processors": ["stargate.actors.engines.nucleus:NucleusLogitsProcessor"],
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": 2048,
    }


def test_gpu_arguments_leave_blocks_graphs_and_prefill_to_vllm() -> None:
    config = EngineConfig(tensor_parallel_size=2, gpu_memory_utilization=0.4, dtype="auto")
    spec = EngineSpec("roleplayer", "/models/m0", config, device="cuda", trust_remote_code=True)
    assert engine_arguments(spec) == {
        "model": "/models/m0",
        "load_format": "safetensors",
        "trust_remote_code": True,
        "dtype": "auto",
        "seed": 0,
        "max_model_len": 2048,
        "max_num_seqs": 256,
        "tensor_parallel_size": 2,
        "enable_prefix_caching": True,
        "disable_log_stats": True,
        "weight_transfer_config": {"backend": "stargate_file"},
        "logprobs_mode": "processed_logprobs",
        "gpu_memory_utilization": 0.4,
        "enforce_eager": False,
    }


def test_settings_of_the_config_win() -> None:
    config = EngineConfig(
        block_size=64, enforce_eager=False, cpu_kv_cache_gb=0.5, max_model_len=8192
    )
    many = EngineConfig(max_num_batched_tokens=16384)
    for device in ("cpu", "cuda"):
        arguments = engine_arguments(EngineSpec("questioner", "/m", many, device=device))
        assert arguments["max_num_batched_tokens"] == 16384
    cpu = engine_arguments(EngineSpec("questioner", "/m", config))
    assert cpu["block_size"] == 64
    assert cpu["enforce_eager"] is False
    assert cpu["kv_cache_memory_bytes"] == 500_000_000
    # A prompt is computed in one step, so a step must hold the longest one.
    assert cpu["max_num_batched_tokens"] == 8192
    gpu = engine_arguments(EngineSpec("questioner", "/m", config, device="cuda"))
    assert gpu["block_size"] == 64


@pytest.mark.parametrize(("cores", "bound"), [("0", "0"), ("0-1|2-3", "0-1|2-3"), (None, "auto")])
def test_cpu_environment(cores: str | None, bound: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    spec = EngineSpec("questioner", "/m", EngineConfig(), cpu_cores=cores)
    assert engine_environment(spec) == {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "VLLM_LOGGING_LEVEL": "INFO",
        "VLLM_LOGGING_COLOR": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_CPU_OMP_THREADS_BIND": bound,
        "GLIBC_TUNABLES": (
            "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=2147483648:"
            "glibc.malloc.arena_max=1"
        ),
    }


def test_the_users_own_tunables_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of ours is sent to an actor in their place."""
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=3")
    assert "GLIBC_TUNABLES" not in engine_environment(
        EngineSpec("questioner", "/m", EngineConfig())
    )


def test_gpu_environment_binds_no_cores() -> None:
    environment = engine_environment(EngineSpec("q", "/m", EngineConfig(), device="cuda"))
    assert "VLLM_CPU_OMP_THREADS_BIND" not in environment
    assert "GLIBC_TUNABLES" not in environment
    # Its kernels are compiled at start, with an nvcc that few machines have.
    assert environment["VLLM_USE_FLASHINFER_SAMPLER"] == "0"


def test_sampling_on_gpu_is_vllms_own() -> None:
    sampling = Sampling(temperature=0.9, top_p=0.8, max_new_tokens=32, seed=5)
    assert sampling_arguments(sampling, "cuda") == {
        "temperature": 0.9,
        "top_p": 0.8,
        "max_tokens": 32,
        "seed": 5,
        "detokenize": False,
    }


def test_the_end_of_a_templates_turn_is_a_stop() -> None:
    sampling = Sampling(0.9, 0.8, max_new_tokens=32, seed=5, stop_ids=(7, 8))
    assert sampling_arguments(sampling, "cuda")["stop_token_ids"] == [7, 8]


def test_top_p_on_cpu_goes_to_our_logits_processor() -> None:
    sampling = Sampling(temperature=0.9, top_p=0.8, max_new_tokens=32, seed=5)
    assert sampling_arguments(sampling, "cpu") == {
        "temperature": 0.9,
        "top_p": 1.0,
        "max_tokens": 32,
        "seed": 5,
        "detokenize": False,
        "extra_args": {"stargate_top_p": 0.8},
    }
    whole = Sampling(temperature=0.9, top_p=1.0, max_new_tokens=32, seed=5)
    assert "extra_args" not in sampling_arguments(whole, "cpu")
    # Greedy texts are drawn from nothing; vLLM drops its own top-p for them, too.
    assert "extra_args" not in sampling_arguments(replace(sampling, temperature=0.0), "cpu")


def test_only_who_asks_for_logprobs_gets_them() -> None:
    sampling = Sampling(0.9, 1.0, 32, 5, logprobs=True)
    asked = sampling_arguments(sampling, "cpu")
    assert (asked["logprobs"], asked["flat_logprobs"]) == (0, True)
    assert "logprobs" not in sampling_arguments(replace(sampling, logprobs=False), "cpu")
    assert "prompt_logprobs" not in asked
    read = sampling_arguments(replace(sampling, num_prompt_logprobs=3), "cpu")
    assert (read["prompt_logprobs"], read["flat_logprobs"]) == (0, True)


def test_needed_memory() -> None:
    bf16 = EngineSpec("q", "/m", EngineConfig(cpu_kv_cache_gb=1.5))
    # 2 bytes a parameter + KV cache + 1.9 for the processes
    assert needed_memory_gb(bf16, 500_000_000) == pytest.approx(1.0 + 1.5 + 1.9)
    fp32 = EngineSpec("q", "/m", EngineConfig(cpu_kv_cache_gb=1.5, dtype="float32"))
    assert needed_memory_gb(fp32, 500_000_000) == pytest.approx(2.0 + 1.5 + 1.9)
