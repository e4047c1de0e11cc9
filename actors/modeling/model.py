"""(torch) What scorer and trainer share: loading causal language models and their log-probs.

    load_model -> model;  SelectedLogits(model) -> logits at chosen positions only
    save_model -> a Hugging Face folder that appears whole or not at all

B sequences, T tokens, P chosen positions, V vocabulary.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from stargate.actors.modeling.weight_sums import write_sums
from stargate.errors import MachineError, ModelError, one_line
from stargate.records.files import disk_problem, whole_folder
from stargate.records.model_folder import copy_companions

# Elements that round_unbiased works on at once: about half a gigabyte.
_ROUNDED_AT_ONCE = 2**24


def load_model(
    model_dir: str, dtype: torch.dtype | None, device: str, trust_remote_code: bool
) -> Any:
    """A Hugging Face causal LM in evaluation mode. `dtype` None keeps the checkpoint's own.

    Raises ModelError if the folder can't be loaded or the model's output layer is not a plain one.
    """
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(
            model_dir,
            dtype="auto" if dtype is None else dtype,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        problem = one_line(error)
        raise ModelError(f"model {model_dir}: can't be loaded: {problem}") from error
    return model.to(device).eval()


def build_model(model_dir: str, trust_remote_code: bool) -> Any:
    """What `load_model` loads, but with values of chance. Raises ModelError.

    On torch's "meta" device it takes no memory.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(model_dir, trust_remote_code=trust_remote_code)
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"model {model_dir}: can't be built: {one_line(error)}") from error
    return model.eval()


def max_positions(model: Any) -> int:
    """The model's context length in tokens."""
    config = model.config.get_text_config()
    length = getattr(config, "max_position_embeddings", None)
    if not isinstance(length, int) or length < 1:
        raise ModelError(f"model {model.config.model_type}: its config names no context length")
    return length


class SelectedLogits:
    """Calls a causal LM so that its output layer sees chosen positions only.

    The output layer is most of a small model's work and memory (V is large), yet only the positions
    with a loss matter. The layer is replaced by one over the SAME parameters, under the same name;
    all that the model does to logits afterwards (soft caps, scales) still happens.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self._head = _SelectingLinear(output_layer(model))
        model.set_output_embeddings(self._head)

    def __call__(self, rows: Tensor, columns: Tensor, **inputs: Any) -> tuple[Tensor, Any]:
        """Float32 logits (P, V) at positions (rows[p], columns[p]) of the batch, and the cache."""
        self._head.rows, self._head.columns = rows, columns
        output = self.model(**inputs)
        return output.logits[0].float(), output.past_key_values


class _SelectingLinear(nn.Module):
    """(B, T, H) -> (1, P, V) in the precision of its weight, whatever autocast says."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.weight = head.weight
        self.bias = head.bias
        self.rows: Tensor | None = None
        self.columns: Tensor | None = None

    def forward(self, hidden: Tensor) -> Tensor:
        chosen = hidden[self.rows, self.columns].to(self.weight.dtype)
        with torch.autocast(chosen.device.type, enabled=False):
            return functional.linear(chosen, self.weight, self.bias)[None]


def output_layer(model: Any) -> nn.Linear:
    """The layer that makes logits. Raises ModelError if it is not a plain one."""
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        raise ModelError(
            f"model {model.config.model_type}: its output layer is a {type(head).__name__}, "
            "expected Linear"
        )
    return head


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """-log p of each target (P,) under float32 logits (P, V), in nats."""
    return functional.cross_entropy(logits, targets, reduction="none")


def round_unbiased(values: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Float32 `values` in `dtype`, each rounded up or down at random so that its mean is right.

    Weights start on the grid of their dtype, and a short training moves most of them by less than
    half a step of a bfloat16 grid. Rounding to the nearest would put these back where they began:
    after 6 steps at 5e-5, 81 % of SmolLM2-135M's weights and 45 % of what was learned (loss 2.73
    -> 1.91 in float32, 2.36 rounded to nearest, 1.91 rounded without bias).

    `generator` is of the values' device; what it draws differs between kinds of devices. A part at
    a time is worked on: it takes seven times its size.
    """
    if dtype == torch.float32:
        return values
    rounded = torch.empty(values.shape, dtype=dtype, device=values.device)
    flat = rounded.view(-1)
    for low in range(0, values.numel(), _ROUNDED_AT_ONCE):
        part = values.reshape(-1)[low : low + _ROUNDED_AT_ONCE]
        nearest = part.to(dtype)
        gap = part - nearest.float()
        infinity = torch.full_like(nearest, torch.inf)
        neighbour = torch.nextafter(nearest, torch.where(gap > 0, infinity, -infinity))
        chance = gap / (neighbour.float() - nearest.float())
        draw = torch.rand(part.shape, generator=generator, device=part.device)
        flat[low : low + _ROUNDED_AT_ONCE] = torch.where(draw < chance, neighbour, nearest)
    return rounded


def save_model(
    model: Any,
    weights: Mapping[str, Tensor],
    companions_dir: str,
    output_dir: str,
    add: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Writes `weights` with the config, tokenizer and chat template of `companions_dir`.

    `add` writes into the folder what else belongs to it.

    The folder is never seen half-written, not even after a power cut; an older one of that name is
    replaced. Raises MachineError if it can't be written.
    """
    from safetensors import SafetensorError
    from transformers import GenerationConfig

    target = Path(output_dir)
    # The base folder's own is copied below. save_pretrained would refuse one that it finds odd.
    model.generation_config = GenerationConfig()
    try:
        with whole_folder(target) as partial:
            model.save_pretrained(partial, state_dict=dict(weights))
            copy_companions(Path(companions_dir), partial)
            write_sums(partial, weights)
            add(partial)
    except (OSError, SafetensorError) as error:
        problem = disk_problem(error, target) if isinstance(error, OSError) else None
        raise MachineError(problem or f"{output_dir}: can't save the model: {error}") from error
