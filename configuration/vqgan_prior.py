"""The second stage of VQGAN: Esser, Rombach and Ommer 2021 (arXiv:2012.09841), section 3.2."""

from math import prod
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import logging

from .decoder import derive_heads
from .vqgan import NoriaVQGANConfig

logger = logging.get_logger(__name__)

CONDITIONS = ("none", "class", "coordinates", "codes", "tokens")
TOKEN_ORDERS = ("row", "z_curve", "spiral_in", "spiral_out", "alternate", "subsample", "random")
# Fields of the prior that may be given to the whole; `prior_config` names all others.
PRIOR_FIELDS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
# minGPT, of which VQGAN's authors made their second stages, in GPT-2's words.
PUBLISHED = {"activation_function": "gelu", "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
DEFAULT_WIDTH, DEFAULT_DEPTH, DEFAULT_CODES, DEFAULT_GRID = 512, 8, 1024, 16


@strict
class NoriaVQGANPriorConfig(PreTrainedConfig):
    r"""
    prior_config (`dict` or a configuration): any causal language model of noria or transformers, by its `model_type`;
        by default a GPT-2 as VQGAN's authors used. Vocabulary and positions that it leaves out are made to fit.
    vqgan_config (`dict` or a configuration): the first stage; without one the model knows codes and no pixels.
    condition_vqgan_config (`dict` or a configuration): what makes codes of conditions; by default the first stage.
    condition (`str`): what stands before the image's codes: "none" (one token, `sos_token`), "class" (one token),
        "coordinates" (each place of the grid, as a number), "codes" (another image's) or "tokens" (given as they are).
    vocab_size (`int`): codes that an image has; by default those of the first stage.
    grid_size (`list[int]`): height and width of the map of codes that the prior is trained on; by default the first
        stage's. It is also the window in which larger maps are written.
    hidden_size, num_hidden_layers, num_attention_heads, intermediate_size (`int`): those of the prior.
    sos_token (`int`): the token of models without condition.
    num_labels (`int`), id2label (`dict`): the classes.
    coordinate_levels (`int`): coordinates become the numbers 0 to this; by default `vocab_size`.
    coordinate_downsampling (`int`): pixels, along each side, for one coordinate; by default the first stage's.
    condition_size (`int`): maps are resized to this side before they are encoded.
    condition_length (`int`): how many tokens a condition has; only "tokens" needs it said.
    condition_offset (`int`): added to all ids of conditions. With 0 they share the rows of codes, as in all published
        models; with `vocab_size` they have their own.
    token_order (`str` or `list[int]`): the order in which the map is read, or that order itself, by place in the map.
    order_seed (`int`): of the order "random".
    keep_probability (`float`): while training, a code that the prior reads stays with this probability; else it is
        replaced by any other.
    num_unmasked (`int`): so many tokens at the beginning see one another in both directions.
    initializer_range (`float`): standard deviation of the default prior's initial weights.
    """

    model_type = "noria_vqgan_prior"
    sub_configs = {
        "prior_config": AutoConfig,
        "vqgan_config": NoriaVQGANConfig,
        "condition_vqgan_config": NoriaVQGANConfig,
    }

    prior_config: dict | PreTrainedConfig | None = None
    vqgan_config: dict | PreTrainedConfig | None = None
    condition_vqgan_config: dict | PreTrainedConfig | None = None
    condition: str = "none"
    vocab_size: int | None = None
    grid_size: int | list[int] | tuple[int, ...] | None = None
    sos_token: int = 0
    coordinate_levels: int | None = None
    coordinate_downsampling: int | None = None
    condition_size: int | None = None
    condition_length: int | None = None
    condition_offset: int = 0
    token_order: str | list[int] | tuple[int, ...] = "row"
    order_seed: int = 1
    keep_probability: float | int = 1.0
    num_unmasked: int = 0
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs) -> None:
        if self.condition not in CONDITIONS:
            raise ValueError(f"`condition` must be one of {', '.join(CONDITIONS)}, not {self.condition!r}.")
        given = {name: kwargs.pop(name) for name in PRIOR_FIELDS if kwargs.get(name) is not None}
        if self.id2label is None:
            self.num_labels = kwargs.pop("num_labels", 2)
        self.make_stages()
        self.derive_sizes()
        self.validate_sizes()
        self.validate_order()
        self.derive_condition()
        self.make_prior(given)
        attention = self.prior_config._attn_implementation
        super().__post_init__(**kwargs)
        if self._attn_implementation is None:
            self.prior_config._attn_implementation = attention  # the base class has put its own None there

    def make_stages(self) -> None:
        for name in ("vqgan_config", "condition_vqgan_config"):
            value = getattr(self, name)
            if isinstance(value, dict):
                setattr(self, name, NoriaVQGANConfig(**without_type(name, value, NoriaVQGANConfig.model_type)))

    def derive_sizes(self) -> None:
        stage = self.vqgan_config
        if self.vocab_size is None:
            self.vocab_size = stage.num_codes if stage else DEFAULT_CODES
        elif stage and self.vocab_size != stage.num_codes:
            raise ValueError(f"`vocab_size` ({self.vocab_size}) is not the first stage's: {stage.num_codes} codes.")
        if self.grid_size is None:
            self.grid_size = stage.image_size // stage.downsampling if stage else DEFAULT_GRID
        if isinstance(self.grid_size, int):
            self.grid_size = [self.grid_size, self.grid_size]
        self.grid_size = list(self.grid_size)
        if self.coordinate_levels is None:
            self.coordinate_levels = self.vocab_size
        if self.coordinate_downsampling is None:
            self.coordinate_downsampling = stage.downsampling if stage else 1

    def derive_condition(self) -> None:
        length = {"none": 1, "class": 1, "coordinates": self.num_tokens, "codes": self.derive_map_length()}
        if self.condition_length is None:
            if self.condition == "tokens":
                raise ValueError('`condition` "tokens" needs `condition_length`: how many tokens a condition has.')
            self.condition_length = length[self.condition]
        elif self.condition_length != length.get(self.condition, self.condition_length):
            raise ValueError(
                f"`condition_length` must be {length[self.condition]} here, with `condition` {self.condition!r}, "
                f"not {self.condition_length}."
            )
        if self.num_unmasked > self.condition_length:
            logger.warning_once(
                f"`num_unmasked` ({self.num_unmasked}) passes the condition's {self.condition_length} tokens: while "
                "training, the first codes see those that they are asked to predict."
            )

    def derive_map_length(self) -> int:
        """Tokens of a condition that is a map, where maps have the size that its encoder was made for."""
        stage = self.condition_vqgan_config or self.vqgan_config
        if stage is None:
            return self.condition_length or self.num_tokens
        return ((self.condition_size or stage.image_size) // stage.downsampling) ** 2

    def make_prior(self, given: dict[str, Any]) -> None:
        prior = self.prior_config
        if isinstance(prior, PreTrainedConfig):
            for name, value in given.items():
                if getattr(prior, name, value) != value:
                    raise ValueError(f"`{name}` is {value} here and {getattr(prior, name)} in `prior_config`.")
        else:
            prior = self.prior_config = self.build_prior(both(prior or {}, given))
        # A map of codes ends when it is full: the prior's ids mean codes, none of them an end.
        prior.bos_token_id = prior.eos_token_id = prior.pad_token_id = None
        if prior.vocab_size < self.vocab_size:
            raise ValueError(f"the prior's `vocab_size` ({prior.vocab_size}) must hold all {self.vocab_size} codes.")
        positions = getattr(prior, "max_position_embeddings", None)
        if positions is not None and positions < self.sequence_length:
            raise ValueError(
                f"the prior's `max_position_embeddings` ({positions}) must hold {self.condition_length} tokens of the "
                f"condition and {self.num_tokens} codes, less the last: at least {self.sequence_length}."
            )

    def build_prior(self, fields: dict[str, Any]) -> PreTrainedConfig:
        """A configuration of the `model_type` in `fields`, GPT-2 without one, with what is missing made to fit."""
        kind = configuration_class(fields.get("model_type", "gpt2"))
        own = own_names(kind, fields)
        if "model_type" not in fields:
            width = own.setdefault("n_embd", DEFAULT_WIDTH)
            own = {"n_layer": DEFAULT_DEPTH, "n_head": derive_heads(width), **PUBLISHED, **own}
            own.setdefault("initializer_range", self.initializer_range)
        positions = kind.attribute_map.get("max_position_embeddings", "max_position_embeddings")
        if hasattr(kind(), positions):
            own.setdefault(positions, self.sequence_length)
        own = {"vocab_size": self.num_ids, "tie_word_embeddings": False, **own}
        return kind(**{**own, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None})

    @property
    def hidden_size(self) -> int:
        return self.prior_config.hidden_size

    @property
    def num_hidden_layers(self) -> int:
        return self.prior_config.num_hidden_layers

    @property
    def num_attention_heads(self) -> int | None:
        return getattr(self.prior_config, "num_attention_heads", None)

    @property
    def num_tokens(self) -> int:
        """Codes of one image."""
        return prod(self.grid_size)

    @property
    def sequence_length(self) -> int:
        """Tokens that the prior reads: the condition and all codes but the last, which it only writes."""
        return self.condition_length + self.num_tokens - 1

    @property
    def num_condition_ids(self) -> int:
        """Ids that conditions have, before `condition_offset`; of "tokens", which are not known, as many as codes."""
        stage = self.condition_vqgan_config or self.vqgan_config
        codes = stage.num_codes if stage else self.vocab_size
        kinds = {"none": self.sos_token + 1, "class": self.num_labels, "coordinates": self.coordinate_levels + 1}
        return {**kinds, "codes": codes, "tokens": self.vocab_size}[self.condition]

    @property
    def num_ids(self) -> int:
        """The vocabulary in which codes and conditions have room."""
        return max(self.vocab_size, self.condition_offset + self.num_condition_ids)

    def validate_sizes(self) -> None:
        if len(self.grid_size) != 2 or min(self.grid_size) < 1:
            raise ValueError(f"`grid_size` must be a positive height and width, not {self.grid_size}.")
        for name in ("vocab_size", "coordinate_levels", "coordinate_downsampling", "condition_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, not {getattr(self, name)}.")
        for name in ("sos_token", "condition_offset", "num_unmasked"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be at least 0, not {getattr(self, name)}.")
        if not 0 <= self.keep_probability <= 1:
            raise ValueError(f"`keep_probability` must lie in 0..1, not {self.keep_probability}.")

    def validate_order(self) -> None:
        if isinstance(self.token_order, str):
            if self.token_order not in TOKEN_ORDERS:
                raise ValueError(f"`token_order` must be one of {', '.join(TOKEN_ORDERS)}, not {self.token_order!r}.")
        elif sorted(self.token_order) != list(range(self.num_tokens)):
            raise ValueError(f"`token_order` must hold each place of the map, 0 to {self.num_tokens - 1}, once.")


def configuration_class(model_type: str) -> type[PreTrainedConfig]:
    """Raises ValueError for a `model_type` that is not registered."""
    try:
        return type(AutoConfig.for_model(model_type))
    except ValueError as error:
        raise ValueError(
            f"`prior_config` has a `model_type` that nothing here knows: {model_type!r}. Those of noria are known "
            "after `import noria`."
        ) from error


def own_names(kind: type[PreTrainedConfig], fields: dict[str, Any]) -> dict[str, Any]:
    """`fields` without their `model_type`, by the names that configurations of `kind` store them under.

    Raises ValueError for a field that is given by two names with two values.
    """
    aliases = {"intermediate_size": "n_inner"} if kind.model_type == "gpt2" else {}
    aliases |= kind.attribute_map
    own: dict[str, Any] = {}
    for name, value in fields.items():
        if name == "model_type":
            continue
        stored = aliases.get(name, name)
        if own.setdefault(stored, value) != value:
            raise ValueError(f"`{name}` is {value} here and {own[stored]} in `prior_config`, as `{stored}`.")
    return own


def both(fields: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """`fields` and those that are `given` beside them. Raises ValueError where they contradict one another."""
    for name, value in given.items():
        if fields.get(name, value) != value:
            raise ValueError(f"`{name}` is {value} here and {fields[name]} in `prior_config`.")
    return {**fields, **given}


def without_type(name: str, fields: dict[str, Any], model_type: str) -> dict[str, Any]:
    """`fields` without their `model_type`. Raises ValueError where that is another one than `model_type`."""
    if fields.get("model_type", model_type) != model_type:
        raise ValueError(f"`{name}` must be of type {model_type!r}, not {fields['model_type']!r}.")
    return {key: value for key, value in fields.items() if key != "model_type"}


__all__ = ["NoriaVQGANPriorConfig"]
