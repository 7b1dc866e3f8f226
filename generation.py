"""A causal language model from a folder or the Hub that writes to standard output, token by token."""

import re
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BatchEncoding, TextStreamer, set_seed
from transformers.utils import logging

DTYPES = ("auto", "float32", "bfloat16", "float16")


class Writer:
    """A model with its tokenizer.

    Raises ValueError for an unknown dtype or device and for a folder that holds no model, OSError for a name that
    neither this machine nor the Hub knows.
    """

    def __init__(
        self,
        model: str,
        *,
        device: str = "cpu",
        dtype: str = "auto",
        threads: int | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"unknown dtype {dtype!r}; known: {', '.join(DTYPES)}")
        require_model_name(model)
        if threads:
            torch.set_num_threads(threads)
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self.tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
        loaded = AutoModelForCausalLM.from_pretrained(
            model, dtype=dtype if dtype == "auto" else getattr(torch, dtype), trust_remote_code=trust_remote_code
        )
        self.model = loaded.to(as_device(device)).eval()

    def stream(self, prompt: str, *, seed: int | None = None, do_sample: bool = True, **options: float) -> str:
        """Prints the prompt and its continuation while it is written, and returns both as one text.

        `options` go to `generate()`; what they leave out is the model's own setting, and 100 new tokens where it has
        none. Raises ValueError for options that generate() refuses and for a prompt without a token.
        """
        inputs = self.tokenizer(prompt, return_tensors="pt", return_token_type_ids=False).to(self.model.device)
        if inputs.input_ids.shape[1] == 0:
            raise ValueError("the prompt is empty, and this model's tokenizer puts nothing in front of it")
        self.leave_open(inputs)
        if seed is not None:
            set_seed(seed)
        config = self.model.generation_config
        if config.max_length in (None, 20) and config.max_new_tokens is None:
            options.setdefault("max_new_tokens", 100)
        if not do_sample:
            config.update(temperature=None, top_k=None, top_p=None)
        streamer = TextStreamer(self.tokenizer, skip_special_tokens=True)
        output = self.model.generate(**inputs, do_sample=do_sample, streamer=streamer, **options)
        return self.tokenizer.decode(output[0], skip_special_tokens=True)

    def leave_open(self, inputs: BatchEncoding) -> None:
        """Drop the end that BERT's tokenizers put after every text: a prompt that has ended is not continued.

        A UniLM model reads its prompt whole, end included, and writes another text.
        """
        ends = self.model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        if int(inputs.input_ids[0, -1]) in ends and not getattr(self.model.config, "unilm", False):
            for name, values in inputs.items():
                inputs[name] = values[:, :-1]


def require_model_name(model: str) -> None:
    """Raises ValueError unless `model` is a folder with a config.json or has the form of a Hub id."""
    if Path(model).is_dir():
        if not (Path(model) / "config.json").is_file():
            raise ValueError(f"{model} is a folder without config.json; a saved model is wanted")
    elif Path(model).exists():
        raise ValueError(f"{model} is a file; the folder of a saved model is wanted")
    elif not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model) or model in (".", ".."):
        raise ValueError(f"there is no folder {model}, and it has not the form of a Hub id (user/name)")


def as_device(name: str) -> torch.device:
    """The device of that name; raises ValueError where there is none that works."""
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from None
