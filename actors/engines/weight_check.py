"""(torch) Did a weight push take? What was sent, what was read, what is served.

    the trainer's tensors --sum--> weight-sums.json beside the saved weights
    a worker reads a file --sum--> must equal it: nothing was torn or swapped on the way
                          `-sample of columns-> must equal what the loaded layers answer with

A loaded layer may hold its weight in a packed form that can't be read back (on CPU, vLLM's linear
layers do), so it is asked: its answer to a vector that is 1 at column k and 0 elsewhere is column k
of the weight, to the bit. A layer that kept an old or half an old weight answers otherwise, and one
with a value anywhere that is not finite answers NaN.

With tensor parallelism a rank holds some rows or some columns of a matrix. Each rank samples
columns that it would hold, and compares its rows of them.

N outputs, K inputs of a layer, C sampled columns.
"""

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stargate.actors.modeling.weight_sums import NUM_COLUMNS, tensor_sum

# A sampled value is exact in bfloat16 and float16; a float32 product may round by less than this,
# and the next bfloat16 value is 0.4 % away. Hardware may flush values below the second to zero.
_RELATIVE, _ABSOLUTE = 1e-3, 1e-30


class WeightMismatch(ValueError):
    """What an engine holds is not what was sent."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Columns [first, first + C) of a matrix (N, K) as rows (C, N), or a whole vector (N,)."""

    first: int
    num_columns: int  # K; 0 for a vector
    values: Tensor


class Watch:
    """Looks at the tensors of one push as they are read, then at the model."""

    def __init__(
        self,
        number: int,
        sums: Mapping[str, int] | None = None,
        changed: Mapping[int, Tensor] | None = None,
        *,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """`number` counts pushes, so that each looks at other columns.

        `changed`, by a matrix's number of columns: how many matrices are known to have changed in
        each of them. Then it is looked there: elsewhere old weights may look like new ones.
        `rank` of `world_size` is the worker's place in its tensor-parallel group.
        """
        self._number = number
        self._rank, self._world_size = rank, world_size
        self._sums = sums or {}
        self._changed = changed or {}
        self._samples: dict[str, Sample] = {}

    def over(self, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """The same tensors. Raises WeightMismatch for one whose sum is not the trainer's."""
        for name, tensor in tensors:
            # A name that the trainer does not have is another form of one that it has.
            if name in self._sums and self._sums[name] != tensor_sum(tensor):
                raise WeightMismatch(f"{name}: the file's bytes are not those that were saved")
            sample = self._take(tensor)
            if sample is not None:
                self._samples[name] = sample
            yield name, tensor

    @torch.no_grad()
    def check(self, model: nn.Module) -> list[str]:
        """Compares what the model holds with what was read.

        Returns the names of parameters that could not be compared (a quantised layer's, say).
        Raises WeightMismatch.
        """
        packed: Mapping[str, Sequence[str]] = getattr(model, "packed_modules_mapping", {})
        unchecked: list[str] = []
        owners: dict[int, Sample] = {}
        for prefix, module in model.named_modules():
            for leaf, parameter in module._parameters.items():
                if parameter is None:
                    continue
                name = f"{prefix}.{leaf}" if prefix else leaf
                sample = self._expected(prefix, leaf, packed, module) or owners.get(id(parameter))
                if sample is None or not _compare(name, module, leaf, parameter, sample):
                    unchecked.append(name)
                    continue
                owners[id(parameter)] = sample
        return unchecked

    def _take(self, tensor: Tensor) -> Sample | None:
        if tensor.dim() == 1:
            return Sample(0, 0, tensor.clone())
        if tensor.dim() != 2:
            return None
        num_columns = tensor.shape[1]
        # The columns that this rank would hold, if it is columns that are shared out.
        stretch = num_columns
        if num_columns % self._world_size == 0:
            stretch //= self._world_size
        low, width = self._rank * stretch % num_columns, min(NUM_COLUMNS, stretch)
        counts = self._changed.get(num_columns)
        if counts is None:
            first = low + self._number * width % (stretch - width + 1)
        else:
            first = low + int(counts[low : low + stretch].unfold(0, width, 1).sum(1).argmax())
        return Sample(first, num_columns, tensor[:, first : first + width].T.contiguous())

    def _expected(
        self, prefix: str, leaf: str, packed: Mapping[str, Sequence[str]], module: nn.Module
    ) -> Sample | None:
        """What this rank should hold of a parameter; joined where layers are fused."""
        found = [self._samples[n] for n in file_names(prefix, leaf, packed, self._samples) or ()]
        if len({(sample.first, sample.num_columns) for sample in found}) != 1:
            return None
        parts = _rows_of_rank(module, [sample.values for sample in found])
        if parts is None:
            return None
        first, num_columns = found[0].first, found[0].num_columns
        held = getattr(module, "input_size_per_partition", num_columns)
        if num_columns and held < num_columns:
            first, num_columns = first - self._rank * held, held
        return Sample(first, num_columns, torch.cat(parts, dim=-1))


def _rows_of_rank(module: Any, parts: Sequence[Tensor]) -> list[Tensor] | None:
    """The rows (the last dimension here) of a layer's parts that this rank holds.

    vLLM's layers say what they hold: `shard_indices` of a vocabulary, `output_partition_sizes` of
    each fused part. None where the two can't be brought together.
    """
    if (vocabulary := getattr(module, "shard_indices", None)) is not None:
        low, high = vocabulary.org_vocab_start_index, vocabulary.org_vocab_end_index
        return [part[..., low:high] for part in parts]
    world_size = getattr(module, "tp_size", 1)
    if world_size == 1:
        return list(parts)
    sizes: Sequence[int] = module.output_partition_sizes
    if len(sizes) != len(parts):
        return None
    held = []
    for part, size in zip(parts, sizes, strict=True):
        # Fewer key/value heads than ranks: neighbours hold the same ones. All rows: columns are
        # what is shared out.
        alike = size * world_size // part.shape[-1]
        start = module.tp_rank // alike * size
        held.append(part[..., start : start + size])
    return held


def file_names(
    prefix: str, leaf: str, packed: Mapping[str, Sequence[str]], known: Container[str]
) -> list[str] | None:
    """Under which names a parameter stands in the files: its own, or those of its fused parts.

    None if not all of them are `known`. `packed` is the model's packed_modules_mapping. Worked
    example: ("layers.0.gate_up", "bias") -> ["layers.0.gate.bias", "layers.0.up.bias"].
    """
    own = f"{prefix}.{leaf}" if prefix else leaf
    if own in known:
        return [own]
    parent, dot, last = prefix.rpartition(".")
    names = [f"{parent}{dot}{part}.{leaf}" for part in packed.get(last, ())]
    return names if names and all(name in known for name in names) else None


def _compare(name: str, module: nn.Module, leaf: str, parameter: Tensor, sample: Sample) -> bool:
    """Whether there was something to compare. Raises WeightMismatch."""
    # As the engine rounded it when it was loaded.
    sent = sample.values.to(parameter.dtype)
    if not sample.num_columns:
        if parameter.shape != sent.shape:
            return False
        _require(name, parameter, sent)
        return True
    found = False
    # A vocabulary is padded with rows that no file has; a shard has fewer.
    if parameter.dim() == 2 and parameter.shape[1] == sample.num_columns:
        held = parameter[:, sample.first : sample.first + sent.shape[0]]
        found = _require(name, held.T, sent)
    answer = _ask(module, parameter, sample) if leaf == "weight" else None
    if answer is not None:
        found = _require(name, answer, sent)
    return found


def _ask(module: nn.Module, parameter: Tensor, sample: Sample) -> Tensor | None:
    """The sampled columns as the layer answers with them (C, N); None if it is no whole layer."""
    method: Any = getattr(module, "quant_method", None)
    num_inputs = getattr(module, "input_size_per_partition", sample.num_columns)
    if not callable(getattr(method, "apply", None)) or num_inputs != sample.num_columns:
        return None
    width = sample.values.shape[0]
    asked = torch.zeros(width, num_inputs, dtype=parameter.dtype, device=parameter.device)
    asked[:, sample.first : sample.first + width] = torch.eye(width)
    answer: Tensor = method.apply(module, asked, bias=None)
    return answer


def _require(name: str, held: Tensor, sent: Tensor) -> bool:
    """False if `held` (C, N) is only a part. Raises WeightMismatch unless it is what was sent."""
    if held.shape[-1] < sent.shape[-1]:
        return False
    held = held[..., : sent.shape[-1]].detach().cpu()
    total = held.sum(dtype=torch.float64)
    if not bool(torch.isfinite(total)):
        raise WeightMismatch(f"{name}: the engine holds values that are not finite")
    if held.dtype == sent.dtype and torch.equal(held, sent):
        return True
    if not torch.allclose(held.float(), sent.float(), rtol=_RELATIVE, atol=_ABSOLUTE):
        raise WeightMismatch(f"{name}: the engine holds other values than were sent")
    return True
