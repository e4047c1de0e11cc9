"""(torch) In which precision the scorer's model keeps its weights and computes.

With bfloat16 matrices the products run at bfloat16's speed while the residual stream, norms,
embeddings and output layer stay float32: half the error of an all-bfloat16 model.

On a CPU a weight that has its dtype already stays what the loader made of it: pages of the file,
which all scorers of a machine share. So embeddings in bfloat16 are not copied either; the rows that
a pass needs come out of them in float32, to the same values.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from stargate.actors.modeling.model import output_layer


def keep_precise(model: Any, matrices: torch.dtype, *, mapped: bool) -> None:
    """Casts weight matrices to `matrices` and all the rest to float32, for use under autocast.

    `mapped`: embeddings and output layer that are bfloat16 stay so, for an output layer that takes
    them exactly (gold_logprobs.RoundedLinear).
    """
    embeddings = model.get_input_embeddings()
    weights = [layer.weight for layer in (embeddings, output_layer(model))]
    outer = set(map(id, weights))
    mapped = mapped and all(weight.dtype == torch.bfloat16 for weight in weights)
    for parameter in model.parameters():
        if id(parameter) in outer:
            dtype = torch.bfloat16 if mapped else torch.float32
        else:
            dtype = matrices if parameter.dim() >= 2 else torch.float32
        parameter.data = parameter.data.to(dtype)
    if mapped:
        model.set_input_embeddings(_PreciseEmbedding(embeddings))


class _PreciseEmbedding(nn.Module):
    """What an embedding does, scales and all, on its rows in float32."""

    def __init__(self, embedding: Any) -> None:
        super().__init__()
        self.embedding = embedding
        embedding.padding_idx = None  # only training asks for it, and the rows below are others

    def forward(self, ids: Tensor) -> Tensor:
        used, places = torch.unique(ids, return_inverse=True)
        rows = self.embedding.weight[used].float()
        found: Tensor = functional_call(self.embedding, {"weight": rows}, (places,))
        return found
