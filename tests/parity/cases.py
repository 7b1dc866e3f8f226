"""Models with random weights that the originals and noria are compared on, by family, package and name of the case.

A case is (class, options of its configuration); for the package `rwkv`, (version, what differs from RWKV_SIZES); for
taming-transformers the options of encoder and decoder, or of a second stage.
"""

VOCABULARY = 97
SIZES = {
    "roformer": {
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "initializer_range": 0.2,
    },
    "mamba": {"hidden_size": 64, "num_hidden_layers": 3, "state_size": 8},
    "rwkv": {"hidden_size": 64, "num_hidden_layers": 3, "intermediate_size": 96},
}
RWKV_SIZES = {"layers": 3, "width": 64, "inner": 96, "heads": 4, "dtype": "float32"}
ROFORMER = {
    "trunk": ("RoFormerModel", {}),
    "masked": ("RoFormerForMaskedLM", {}),
    "embedding mapped": ("RoFormerForMaskedLM", {"embedding_size": 32}),
    "rotary value": ("RoFormerForMaskedLM", {"embedding_size": 32, "rotary_value": True}),
    "one layer, one head": ("RoFormerForMaskedLM", {"num_hidden_layers": 1, "num_attention_heads": 1}),
    "relu, eps 1e-5": ("RoFormerForMaskedLM", {"hidden_act": "relu", "layer_norm_eps": 1e-5}),
    "tokens": ("RoFormerForTokenClassification", {"num_labels": 5}),
    "answers": ("RoFormerForQuestionAnswering", {}),
}
# Two groups of four heads, and chunks that neither divide the length nor hold it whole.
MAMBA2 = {"num_heads": 8, "head_dim": 16, "n_groups": 2, "chunk_size": 7}
CASES = {
    "roformer": {
        "transformers": ROFORMER | {"causal": ("RoFormerForCausalLM", {"is_decoder": True})},
        "roformer": {
            **ROFORMER,
            "v2": ("RoFormerForMaskedLM", {"norm_type": "rms_norm", "use_bias": False, "hidden_act": "relu"}),
            "v2, biases": ("RoFormerForMaskedLM", {"norm_type": "rms_norm", "hidden_act": "relu"}),
            "sim": ("RoFormerForCausalLM", {"is_decoder": True, "pooler_activation": "linear"}),
            "sim, tanh": ("RoFormerForCausalLM", {"is_decoder": True, "pooler_activation": "tanh"}),
        },
    },
    "mamba": {
        "transformers": {
            "Mamba": ("MambaForCausalLM", {}),
            "Mamba, trunk": ("MambaModel", {}),
            "Mamba, biases": ("MambaForCausalLM", {"use_bias": True, "conv_kernel": 3, "tie_word_embeddings": False}),
            "Mamba, sizes": ("MambaForCausalLM", {"expand": 3, "time_step_rank": 7, "use_conv_bias": False}),
            "Mamba, gelu, eps 1e-3": ("MambaForCausalLM", {"hidden_act": "gelu", "layer_norm_epsilon": 1e-3}),
            "Mamba-2": ("Mamba2ForCausalLM", MAMBA2),
            "Mamba-2, trunk": ("Mamba2Model", MAMBA2),
            "Mamba-2, biases": ("Mamba2ForCausalLM", MAMBA2 | {"use_bias": True, "tie_word_embeddings": True}),
            "Mamba-2, steps bounded": ("Mamba2ForCausalLM", MAMBA2 | {"time_step_limit": (0.01, 0.5)}),
            "Mamba-2, gelu, eps 1e-3": (
                "Mamba2ForCausalLM",
                MAMBA2 | {"hidden_act": "gelu", "layer_norm_epsilon": 1e-3},
            ),
        }
    },
    "rwkv": {
        "transformers": {
            "RWKV-4": ("RwkvForCausalLM", {}),
            "RWKV-4, trunk": ("RwkvModel", {}),
            "RWKV-4, tied": ("RwkvForCausalLM", {"tie_word_embeddings": True}),
            "RWKV-4, 13 layers, unused": ("RwkvForCausalLM", {"num_hidden_layers": 13}),
            "RWKV-4, 13 layers, used": ("RwkvForCausalLM", {"num_hidden_layers": 13}),
        },
        "rwkv": {
            "RWKV-4, 7 layers": (4, {"layers": 7}),
            "RWKV-4, bfloat16": (4, {"dtype": "bfloat16"}),
            "RWKV-5.2": (5, {}),
            "RWKV-5.2, bfloat16": (5, {"dtype": "bfloat16"}),
            "RWKV-6": (6, {}),
            "RWKV-6, bfloat16": (6, {"dtype": "bfloat16"}),
            "RWKV-7": (7, {}),
            "RWKV-7, bfloat16": (7, {"dtype": "bfloat16"}),
        },
    },
}
CASES["vqgan"] = {
    "taming-transformers-rom1504": {
        "attention at one level": ("VQModel", {"attn_resolutions": [8]}),
        "three widths": ("VQModel", {"ch_mult": [1, 2, 3], "num_res_blocks": 2, "attn_resolutions": [16, 4]}),
        "no blocks": ("VQModel", {"num_res_blocks": 0}),
        "odd maps": ("VQModel", {"resolution": 20, "ch_mult": [1, 1, 1], "attn_resolutions": [10]}),
        "averages": ("VQModel", {"resamp_with_conv": False}),
        "depth": ("VQModel", {"in_channels": 1, "out_ch": 1}),
        "labels": ("VQSegmentationModel", {"in_channels": 5, "out_ch": 5}),
        "Gumbel": ("GumbelVQ", {}),
        "second stage, classes": (
            "Net2NetTransformer",
            {"condition": "class", "order": "Identity", "unmasked": False},
        ),
        "no condition, z-curve": ("Net2NetTransformer", {"condition": "none", "order": "ZCurve", "unmasked": False}),
        "coordinates, random": (
            "Net2NetTransformer",
            {"condition": "coordinates", "order": "Random", "unmasked": False},
        ),
        "labels, spiral": ("Net2NetTransformer", {"condition": "codes", "order": "SpiralOut", "unmasked": True}),
    },
}
# Saved after a forward pass in evaluation mode, in which transformers halves weights of RWKV in place.
USED = ("RWKV-4, 13 layers, used",)
OUTPUTS = ("last_hidden_state", "logits", "start_logits", "end_logits", "pooler_output")
