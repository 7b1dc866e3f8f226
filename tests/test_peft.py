"""Law 11: LoRA on every Linear gets a gradient, merging changes nothing; prompt tuning trains and generates."""

import pytest
import torch
from architectures import CAUSAL
from laws import over, same
from transformers import AutoModelForCausalLM

peft = pytest.importorskip("peft")


def lora(**options):
    # Both factors random: with the usual zeros in one of them the other would have no gradient.
    return peft.LoraConfig(
        task_type="CAUSAL_LM", r=2, init_lora_weights=False, **{"target_modules": "all-linear"} | options
    )


def linears(model) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]


def train_once(model, ids) -> dict[str, torch.Tensor]:
    """The gradients of one step over ids (b t), as gradient descent takes it."""
    model.train()
    loss = model(ids, labels=ids).loss
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    model.eval()
    return grads


@over(CAUSAL)
def test_lora_on_every_linear_gets_a_gradient(entry, tokens) -> None:
    model = entry.model(tie_word_embeddings=False)
    names = linears(model)
    adapted = peft.get_peft_model(model, lora(target_modules=names))
    grads = train_once(adapted, tokens(2, 12))
    assert len(grads) == 2 * len(names)
    assert all(grad is not None and grad.norm() > 0 for grad in grads.values())


@over(CAUSAL)
def test_all_linear_is_every_linear_but_the_head(entry) -> None:
    model = entry.model()
    names = {name for name in linears(model) if model.get_submodule(name) is not model.get_output_embeddings()}
    adapted = peft.get_peft_model(model, lora())
    assert {name.removeprefix("base_model.model.") for name in adapted.targeted_module_names} == names


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@over(CAUSAL)
def test_merged_equals_adapted(entry, checkpointing, tokens) -> None:
    model, ids = entry.model(), tokens(2, 12)
    before = model(ids).logits
    adapted = peft.get_peft_model(model, lora())
    if checkpointing:
        adapted.gradient_checkpointing_enable()
        adapted.enable_input_require_grads()
    train_once(adapted, ids)
    expected = adapted(ids).logits
    assert (expected - before).abs().max() > 1e-3
    merged = adapted.merge_and_unload()
    assert type(merged) is type(model)
    same(merged(ids).logits, expected)


@over(CAUSAL)
def test_adapter_is_saved_and_loaded(entry, tmp_path, tokens) -> None:
    ids = tokens(2, 12)
    entry.model(dtype=torch.float32).save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    adapted = peft.get_peft_model(base, lora())
    train_once(adapted, ids)
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    same(loaded(ids).logits, adapted(ids).logits, 1e-6)  # where a loaded file lies in memory changes the last bit
    generated = adapted.generate(input_ids=ids, max_new_tokens=5, do_sample=False)
    assert torch.equal(loaded.generate(input_ids=ids, max_new_tokens=5, do_sample=False), generated)


@over(CAUSAL)
def test_disabled_adapter_is_the_base_model(entry, tokens) -> None:
    model, ids = entry.model(), tokens(2, 12)
    expected = model(ids).logits
    model.add_adapter(lora())
    assert not torch.equal(model(ids).logits, expected)
    model.disable_adapters()
    same(model(ids).logits, expected, 1e-13)


@over(CAUSAL)
def test_prompt_tuning_trains_and_generates(entry, tokens) -> None:
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = entry.model()
    adapted, ids = peft.get_peft_model(model, config), tokens(2, 7)
    grads = train_once(adapted, ids)
    assert all(grad.norm() > 0 for grad in grads.values())
    generated = adapted.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False)
    embeds = torch.cat((adapted.get_prompt(2).to(model.dtype), model.get_input_embeddings()(ids)), dim=1)
    assert torch.equal(generated[:, 7:], greedy(model, embeds, 5))


def greedy(model, embeds, steps: int) -> torch.Tensor:
    """What the base model writes after embeds (b t d), without a cache."""
    chosen = []
    for _ in range(steps):
        chosen.append(model(inputs_embeds=embeds).logits[:, -1].argmax(-1))
        embeds = torch.cat((embeds, model.get_input_embeddings()(chosen[-1])[:, None]), dim=1)
    return torch.stack(chosen, dim=1)
