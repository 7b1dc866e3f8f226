"""From a model to a repository on the Hub that loads without noria: its code as flat files, its card, its upload.

noria.hub.save(model, "folder", tokenizer)      # weights, configuration, code and card in one step
noria.hub.push("folder", "user/name")           # any folder that save_pretrained wrote
"""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, get_token
from huggingface_hub.utils import validate_repo_id
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.image_processing_utils import BaseImageProcessor

from .cards import card, pictures
from .conversion.target import atomic_folder
from .flat_code import flat_name, flatten, source_of
from .model_folder import CONFIG, count_parameters, find_architecture, read_config
from .network import reaching_the_hub
from .registry import AUTO_CLASSES, IMAGE_PROCESSORS, TOKENIZERS, Architecture

README, TOKENIZER_CONFIG, IMAGE_CONFIG = "README.md", "tokenizer_config.json", "preprocessor_config.json"


def write_code(model_or_config: PreTrainedModel | PreTrainedConfig, folder: str | os.PathLike) -> list[Path]:
    """Write the code of a model's architecture into `folder`, and name its classes in config.json's `auto_map`.

    The folder is made where it is missing, and so is config.json. Every file appears whole, config.json last; the
    paths of the code files are returned. Raises ValueError for a model that is not noria's, or for a folder that holds
    a model of another architecture, OSError where it cannot be written.
    """
    config = getattr(model_or_config, "config", model_or_config)
    architecture = find_architecture(getattr(config, "model_type", None))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / CONFIG).is_file():
        config.save_pretrained(folder)
    held = read_config(folder).get("model_type")
    if held != config.model_type:
        raise ValueError(f"{folder} holds a model of type {held!r}, not {config.model_type!r}.")
    return add_code(folder, architecture)


def save(
    model: PreTrainedModel,
    folder: str | os.PathLike,
    tokenizer: PreTrainedTokenizerBase | None = None,
    image_processor: BaseImageProcessor | None = None,
) -> Path:
    """Save a model, what prepares its input, the code that loads it without noria, and its card; returns the folder.

    The folder, which must be new or empty, appears complete or not at all. Raises ValueError for a model that is not
    noria's, FileExistsError for a folder that is taken, OSError for one that cannot be written.
    """
    find_architecture(getattr(model.config, "model_type", None))
    with atomic_folder(Path(folder)) as part:
        model.save_pretrained(part)
        for preparation in (tokenizer, image_processor):
            if preparation is not None:
                preparation.save_pretrained(part)
        write_code(model, part)
        write_card(part, name=Path(folder).name)
    return Path(folder)


def push(
    folder: str | os.PathLike,
    repo: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    token: str | None = None,
    code: bool = True,
    create_pr: bool = False,
) -> str:
    """Upload a saved model with its code, and a card where neither side has one; returns the commit's address.

    folder: what `save_pretrained` wrote; it is left as it is. repo: `user/name` or `name`, made if it does not exist.
    private: whether a new repository is private; None leaves it to the account's default. revision: a branch, made if
    missing. token: by default the one of `hf auth login` or of HF_TOKEN. code: False uploads no code, and loading then
    needs noria. create_pr: propose the commit; the proposal's address is returned.

    Raises ValueError for a folder without a noria model, for a malformed name, without a token, and where `private`
    is asked for a repository that exists and is public; OSError for what the Hub refuses.
    """
    folder = Path(folder)
    architecture = find_architecture(read_config(folder).get("model_type"))
    count_parameters(folder)  # reads every weight file's header
    api = HfApi(token=require_token(token))
    validate_repo_id(repo)
    with tempfile.TemporaryDirectory(prefix="noria-push-") as scratch, reaching_the_hub():
        staged = stage(folder, Path(scratch) / "model")
        if code:
            add_code(staged, architecture)
        repo = open_repo(api, repo, private, revision)
        if not (staged / README).exists() and not api.file_exists(repo, README, revision=revision):
            write_card(staged, name=repo)
        message = commit_message or f"Upload {architecture.name} with noria"
        commit = api.upload_folder(
            repo_id=repo, folder_path=staged, revision=revision, commit_message=message, create_pr=create_pr
        )
    return commit.pr_url or commit.commit_url


def require_token(token: str | None) -> str:
    """The token that was given, or else the machine's; raises ValueError where there is neither."""
    token = token or get_token()
    if not token:
        raise ValueError("no token for the Hub: run `hf auth login`, set HF_TOKEN, or give `token`.")
    return token


def open_repo(api: HfApi, repo: str, private: bool | None, revision: str | None) -> str:
    """Make the repository and the branch where they are missing; returns the repository's full name."""
    repo = api.create_repo(repo, private=private, exist_ok=True).repo_id
    # An existing repository keeps its visibility without a word, and a private model would become public.
    if private and not api.repo_info(repo).private:
        raise ValueError(f"{repo} exists and is public: make it private in its settings first. Nothing was uploaded.")
    if revision is not None and not revision.startswith("refs/pr/"):
        api.create_branch(repo, branch=revision, exist_ok=True)
    return repo


def add_code(folder: Path, architecture: Architecture) -> list[Path]:
    """The code of `architecture` and of what prepares its input, and their `auto_map`, added to a model's folder."""
    config = read_config(folder)
    names = auto_map(architecture)
    written = write_flat(folder, *{x.__module__ for x in classes(architecture).values()})
    written += add_tokenizer_code(folder)
    written += add_image_processor_code(folder)
    write_json(folder / CONFIG, {**config, "auto_map": {**(config.get("auto_map") or {}), **names}})
    return written


def add_tokenizer_code(folder: Path) -> list[Path]:
    """The code of a tokenizer that only noria has, added to the folder where it was saved, in the form of the rest."""
    path = folder / TOKENIZER_CONFIG
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    tokenizer = {x.__name__: x for x in TOKENIZERS.values()}.get(config.get("tokenizer_class"))
    if tokenizer is None:
        return []
    written = write_flat(folder, tokenizer.__module__)
    names = {**(config.get("auto_map") or {}), "AutoTokenizer": [flat_reference(tokenizer), None]}
    write_json(path, {**config, "auto_map": names})
    # save_pretrained left the same modules under their plain names.
    package = tokenizer.__module__.rpartition(".")[0]
    for name in (flat.stem.removeprefix(f"{flat_name(package)}_") for flat in written):
        plain = folder / f"{name}.py"
        if plain.is_file() and plain.read_text(encoding="utf-8") == source_of(f"{package}.{name}"):
            plain.unlink()
    return written


def add_image_processor_code(folder: Path) -> list[Path]:
    """The code of an image processor that only noria has, added to the folder where it was saved."""
    path = folder / IMAGE_CONFIG
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    processor = {x.__name__: x for x in IMAGE_PROCESSORS.values()}.get(config.get("image_processor_type"))
    if processor is None:
        return []
    names = {**(config.get("auto_map") or {}), "AutoImageProcessor": flat_reference(processor)}
    write_json(path, {**config, "auto_map": names})
    return write_flat(folder, processor.__module__)


def write_flat(folder: Path, *modules: str) -> list[Path]:
    """Modules, and what they import, as flat files; each says where it comes from."""
    origin = f"Part of noria {sys.modules[__package__].__version__}, under the Apache License 2.0."
    texts = flatten(*modules)
    for name, text in texts.items():
        write_text(folder / name, f"# {origin}\n{text}")
    return [folder / name for name in texts]


def classes(architecture: Architecture) -> dict[str, type]:
    """The configuration and every head of an architecture, by the name of their Auto class."""
    heads = {AUTO_CLASSES[head].__name__: model for head, model in architecture.models.items()}
    return {"AutoConfig": architecture.config_class, **heads}


def auto_map(architecture: Architecture) -> dict[str, str]:
    """What config.json says to transformers: the flat file and the class for each Auto class."""
    return {auto: flat_reference(x) for auto, x in classes(architecture).items()}


def flat_reference(x: type) -> str:
    """A class as `auto_map` names it: its flat file and its own name."""
    return f"{flat_name(x.__module__)}.{x.__name__}"


def stage(folder: Path, staged: Path) -> Path:
    """A copy of `folder` whose files are links where the system has them; hidden files and checkpoints stay behind."""
    ignored = shutil.ignore_patterns(".*", "__pycache__", "checkpoint-*")
    return Path(shutil.copytree(folder.resolve(), staged, ignore=ignored, copy_function=link_or_copy))


def link_or_copy(source: str, target: str) -> None:
    try:
        os.symlink(os.path.realpath(source), target)
    except OSError:
        shutil.copyfile(source, target)


def write_json(path: Path, fields: dict[str, Any]) -> None:
    write_text(path, json.dumps(fields, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def write_card(folder: Path, *, name: str) -> None:
    """The card of the model in `folder`, with the pictures that it shows."""
    text = card(folder, name=name)
    for picture in pictures(text):
        shutil.copyfile(picture, folder / picture.name)
    write_text(folder / README, text)


def write_text(path: Path, text: str) -> None:
    """A whole file or none; a link is replaced, and what it points to is left alone."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
