"""Maps of codes, and images, written by a causal language model: whole or begun, of any size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .code_sampling import list_seeds, sampling_arguments
from .image.conditions import check_ids, crop
from .image.sliding_window import Run, plan_runs
from .image.token_order import to_tokens, token_order
from .image_condition import ImageCondition


class CodeGeneration(ImageCondition):
    """generate_codes and generate_images of a model whose `prior` is a causal language model."""

    prior: Any

    @torch.no_grad()
    def generate_codes(
        self,
        condition: Any = None,
        size: tuple[int, int] | int | None = None,
        batch_size: int = 1,
        *,
        codes: Tensor | None = None,
        seed: int | Sequence[int] | None = None,
        window: tuple[int, int] | int | None = None,
        codes_only: bool = True,
        **generate_kwargs,
    ) -> Tensor:
        """Codes (b h w) of new images, written by the prior's own generate().

        condition: class numbers (b) or names; coordinates (b 1 H W) in 0..1, or None for those of a whole image; the
        pixels (b c H W) of another map, or its codes (b h w); or tokens (b n). One condition serves a whole batch.
        size: height and width of the map, by default `grid_size`. A larger one is written in a sliding window.
        codes: what is there already: the first rows (b k w), or tokens (b n), the first in the order of writing.
        seed: sample with a generator for each image, so that its codes do not depend on the rest of the batch; a
        single number seeds the first image, and numbers after it the others.
        window: the part of the map that each code is written in view of; by default `grid_size`.
        codes_only: False allows ids of conditions in place of codes, as the authors' code does.
        generate_kwargs: do_sample, temperature, top_k, top_p, num_beams and what else generate() takes.

        Raises ValueError for a condition, size or codes that do not fit the model, and for arguments of generate()
        that the map decides, as its length.
        """
        size = as_size("size", size or self.config.grid_size)
        window = as_size("window", window or self.config.grid_size)
        ids = self.condition_tokens(condition, self.count_images(condition, codes, batch_size), size)
        return self.write_map(size, window, ids, codes, self.arguments(generate_kwargs, len(ids), seed, codes_only))

    def arguments(
        self, given: dict[str, Any], batch: int, seed: int | Sequence[int] | None, codes_only: bool
    ) -> dict[str, Any]:
        """What generate() is called with for `batch` images, besides its prompt."""
        if (given.get("num_return_sequences") or 1) > 1:
            raise ValueError("`num_return_sequences` is `batch_size` here: one condition serves them all.")
        seeds = None if seed is None else list_seeds(seed, batch)
        count = self.config.vocab_size if codes_only else None
        arguments = sampling_arguments(given, self.prior.generation_config, count, seeds)
        if self.config.num_unmasked > self.config.condition_length:
            arguments["use_cache"] = False  # codes of the unmasked prefix change with those that follow them
        return arguments

    def write_map(
        self, size: tuple[int, int], window: tuple[int, int], ids: Tensor, codes: Tensor | None, arguments: dict
    ) -> Tensor:
        """A map (b h w) under the condition `ids`, which begins with `codes`."""
        canvas, done = self.begin_map(codes, len(ids), size)
        for run in self.plan(size, window, ids, done):
            self.write_run(run, window, ids, canvas, arguments)
        return canvas

    def write_run(self, run: Run, window: tuple[int, int], ids: Tensor, canvas: Tensor, arguments: dict) -> None:
        """Write the codes of one run into `canvas` (b h w), in view of the window's codes before them."""
        rows = torch.arange(run.top, run.top + window[0], device=canvas.device)
        columns = torch.arange(run.left, run.left + window[1], device=canvas.device)
        places = (rows[:, None] * canvas.shape[2] + columns).flatten()[self.find_order(window)]
        flat = canvas.flatten(1)
        prompt = torch.cat([crop(ids, run.top, run.left, *window), flat[:, places[: run.start]]], dim=1)
        self.check_length(prompt.shape[1] + run.count - 1)
        tokens = self.prior.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=run.count, **arguments
        )[:, prompt.shape[1] :]
        if tokens.shape[1] != run.count:
            raise ValueError(f"generation stopped after {tokens.shape[1]} of {run.count} codes.")
        canvas.view(*flat.shape)[:, places[run.start : run.start + run.count]] = tokens

    def plan(self, size: tuple[int, int], window: tuple[int, int], ids: Tensor, done: int) -> list[Run]:
        if size == window:
            left = size[0] * size[1] - done
            return [Run(0, 0, done, left)] if left else []
        if self.config.token_order != "row":
            raise ValueError(
                f"a map of {size[0]}x{size[1]} codes needs a window of its own size: this model writes in the order "
                f"{self.config.token_order!r}, and only rows can be written in a smaller one."
            )
        if ids.dim() == 3 and tuple(ids.shape[1:]) != size:
            grid = "x".join(map(str, ids.shape[1:]))
            raise ValueError(f"a window over {size[0]}x{size[1]} codes needs a condition of as many, not of {grid}.")
        return plan_runs(size, window, done)

    def count_images(self, condition: Any, codes: Tensor | None, batch_size: int) -> int:
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, not {batch_size}.")
        counts = {batch_size, 1 if codes is None else len(codes)}
        counts.add(count_rows(condition))
        if len(counts - {1}) > 1:
            raise ValueError(f"conditions, codes and `batch_size` count different images: {sorted(counts - {1})}.")
        return max(counts)

    def begin_map(self, codes: Tensor | None, batch: int, size: tuple[int, int]) -> tuple[Tensor, int]:
        """A map (b h w) with the codes that are known, and how many these are."""
        canvas = torch.zeros(batch, *size, dtype=torch.long, device=self.device)
        if codes is None:
            return canvas, 0
        codes = torch.as_tensor(codes, device=self.device)
        check_ids(codes, self.config.vocab_size, "codes")
        order, done = self.find_order(size), codes[0].numel()
        if (codes.dim() == 3 and codes.shape[2] != size[1]) or codes.dim() not in (2, 3) or done > len(order):
            raise ValueError(
                f"codes that are there already are rows (batch, k, {size[1]}) or tokens (batch, n) of a map of "
                f"{size[0]}x{size[1]}: their shape is {tuple(codes.shape)}."
            )
        places = order[:done]
        if codes.dim() == 3:
            if done and int(places.max()) >= done:
                raise ValueError(f"in the order {self.config.token_order!r} the first codes are no whole rows.")
            places = torch.arange(done, device=self.device)
        canvas.view(batch, -1)[:, places] = codes.long().flatten(1)
        return canvas, done

    def generate_images(
        self,
        condition: Any = None,
        size: tuple[int, int] | int | None = None,
        batch_size: int = 1,
        *,
        pixel_values: Tensor | None = None,
        keep: float = 0.5,
        **kwargs,
    ) -> Tensor:
        """New images (b c H W) as the first stage decodes them: about [-1, 1], not clamped.

        pixel_values (b c H W): images to complete; so large a share `keep` of their codes, the first in the order of
        writing, stays. The rest is as in `generate_codes`; `size` counts codes. Raises ValueError as it does, and for
        a model without first stage.
        """
        if self.first_stage is None:
            raise ValueError("this model has no first stage (`vqgan_config` is None): use `generate_codes`.")
        if pixel_values is not None:
            if not 0 <= keep <= 1:
                raise ValueError(f"`keep` is a share, from 0 to 1, not {keep}.")
            known = self.encode(pixel_values)
            size = (known.shape[1], known.shape[2])
            tokens = to_tokens(known, self.find_order(size))
            kwargs["codes"] = tokens[:, : int(keep * tokens.shape[1])]
        codes = self.generate_codes(condition, size, batch_size, **kwargs)
        with torch.no_grad():
            return self.first_stage.decode_codes(codes)

    def read_codes(self, pixel_values: Tensor | None, codes: Tensor | None) -> Tensor:
        """The codes (b h w) of images that are given by their pixels or by their codes."""
        if pixel_values is not None and codes is None:
            return self.encode(pixel_values)
        if codes is None or pixel_values is not None:
            raise ValueError("give exactly one of `pixel_values` and `codes`.")
        codes = self.as_map(codes)
        check_ids(codes, self.config.vocab_size, "codes")
        return codes

    def as_map(self, codes: Tensor) -> Tensor:
        """Codes (b h w), or (b n) row by row on the trained grid -> (b h w) int64 on the model's device."""
        codes = torch.as_tensor(codes, device=self.device)
        if codes.dim() == 2 and codes.shape[1] == self.config.num_tokens:
            codes = codes.unflatten(1, self.config.grid_size)
        if codes.dim() != 3 or codes.is_floating_point():
            shape = tuple(codes.shape)
            raise ValueError(f"codes are integers of shape (batch, height, width), not {codes.dtype} of {shape}.")
        return codes.long()

    def find_order(self, size: tuple[int, int]) -> Tensor:
        return token_order(self.config.token_order, *size, seed=self.config.order_seed, device=self.device)

    def check_length(self, length: int) -> None:
        positions = getattr(self.config.prior_config, "max_position_embeddings", None)
        if positions is not None and length > positions:
            raise ValueError(
                f"{length} tokens are too many for the prior, whose `max_position_embeddings` is {positions}: for a "
                "larger map give `generate_codes` a smaller `window`."
            )

    @torch.no_grad()
    def encode(self, pixel_values: Tensor) -> Tensor:
        """pixel_values (b c h w) in [-1, 1] -> codes (b h w) of the first stage. Raises ValueError without one."""
        if self.first_stage is None:
            raise ValueError(
                "this model has no first stage (`vqgan_config` is None): give `codes` in place of pixels."
            )
        return self.first_stage.encode(pixel_values.to(self.device)).codes


def count_rows(condition: Any) -> int:
    """How many images a condition is for; one that stands by itself is for one."""
    if condition is None or isinstance(condition, int | str) or getattr(condition, "ndim", 1) == 0:
        return 1
    return len(condition)


def as_size(name: str, size: Sequence[int] | int) -> tuple[int, int]:
    """Height and width; of one number, a square. Raises ValueError for anything else."""
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or min(pair) < 1:
        raise ValueError(f"`{name}` must be a positive height and width, not {size!r}.")
    return pair
