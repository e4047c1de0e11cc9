"""A random two-layer Llama in a model folder, with the embedded model's tokenizer and template."""

from pathlib import Path
from typing import Any

_COPIED = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def save_tiny_model(
    folder: Path,
    embedded: Path,
    *,
    tied: bool = True,
    dtype: str = "float32",
    seed: int = 0,
    head_dim: int = 8,
    hidden_size: int = 32,
    dropout: float = 0.0,
) -> Path:
    """Saves the model (1.6 million parameters, nearly all of them embeddings); returns `folder`.

    vLLM computes on a CPU with heads of 32 and more only.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    heads = 4 if hidden_size % 4 == 0 else 3
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=hidden_size,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        head_dim=head_dim,
        attention_dropout=dropout,
        max_position_embeddings=512,
        initializer_range=0.2,  # large enough that log-probs differ by nats, not by rounding
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    return _save(LlamaForCausalLM(config).to(getattr(torch, dtype)), folder, embedded)


def save_windowed_model(folder: Path, embedded: Path, window: int = 4) -> Path:
    """A random two-layer Mistral whose tokens see `window` tokens, themselves among them."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=49152,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=window,
        max_position_embeddings=512,
        initializer_range=0.2,
    )
    return _save(MistralForCausalLM(config), folder, embedded)


def save_sink_model(folder: Path, embedded: Path) -> Path:
    """A random two-layer gpt-oss: its attention has sinks, which no attention of ours knows."""
    import torch
    from transformers import GptOssConfig, GptOssForCausalLM

    torch.manual_seed(0)
    config = GptOssConfig(
        vocab_size=49152,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=8,
        max_position_embeddings=512,
        initializer_range=0.2,
        pad_token_id=2,
        eos_token_id=2,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    return _save(GptOssForCausalLM(config), folder, embedded)


def save_qwen3_model(
    folder: Path, tokenizer: Path, *, dtype: str = "float32", seed: int = 0, num_files: int = 1
) -> Path:
    """A random two-layer Qwen3: 5 million parameters, heads wider than hidden size / heads.

    Its vocabulary has more rows than its tokenizer has tokens.
    """
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=151936,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        initializer_range=0.2,
        tie_word_embeddings=True,
        eos_token_id=[151645, 151643],
    )
    model = Qwen3ForCausalLM(config).to(getattr(torch, dtype))
    return _save(model, folder, tokenizer, num_files)


def save_gemma3_model(
    folder: Path, tokenizer: Path, *, dtype: str = "float32", seed: int = 0, num_files: int = 1
) -> Path:
    """A random three-layer Gemma-3, 8 million parameters; two layers look 16 tokens back.

    <end_of_turn>, with which its template ends turns, is the second of its end tokens.
    """
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(seed)
    config = Gemma3TextConfig(
        vocab_size=262144,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        query_pre_attn_scalar=32,
        max_position_embeddings=512,
        initializer_range=0.2,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        bos_token_id=2,
        eos_token_id=[1, 106],
        pad_token_id=0,
    )
    model = Gemma3ForCausalLM(config).to(getattr(torch, dtype))
    return _save(model, folder, tokenizer, num_files)


def _save(model: Any, folder: Path, tokenizer: Path, num_files: int = 1) -> Path:
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    model.save_pretrained(folder, max_shard_size=size // num_files + 1)
    for name in _COPIED:
        if (tokenizer / name).is_file():
            (folder / name).write_bytes((tokenizer / name).read_bytes())
    return folder


def damage(folder: Path, token: int) -> None:
    """Makes the embedding of one token NaN."""
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][token] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
