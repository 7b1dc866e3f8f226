"""RWKV-4 of transformers itself  ->  NoriaRWKV with the same head.

Folders that were saved with halved weights (see `rwkv_rescaling.py`) become models with `rescale_every`, which compute
what the model was before: the weights stay as they are in the file, bit by bit.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

from ..configuration.rwkv import NoriaRWKVConfig
from ..modeling.rwkv import NoriaRWKVForCausalLM, NoriaRWKVModel
from .checkpoint import Checkpoint
from .format import Format, Plan, layer_count
from .roformer_torch import COMPANIONS, PATTERNS
from .rules import Rule, same_bytes
from .rwkv_rescaling import is_halved
from .rwkv_rules import COMMON, RWKV4
from .settings import Settings
from .tokenizer_files import copy_tokenizer

BASE, EMBEDDING, HEAD = "rwkv.", "embeddings.weight", "head.weight"
ARGUMENTS = frozenset(
    [
        "vocab_size",
        "context_length",
        "hidden_size",
        "num_hidden_layers",
        "attention_hidden_size",
        "intermediate_size",
        "layer_norm_epsilon",
        "pad_token_id",
        "bos_token_id",
        "eos_token_id",
        "rescale_every",
        "tie_word_embeddings",
        "use_cache",
        "architectures",
        "model_type",
    ]
)
NAMES = {
    "emb.": "embeddings.",
    ".ln0.": ".pre_ln.",
    ".att.": ".attention.",
    ".ffn.": ".feed_forward.",
    ".time_mix_k": ".time_mix_key",
    ".time_mix_v": ".time_mix_value",
    ".time_mix_r": ".time_mix_receptance",
}
# The name in an .pth file shows where a tensor stands; transformers spells its parts otherwise.
LAYERS = (*COMMON, *RWKV4)


def renamed(source: str) -> str:
    for ours, theirs in NAMES.items():
        source = source.replace(ours, theirs)
    return source


def rules(config: PreTrainedConfig) -> Sequence[Rule]:
    bare = "NoriaRWKVModel" in (config.architectures or ())
    outside, inside = ("", "") if bare else (BASE, "model.")
    body = [
        Rule(outside + renamed(rule.sources[0]), inside + rule.targets[0], rule.transform, rule.inverse)
        for rule in LAYERS
    ]
    if bare:
        return body
    if config.tie_word_embeddings:
        return [*body, Rule(HEAD, reason="tied to the embedding", copy_of=BASE + EMBEDDING)]
    return [*body, Rule(HEAD, "lm_head.weight")]


def plan(checkpoint: Checkpoint, arguments: Mapping[str, Any], fields: Mapping[str, Any]) -> Plan:
    tensors = {name.removeprefix(BASE): tensor for name, tensor in checkpoint.state.items()}
    anchor = "blocks.0.attention.time_decay"
    if EMBEDDING not in tensors or anchor not in tensors:
        names = ", ".join(list(tensors)[:4])
        raise ValueError(f"it is not an RWKV of transformers: {EMBEDDING} or {anchor} is not in {names}, ...")
    settings = Settings(arguments, checkpoint.read_json("config.json"))
    bare = not any(name.startswith(BASE) for name in checkpoint.state)
    tied = not bare and (HEAD not in tensors or same_bytes(tensors[HEAD], tensors[EMBEDDING]))
    settings.refuse("layer_norm_epsilon", 1e-5, "its last norm would have another epsilon than the others")
    layers = settings.take("num_hidden_layers", layer_count(tensors, "blocks."))
    config = {
        "version": 4,
        "vocab_size": settings.take("vocab_size", tensors[EMBEDDING].shape[0]),
        "hidden_size": settings.take("hidden_size", tensors[EMBEDDING].shape[1]),
        "num_hidden_layers": layers,
        "attention_hidden_size": settings.take("attention_hidden_size", tensors[anchor].shape[0]),
        "intermediate_size": settings.take("intermediate_size", inner_size(tensors)),
        "tie_word_embeddings": settings.take("tie_word_embeddings", None if tied or bare else False, default=tied),
        "rescale_every": find_rescaling(settings, tensors, layers, arguments),
        **{name: settings.stated(name)[0] for name in ("pad_token_id", "bos_token_id", "eos_token_id")},
    }
    settings.finish()
    model_class = NoriaRWKVModel if bare else NoriaRWKVForCausalLM
    noria = NoriaRWKVConfig(**{**config, **fields}, architectures=[model_class.__name__])
    return Plan(noria, model_class, settings=settings.record, write_tokenizer=copy_tokenizer(checkpoint))


def inner_size(tensors: Mapping[str, Tensor]) -> int | None:
    key = tensors.get("blocks.0.feed_forward.key.weight")
    return None if key is None else key.shape[0]


def find_rescaling(settings: Settings, tensors: Mapping[str, Tensor], layers: int, given: Mapping[str, Any]) -> int:
    """`rescale_every` where the weights were saved halved, else 0. The caller's word stands before what they show."""
    every = settings.take("rescale_every", default=6)
    if "rescale_every" in given or every <= 0 or layers <= every:
        return max(every, 0) if layers > every else 0
    halved = is_halved(tensors, layers, every)
    if halved is None:
        settings.wrong.append(
            f"the weights do not show whether they were saved halved after every {every} layers, as transformers does "
            f"once the model has run in evaluation mode: say rescale_every={every} if so, rescale_every=0 if not"
        )
    settings.record["rescale_every"] = {"value": every if halved else 0, "from": "tensors"}
    return every if halved else 0


RWKV_FOLDER = Format(
    name="transformers",
    upstream="transformers' RwkvConfig",
    arguments=ARGUMENTS,
    config_classes=(NoriaRWKVConfig,),
    plan=plan,
    rules=rules,
    patterns=PATTERNS,
    companions=COMPANIONS,
)
