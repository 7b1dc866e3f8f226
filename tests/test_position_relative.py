"""Encodings that work on scores: each by its equation, pair by pair in loops; what they share, as laws of models."""

import math
from types import SimpleNamespace

import pytest
import torch
from architectures import TINY
from laws import gradients, packed, ragged, same, same_gradients
from torch.export import Dim, export
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.deberta_v2.modeling_deberta_v2 import DebertaV2Config, DisentangledSelfAttention
from transformers.models.t5.modeling_t5 import T5Attention

from noria import NoriaRoFormerConfig, NoriaRoFormerForCausalLM, NoriaRoFormerForMaskedLM, NoriaRoFormerModel
from noria.modeling.mixers.softmax_attention import SoftmaxAttention, eager_attention
from noria.modeling.position.alibi import Alibi, slopes
from noria.modeling.position.deberta import Disentangled, RelativeTable
from noria.modeling.position.nezha import Nezha
from noria.modeling.position.shaw import Shaw
from noria.modeling.position.t5 import T5Bias
from noria.modeling.position.transformer_xl import TransformerXL
from noria.modeling.position.tupe import Tupe
from noria.modeling.state import Context

HEADS, DIM, WIDTH, CLIP = 3, 4, 10, 3
NAMES = ["shaw", "nezha", "transformer_xl", "t5", "tupe", "deberta", "alibi"]
RELATIVE = [name for name in NAMES if name != "tupe"]
CLIPPED = ["shaw", "nezha", "deberta"]
# positions of queries and of keys: one row, cached keys before new ones, rows that differ and skip, packed rows
PLACES = {
    "contiguous": (torch.arange(7)[None], torch.arange(7)[None]),
    "cached": (torch.arange(6, 9)[None], torch.arange(9)[None]),
    "one": (torch.tensor([[8]]), torch.arange(9)[None]),
    "ragged": (torch.tensor([[4, 5, 90], [0, 1, 2]]), torch.tensor([[0, 4, 5, 90, 0], [0, 0, 0, 1, 2]])),
    "packed": (torch.tensor([[0, 1, 2, 0, 1]]), torch.tensor([[0, 1, 2, 0, 1]])),
}
everywhere = pytest.mark.parametrize("places", PLACES.values(), ids=PLACES)
named = pytest.mark.parametrize("name", NAMES)


def situation(places, causal: bool = False):
    """Queries, keys (2 h t d) and the context of `places`."""
    positions, keys = places
    q, k = torch.randn(2, HEADS, positions.shape[1], DIM).double(), torch.randn(2, HEADS, keys.shape[1], DIM).double()
    return q, k, Context(positions, key_positions=keys, causal=causal)


def pairs(q, k, context):
    """(index of a score, query, key, i, j) for all scores."""
    positions, keys = context.positions.expand(2, -1).tolist(), context.key_positions.expand(2, -1).tolist()
    for b in range(2):
        for h in range(HEADS):
            for t, i in enumerate(positions[b]):
                for s, j in enumerate(keys[b]):
                    yield (b, h, t, s), q[b, h, t], k[b, h, s], i, j


def scores_by_loop(q, k, context, score):
    """score(h, q_i, k_j, i, j) of all pairs, (2 h t s)."""
    out = q.new_zeros(2, HEADS, q.shape[2], k.shape[2])
    for index, query, key, i, j in pairs(q, k, context):
        out[index] = score(index[1], query, key, i, j)
    return out


def drawn(module):
    """The module in float64 with all its parameters drawn."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module.double()


def clip(n: int, low: int = -CLIP, high: int = CLIP) -> int:
    return max(low, min(high, n))


def sinusoid(n: int, width: int) -> torch.Tensor:
    """[sin(n w_0), cos(n w_0), sin(n w_1), ...]"""
    angles = [n / 10000 ** (2 * (m // 2) / width) for m in range(width)]
    return torch.tensor([math.cos(a) if m % 2 else math.sin(a) for m, a in enumerate(angles)], dtype=torch.float64)


def clipped_tables(name: str):
    """A layer's encoding, and its R^K, R^V as functions of i and j."""
    if name == "nezha":
        return Nezha(DIM, CLIP), *[lambda i, j: sinusoid(clip(j - i), DIM)] * 2
    module = drawn(Shaw(DIM, CLIP))
    tables = module.key_table.weight, module.value_table.weight
    return module, *[lambda i, j, table=table: table[clip(i - j) + CLIP] for table in tables]


@everywhere
@pytest.mark.parametrize("name", ["shaw", "nezha"])
@torch.no_grad()
def test_clipped_relative_keys_and_values(name, places):
    module, key_row, value_row = clipped_tables(name)
    q, k, context = situation(places)
    expected = scores_by_loop(q, k, context, lambda h, query, key, i, j: query @ key_row(i, j) / math.sqrt(DIM))
    same(module.bias(q, k, context), expected)
    weights = torch.rand(2, HEADS, q.shape[2], k.shape[2]).double().softmax(-1)
    fetched = q.new_zeros(2, q.shape[2], HEADS, DIM)
    for (b, h, t, s), _, _, i, j in pairs(q, k, context):
        fetched[b, t, h] += weights[b, h, t, s] * value_row(i, j)
    same(module.read(weights, context), fetched)


@torch.no_grad()
def test_shaws_attention_is_the_papers_sum():
    config = SimpleNamespace(hidden_size=WIDTH, num_attention_heads=HEADS, head_dim=DIM, attention_dropout=0.0)
    module, key_row, value_row = clipped_tables("shaw")
    layer, x = drawn(SoftmaxAttention(config, module)), torch.randn(2, 6, WIDTH).double()
    positions = torch.arange(6)[None]
    context = Context(positions, key_positions=positions, causal=False, attention=eager_attention)
    q, k, v = (p(x).view(2, 6, HEADS, DIM) for p in (layer.q_proj, layer.k_proj, layer.v_proj))
    out = torch.zeros_like(q)
    for b in range(2):
        for h in range(HEADS):
            for i in range(6):
                scores = [q[b, i, h] @ (k[b, j, h] + key_row(i, j)) / math.sqrt(DIM) for j in range(6)]
                weights = torch.stack(scores).softmax(0)
                out[b, i, h] = sum(weights[j] * (v[b, j, h] + value_row(i, j)) for j in range(6))
    same(layer(x, context)[0], layer.o_proj(out.flatten(2)))


@everywhere
@pytest.mark.parametrize("width", [WIDTH, WIDTH + 1])
@torch.no_grad()
def test_transformer_xl_in_both_forms(width, places):
    module = drawn(TransformerXL(width, HEADS, DIM))
    q, k, context = situation(places)

    def code(n):
        angles = torch.tensor([n / 10000 ** (2 * m / width) for m in range((width + 1) // 2)], dtype=torch.float64)
        return torch.cat((angles.sin(), angles.cos()))[:width]

    def position_term(h, query, key, i, j):
        return (query + module.v.weight[h]) @ module.position_weight.weight[h] @ code(i - j)

    def score(h, query, key, i, j):
        return (module.u.weight[h] @ key + position_term(h, query, key, i, j)) / math.sqrt(DIM)

    same(module.bias(q, k, context), scores_by_loop(q, k, context, score))
    asked, expected = q + module.v.weight[:, None], scores_by_loop(q, k, context, position_term)
    far = context.positions[:, :, None] - context.key_positions[:, None]
    same(module.by_rotation(asked, context), expected)
    same(module.by_table(asked, context, int(far.min()), int(far.max())), expected)


@pytest.mark.parametrize(("step", "new", "ends"), [(1, 300, (-299, 299)), (1, 1, None), (1000, 300, None)])
def test_transformer_xl_takes_the_form_that_costs_less(step, new, ends):
    keys = torch.arange(300)[None] * step
    context = Context(keys[:, -new:], key_positions=keys)
    q, k = torch.empty(1, 12, new, 64), torch.empty(1, 12, 300, 64)
    assert TransformerXL(768, 12, 64).table_ends(q, k, context) == ends


@torch.no_grad()
def test_transformer_xl_is_the_shifted_product():
    """The paper's appendix B: for contiguous places row i of the product with all R_n, shifted by i."""
    module, length = drawn(TransformerXL(WIDTH, HEADS, DIM)), 7
    q, _, context = situation(PLACES["contiguous"])
    cos, sin = module.codes(torch.arange(length - 1, -1, -1)[None], q)
    codes = torch.cat((sin, cos), dim=-1)[0, 0]
    product = torch.einsum("bhtd,hdw,nw->bhtn", q + module.v.weight[:, None], module.position_weight.weight, codes)
    padded = torch.cat((q.new_zeros(2, HEADS, length, 1), product), dim=-1)
    shifted = padded.view(2, HEADS, length + 1, length)[:, :, 1:].reshape(2, HEADS, length, length)
    seen = torch.ones(length, length, dtype=torch.bool).tril()
    found = module.by_table(q + module.v.weight[:, None], context, 1 - length, length - 1)
    same(found.masked_fill(~seen, 0), shifted.masked_fill(~seen, 0))


def test_transformer_xl_keeps_its_matrices_apart():
    """W_R is not W_K, u is not mapped by W_Q, and values know no positions."""
    model = model_of("transformer_xl", NoriaRoFormerModel)
    names = {
        name.removeprefix("layers.0.mixer.position.") for name in model.state_dict() if "layers.0.mixer.pos" in name
    }
    assert names == {"position_weight.weight", "u.weight", "v.weight"}
    module = model.layers[0].mixer.position
    assert not module.reads
    _, k, context = situation(PLACES["contiguous"])
    module = drawn(TransformerXL(WIDTH, HEADS, DIM))
    nothing = torch.zeros_like(k)
    with torch.no_grad():
        # Without a query u k_j is left, for each key its own, and v W_R R_(i-j).
        change = module.bias(nothing, k, context) - module.bias(nothing, nothing, context)
        same(change, ((k * module.u.weight[:, None]).sum(-1)[:, :, None] / math.sqrt(DIM)).expand_as(change))


ARTICLE = [*range(8), *[8] * 4, *[9] * 4, *[10] * 7, *[11] * 8]


def test_t5_buckets_are_the_articles_table():
    module = T5Bias(HEADS, 32, 128)
    assert module.buckets(torch.arange(31), True).tolist() == ARTICLE
    behind = [bucket + 16 if n else 0 for n, bucket in enumerate(ARTICLE)]
    assert module.buckets(-torch.arange(31), True).tolist() == behind
    assert module.buckets(torch.tensor([127, 128, 10**9, -(10**9)]), True).tolist() == [15, 15, 15, 31]


@pytest.mark.parametrize("both", [True, False], ids=["both directions", "one direction"])
@pytest.mark.parametrize(
    ("buckets", "reach"), [(32, 128), (32, 100), (64, 256), (8, 20), (10, 1000), (4, 3), (31, 99)]
)
def test_t5_buckets_are_those_of_transformers(buckets, reach, both):
    distance = torch.arange(-1500, 1501)
    expected = T5Attention._relative_position_bucket(-distance, both, buckets, reach)
    assert torch.equal(T5Bias(HEADS, buckets, reach).buckets(distance, both), expected)


@pytest.mark.parametrize(("buckets", "reach"), [(32, 16), (32, 8), (2, 128)])
def test_t5_buckets_need_room(buckets, reach):
    with pytest.raises(ValueError, match=f"cannot reach to distance {reach}: set `relative_buckets`"):
        T5Bias(HEADS, buckets, reach)


@everywhere
@pytest.mark.parametrize(("causal", "two_sided"), [(True, False), (True, True), (False, False)])
@torch.no_grad()
def test_t5_bias_is_a_number_for_each_bucket(causal, two_sided, places):
    module = drawn(T5Bias(HEADS, 32, 128, two_sided))
    q, k, context = situation(places, causal)

    def score(h, query, key, i, j):
        both = two_sided or not causal
        bucket = T5Attention._relative_position_bucket(torch.tensor(j - i), both, 32, 128)
        return module.table.weight[bucket, h]

    same(module.share(None, context).expand(2, -1, -1, -1), scores_by_loop(q, k, context, score))


@everywhere
@torch.no_grad()
def test_tupe(places):
    relative = T5Bias(HEADS, 32, 128)
    module = drawn(Tupe(WIDTH, HEADS, DIM, 91, relative, 1e-6))
    q, k, context = situation(places)
    by_bucket = relative.share(None, context).expand(2, -1, -1, -1)
    codes = module.norm(module.embed_positions.weight)
    asked, met = (p(codes).view(91, HEADS, DIM) for p in (module.position_query, module.position_key))
    expected = (
        scores_by_loop(q, k, context, lambda h, query, key, i, j: asked[i, h] @ met[j, h] / math.sqrt(2 * DIM))
        + by_bucket
    )
    for (b, h, t, s), _, _, i, j in pairs(q, k, context):
        if i == 0 or j == 0:
            expected[b, h, t, s] = module.theta.weight[0 if i == 0 else 1, h]
    same(module.share(None, context).expand(2, -1, -1, -1), expected)


@pytest.mark.parametrize(("name", "enhanced"), [("tupe", False), ("shaw", True)])
def test_positions_end_where_the_table_ends(name, enhanced, tokens):
    model = model_of(name, max_position_embeddings=9, enhanced_mask_decoder=enhanced)
    model(tokens(2, 9))
    ids, mask = ragged([tokens(1, 9)[0], tokens(1, 4)[0]], "left")
    ids, mask = (torch.nn.functional.pad(x, (0, 3)) for x in (ids, mask))
    model(ids, attention_mask=mask)  # padding stands nowhere
    with pytest.raises(ValueError, match="position 9 lies beyond the table of 9"):
        model(tokens(2, 10))


@everywhere
@pytest.mark.parametrize("terms", [(True, True), (True, False), (False, True)], ids=["both", "c2p", "p2c"])
@torch.no_grad()
def test_deberta_and_its_ablations(terms, places):
    table, module = drawn(RelativeTable(WIDTH, CLIP)), drawn(Disentangled(WIDTH, HEADS, DIM, CLIP, *terms))
    q, k, context = situation(places)
    context.position = table.share(None, context)
    assert module.terms == 1 + sum(terms)

    def rows(projection):
        return projection(table.table.weight).view(2 * CLIP, HEADS, DIM)

    def score(h, query, key, i, j):
        total = torch.zeros((), dtype=torch.float64)
        if terms[0]:
            total = total + query @ rows(module.relative_key)[clip(i - j + CLIP, 0, 2 * CLIP - 1), h]
        if terms[1]:
            total = total + key @ rows(module.relative_query)[clip(j - i + CLIP, 0, 2 * CLIP - 1), h]
        return total / math.sqrt(module.terms * DIM)

    same(module.bias(q, k, context), scores_by_loop(q, k, context, score))


@torch.no_grad()
def test_a_term_of_deberta_that_is_left_out_is_a_term_of_zero():
    table, whole = drawn(RelativeTable(WIDTH, CLIP)), drawn(Disentangled(WIDTH, HEADS, DIM, CLIP))
    q, k, context = situation(PLACES["contiguous"])
    context.position = table.share(None, context)
    for kept, left_out in (("relative_key", "relative_query"), ("relative_query", "relative_key")):
        part = Disentangled(WIDTH, HEADS, DIM, CLIP, kept == "relative_key", kept == "relative_query").double()
        part.load_state_dict({f"{kept}.weight": getattr(whole, kept).weight})
        silent = drawn(Disentangled(WIDTH, HEADS, DIM, CLIP))
        silent.load_state_dict(part.state_dict() | {f"{left_out}.weight": torch.zeros(HEADS * DIM, WIDTH)})
        same(part.bias(q, k, context) * math.sqrt(2 / 3), silent.bias(q, k, context))
    assert Disentangled(WIDTH, HEADS, DIM, CLIP, False, False).bias(q, k, context) is None


@pytest.mark.parametrize("term", ["c2p", "p2c"])
@torch.no_grad()
def test_deberta_beside_that_of_transformers(term):
    """One term is theirs; the other has delta(i, j) there, delta(j, i) in the paper: as of a text read backwards."""
    width, backwards = HEADS * DIM, [1] if term == "p2c" else []
    sizes = {"hidden_size": width, "num_attention_heads": HEADS}
    settings = {"relative_attention": True, "pos_att_type": [term], "max_relative_positions": CLIP}
    other = drawn(DisentangledSelfAttention(DebertaV2Config(position_buckets=-1, **sizes, **settings))).eval()
    config = SimpleNamespace(head_dim=DIM, attention_dropout=0.0, **sizes)
    layer = SoftmaxAttention(config, Disentangled(width, HEADS, DIM, CLIP, term == "c2p", term == "p2c")).double()
    ours, theirs = {"c2p": ("relative_key", "pos_key_proj"), "p2c": ("relative_query", "pos_query_proj")}[term]
    getattr(layer.position, ours).weight = getattr(other, theirs).weight
    getattr(other, theirs).bias.zero_()
    for name in "qkv":
        setattr(layer, f"{name}_proj", getattr(other, {"q": "query", "k": "key", "v": "value"}[name] + "_proj"))
    layer.o_proj = torch.nn.Identity()
    x, table = torch.randn(2, 8, width).double(), torch.randn(2 * CLIP, width).double()
    places = torch.arange(8)[None]
    context = Context(places, None, None, None, eager_attention, False, key_positions=places, position=table)
    expected = other(x.flip(backwards), torch.ones(2, 1, 8, 8), rel_embeddings=table)[0].flip(backwards)
    same(layer(x, context)[0], expected, 1e-6)


@everywhere
def test_alibi(places):
    q, k, context = situation(places)
    expected = scores_by_loop(q, k, context, lambda h, query, key, i, j: -slopes(HEADS)[h] * abs(i - j))
    same(Alibi(HEADS).bias(q, k, context).expand(2, -1, -1, -1), expected)


@pytest.mark.parametrize("heads", [1, 2, 3, 5, 8, 12, 16, 20, 32])
def test_alibi_slopes_are_those_of_bloom(heads):
    expected = build_alibi_tensor(torch.ones(1, 2), heads, torch.float64)[:, 0, 1]
    same(torch.tensor(slopes(heads), dtype=torch.float64), expected, 1e-6)
    if heads == 8:
        assert slopes(8) == [2.0**-h for h in range(1, 9)]


@pytest.mark.parametrize("name", CLIPPED)
def test_all_that_is_farther_than_the_clip_is_alike(name):
    positions = torch.tensor([[0, 1, 50, 51, 53, 90, 10**6]])
    q, _, context = situation((positions, positions))
    k = torch.randn(2, HEADS, 1, DIM).double().expand(-1, -1, 7, -1)
    model = model_of(name, NoriaRoFormerModel, num_attention_heads=HEADS, hidden_size=HEADS * DIM, relative_clip=CLIP)
    context.position = model.position.share(None, context)
    bias = model.layers[0].mixer.position.bias(q, k, context)
    same(bias[..., 2, 0], bias[..., 2, 1])
    same(bias[..., 6, 0], bias[..., 6, 5])
    same(bias[..., 0, 5], bias[..., 0, 6])
    assert (bias[..., 3, 2] - bias[..., 3, 0]).abs().min() > 1e-6
    with pytest.raises(ValueError, match="`relative_clip` must be at least 1, not 0"):
        model_of(name, relative_clip=0)


def model_of(name: str, head: type = NoriaRoFormerForMaskedLM, dtype: torch.dtype = torch.float64, **fields):
    """A tiny model in evaluation mode, whose parameters are all drawn."""
    torch.manual_seed(0)
    tiny = TINY | {"num_attention_heads": 2, "norm_eps": 1e-6, "relative_clip": 4} | fields
    return head(NoriaRoFormerConfig(position_encoding=name, **tiny)).to(dtype).eval()


def rows_of(tokens) -> list[torch.Tensor]:
    return [tokens(1, length, length)[0] for length in (9, 4, 1, 12)]


@pytest.mark.parametrize("name", RELATIVE)
def test_only_distances_count(name, tokens):
    model, ids, positions = model_of(name), tokens(2, 9), torch.arange(9)[None]
    expected = model(ids).logits
    for shift in (1, 37, 10**6):
        same(model(ids, position_ids=positions + shift).logits, expected, 1e-9)


@named
def test_order_counts(name, tokens):
    ids, order = tokens(1, 9), torch.randperm(9)
    for encoding, breaks in ((name, True), ("none", False)):
        model = model_of(encoding)
        difference = (model(ids[:, order]).logits - model(ids).logits[:, order]).abs().max()
        assert (difference > 1e-3) == breaks


@named
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("head", [NoriaRoFormerForMaskedLM, NoriaRoFormerForCausalLM])
def test_padding_changes_nothing(head, side, name, tokens):
    model, rows = model_of(name, head), rows_of(tokens)
    ids, mask = ragged(rows, side)
    logits = model(ids, attention_mask=mask).logits
    for i, row in enumerate(rows):
        same(logits[i][mask[i].bool()], model(row[None]).logits[0])


@named
@pytest.mark.parametrize("head", [NoriaRoFormerForMaskedLM, NoriaRoFormerForCausalLM])
def test_packing_changes_nothing(head, name, tokens):
    model, rows = model_of(name, head), rows_of(tokens)
    ids, positions = packed(rows)
    alone = torch.cat([model(row[None]).logits[0] for row in rows])
    same(model(ids, position_ids=positions).logits[0], alone)


@named
def test_any_length_and_a_token_alone(name, tokens):
    model = model_of(name, relative_clip=2, relative_buckets=8, relative_max_distance=16)
    for length in (1, 2, 200):
        assert torch.isfinite(model(tokens(1, length)).logits).all()


@named
@pytest.mark.parametrize("pieces", [(5, 4, 4), (1,) * 13, (12, 1)])
def test_a_recalled_segment_is_one_text(name, pieces, tokens):
    model, ids, cache, found = model_of(name, NoriaRoFormerForCausalLM), tokens(2, 13), None, []
    for piece in ids.split(pieces, dim=1):
        out = model(piece, past_key_values=cache, use_cache=True)
        cache, found = out.past_key_values, [*found, out.logits]
    same(torch.cat(found, dim=1), model(ids).logits)


@named
@pytest.mark.parametrize("side", ["left", "none"])
def test_generation(name, side, tokens):
    model = model_of(name, NoriaRoFormerForCausalLM)
    ids, mask = ragged([tokens(1, 6)[0], tokens(1, 6 if side == "none" else 3, 1)[0]], "left")
    options = {"attention_mask": mask, "max_new_tokens": 5, "do_sample": False}
    written = model.generate(ids, use_cache=False, **options)
    assert torch.equal(model.generate(ids, **options), written)
    assert torch.equal(model.generate(ids, cache_implementation="static", **options), written)


@named
def test_a_unilm_prompt_sees_what_lies_ahead(name, tokens):
    """The causal head reads a prompt as the bidirectional one does, and its cache continues it."""
    model, ids = model_of(name, NoriaRoFormerForCausalLM, unilm=True), tokens(2, 9)
    types = torch.tensor([[0] * 5 + [1] * 4]).expand(2, -1)
    other = model_of(name, unilm=True)
    other.load_state_dict(model.state_dict())
    whole = model(ids, token_type_ids=types).logits
    same(whole, other(ids, token_type_ids=types).logits)
    prompt = model(ids[:, :5], use_cache=True)
    rest = model(ids[:, 5:], past_key_values=prompt.past_key_values, use_cache=True)
    same(torch.cat((prompt.logits, rest.logits), dim=1), whole)


@named
@pytest.mark.parametrize("head", [NoriaRoFormerForMaskedLM, NoriaRoFormerForCausalLM])
def test_attention_functions(head, name, tokens):
    model, (ids, mask) = model_of(name, head), ragged(rows_of(tokens), "left")
    found = {}
    for function in ("eager", "sdpa"):
        model.set_attn_implementation(function)
        found[function] = model(ids, attention_mask=mask).logits[mask.bool()]
    same(found["sdpa"], found["eager"])
    for function in ("flash_attention_2", "flex_attention"):
        model.config._attn_implementation = function
        with pytest.raises(ValueError, match=rf"'{name}' works on scores, which '{function}' does not show"):
            model(ids, attention_mask=mask)


@named
def test_linear_attention_has_no_scores(name):
    with pytest.raises(ValueError, match="linear attention computes no scores"):
        model_of(name, attention="linear")


@named
@pytest.mark.parametrize("version", [1, 2])
def test_every_parameter_is_drawn_learns_and_is_saved(name, version, tokens, tmp_path):
    model = model_of(name, dtype=torch.float32, version=version, enhanced_mask_decoder=True)
    ids = tokens(2, 30)
    found = gradients(model, model(ids, labels=ids).loss)
    for key, parameter in model.named_parameters():
        assert torch.isfinite(parameter).all(), key
        assert key in found, key
        if "position" in key:
            assert parameter.std() > 0.05 or "norm" in key, key
            assert found[key].abs().max() > 0, key
    model.save_pretrained(tmp_path)
    loaded, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert torch.equal(loaded.eval()(ids).logits, model(ids).logits)


@named
def test_checkpointing_changes_nothing(name, tokens):
    model, ids = model_of(name, NoriaRoFormerForCausalLM).train(), tokens(2, 9)
    plain = gradients(model, model(ids, labels=ids).loss)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    same_gradients(gradients(model, model(ids, labels=ids).loss), plain)


@named
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@torch.no_grad()
def test_narrow_types_come_near(name, dtype, tokens):
    fields = {"initializer_range": 0.1}
    ids, wide = tokens(2, 40), model_of(name, **fields)
    narrow = model_of(name, dtype=dtype, **fields)
    narrow.load_state_dict(wide.state_dict())
    found = narrow(ids).logits
    assert found.dtype == dtype
    same(found.double(), wide(ids).logits, 0.1 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.parametrize(
    ("head", "name"),
    [
        *[(NoriaRoFormerForMaskedLM, name) for name in ("shaw", "transformer_xl", "tupe")],
        (NoriaRoFormerForCausalLM, "t5"),
    ],
)
def test_one_graph(head, name, tokens):
    torch._dynamo.reset()
    model, (ids, mask) = model_of(name, head, enhanced_mask_decoder=True), ragged(rows_of(tokens), "left")
    found = torch.compile(model, fullgraph=True, backend="eager")(ids, attention_mask=mask).logits
    same(found[mask.bool()], model(ids, attention_mask=mask).logits[mask.bool()])


@named
@torch.no_grad()
def test_exported_for_any_length(name, tokens):
    model = model_of(name)
    program = export(
        model, (tokens(2, 9),), dynamic_shapes={"input_ids": {1: Dim("length", min=2, max=64)}}, strict=False
    )
    for length in (5, 17):
        ids = tokens(2, length)
        same(program.module()(ids).logits, model(ids).logits)


ENHANCED = {"enhanced_mask_decoder": True}


@named
def test_mask_decoder_alone_knows_places(name, tokens):
    model, ids, positions = model_of(name, **ENHANCED), tokens(2, 9), torch.arange(9)[None]
    plain = model_of(name)
    model.load_state_dict(plain.state_dict(), strict=False)
    found = model(ids, output_hidden_states=True, output_attentions=True)
    expected = plain(ids, output_hidden_states=True, output_attentions=True)
    assert len(found.attentions or ()) == len(expected.attentions or ())
    assert len(found.hidden_states) == 3
    same(found.hidden_states[-1], expected.hidden_states[-1])
    assert (found.logits - expected.logits).abs().max() > 1e-3
    if name != "tupe":
        shifted = model(ids, position_ids=positions + 3, output_hidden_states=True)
        same(shifted.hidden_states[-1], found.hidden_states[-1])
        assert (shifted.logits - found.logits).abs().max() > 1e-3


def test_mask_decoder_asks_twice_with_one_block(tokens):
    model, ids = model_of("deberta", **ENHANCED), tokens(2, 9)
    outputs, decoder = model.model(ids), model.model.mask_decoder
    hidden = outputs.last_hidden_state
    context = Context(torch.arange(9)[None], None, None, None, eager_attention, False)
    context.key_positions, context.position = context.positions, model.model.position.share(hidden, context)
    block, queries = decoder.block, hidden + decoder.embed_positions.weight[:9]
    for _ in range(2):
        middle = block.mixer_norm(queries + block.mixer(hidden, context, None, queries)[0])
        queries = block.mlp_norm(middle + block.mlp(middle))
    same(outputs.decoded, queries)
    same(model(ids).logits, model.lm_head(queries))


def test_mask_decoder_belongs_to_the_masked_language_model():
    assert model_of("shaw", NoriaRoFormerForCausalLM, **ENHANCED).model.mask_decoder is None
    with pytest.raises(ValueError, match="set attention='softmax'"):
        model_of("rotary", attention="linear", **ENHANCED)


@named
@pytest.mark.parametrize("side", ["left", "right"])
def test_mask_decoder_with_padding_and_packing(side, name, tokens):
    model, rows = model_of(name, **ENHANCED), rows_of(tokens)
    alone = torch.cat([model(row[None]).logits[0] for row in rows])
    ids, mask = ragged(rows, side)
    same(model(ids, attention_mask=mask).logits[mask.bool()], alone)
    ids, positions = packed(rows)
    same(model(ids, position_ids=positions).logits[0], alone)
