"""The states of all layers, as generate() carries them, and as an object: fork, save, load.

cache = NoriaCache(model.config)
model(ids, past_key_values=cache, use_cache=True)
cache.save("prefix.safetensors")
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, DynamicCache

from ..configuration.decoder import RECURRENT_LAYER_TYPE
from .recurrent_layer import RecurrentLayer  # noqa: F401  (registers the layer that DynamicCache makes)

FORMAT = "noria-cache-1"
# Fields that change nothing about what a state means.
INCIDENTAL = ("transformers_version", "architectures", "dtype", "use_cache", "auto_map", "id2label", "label2id")


def identity(config: PreTrainedConfig) -> dict[str, str]:
    """What a saved cache must share with the model that continues it: architecture and a hash of its configuration."""
    fields = {name: value for name, value in config.to_dict().items() if name not in INCIDENTAL and name[0] != "_"}
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True, default=str).encode()).hexdigest()
    return {"architecture": config.model_type, "config": digest}


class NoriaCache(DynamicCache):
    """A DynamicCache of recurrent and growing layers that can be forked, saved and loaded.

    positions (b) int64 or None: the place that each row's next token takes where the caller does not say.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config=config)
        self.config = config  # hashed when it is saved: torch.compile cannot trace that
        self.positions: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors that the layers hold."""
        return sum(part.nbytes for layer in self.layers for part in layer_tensors(layer))

    def fork(self) -> NoriaCache:
        """An independent cache in the same state, without gradient: one prefix, several continuations."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin.layers = [fork_layer(layer) for layer in self.layers]
        return twin

    def __deepcopy__(self, memo: dict) -> NoriaCache:
        return self.fork()

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last `-tokens_to_remove` tokens, exactly. See RecurrentLayer.crop for what it raises."""
        super().crop(tokens_to_remove)
        if self.positions is not None:
            self.positions = self.positions + tokens_to_remove

    def reset(self) -> None:
        super().reset()
        self.positions = None

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        super().reorder_cache(beam_idx)
        self.change_rows(lambda rows: rows.index_select(0, beam_idx.to(rows.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self.change_rows(lambda rows: rows.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self.change_rows(lambda rows: rows[indices.to(rows.device)])

    def change_rows(self, change) -> None:
        if self.positions is not None and self.positions.shape[0] > 1:
            self.positions = change(self.positions)

    def save(self, path: str | os.PathLike) -> None:
        """Write the states as safetensors, with the model's identity, the token count and the positions.

        The file appears whole or not at all. Raises ValueError for an empty cache, OSError where `path` cannot be
        written.
        """
        tensors = {
            f"layers.{i}.{j}": part.detach().cpu().contiguous()
            for i, layer in enumerate(self.layers)
            for j, part in enumerate(layer_tensors(layer))
        }
        if not tensors:
            raise ValueError("this cache is empty: run the model once with it before `save`.")
        if self.positions is not None:
            tensors["positions"] = self.positions.cpu()
        header = identity(self.config) | {"format": FORMAT, "tokens": str(int(self.get_seq_length()))}
        path = Path(path)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            save_file(tensors, partial, metadata=header)
            partial.replace(path)
        except SafetensorError as error:
            raise OSError(f"cannot write the cache to {path}: {error}") from error
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        config: PreTrainedConfig,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
    ) -> NoriaCache:
        """The cache that `save` wrote, for a model of the same configuration.

        dtype casts keys and values; recurrent states stay as wide as they were. Raises ValueError for a cache of
        another architecture or configuration, or for a file that is not a whole noria cache; OSError if it is absent.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"no cache file at {path}.")
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a whole safetensors file: {error}.") from error
        check_header(path, header, identity(config))
        cache = cls(config)
        cache.positions = tensors.pop("positions", None)
        for i, layer in enumerate(cache.layers):
            parts = [tensors[f"layers.{i}.{j}"] for j in range(len(tensors)) if f"layers.{i}.{j}" in tensors]
            fill_layer(layer, parts, int(header["tokens"]), dtype)
        return cache


def check_header(path: str | os.PathLike, header: dict[str, str], expected: dict[str, str]) -> None:
    if header.get("format") != FORMAT:
        raise ValueError(f"{path} is not a cache that noria saved (format {header.get('format')!r}, not {FORMAT!r}).")
    for name, value in expected.items():
        if header.get(name) != value:
            raise ValueError(
                f"the cache in {path} belongs to another model: its {name} is {header.get(name)}, not {value}."
            )


def layer_tensors(layer) -> list[Tensor]:
    """The tensors of a recurrent layer's state, or the keys and values of a growing one; none while it is empty."""
    parts = getattr(layer, "state", None) or (layer.keys, layer.values)
    return [part for part in parts if part is not None]


def held_rows(cache: Cache) -> int | None:
    """The batch size of what the cache holds, or None while it is empty."""
    return next((parts[0].shape[0] for parts in map(layer_tensors, cache.layers) if parts), None)


def fork_layer(layer):
    if hasattr(layer, "fork"):
        return layer.fork()
    # A growing layer replaces its keys and values and never writes into them, so two may share what they have.
    twin = object.__new__(type(layer))
    twin.__dict__.update(layer.__dict__)
    return twin


def fill_layer(layer, parts: list[Tensor], tokens: int, dtype: torch.dtype | None) -> None:
    if hasattr(layer, "write"):
        layer.put(tuple(parts), tokens)
        layer.device, layer.is_initialized = parts[0].device, True
    else:
        layer.update(*(part if dtype is None else part.to(dtype) for part in parts))


def adopt(cache: Cache, config: PreTrainedConfig) -> None:
    """Give an empty cache made without a configuration this model's layers; check the layers of any other.

    Raises ValueError for a cache whose layers are not this model's in number or kind.
    """
    if getattr(cache, "layer_class_to_replicate", None) is not None and not cache.layers:
        cache.layers, cache.layer_class_to_replicate = NoriaCache(config).layers, None
    kinds = ["recurrent" if hasattr(layer, "write") else "key-value" for layer in cache.layers]
    expected = ["recurrent" if kind == RECURRENT_LAYER_TYPE else "key-value" for kind in config.layer_types]
    if kinds != expected:
        raise ValueError(
            f"this cache comes from another model: it has {len(kinds)} layers ({', '.join(sorted(set(kinds)))}), "
            f"this model {len(expected)} ({', '.join(sorted(set(expected)))})."
        )
