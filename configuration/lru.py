"""LRU: Orvieto et al. 2023, Resurrecting Recurrent Neural Networks for Long Sequences (arXiv:2303.06349)."""

from huggingface_hub.dataclasses import strict

from .decoder import DecoderConfig, logger

NORMS = ("layer_norm", "rms_norm", "batch_norm")
POOLINGS = ("mean", "last", "none")


@strict
class NoriaLRUConfig(DecoderConfig):
    r"""
    state_size (`int`): complex numbers that a layer remembers; by default `hidden_size`.
    r_min, r_max (`float`): the moduli of the eigenvalues begin between them, evenly over the area of that ring.
    max_phase (`float`): their angles begin between 0 and this.
    use_bias (`bool`): biases of the maps into and out of the state.
    direct_term (`bool`): a trained multiple of the input, D x, in the recurrence's output.
    hidden_act (`str`): activation between the recurrence and the gated output.
    norm (`str`): "layer_norm", "rms_norm", or "batch_norm" over all real tokens of a batch.
    norm_momentum (`float`): share of the past in the batch norm's running statistics.
    prenorm (`bool`): the norm before the recurrence; otherwise after the residual sum.
    final_norm (`bool`): a norm after the last block; by default where `prenorm` holds.
    input_size (`int`): width of `inputs_embeds`, which a linear map takes to `hidden_size`, where `vocab_size` is 0.
    pooling (`str`): what a classifier reads: "mean" of the real tokens, the "last" one, or each of them ("none").
    num_attention_heads (`None`): there are none; PEFT asks every model for the name.
    """

    model_type = "noria_lru"

    state_size: int | None = None
    r_min: float | int = 0.0
    r_max: float | int = 1.0
    max_phase: float | int = 6.28
    use_bias: bool = False
    direct_term: bool = True
    hidden_act: str = "gelu_tanh"
    norm: str = "layer_norm"
    norm_momentum: float | int = 0.99
    prenorm: bool = True
    final_norm: bool | None = None
    input_size: int | None = None
    pooling: str = "mean"
    num_attention_heads: int | None = None

    def derive_sizes(self) -> None:
        if self.num_attention_heads is not None:
            logger.warning_once(f"LRU has no heads: `num_attention_heads` ({self.num_attention_heads}) is ignored.")
            self.num_attention_heads = None
        if self.state_size is None:
            self.state_size = self.hidden_size
        if self.final_norm is None:
            self.final_norm = self.prenorm

    def validate_state(self) -> None:
        if self.state_size < 1:
            raise ValueError(f"`state_size` must be at least 1, not {self.state_size}.")
        if not 0 <= self.r_min < self.r_max <= 1:
            raise ValueError(f"`r_min` ({self.r_min}) and `r_max` ({self.r_max}) must keep 0 <= r_min < r_max <= 1.")
        if self.max_phase <= 0:
            raise ValueError(f"`max_phase` must be positive, not {self.max_phase}.")
        if not 0 <= self.norm_momentum < 1:
            raise ValueError(f"`norm_momentum` must be at least 0 and below 1, not {self.norm_momentum}.")

    def validate_choices(self) -> None:
        for name, known in (("norm", NORMS), ("pooling", POOLINGS)):
            if getattr(self, name) not in known:
                raise ValueError(f"`{name}` must be one of {', '.join(known)}, not {getattr(self, name)!r}.")

    def validate_input_size(self) -> None:
        if self.input_size is None:
            return
        if self.input_size < 1:
            raise ValueError(f"`input_size` must be at least 1, not {self.input_size}.")
        if self.vocab_size:
            raise ValueError(f"`input_size` ({self.input_size}) belongs to `vocab_size` 0, not {self.vocab_size}.")


__all__ = ["NoriaLRUConfig"]
