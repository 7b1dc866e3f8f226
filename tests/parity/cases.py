"""Models with random weights that the originals and noria are compared on: (class, options of its configuration)."""

SIZES = {
    "vocab_size": 97,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "initializer_range": 0.2,
}
COMMON = {
    "trunk": ("RoFormerModel", {}),
    "masked": ("RoFormerForMaskedLM", {}),
    "embedding mapped": ("RoFormerForMaskedLM", {"embedding_size": 32}),
    "rotary value": ("RoFormerForMaskedLM", {"embedding_size": 32, "rotary_value": True}),
    "one layer, one head": ("RoFormerForMaskedLM", {"num_hidden_layers": 1, "num_attention_heads": 1}),
    "relu, eps 1e-5": ("RoFormerForMaskedLM", {"hidden_act": "relu", "layer_norm_eps": 1e-5}),
    "tokens": ("RoFormerForTokenClassification", {"num_labels": 5}),
    "answers": ("RoFormerForQuestionAnswering", {}),
}
CASES = {
    "transformers": COMMON | {"causal": ("RoFormerForCausalLM", {"is_decoder": True})},
    "roformer": {
        **COMMON,
        "v2": ("RoFormerForMaskedLM", {"norm_type": "rms_norm", "use_bias": False, "hidden_act": "relu"}),
        "v2, biases": ("RoFormerForMaskedLM", {"norm_type": "rms_norm", "hidden_act": "relu"}),
        "sim": ("RoFormerForCausalLM", {"is_decoder": True, "pooler_activation": "linear"}),
        "sim, tanh": ("RoFormerForCausalLM", {"is_decoder": True, "pooler_activation": "tanh"}),
    },
}
OUTPUTS = ("last_hidden_state", "logits", "start_logits", "end_logits", "pooler_output")
