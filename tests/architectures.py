"""The table of all architectures that the laws run over: a new one joins by one line.

`limits` maps the name of a law to the reason why it cannot hold by construction; the README's support table shows it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from noria import (
    ARCHITECTURES,
    NoriaGANConfig,
    NoriaHiPPOConfig,
    NoriaLinearTransformerConfig,
    NoriaLRUConfig,
    NoriaMamba2Config,
    NoriaMambaConfig,
    NoriaRetNetConfig,
    NoriaRoFormerConfig,
    NoriaRWKVConfig,
    NoriaS4Config,
    NoriaVQGANConfig,
    NoriaVQGANPriorConfig,
)

TINY = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    # Large weights, so that a law that is broken shows far above rounding.
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}


@dataclass(frozen=True)
class Entry:
    """One line of the table: a configuration class and the fields that make a variant worth testing of its own."""

    name: str
    config_class: type
    fields: dict = field(default_factory=dict)
    limits: dict[str, str] = field(default_factory=dict)

    def config(self, **overrides):
        return self.config_class(**TINY | self.fields | overrides)

    def model(self, head: str = "ForCausalLM", dtype: torch.dtype = torch.float64, seed: int = 0, **overrides):
        """A model with random weights, in evaluation mode."""
        torch.manual_seed(seed)
        config = self.config(**overrides)
        return self.models[head](config).to(dtype).eval()

    @property
    def models(self) -> dict:
        return ARCHITECTURES[self.config_class.model_type].models

    def __str__(self) -> str:
        return self.name


GROWS = {
    "constant state": "Softmax attention keeps every key and value: its cache grows with the text",
    "packs in a cache": "Keys of packed sequences could not be told apart in a cache: asked for, it raises",
    "reentrant carry": "Keys cannot be carried through gradient checkpointing: asked for, it raises",
}
NO_ENCODER = {"encoders": "Causal only, as published: what is tested is pooling for classification"}

PROMPT = {"prompt": "With `unilm` a prompt is read in both directions, hence whole: tests/test_unilm.py has its laws"}

ENTRIES = [
    Entry("hippo", NoriaHiPPOConfig, limits=NO_ENCODER),
    Entry("hippo-legt", NoriaHiPPOConfig, {"measure": "legt", "memory_order": 8}, NO_ENCODER),
    Entry("hippo-fout", NoriaHiPPOConfig, {"measure": "fout", "memory_order": 7, "discretization": "zoh"}, NO_ENCODER),
    Entry("linear_transformer", NoriaLinearTransformerConfig),
    Entry("linear_transformer-rotary", NoriaLinearTransformerConfig, {"feature_map": "elu", "rotary": "numerator"}),
    Entry("linear_transformer-cosine", NoriaLinearTransformerConfig, {"feature_map": "cosine", "rotary": "both"}),
    Entry("linear_transformer-efficient", NoriaLinearTransformerConfig, {"feature_map": "softmax"}),
    Entry("lru", NoriaLRUConfig, limits=NO_ENCODER),
    Entry(
        "lru-post-norm",
        NoriaLRUConfig,
        {"prenorm": False, "use_bias": True, "direct_term": False, "pooling": "last"},
        NO_ENCODER,
    ),
    Entry("retnet", NoriaRetNetConfig, {"num_attention_heads": 2}, NO_ENCODER),
    Entry(
        "retnet-deepnorm",
        NoriaRetNetConfig,
        {"post_norm": True, "embedding_norm": True, "scale_embedding": True, "residual_scale": 1.4},
        NO_ENCODER,
    ),
    Entry("mamba", NoriaMambaConfig),
    Entry("mamba-layer-norm", NoriaMambaConfig, {"norm": "layer_norm", "use_bias": True, "use_projection_bias": True}),
    Entry("mamba2", NoriaMamba2Config, {"num_attention_heads": 3, "state_size": 8}),
    Entry(
        "mamba2-beside-mlp",
        NoriaMamba2Config,
        {
            "num_attention_heads": 4,
            "num_groups": 2,
            "state_size": 8,
            "scan_size": 32,
            "skip_per_channel": True,
            "norm_before_gate": True,
            "time_step_limit": [0.01, 0.2],
        },
    ),
    Entry("roformer", NoriaRoFormerConfig, {"num_attention_heads": 2, "norm_eps": 1e-6}, GROWS | PROMPT),
    Entry("roformer-v2", NoriaRoFormerConfig, {"num_attention_heads": 2, "version": 2, "norm_eps": 1e-6}, GROWS),
    Entry("roformer-linear", NoriaRoFormerConfig, {"num_attention_heads": 2, "attention": "linear", "norm_eps": 1e-6}),
    Entry(
        "roformer-deberta",
        NoriaRoFormerConfig,
        {"num_attention_heads": 2, "position_encoding": "deberta", "relative_clip": 3, "norm_eps": 1e-6},
        GROWS,
    ),
    Entry("rwkv", NoriaRWKVConfig, {}, NO_ENCODER),
    Entry("rwkv-5", NoriaRWKVConfig, {"version": 5, "num_attention_heads": 2}, NO_ENCODER),
    Entry("rwkv-6", NoriaRWKVConfig, {"version": 6, "num_attention_heads": 2}, NO_ENCODER),
    Entry("rwkv-7", NoriaRWKVConfig, {"version": 7, "num_attention_heads": 2}, NO_ENCODER),
    Entry("s4", NoriaS4Config, {"state_size": 8}, NO_ENCODER),
    Entry("s4-d", NoriaS4Config, {"kernel": "s4d", "state_size": 8}, NO_ENCODER),
    Entry("s4-dss", NoriaS4Config, {"kernel": "dss", "state_size": 8}, NO_ENCODER),
    Entry("s4-s5", NoriaS4Config, {"kernel": "s5"}, NO_ENCODER),
    Entry("s4-rtf", NoriaS4Config, {"kernel": "rtf", "state_size": 5}, NO_ENCODER),
]

# Models of images: the laws of sequences are not theirs, test_vqgan.py and test_gan.py have those that are.
SMALL_IMAGES = {
    "num_hidden_layers": 1,
    "channel_multipliers": [1, 2],
    "attention_resolutions": [8],
    "image_size": 16,
    "latent_channels": 12,
    "code_size": 8,
    "initializer_range": None,
}
IMAGES = [
    Entry("vqgan", NoriaVQGANConfig, SMALL_IMAGES),
    Entry("vqgan-ema", NoriaVQGANConfig, SMALL_IMAGES | {"quantizer": "ema", "revive_after": 2}),
    Entry("vqgan-gumbel", NoriaVQGANConfig, SMALL_IMAGES | {"quantizer": "gumbel"}),
    Entry("vqgan-fsq", NoriaVQGANConfig, SMALL_IMAGES | {"quantizer": "fsq", "vocab_size": 60}),
    Entry("vqgan-factorized", NoriaVQGANConfig, SMALL_IMAGES | {"factorized_size": 4, "normalize_codes": True}),
    Entry("vqgan-used-codes", NoriaVQGANConfig, SMALL_IMAGES | {"used_codes": [*range(40, 0, -2)], "unknown_code": 3}),
    Entry("vqgan-no-attention", NoriaVQGANConfig, SMALL_IMAGES | {"attention": "none", "tanh_output": True}),
    Entry(
        "vqgan-linear-attention",
        NoriaVQGANConfig,
        SMALL_IMAGES | {"attention": "linear", "resample_with_conv": False, "double_latent": True},
    ),
    Entry("vqgan-segmentation", NoriaVQGANConfig, SMALL_IMAGES | {"task": "segmentation", "num_channels": 5}),
]

GANS = [
    Entry("gan", NoriaGANConfig, {"image_size": 16}),
    Entry("gan-mlp", NoriaGANConfig, {"generator": "mlp", "image_size": 9, "num_channels": 1}),
    Entry("gan-labels", NoriaGANConfig, {"image_size": 13, "num_labels": 3, "critic_norm": "layer"}),
    Entry("gan-spectral", NoriaGANConfig, {"image_size": 8, "num_labels": 2, "spectral_norm": True}),
    Entry("gan-vectors", NoriaGANConfig, {"data_size": 2, "latent_size": 5, "latent_distribution": "uniform"}),
    Entry(
        "gan-vectors-labels",
        NoriaGANConfig,
        {"data_size": 3, "num_labels": 4, "spectral_norm": True, "generator_norm": "layer", "initializer_range": None},
    ),
]

# The second stage: each is a causal language model, whose laws are above, with a condition before codes.
IMAGE_PRIORS = [
    Entry("vqgan_prior", NoriaVQGANPriorConfig, {"grid_size": 3}),
    Entry("vqgan_prior-classes", NoriaVQGANPriorConfig, {"grid_size": [2, 3], "condition": "class", "num_labels": 4}),
    Entry(
        "vqgan_prior-retnet",
        NoriaVQGANPriorConfig,
        {"grid_size": 3, "prior_config": {"model_type": "noria_retnet"}, "condition": "coordinates"},
    ),
    Entry(
        "vqgan_prior-codes",
        NoriaVQGANPriorConfig,
        {"grid_size": 3, "condition": "codes", "condition_offset": 61, "num_unmasked": 9, "token_order": "spiral_in"},
    ),
]

CAUSAL = [entry for entry in ENTRIES if "ForCausalLM" in entry.models]
MASKED = [entry for entry in ENTRIES if "ForMaskedLM" in entry.models]
CLASSIFIERS = [entry for entry in ENTRIES if "ForSequenceClassification" in entry.models]
