"""What each process of a run takes of its device's memory. Pure: config and shapes in, bytes out.

    trainer   weights, gradients, fp32 masters, Adam moments, activations, logits, buffers
    scorer    weights, activations, logits of a part
    engine    weights, work of a step; the rest of its share is the KV cache

Where the bytes are from. A trainer's are DeepSpeed's, by ZeRO stage, and torch's autograd, layer by
layer, as read in their code and as measured with torch's own allocations within 15 %
(tests/integration/test_memory_measured.py). An engine's work is an estimate: vLLM measures its own
when it starts. Nothing here counts what a cache of freed blocks keeps.

Dimensions: h hidden, i intermediate, q and k dimensions of all query and key heads, V vocabulary,
T tokens of a row, e bytes of an element.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from stargate.config.run import Device, EngineConfig, ScorerConfig, TrainerConfig
from stargate.resources.machine import GIB
from stargate.resources.model_shape import ModelShape

# GiB that a process holds on a GPU as long as it lives, asleep or not: CUDA's context, libraries.
PROCESS_GIB = 0.75
# Elements of DeepSpeed's communication buckets, as the trainer sets them. Its own 500 million take
# 1 to 2 GB per bucket, whatever the model's size.
BUCKET_ELEMENTS = 50_000_000
# DeepSpeed's own under ZeRO-3: elements that are kept gathered, and of one part of an update.
_LIVE_ELEMENTS = _SUB_GROUP_ELEMENTS = 1_000_000_000
# Bytes of a number in each dtype of a config.
DTYPE_BYTES = {"auto": 2, "bfloat16": 2, "float16": 2, "float32": 4}
# Bytes of the scorer's float32 logits of a part; it makes log-probs of them part by part.
SCORER_LOGIT_BYTES = 256 * 2**20
# Tokens of one step of an engine: vLLM's own on GPUs of so many GiB, and on smaller ones.
_LARGE_GPU_GIB, _STEP_TOKENS = 70, (16_384, 8_192)
# GiB of CUDA graphs.
_GRAPHS_GIB = 0.5
# GB that an engine on CPU takes besides weights and KV cache: its two processes, measured, rounded
# up. With tensor parallelism each rank has one more, about 0.6 GB.
CPU_ENGINE_GB = 1.9
# GiB of a Python process with torch on a CPU.
_CPU_PROCESS_GIB = 0.6


@dataclass(frozen=True, slots=True)
class Memory:
    """What one process takes: `parts` in bytes, of which `needs` bytes at the worst moment.

    Not all parts are there at once, so `needs` may be less than their sum, never more.
    """

    parts: Mapping[str, float]
    needs: float

    @property
    def needs_gib(self) -> float:
        return self.needs / GIB


def row_tokens(config: TrainerConfig) -> int:
    """Tokens of the trainer's largest forward pass."""
    packed = config.row_tokens if config.packing else None
    return packed or config.micro_batch_size * config.max_length


def num_trained(config: TrainerConfig, shape: ModelShape) -> int:
    """Parameters that learn."""
    if config.lora is None:
        return shape.parameters
    return config.lora.rank * shape.layers * shape.linear_widths


def trainer_memory(config: TrainerConfig, shape: ModelShape, device: Device) -> Memory:
    """One rank's, in the worst moment of a training stage.

    Backward of a step's last micro-batch: all states, the gradients so far, what autograd keeps,
    and the logits, or the work on a layer with gradients on their way. Or the update, which has
    no activations. (Under ZeRO-3 the model is shared out as it is loaded.)
    """
    trained, tokens = num_trained(config, shape), row_tokens(config)
    frozen = shape.parameters - trained if config.lora is None else shape.parameters
    states = _states(config, trained, frozen)
    kept, worked = (tokens * per_token for per_token in token_bytes(config, shape, device))
    logits = 12.0 * tokens * shape.vocabulary  # float32: log-softmax and two gradients of it
    way, update = _on_the_way(config, shape, trained)
    e = DTYPE_BYTES[config.dtype]
    bucket = float(e * BUCKET_ELEMENTS) if config.zero_stage >= 2 else 0.0
    process = (PROCESS_GIB if device == "cuda" else _CPU_PROCESS_GIB) * GIB
    held = sum(states.values()) + bucket + process
    needs = max(held + kept + max(logits, worked + way), held + update)
    buffers = bucket + max(way, update)
    parts = states | {"activations": kept + worked, "logits": logits, "buffers": buffers}
    return Memory(parts | {"process": process}, needs)


def _states(config: TrainerConfig, trained: int, frozen: int) -> dict[str, float]:
    """Bytes of what a rank keeps of `trained` and `frozen` parameters while it trains.

    DeepSpeed shares out masters and moments from ZeRO-1 on, gradients from 2, weights under 3.
    """
    stage, ranks, half = config.zero_stage, config.num_ranks, config.dtype == "bfloat16"
    e = 2 if half and stage > 0 else 4  # ZeRO-0 has no masters: the model itself is float32
    parted = trained / ranks
    weights = e * (trained + frozen) / (ranks if stage == 3 else 1)
    masters = 0.0 if stage == 0 else 4 * parted
    gradients = {
        # A step's gradients, and those of a micro-batch that are added to them.
        0: 8.0 * trained,
        # Whole float32 sums, and a micro-batch's own and the last one's in bfloat16.
        1: (8.0 if half else 12.0) * trained,
        2: (4.0 if half else 8.0) * parted,
        3: 4.0 * parted,
    }[stage]
    moments = 8 * (trained if stage == 0 else parted)
    return {"weights": weights, "gradients": gradients, "masters": masters, "moments": moments}


def _on_the_way(config: TrainerConfig, shape: ModelShape, trained: int) -> tuple[float, float]:
    """Bytes that pass through DeepSpeed's buffers, in backward and in an update."""
    stage, ranks, half = config.zero_stage, config.num_ranks, config.dtype == "bfloat16"
    e = 2 if half else 4
    largest = shape.embedding if config.lora is None else 0
    if stage == 0:  # float32 weights are cast to bfloat16, once per micro-batch
        return (2.0 * shape.parameters if half else 0.0), 0.0
    if stage == 1:
        return 0.0, 2.0 * trained
    # A bucket's gradients wait in it, a larger one is copied and summed in float32.
    reduced = 3 * e * min(trained, BUCKET_ELEMENTS)
    way = max(reduced, (8 if half else 12) * largest if largest > BUCKET_ELEMENTS else 0)
    if stage == 2:
        return float(way), 4.0 * largest
    if ranks > 1:  # gathered weights, and the next ones on their way
        way += e * min(shape.parameters, _LIVE_ELEMENTS)
        way += e * min(shape.parameters, max(BUCKET_ELEMENTS, largest))
    return float(way), 4.0 * min(trained / ranks, _SUB_GROUP_ELEMENTS)


def token_bytes(config: TrainerConfig, shape: ModelShape, device: Device) -> tuple[float, float]:
    """Bytes of activations per token of a row: kept until the backward pass, and worked on in it.

    With activation checkpointing layers keep their input only, and each is computed again.
    """
    half = config.dtype == "bfloat16"
    e = 2 if half else 4
    layer = layer_bytes(config, shape, device)
    # Gradients within the MLP of the layer that is worked on.
    backward = 3 * e * shape.mlps * shape.intermediate
    last_norm = (8 if half else 12) * shape.hidden
    if config.activation_checkpointing:
        return shape.layers * e * shape.hidden + last_norm, layer + backward
    return shape.layers * layer + last_norm, backward


def layer_bytes(config: TrainerConfig, shape: ModelShape, device: Device) -> float:
    """Bytes that autograd keeps of one layer, per token."""
    half, trains_all = config.dtype == "bfloat16", config.lora is None
    autocast = half and config.zero_stage == 0
    e = 2 if half else 4
    # Each of the two norms: its input in float32 (in a float32 model that is the residual itself),
    # the normalised value if its weight learns, and its output, which linear layers keep.
    norms = 2 * shape.hidden * (4 + (e if trains_all else 0) + e)
    if autocast:  # residual and norms in float32; each linear layer keeps a cast of its own
        norms = 2 * shape.hidden * (4 + 4) + 5 * shape.hidden * 2
    mlp = 4 * e * shape.mlps * shape.intermediate  # gate, its activation, up, their product
    if shape.experts:
        mlp += 2 * e * shape.mlps * shape.hidden  # a copy of the token for each expert, and back
    adapters = 0 if config.lora is None else 7 * e * config.lora.rank
    return norms + _attention_bytes(config, shape, device) + mlp + adapters


def _attention_bytes(config: TrainerConfig, shape: ModelShape, device: Device) -> float:
    """Queries, keys, values and the result, with a float32 normaliser per head.

    Packed or padded: no kernel keeps a T x T matrix. On a CPU keys and values are repeated for
    each query head, and the results of packed examples are put together in a copy.
    """
    e = 2 if config.dtype == "bfloat16" else 4
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    if device == "cuda" or not config.packing:
        return e * (2 * queries + 2 * keys) + 4 * shape.heads
    return e * 5 * queries + 4 * shape.heads


def scorer_memory(config: ScorerConfig, shape: ModelShape, device: Device) -> Memory:
    """A scorer's: matrices in its dtype, embeddings, output layer and the residual in float32.

    On a CPU embeddings in bfloat16 stay so: all of these weights are pages of the file, which the
    scorers of a machine share.
    """
    e = DTYPE_BYTES[config.dtype]
    precise = (1 if shape.tied else 2) * shape.embedding
    weights = float(e * shape.parameters)
    if device == "cuda":
        weights += (4 - e) * precise
    mlp = 3 * e * shape.mlps * shape.intermediate
    attention = 3 * 4 * shape.heads * shape.head_dim
    per_token = max(mlp, attention) + (4 + 4 + e) * shape.hidden
    activations = float(config.batch_tokens(device) * per_token)
    process = (PROCESS_GIB if device == "cuda" else _CPU_PROCESS_GIB) * GIB
    logits = float(min(SCORER_LOGIT_BYTES, 4 * config.batch_tokens(device) * shape.vocabulary))
    # A GPU's log-probs take copies of a part; on a CPU a bfloat16 product is beside it.
    logits *= 3.0 if device == "cuda" else 1.5 if config.dtype == "bfloat16" else 1.0
    parts = {"weights": weights, "activations": activations, "logits": logits}
    parts["process"] = process
    return Memory(parts, sum(parts.values()))


def cache_token_bytes(config: EngineConfig, shape: ModelShape) -> float:
    """Bytes of one token in an engine's KV cache, on each of its GPUs.

    Tensor parallelism shares the heads out as far as there are any.
    """
    e = DTYPE_BYTES[config.dtype]
    heads = max(1, shape.kv_heads // config.tensor_parallel_size)
    return float(2 * shape.layers * heads * shape.head_dim * e)


def engine_memory(
    config: EngineConfig, shape: ModelShape, device: Device, *, num_seqs: int, gpu_gib: float
) -> Memory:
    """An engine's, on each of its GPUs. `needs` holds one text of max_model_len tokens.

    On a GPU the KV cache is what the engine's share of it leaves; below 0 the weights alone are
    too large.
    """
    e, size = DTYPE_BYTES[config.dtype], config.tensor_parallel_size
    weights = e * shape.parameters / size
    least = config.max_model_len * cache_token_bytes(config, shape)
    if device == "cpu":
        other, cache = CPU_ENGINE_GB * 1e9, config.cpu_kv_cache_gb * 1e9
        parts = {"weights": weights, "KV cache": cache, "process": other}
        return Memory(parts, sum(parts.values()))
    per_token = 2 * e * shape.mlps * shape.intermediate / size + 4 * e * shape.hidden
    own = _STEP_TOKENS[0] if gpu_gib >= _LARGE_GPU_GIB else _STEP_TOKENS[1]
    step = config.max_num_batched_tokens or own
    work = step * per_token + 12.0 * num_seqs * shape.vocabulary
    graphs = 0.0 if config.enforce_eager else _GRAPHS_GIB * GIB
    held = weights + work + graphs + PROCESS_GIB * GIB
    cache = config.gpu_memory_utilization * gpu_gib * GIB - held
    parts = {"weights": weights, "activations": work, "buffers": graphs, "KV cache": cache}
    return Memory(parts | {"process": PROCESS_GIB * GIB}, held + least)
