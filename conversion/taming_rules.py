"""The tensors of taming-transformers and of latent diffusion's VQ models, and their places.

The parts of a VQGAN keep their names but for the quantizer and the two convolutions around it. A second stage holds
minGPT, which becomes GPT-2: the same network with queries, keys and values in one matrix and all matrices transposed.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from ..configuration.vqgan import NoriaVQGANConfig
from .rules import Rule, identity

FIRST, CONDITION, TRANSFORMER = "first_stage_model.", "cond_stage_model.", "transformer."
EMA = "model_ema."
AFFINE = ("weight", "bias")
RESIDUAL = ("norm1", "conv1", "norm2", "conv2", "nin_shortcut")
ATTENTION = ("norm", "q", "k", "v", "proj_out", "to_qkv", "to_out")
BLOCK, NEAR = "transformer.blocks.{}.", "prior.transformer.h.{}."


def autoencoder_modules() -> Iterable[str]:
    """The modules of encoder and decoder that hold weights."""
    for side, level in (("encoder", "down.{}"), ("decoder", "up.{}")):
        middle = (
            *(f"block_{i}.{part}" for i in (1, 2) for part in RESIDUAL),
            *(f"attn_1.{part}" for part in ATTENTION),
        )
        blocks = (*(f"block.{{}}.{part}" for part in RESIDUAL), *(f"attn.{{}}.{part}" for part in ATTENTION))
        yield from (f"{side}.{part}" for part in ("conv_in", "norm_out", "conv_out"))
        yield from (f"{side}.mid.{part}" for part in middle)
        yield from (f"{side}.{level}.{part}" for part in (*blocks, "downsample.conv", "upsample.conv"))


def parameter_names() -> Iterable[tuple[str, str]]:
    """Names of a VQGAN's parameters: the upstream's and ours."""
    for module in autoencoder_modules():
        yield from ((f"{module}.{part}", f"{module}.{part}") for part in AFFINE)
    for source, target in (("quant_conv", "pre_quantizer"), ("post_quant_conv", "post_quantizer")):
        yield from ((f"{source}.{part}", f"{target}.{part}") for part in AFFINE)
    yield from ((f"quantize.proj.{part}", f"quantizer.proj.{part}") for part in AFFINE)
    yield "quantize.embedding.weight", "quantizer.embedding.weight"
    yield "quantize.embed.weight", "quantizer.embedding.weight"
    yield "quantize.embedding.cluster_size", "quantizer.cluster_size"
    yield "quantize.embedding.embed_avg", "quantizer.embed_avg"


PARAMETERS = tuple(parameter_names())
# The upstream takes the list of codes in use from a file of any integer type.
USED = Rule("quantize.used", "quantizer.used_codes.used", Tensor.long, reason="used_codes, in the file's integers")
APART = (
    Rule("colorize", reason="random colours of the labels, for pictures"),
    Rule("loss.*", reason="the losses' own networks, for training"),
)
FIRST_STAGE = (
    *(Rule(*names) for names in PARAMETERS),
    USED,
    *APART,
    Rule(f"{EMA}*", reason="running means of the weights"),
)


def ema_name(name: str) -> str:
    """What latent diffusion calls the running mean of a parameter."""
    return EMA + name.replace(".", "")


MEANS = tuple(Rule(ema_name(source), target) for source, target in PARAMETERS)
# The weights are those of `model_ema`; the ones that training ended with are kept.
FIRST_STAGE_OF_MEANS = (
    *MEANS,
    *(Rule(source, reason="replaced by running means") for source, _ in PARAMETERS),
    USED,
    *APART,
    Rule(f"{EMA}*", reason="the running means' own state"),
)


def under(rules: Iterable[Rule], source: str, target: str) -> Iterable[Rule]:
    """The table of a part, inside a whole that puts these prefixes before its names."""
    for rule in rules:
        targets = tuple(f"{target}{name}" for name in rule.targets)
        yield Rule(f"{source}{rule.source}", targets, rule.transform, rule.inverse, rule.reason)


def fused(*parts: Tensor) -> Tensor:
    """Weights or biases of queries, keys and values as GPT-2 has them."""
    return torch.cat([part.T if part.dim() == 2 else part for part in parts], dim=-1)


def split(whole: Tensor) -> tuple[Tensor, ...]:
    return tuple(part.T if part.dim() == 2 else part for part in whole.chunk(3, dim=-1))


def transposed(x: Tensor) -> Tensor:
    return x.T if x.dim() == 2 else x


def transformer_rules() -> Iterable[Rule]:
    """minGPT  ->  GPT2LMHeadModel, which is called `prior` here."""
    yield Rule("transformer.tok_emb.weight", "prior.transformer.wte.weight")
    yield Rule("transformer.pos_emb", "prior.transformer.wpe.weight", lambda x: x[0], lambda x: x[None])
    yield Rule("transformer.head.weight", "prior.lm_head.weight")
    yield Rule(f"{BLOCK}attn.mask", reason="rebuilt from the number of positions and num_unmasked")
    for part in AFFINE:
        names = tuple(f"{BLOCK}attn.{name}.{part}" for name in ("query", "key", "value"))
        yield Rule(names, f"{NEAR}attn.c_attn.{part}", fused, split)
        yield Rule(f"transformer.ln_f.{part}", f"prior.transformer.ln_f.{part}")
        for source, target in (("ln1", "ln_1"), ("ln2", "ln_2")):
            yield Rule(f"{BLOCK}{source}.{part}", f"{NEAR}{target}.{part}")
        for source, target in (("attn.proj", "attn.c_proj"), ("mlp.0", "mlp.c_fc"), ("mlp.2", "mlp.c_proj")):
            turn = transposed if part == "weight" else identity
            yield Rule(f"{BLOCK}{source}.{part}", f"{NEAR}{target}.{part}", turn, turn)


def rules(config: PreTrainedConfig) -> Sequence[Rule]:
    """The table for a first or a second stage, its last lines those that only undo a choice of running means."""
    if isinstance(config, NoriaVQGANConfig):
        return (*FIRST_STAGE, *MEANS)
    parts = [*transformer_rules(), *under(FIRST_STAGE, FIRST, "vqgan.")]
    if config.condition_vqgan_config is not None:
        parts += under(FIRST_STAGE, CONDITION, "condition_vqgan.")
    else:
        parts.append(Rule(f"{CONDITION}*", reason="the first stage again", copy_of=f"{FIRST}{{}}"))
    return (*parts, Rule("permuter.*", reason="its values are token_order"))
