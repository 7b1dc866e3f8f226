"""Which causal language models can be trained by name, and a small configuration of each."""

from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, PreTrainedConfig

from ..registry import ARCHITECTURES

PREFIX = "noria_"

# What a short training likes better than the defaults: embeddings that are large from the start, so that they also
# learn faster, a head of its own, and rotary positions in the place of added ones.
FAVOURED = {
    "linear_transformer": {"rotary": "numerator", "position_encoding": "none"},
    "retnet": {"scale_embedding": True},
    "roformer": {"tie_word_embeddings": False},
}


def causal_architectures() -> list[str]:
    """The short names of all causal models of this package: `retnet` for the model type `noria_retnet`."""
    return sorted(kind.removeprefix(PREFIX) for kind, row in ARCHITECTURES.items() if "ForCausalLM" in row.models)


def causal_config(architecture: str, *, hidden_size: int, **fields: object) -> PreTrainedConfig:
    """The configuration of a causal model; everything that `fields` leaves out follows from the width.

    `architecture` is a short name of ours (`retnet`), a model type of ours (`noria_retnet`), or one of transformers'
    (`llama`), which gets heads 64 wide and a feed-forward layer of 8/3 of the width. Raises ValueError for any other
    name and for models without a causal head.
    """
    name = architecture.removeprefix(PREFIX)
    if name in causal_architectures():
        return AutoConfig.for_model(PREFIX + name, hidden_size=hidden_size, **{**FAVOURED.get(name, {}), **fields})
    if architecture in CONFIG_MAPPING and CONFIG_MAPPING[architecture] in MODEL_FOR_CAUSAL_LM_MAPPING:
        shape = {"num_attention_heads": max(1, hidden_size // 64), "intermediate_size": hidden_size * 8 // 3}
        return AutoConfig.for_model(architecture, hidden_size=hidden_size, **{**shape, **fields})
    known = ", ".join(causal_architectures())
    raise ValueError(f"{architecture!r} is no causal language model that can be trained here; noria has: {known}")
