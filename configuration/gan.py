"""GAN: Goodfellow et al. 2014, Generative Adversarial Networks (arXiv:1406.2661); DCGAN: arXiv:1511.06434."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .decoder import FAMILIAR_FIELDS, Derived, logger

NETWORKS = ("mlp", "dcgan")
NORMS = ("batch", "layer", "none")
OUTPUTS = ("tanh", "linear")
LATENTS = ("normal", "uniform")
# Of the articles: the width of the first or last map, and the share of the past in batch norm's running statistics.
PUBLISHED_SIZE = {"mlp": 256, "dcgan": 64}
PUBLISHED_MOMENTUM = {"mlp": 0.8, "dcgan": 0.9}
PUBLISHED_DEPTH = 3
SMALLEST_MAP = 4
WIDEST = 8


@strict
class NoriaGANConfig(PreTrainedConfig):
    r"""
    vocab_size (`None`): there are no tokens.
    hidden_size (`int`): the generator's narrowest layer; by default 256 for "mlp", 64 for "dcgan".
    num_hidden_layers (`int`): hidden layers of the generator; by default 3 for "mlp", for "dcgan" as many as lead from
        maps of 4x4 to `image_size`.
    generator, critic (`str`): "mlp", or "dcgan" (strided convolutions), which is the default for images.
    generator_widths (`list[int]`): of the generator's hidden layers, the first one first; by default `hidden_size`
        times 1, 2, 4, 8, 8 ... ("mlp") or the same from behind ("dcgan").
    critic_widths (`list[int]`): of the critic's; by default the generator's from behind, for "mlp" without the first.
    latent_size (`int`): numbers that a sample is made from.
    latent_distribution (`str`): "normal", or "uniform" in [-1, 1].
    image_size (`int`): the side of the images; by default 64, unless there is a `data_size`.
    num_channels (`int`): channels of the images.
    data_size (`int`): samples are vectors of so many numbers, not images.
    num_labels (`int`): classes that samples are made for; 0 for none.
    label_size (`int`): width of a label's embedding; by default `num_labels`, at most `latent_size`.
    generator_norm, critic_norm (`str`): "batch", "layer" or "none"; the critic's is by default "batch" for "dcgan"
        without `spectral_norm`. A gradient penalty wants a critic without batch norm.
    norm_momentum (`float`): share of the past in batch norm's running statistics; by default 0.8 ("mlp") or 0.9.
    norm_eps (`float`): epsilon of the norms.
    spectral_norm (`bool`): the critic's weights are divided by their spectral norms.
    output (`str`): "tanh", the default for images, or "linear", that for vectors.
    initializer_range (`float`): standard deviation of the initial weights; by default 0.02 in a "dcgan" and PyTorch's
        own initialisation in an "mlp".
    """

    model_type = "noria_gan"

    vocab_size: int | None = None
    hidden_size: Derived[int] = None
    num_hidden_layers: Derived[int] = None
    generator: Derived[str] = None
    critic: Derived[str] = None
    generator_widths: Derived[list[int] | tuple[int, ...]] = None
    critic_widths: Derived[list[int] | tuple[int, ...]] = None
    latent_size: int = 100
    latent_distribution: str = "normal"
    image_size: int | None = None
    num_channels: int = 3
    data_size: int | None = None
    # A field rather than transformers' property of that name, which counts the names in `id2label`: two by default.
    num_labels: int = 0
    label_size: Derived[int] = None
    generator_norm: str = "batch"
    critic_norm: Derived[str] = None
    norm_momentum: Derived[float | int] = None
    norm_eps: float = 1e-5
    spectral_norm: bool = False
    output: Derived[str] = None
    initializer_range: float | None = None

    def __post_init__(self, **kwargs) -> None:
        self.ignore_familiar(kwargs)
        if self.id2label is not None and not self.num_labels:
            self.num_labels = len(self.id2label)
        super().__post_init__(**kwargs)
        self.derive_kinds()
        self.validate_sizes()
        self.validate_choices()
        self.validate_data()
        self.derive_sizes()

    def ignore_familiar(self, kwargs: dict) -> None:
        familiar = {name: kwargs.pop(name) for name in FAMILIAR_FIELDS if name in kwargs}
        if self.vocab_size is not None:
            familiar["vocab_size"], self.vocab_size = self.vocab_size, None
        for name, value in familiar.items():
            logger.warning_once(f"GAN has no `{name}`: the value {value!r} is ignored.")

    def derive_kinds(self) -> None:
        if self.image_size is None and self.data_size is None:
            self.image_size = 64
        if self.generator is None:
            self.generator = "mlp" if self.data_size else "dcgan"
        if self.critic is None:
            self.critic = self.generator
        if self.output is None:
            self.output = "linear" if self.data_size else "tanh"
        if self.critic_norm is None:
            self.critic_norm = "batch" if self.critic == "dcgan" and not self.spectral_norm else "none"

    def derive_sizes(self) -> None:
        if self.norm_momentum is None:
            self.norm_momentum = PUBLISHED_MOMENTUM[self.generator]
        if self.label_size is None:
            self.label_size = max(min(self.num_labels, self.latent_size), 1)
        if self.generator_widths is None:
            self.generator_widths = self.ladder(self.generator)
        if self.critic_widths is None:
            mirrored = self.generator_widths if self.critic == self.generator else self.ladder(self.critic)
            self.critic_widths = list(mirrored)[::-1]
            if self.critic == "mlp":
                self.critic_widths = self.critic_widths[1:] or self.critic_widths
        if self.hidden_size is None:
            self.hidden_size = min(self.generator_widths, default=PUBLISHED_SIZE[self.generator])
        if self.num_hidden_layers is None:
            self.num_hidden_layers = len(self.generator_widths)

    def ladder(self, kind: str) -> list[int]:
        """Widths of a generator of that kind: they double with each layer up to eightfold, or halve."""
        least = self.hidden_size or PUBLISHED_SIZE[kind]
        depth = self.num_hidden_layers
        if depth is None:
            depth = PUBLISHED_DEPTH if kind == "mlp" else default_depth(self.image_size)
        widths = [least * min(2**i, WIDEST) for i in range(depth)]
        return widths[::-1] if kind == "dcgan" else widths

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of one sample: (channels, height, width), or (numbers,)."""
        return (self.data_size,) if self.data_size else (self.num_channels, self.image_size, self.image_size)

    def validate_sizes(self) -> None:
        positive = ("hidden_size", "latent_size", "image_size", "num_channels", "data_size", "label_size")
        for name in positive:
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, not {getattr(self, name)}.")
        for name in ("generator_widths", "critic_widths"):
            if min(getattr(self, name) or [1]) < 1:
                raise ValueError(f"`{name}` must hold positive widths, not {list(getattr(self, name))}.")
        for name in ("num_hidden_layers", "num_labels"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"`{name}` must be at least 0, not {getattr(self, name)}.")
        depth, widths = self.num_hidden_layers, self.generator_widths
        if depth is not None and widths is not None and depth != len(widths):
            raise ValueError(
                f"`num_hidden_layers` ({depth}) is not the number of `generator_widths` ({list(widths)})."
            )

    def validate_data(self) -> None:
        if self.image_size and self.data_size:
            raise ValueError(
                f"samples have `image_size` ({self.image_size}), or are vectors of `data_size` ({self.data_size}): "
                "leave one out."
            )
        for name in ("generator", "critic"):
            if self.data_size and getattr(self, name) == "dcgan":
                raise ValueError(f'`{name}` must be "mlp" for vectors of `data_size` ({self.data_size}), not "dcgan".')

    def validate_choices(self) -> None:
        tables = {
            "generator": NETWORKS,
            "critic": NETWORKS,
            "generator_norm": NORMS,
            "critic_norm": NORMS,
            "output": OUTPUTS,
            "latent_distribution": LATENTS,
        }
        for name, known in tables.items():
            if getattr(self, name) not in known:
                raise ValueError(f"`{name}` must be one of {', '.join(known)}, not {getattr(self, name)!r}.")

    def validate_numbers(self) -> None:
        if self.norm_momentum is not None and not 0 <= self.norm_momentum < 1:
            raise ValueError(f"`norm_momentum` must be at least 0 and below 1, not {self.norm_momentum}.")
        if self.initializer_range is not None and self.initializer_range <= 0:
            raise ValueError(f"`initializer_range` must be positive, not {self.initializer_range}.")


def default_depth(size: int) -> int:
    """How often images of this size are halved until they are 4x4 at most, and at least once."""
    depth = 1
    while (size := (size + 1) // 2) > SMALLEST_MAP:
        depth += 1
    return depth


__all__ = ["NoriaGANConfig"]
