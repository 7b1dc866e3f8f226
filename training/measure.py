"""What a causal model costs while it writes: seconds for its tokens, bytes for its memory of them."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed


@dataclass(frozen=True)
class Sample:
    """A text that a model wrote: the prompt, its continuation, the seed, and what the continuation cost."""

    prompt: str
    text: str
    seed: int
    tokens: int
    seconds: float


def write(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    seed: int,
    max_new_tokens: int = 96,
) -> list[Sample]:
    """Continues each prompt by sampling (temperature 0.8 among the 40 likeliest tokens), the i-th under `seed + i`."""
    model.eval()
    samples = []
    for index, prompt in enumerate(prompts):
        inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
        set_seed(seed + index)
        begin = time.perf_counter()
        output = model.generate(
            **inputs, max_new_tokens=max_new_tokens, do_sample=True, temperature=0.8, top_k=40, use_cache=True
        )
        seconds = time.perf_counter() - begin
        new = output[0, inputs.input_ids.shape[1] :]
        samples.append(
            Sample(prompt, tokenizer.decode(new, skip_special_tokens=True), seed + index, len(new), seconds)
        )
    return samples


@torch.inference_mode()
def cache_bytes(model: PreTrainedModel, tokens: int) -> int:
    """The bytes of all tensors in the cache that the model returns after reading `tokens` tokens, batch of one."""
    ids = torch.arange(tokens, device=model.device)[None] % model.config.vocab_size
    cache = model.eval()(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
    storages = {tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in _tensors(cache)}
    return sum(storages.values())


def _tensors(value: Any) -> list[torch.Tensor]:
    """All tensors below a cache: in its layers, their attributes, and lists, tuples and dicts of these."""
    if isinstance(value, torch.Tensor):
        return [value] if value.numel() else []
    if isinstance(value, dict):
        return [tensor for part in value.values() for tensor in _tensors(part)]
    if isinstance(value, list | tuple):
        return [tensor for part in value for tensor in _tensors(part)]
    if hasattr(value, "layers") and not isinstance(value, torch.nn.Module):
        return _tensors([vars(layer) for layer in value.layers])
    return []
