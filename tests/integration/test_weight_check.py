"""Whether a push took: on a model of three layers whose weights are packed away, as vLLM's are."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from stargate.actors.engines.weight_check import Watch, WeightMismatch
from stargate.actors.engines.weight_transfer import load_directly
from stargate.actors.modeling.weight_sums import (
    ChangedColumns,
    read_columns,
    read_sums,
    tensor_sum,
    write_sums,
)

pytestmark = pytest.mark.integration

K = 16


class Packing:
    """A quant method that keeps a copy of the weight and, of a linear layer, nothing else."""

    def process_weights_after_loading(self, layer: "Layer") -> None:
        layer.packed = layer.weight.detach().clone()
        if not layer.keep:
            layer.weight = nn.Parameter(torch.empty(0, dtype=layer.packed.dtype))

    def apply(self, layer: "Layer", x: Tensor, bias: Tensor | None) -> Tensor:
        return x @ layer.packed.T


class Layer(nn.Module):
    packed: Tensor

    def __init__(self, weight: Tensor, keep: bool = False) -> None:
        super().__init__()
        self.keep = keep
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.quant_method = Packing()
        self.quant_method.process_weights_after_loading(self)


class Norm(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)


class Model(nn.Module):
    """Fused q, k and v, a norm, an embedding and an output head that share their weight."""

    packed_modules_mapping = {"qkv": ["q", "k", "v"]}  # noqa: RUF012 - as vLLM declares it

    def __init__(self, sent: dict[str, Tensor], dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        weights = {name: tensor.to(dtype) for name, tensor in sent.items()}
        self.embed = Layer(weights["embed.weight"].clone(), keep=True)
        self.qkv = Layer(torch.cat([weights[f"{part}.weight"] for part in "qkv"]))
        self.norm = Norm(weights["norm.weight"].clone())
        self.head = Layer(torch.zeros(1, 1), keep=True)
        self.head.weight = self.embed.weight
        self.head.quant_method.process_weights_after_loading(self.head)


def weights(seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"embed": (6, K), "q": (4, K), "k": (2, K), "v": (2, K), "norm": (K,)}
    return {
        f"{name}.weight": torch.randn(shape, generator=generator).to(dtype)
        for name, shape in shapes.items()
    }


def watched(sent: dict[str, Tensor], number: int = 0, **sums: int) -> Watch:
    watch = Watch(number, sums)
    assert [name for name, _ in watch.over(sent.items())] == list(sent)
    return watch


def test_a_sum_is_of_64_bit_words_and_what_is_left() -> None:
    words = torch.tensor([1, 0, 0, 0, 2, 0, 0, 0, 3], dtype=torch.int16)
    assert tensor_sum(words) == 6
    assert tensor_sum(torch.tensor([-1, 2])) == 1  # modulo 2^64
    assert tensor_sum(torch.zeros(3, 5).T[1:]) == 0


def test_sums_are_kept_beside_the_weights(tmp_path: Path) -> None:
    assert read_sums(tmp_path) is None
    write_sums(tmp_path, {"a": torch.tensor([5]), "b": torch.tensor([-1])})
    assert read_sums(tmp_path) == {"a": 5, "b": 2**64 - 1}


def test_a_model_that_holds_what_was_sent_passes_as_a_whole() -> None:
    sent = weights()
    for number in range(20):
        assert watched(sent, number).check(Model(sent)) == []


def test_old_weights_are_found_in_a_column_that_the_adapter_touched(tmp_path: Path) -> None:
    """An adapter that left most columns as they were: elsewhere old weights look like new ones."""
    old, new = weights(), weights()
    changed = ChangedColumns()
    for name, column in (("q", 12), ("k", 12), ("v", 2)):
        new[f"{name}.weight"][:, column] += 1.0
        changed.note(old[f"{name}.weight"], new[f"{name}.weight"])
    changed.write(tmp_path)
    counts = read_columns(tmp_path)
    assert {size: found.tolist() for size, found in counts.items()} == {
        K: [{2: 1, 12: 2}.get(column, 0) for column in range(K)]
    }
    engine = Model(old)  # never got the push
    first_columns = watched(new, 0)
    first_columns._samples.pop("v.weight")  # column 2 happens to be among them
    assert first_columns.check(engine) == ["qkv.weight"]
    watch = Watch(0, {}, counts)
    list(watch.over(new.items()))
    # With tensor parallelism a rank looks among the columns that it may hold.
    for rank, first in ((0, 0), (1, 8)):
        shard = Watch(5, {}, counts, rank=rank, world_size=2)
        list(shard.over(new.items()))
        assert shard._samples["q.weight"].first == first
    with pytest.raises(WeightMismatch, match=r"qkv\.weight: the engine holds other values"):
        watch.check(engine)
    assert read_columns(tmp_path / "elsewhere") == {}


def test_bytes_that_are_not_the_trainers_are_refused_before_they_are_loaded() -> None:
    sent = weights()
    sums = {name: tensor_sum(tensor) for name, tensor in sent.items()}
    assert watched(sent, **sums).check(Model(sent)) == []
    sent["k.weight"][1, 3] += 1
    with pytest.raises(WeightMismatch, match=r"k\.weight: the file's bytes are not those"):
        watched(sent, **sums)


def spoil_packed(model: Model) -> None:
    model.qkv.packed[5] = 0.5


def spoil_norm(model: Model) -> None:
    model.norm.weight.data[3] = 9.0


def spoil_embedding(model: Model) -> None:
    model.embed.weight.data[0] = 9.0


@pytest.mark.parametrize(
    ("spoil", "name"),
    [(spoil_packed, "qkv"), (spoil_norm, "norm"), (spoil_embedding, "embed")],
)
def test_other_values_than_were_sent_are_named(spoil: Callable[[Model], None], name: str) -> None:
    sent = weights()
    model = Model(sent)
    spoil(model)
    problem = rf"{name}\.weight: the engine holds other values than were sent"
    with pytest.raises(WeightMismatch, match=problem):
        watched(sent).check(model)


def test_an_output_head_that_kept_the_old_weight_is_found() -> None:
    """The embedding is new, the head's packed copy is not: this happened."""
    old, sent = weights(1), weights(2)
    model = Model(sent)
    model.head.packed = old["embed.weight"]
    with pytest.raises(WeightMismatch, match=r"head\.weight: the engine holds other values"):
        watched(sent).check(model)


def test_fused_parts_in_the_wrong_order_are_found() -> None:
    sent = weights()
    model = Model({**sent, "k.weight": sent["v.weight"], "v.weight": sent["k.weight"]})
    with pytest.raises(WeightMismatch, match="qkv"):
        watched(sent).check(model)


def test_one_step_of_bfloat16_in_one_column_is_found_within_some_pushes() -> None:
    sent = weights()
    model = Model(sent)
    value = model.qkv.packed[2, 11]
    model.qkv.packed[2, 11] = torch.nextafter(value, torch.tensor(9.0, dtype=torch.bfloat16))

    def found(number: int) -> bool:
        try:
            watched(sent, number).check(model)
        except WeightMismatch:
            return True
        return False

    assert any(found(number) for number in range(9))
    assert not all(found(number) for number in range(9))


def test_a_value_that_is_not_finite_is_found_in_any_column() -> None:
    sent = weights()
    sent["v.weight"][1, K - 1] = torch.nan
    with pytest.raises(WeightMismatch, match=r"qkv\.weight: .* not finite"):
        watched(sent).check(Model(sent))


def test_a_float32_file_in_a_bfloat16_engine_is_the_same_model() -> None:
    sent = weights(dtype=torch.float32)
    assert watched(sent).check(Model(sent)) == []


def test_what_can_not_be_compared_is_listed() -> None:
    sent = weights()
    model: Any = Model(sent)
    model.qkv.packed = model.qkv.packed[:4]  # a shard that does not say what it is
    assert watched(sent).check(model) == ["qkv.weight"]


class Shard(nn.Module):
    """What one rank holds: rows of q, k, v and of the vocabulary, columns of o, all of the norm."""

    packed_modules_mapping = {"qkv": ["q", "k", "v"]}  # noqa: RUF012 - as vLLM declares it

    def __init__(self, sent: dict[str, Tensor], rank: int, world_size: int) -> None:
        super().__init__()
        rows = {name: len(tensor) for name, tensor in sent.items()}
        # Where there are more ranks than k and v have rows, several ranks hold the same ones.
        sizes = [max(1, rows[f"{part}.weight"] // world_size) for part in "qkv"]
        places = [rank * rows[f"{part}.weight"] // world_size for part in "qkv"]
        parts = zip("qkv", places, sizes, strict=True)
        self.qkv = Layer(torch.cat([sent[f"{p}.weight"][at : at + size] for p, at, size in parts]))
        self.o = Layer(sent["o.weight"][:, rank * K // world_size : (rank + 1) * K // world_size])
        for layer, held, columns in ((self.qkv, sizes, K), (self.o, [5], K // world_size)):
            place = {"tp_rank": rank, "tp_size": world_size, "output_partition_sizes": held}
            vars(layer).update(place, input_size_per_partition=columns)
        self.norm = Norm(sent["norm.weight"].clone())
        low, high = rank * 6 // world_size, (rank + 1) * 6 // world_size
        self.embed = Layer(functional.pad(sent["embed.weight"][low:high], (0, 0, 0, 2)), keep=True)
        bounds = SimpleNamespace(org_vocab_start_index=low, org_vocab_end_index=high)
        vars(self.embed).update(tp_rank=rank, tp_size=world_size, shard_indices=bounds)
        self.head = Layer(torch.zeros(1, 1), keep=True)
        self.head.weight = self.embed.weight
        self.head.quant_method.process_weights_after_loading(self.head)


def sharded(sent: dict[str, Tensor], number: int, rank: int, world_size: int) -> Watch:
    watch = Watch(number, rank=rank, world_size=world_size)
    for _ in watch.over(sent.items()):
        pass
    return watch


def weights_of_shards(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(100 + seed)
    return {**weights(seed), "o.weight": torch.randn(5, K, generator=generator).bfloat16()}


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_rank_compares_all_that_it_holds(world_size: int) -> None:
    sent = weights_of_shards()
    for rank in range(world_size):
        shard = Shard(sent, rank, world_size)
        for number in range(8):
            assert sharded(sent, number, rank, world_size).check(shard) == []


@pytest.mark.parametrize("layer", ["qkv", "o", "embed", "head"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_kept_an_old_layer_is_found(layer: str, rank: int) -> None:
    sent = weights_of_shards()
    shard = Shard(sent, rank, 2)
    getattr(shard, layer).packed = getattr(Shard(weights_of_shards(1), rank, 2), layer).packed
    if layer == "embed":
        shard.embed.weight.data = shard.embed.packed
    with pytest.raises(WeightMismatch, match=rf"{layer}\.weight: the engine holds other values"):
        sharded(sent, 0, rank, 2).check(shard)


def test_a_rank_with_its_neighbours_share_is_found() -> None:
    sent = weights_of_shards()
    shard = Shard(sent, 0, 2)
    shard.o.packed = Shard(sent, 1, 2).o.packed
    with pytest.raises(WeightMismatch, match=r"o\.weight"):
        sharded(sent, 0, 0, 2).check(shard)


def test_loading_directly_gives_every_layer_what_was_sent() -> None:
    sent = weights(2)
    model = Model(weights(1))
    hollow = model.qkv.weight
    assert load_directly(model, sent) == set(sent)
    assert watched(sent).check(model) == []
    assert model.qkv.packed.tolist() == [
        row for part in "qkv" for row in sent[f"{part}.weight"].tolist()
    ]
    assert model.head.packed.tolist() == sent["embed.weight"].tolist()
    # vLLM's own parameter is in its place again: its loader knows how to fill it.
    assert model.qkv.weight is hollow
    assert model.head.weight is model.embed.weight


def test_loading_directly_rounds_to_the_engines_precision() -> None:
    sent = weights(2, torch.float32)
    model = Model(weights(1))
    load_directly(model, sent)
    assert model.qkv.packed.dtype == torch.bfloat16
    assert watched(sent).check(model) == []


def test_a_parameter_that_no_tensor_is_for_is_named() -> None:
    sent = weights()
    del sent["k.weight"]
    with pytest.raises(ValueError, match=r"no value for qkv\.weight"):
        load_directly(Model(weights()), sent)
