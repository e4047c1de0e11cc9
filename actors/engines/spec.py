"""What one engine is: its spec, and that spec in vLLM's own terms. Pure: vLLM is not imported."""

from dataclasses import dataclass
from typing import Any

from stargate.actors.engines.weight_files import BACKEND
from stargate.actors.process.heap import KEEP_FREED_MEMORY, heap_environment
from stargate.config.run import Device, EngineConfig
from stargate.resources.memory import CPU_ENGINE_GB, DTYPE_BYTES
from stargate.types import Sampling

# vLLM's own KV block on CPU is 128 tokens: in short dialogues no prefix would ever be found again.
CPU_BLOCK_SIZE = 32
# Tokens of one step; vLLM's own number on CPU. Without chunked prefill the longest prompt must fit.
CPU_BATCHED_TOKENS = 2048
# The names of nucleus.NucleusLogitsProcessor and its argument, which need vLLM to be imported.
NUCLEUS = "stargate.actors.engines.nucleus:NucleusLogitsProcessor"
NUCLEUS_ARGUMENT = "stargate_top_p"

# What vLLM reads while it is imported, of what it may say and to whom.
NOISE = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "INFO",
    "VLLM_LOGGING_COLOR": "0",
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """All that one engine needs to start; plain values, so that it travels to any node.

    `model_dir` is a local model folder, `policy_version` the version of the weights in it.
    `cpu_cores` is a core list such as "0" or "0-3" (with tensor parallelism one list per rank:
    "0-1|2-3"); None lets vLLM bind all cores. `log_file` takes what vLLM and its processes print;
    None leaves it on the screen. `sleeps`: it gives its GPU up to others from time to time.
    """

    role: str
    model_dir: str
    config: EngineConfig
    seed: int = 0
    policy_version: int = 0
    device: Device = "cpu"
    cpu_cores: str | None = None
    trust_remote_code: bool = False
    log_file: str | None = None
    sleeps: bool = False


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """A started engine: its context length in tokens, its process id, the seconds it took."""

    max_model_len: int
    pid: int
    seconds: float


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counts since the start. `busy_seconds` is the time with at least one request in flight.

    `num_mixed` counts texts that a weight push found half written: they went on under the new
    weights, and their `policy_version` is the one they began with.
    """

    num_requests: int = 0
    num_dropped: int = 0
    num_mixed: int = 0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_generated_tokens: int = 0
    busy_seconds: float = 0.0


def engine_arguments(spec: EngineSpec) -> dict[str, Any]:
    """The keyword arguments of vLLM's AsyncEngineArgs."""
    config = spec.config
    arguments: dict[str, Any] = {
        "model": spec.model_dir,
        "load_format": "safetensors",  # never a pickle
        "trust_remote_code": spec.trust_remote_code,
        "dtype": config.dtype,
        "seed": spec.seed,
        "max_model_len": config.max_model_len,
        "max_num_seqs": config.num_places(spec.device),
        "tensor_parallel_size": config.tensor_parallel_size,
        "enable_prefix_caching": True,
        "disable_log_stats": True,
        "weight_transfer_config": {"backend": BACKEND},
        # After temperature and top-p, as a token is drawn.
        "logprobs_mode": "processed_logprobs",
    }
    if spec.device == "cpu":
        # Not VLLM_CPU_KVCACHE_SPACE, which knows whole GiB only.
        arguments["kv_cache_memory_bytes"] = int(config.cpu_kv_cache_gb * 1e9)
        arguments["block_size"] = config.block_size or CPU_BLOCK_SIZE
        arguments["enforce_eager"] = config.enforce_eager is not False
        arguments["logits_processors"] = [NUCLEUS]
        arguments["logprobs_mode"] = "processed_logits"  # nucleus.py makes log-probs of them
        # A prompt computed in parts kills vLLM 0.32 on CPU when its request has a seed: vLLM
        # rewinds the request's generator, which torch's CPU generator can't do.
        arguments["enable_chunked_prefill"] = False
        arguments["max_num_batched_tokens"] = config.max_num_batched_tokens or max(
            config.max_model_len, CPU_BATCHED_TOKENS
        )
    else:
        arguments["gpu_memory_utilization"] = config.gpu_memory_utilization
        if spec.sleeps:
            arguments["enable_sleep_mode"] = True
        arguments["enforce_eager"] = config.enforce_eager is True
        for key in ("block_size", "max_num_batched_tokens"):  # None: as vLLM's own entry points
            if (value := getattr(config, key)) is not None:
                arguments[key] = value
    return arguments


def engine_environment(spec: EngineSpec) -> dict[str, str]:
    """Environment variables that must be set before vLLM is imported and starts its processes."""
    environment = dict(NOISE)
    if spec.device == "cpu":
        environment["VLLM_CPU_OMP_THREADS_BIND"] = spec.cpu_cores or "auto"
        # Prompts are read 1.12 times as fast, texts written 1.08 times (SmolLM2-135M, one core).
        environment |= heap_environment(KEEP_FREED_MEMORY, spec.device)
    else:
        # vLLM would compile FlashInfer's sampler at start, which needs nvcc, and then not use it:
        # every request of ours has a seed.
        environment["VLLM_USE_FLASHINFER_SAMPLER"] = "0"
    return environment


def sampling_arguments(sampling: Sampling, device: Device) -> dict[str, Any]:
    """The keyword arguments of vLLM's SamplingParams.

    vLLM adds the end tokens of the model's generation config to the stop ids.
    """
    arguments: dict[str, Any] = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_new_tokens,
        "seed": sampling.seed,
        # The text is decoded once, from the finished ids, not again at every token.
        "detokenize": False,
    }
    if sampling.stop_ids:
        arguments["stop_token_ids"] = list(sampling.stop_ids)
    if sampling.logprobs:
        # Of the sampled token alone, and in lists instead of a dictionary per token.
        arguments |= {"logprobs": 0, "flat_logprobs": True}
    if sampling.num_prompt_logprobs:
        # vLLM then computes the whole prompt: it takes nothing from the prefix cache.
        arguments |= {"prompt_logprobs": 0, "flat_logprobs": True}
    if device == "cpu" and sampling.temperature > 0.0 and sampling.top_p < 1.0:
        arguments["top_p"] = 1.0
        arguments["extra_args"] = {NUCLEUS_ARGUMENT: sampling.top_p}
    return arguments


def needed_memory_gb(spec: EngineSpec, num_parameters: int) -> float:
    """Memory that an engine on CPU takes, in GB (1e9 bytes)."""
    weights_gb = num_parameters * DTYPE_BYTES[spec.config.dtype] / 1e9
    return weights_gb + spec.config.cpu_kv_cache_gb + CPU_ENGINE_GB
