"""The tables of RWKV's tensors, by version; each version's table holds what it has beside COMMON."""

from collections.abc import Sequence

from torch import Tensor

from .rules import Rule


def flatten(tensor: Tensor) -> Tensor:
    return tensor.flatten()


def spread(tensor: Tensor) -> Tensor:
    """A vector as the upstream keeps it, (1 1 c)."""
    return tensor.view(1, 1, -1)


def vector(source: str, target: str) -> Rule:
    """The rule of a vector that the upstream keeps as (1 1 c)."""
    return Rule(source, target, flatten, spread)


def transpose(tensor: Tensor) -> Tensor:
    return tensor.t().contiguous()


def linear(source: str, target: str) -> Rule:
    """The rule of a matrix that the upstream multiplies from the right."""
    return Rule(source, target, transpose, transpose)


EMBEDDING = "blocks.0.ln0"
COMMON = (
    Rule("emb.weight", "embed_tokens.weight"),
    *(
        Rule(f"{source}.{kind}", f"{target}.{kind}")
        for source, target in (
            (EMBEDDING, "embedding_norm"),
            ("blocks.{}.ln1", "layers.{}.mixer_norm"),
            ("blocks.{}.ln2", "layers.{}.mlp_norm"),
            ("ln_out", "norm"),
        )
        for kind in ("weight", "bias")
    ),
    Rule("blocks.{}.att.receptance.weight", "layers.{}.mixer.r_proj.weight"),
    Rule("blocks.{}.att.key.weight", "layers.{}.mixer.k_proj.weight"),
    Rule("blocks.{}.att.value.weight", "layers.{}.mixer.v_proj.weight"),
    Rule("blocks.{}.att.output.weight", "layers.{}.mixer.o_proj.weight"),
    Rule("blocks.{}.ffn.key.weight", "layers.{}.mlp.k_proj.weight"),
    Rule("blocks.{}.ffn.value.weight", "layers.{}.mlp.v_proj.weight"),
)
RWKV4 = (
    *(vector(f"blocks.{{}}.att.time_mix_{name}", f"layers.{{}}.mixer.mix_{name}") for name in "rkv"),
    *(vector(f"blocks.{{}}.ffn.time_mix_{name}", f"layers.{{}}.mlp.mix_{name}") for name in "rk"),
    Rule("blocks.{}.att.time_decay", "layers.{}.mixer.time_decay"),
    Rule("blocks.{}.att.time_first", "layers.{}.mixer.time_first"),
    Rule("blocks.{}.ffn.receptance.weight", "layers.{}.mlp.r_proj.weight"),
)
NORM_OF_HEADS = tuple(
    Rule(f"blocks.{{}}.att.ln_x.{kind}", f"layers.{{}}.mixer.head_norm.{kind}") for kind in ("weight", "bias")
)
RWKV5 = (
    *(vector(f"blocks.{{}}.att.time_mix_{name}", f"layers.{{}}.mixer.mix_{name}") for name in "rkvg"),
    *(vector(f"blocks.{{}}.ffn.time_mix_{name}", f"layers.{{}}.mlp.mix_{name}") for name in "rk"),
    Rule("blocks.{}.att.time_decay", "layers.{}.mixer.time_decay"),
    Rule("blocks.{}.att.time_faaaa", "layers.{}.mixer.time_first"),
    Rule("blocks.{}.att.gate.weight", "layers.{}.mixer.g_proj.weight"),
    Rule("blocks.{}.ffn.receptance.weight", "layers.{}.mlp.r_proj.weight"),
    *NORM_OF_HEADS,
)
RWKV6 = (
    *(vector(f"blocks.{{}}.att.time_maa_{name}", f"layers.{{}}.mixer.mix_{name}") for name in "xwkvrg"),
    *(vector(f"blocks.{{}}.ffn.time_maa_{name}", f"layers.{{}}.mlp.mix_{name}") for name in "rk"),
    linear("blocks.{}.att.time_maa_w1", "layers.{}.mixer.mix_down.weight"),
    Rule("blocks.{}.att.time_maa_w2", "layers.{}.mixer.mix_up"),
    vector("blocks.{}.att.time_decay", "layers.{}.mixer.time_decay"),
    linear("blocks.{}.att.time_decay_w1", "layers.{}.mixer.decay_down.weight"),
    linear("blocks.{}.att.time_decay_w2", "layers.{}.mixer.decay_up.weight"),
    Rule("blocks.{}.att.time_faaaa", "layers.{}.mixer.time_first"),
    Rule("blocks.{}.att.gate.weight", "layers.{}.mixer.g_proj.weight"),
    Rule("blocks.{}.ffn.receptance.weight", "layers.{}.mlp.r_proj.weight"),
    *NORM_OF_HEADS,
)
RWKV7 = (
    *(
        Rule(f"blocks.0.att.v{number}", reason="never used: the first layer has no values of an earlier one")
        for number in range(3)
    ),
    *(vector(f"blocks.{{}}.att.x_{name}", f"layers.{{}}.mixer.mix_{name}") for name in "rwkvag"),
    *(
        rule
        for letter, bias, name in (
            ("w", "time_decay", "decay"),
            ("a", "rate_bias", "rate"),
            ("v", "value_bias", "value"),
            ("g", "", "gate"),
        )
        for rule in (
            *((vector(f"blocks.{{}}.att.{letter}0", f"layers.{{}}.mixer.{bias}"),) if bias else ()),
            linear(f"blocks.{{}}.att.{letter}1", f"layers.{{}}.mixer.{name}_lora.down.weight"),
            linear(f"blocks.{{}}.att.{letter}2", f"layers.{{}}.mixer.{name}_lora.up.weight"),
        )
    ),
    vector("blocks.{}.att.k_k", "layers.{}.mixer.removal_scale"),
    vector("blocks.{}.att.k_a", "layers.{}.mixer.rate_scale"),
    Rule("blocks.{}.att.r_k", "layers.{}.mixer.bonus"),
    vector("blocks.{}.ffn.x_k", "layers.{}.mlp.mix_k"),
    *NORM_OF_HEADS,
)
HEAD = Rule("head.weight", "lm_head.weight")

BY_VERSION: dict[int, Sequence[Rule]] = {4: RWKV4, 5: RWKV5, 6: RWKV6, 7: RWKV7}


def table(version: int) -> tuple[Rule, ...]:
    """The rules of a version's language model."""
    inside = tuple(
        Rule(rule.source, tuple(f"model.{name}" for name in rule.targets), rule.transform, rule.inverse, rule.reason)
        for rule in (*COMMON, *BY_VERSION[version])
    )
    return (*inside, HEAD)
