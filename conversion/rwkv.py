"""BlinkDL/RWKV-LM and the package `rwkv`: .pth files of RWKV-4, 5.2, 6 and 7  ->  NoriaRWKVForCausalLM.

A file is a flat state dict, most often in bfloat16, and carries no configuration: its version shows in its keys.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from ..configuration.rwkv import NoriaRWKVConfig
from ..modeling.rwkv import NoriaRWKVForCausalLM
from ..tokenization.rwkv import write_tokenizer
from .checkpoint import Checkpoint
from .format import Format, Plan, common_prefix, layer_count
from .rules import Rule
from .rwkv_rules import BY_VERSION, table
from .settings import Settings
from .symbols import mapping

ARGUMENTS = [
    "version",
    "n_embd",
    "n_layer",
    "vocab_size",
    "dim_att",
    "dim_ffn",
    "head_size",
    "head_size_a",
    "head_size_divisor",
    "ctx_len",
    "dropout",
]
ATTENTION = "blocks.0.att."
VOCABULARIES = ("rwkv_vocab_v20230424.txt", "20B_tokenizer.json")
SHORT = {"decay": "w", "rate": "a", "gate": "g"}
# Parts of fine-tunes and of early experiments that change what the model computes.
FOREIGN = {
    "ffnPre": "a second feed-forward layer in place of the first layer's time mix",
    "head_q": "the copying head of an experiment",
    "head_k": "the copying head of an experiment",
    "copy_mask": "the copying head of an experiment",
    "pos_emb": "position embeddings",
    "tiny_": "an attention layer of a fine-tune",
}


def rules(config: PreTrainedConfig) -> Sequence[Rule]:
    return table(config.version)


def plan(checkpoint: Checkpoint, arguments: Mapping[str, Any], fields: Mapping[str, Any]) -> Plan:
    prefix = common_prefix(checkpoint.state, "emb.weight")
    tensors = {name[len(prefix) :]: tensor for name, tensor in checkpoint.state.items() if name.startswith(prefix)}
    version = find_version(tensors)
    refuse_foreign(tensors, checkpoint)
    settings = Settings(arguments, {})
    config = rwkv_config(settings, tensors, version)
    settings.finish()
    noria = NoriaRWKVConfig(**{**config, **fields})
    return Plan(noria, NoriaRWKVForCausalLM, prefix, settings.record, write_tokenizer=tokenizer_writer(checkpoint))


def tokenizer_writer(checkpoint: Checkpoint) -> Callable[[Path], Any] | None:
    """Writes the tokenizer of the published vocabulary that lies beside the file; None where there is none."""
    file = next((checkpoint.companions[name] for name in VOCABULARIES if name in checkpoint.companions), None)
    return None if file is None else lambda folder: write_tokenizer(file, folder)


def find_version(tensors: Mapping[str, Tensor]) -> int:
    """4 to 7, as the package `rwkv` tells them. ValueError for versions 5.0 and 5.1 and for what is no RWKV."""
    if ATTENTION + "r_k" in tensors:
        return 7
    if ATTENTION + "time_decay" not in tensors:
        names = ", ".join(list(tensors)[:4])
        raise ValueError(f"it is not an RWKV: no {ATTENTION}time_decay among {names}, ...")
    if ATTENTION + "time_maa_x" in tensors:
        return 6
    if ATTENTION + "ln_x.weight" not in tensors:
        return 4
    if ATTENTION + "gate.weight" not in tensors or tensors[ATTENTION + "time_decay"].dim() < 2:
        raise ValueError(
            "it is RWKV 5.0 or 5.1, early forms of version 5; only 5.2 (gate, decay per channel) converts"
        )
    return 5


def refuse_foreign(tensors: Mapping[str, Tensor], checkpoint: Checkpoint) -> None:
    content = mapping(checkpoint.content) or {}
    if "_strategy" in content:
        raise ValueError(
            f"the package rwkv has prepared it for {content['_strategy']!r}, with weights transposed and rescaled: "
            "give the file that it was made from"
        )
    for name in tensors:
        part = next((part for part in FOREIGN if part in name), None)
        if part:
            raise ValueError(f"it has {FOREIGN[part]} ({name}), which is not implemented")


def rwkv_config(settings: Settings, tensors: Mapping[str, Tensor], version: int) -> dict[str, Any]:
    """The fields of NoriaRWKVConfig from what the tensors show, compared with what was stated."""
    if version not in BY_VERSION:
        raise ValueError(f"it is RWKV-{version}, which this version of noria does not have yet")
    vocabulary, width = tensors["emb.weight"].shape
    config = {
        "version": settings.take("version", version),
        "vocab_size": settings.take("vocab_size", vocabulary),
        "hidden_size": settings.take("n_embd", width),
        "num_hidden_layers": settings.take("n_layer", layer_count(tensors, "blocks.")),
        "attention_hidden_size": settings.take("dim_att", size(tensors, ATTENTION + "key.weight")),
        "intermediate_size": settings.take("dim_ffn", size(tensors, "blocks.0.ffn.key.weight")),
        "dropout": settings.take("dropout", default=0.0),
        "embedding_norm_dtype": norm_dtype(tensors, version),
        # The end of a document in both of the published vocabularies.
        "bos_token_id": 0,
        "eos_token_id": 0,
        **heads(settings, tensors, version),
        **ranks(tensors, version),
    }
    return config


def norm_dtype(tensors: Mapping[str, Tensor], version: int) -> str | None:
    """Up to version 6 the package `rwkv` norms the embeddings before it leaves the file's half precision."""
    dtype = tensors["emb.weight"].dtype
    return str(dtype).removeprefix("torch.") if version < 7 and dtype in (torch.bfloat16, torch.float16) else None


def heads(settings: Settings, tensors: Mapping[str, Tensor], version: int) -> dict[str, int]:
    """The number of heads, which versions 5 to 7 show in the shape of their bonus (h n)."""
    if version == 4:
        return {}
    bonus = ATTENTION + ("r_k" if version == 7 else "time_faaaa")
    count = size(tensors, bonus)
    for name in ("head_size", "head_size_a"):
        settings.take(name, tensors[bonus].shape[1])
    settings.refuse("head_size_divisor", 8, "the norm of the heads has the epsilon that goes with 8")
    return {"num_attention_heads": count}


def ranks(tensors: Mapping[str, Tensor], version: int) -> dict[str, int]:
    """The ranks of what depends on the data, in versions 6 and 7."""
    if version == 6:
        places = {"mix_rank": ("blocks.0.att.time_maa_w2", 1), "decay_rank": ("blocks.0.att.time_decay_w2", 0)}
    elif version == 7:
        # The first layer's v2 is never used, and there need not be a second.
        value = "blocks.1.att.v2" if "blocks.1.att.v2" in tensors else "blocks.0.att.v2"
        places = {f"{name}_rank": (f"blocks.0.att.{letter}2", 0) for name, letter in SHORT.items()}
        places["value_rank"] = (value, 0)
    else:
        return {}
    lacking = [source for source, _ in places.values() if source not in tensors]
    if lacking:
        raise ValueError(f"the checkpoint lacks {', '.join(lacking)}")
    return {name: tensors[source].shape[axis] for name, (source, axis) in places.items()}


def size(tensors: Mapping[str, Tensor], name: str) -> int:
    if name not in tensors:
        raise ValueError(f"the checkpoint lacks {name}")
    return tensors[name].shape[0]


RWKV = Format(
    name="rwkv",
    upstream="RWKV-LM",
    arguments=frozenset(ARGUMENTS),
    config_classes=(NoriaRWKVConfig,),
    plan=plan,
    rules=rules,
    companions=VOCABULARIES,
)
