"""The tokenizer of RoFormer's character models: BERT's WordPiece as bert4keras applies it, as one `tokenizer.json`."""

from collections.abc import Mapping

from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse, Replace, Sequence, WordPiece
from tokenizers.models import WordPiece as WordPieceModel
from tokenizers.normalizers import NFD, Lowercase, Normalizer
from tokenizers.normalizers import Replace as ReplaceBefore
from tokenizers.normalizers import Sequence as NormalizerSequence
from tokenizers.pre_tokenizers import PreTokenizer, Split, WhitespaceSplit
from tokenizers.pre_tokenizers import Sequence as PreTokenizerSequence
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from .chinese import IDEOGRAPHS, NEEDLESS_SPACES
from .vocabulary import SPECIAL_TOKENS

LONGEST_WORD = 200


def wordpiece_tokenizer(vocabulary: Mapping[str, int], *, max_length: int | None = None) -> PreTrainedTokenizerFast:
    """The tokenizer whose ids are those of bert4keras' `Tokenizer(vocab, do_lower_case=True)`.

    Text is lower-cased, decomposed and stripped of accents; Chinese characters and punctuation stand alone, and the
    rest is cut into the longest pieces that the vocabulary holds. Words of more than 200 characters are `[UNK]`. One
    text becomes `[CLS] A [SEP]`, two become `[CLS] A [SEP] B [SEP]` with token types 0 and 1; a prompt for generation
    is the same without the last `[SEP]`. `decode` writes Chinese without spaces.

    One difference from bert4keras is meant: `[MASK]` and the other special tokens, written out in a text, are these
    tokens, as everywhere in transformers. `split_special_tokens=True` reads them as bert4keras does, as plain text.

    vocabulary: the id of each token, as `read_vocabulary` returns it. max_length: where `truncation=True` cuts; None
    sets no limit. The saved files need no noria.
    """
    limit = {} if max_length is None else {"model_max_length": max_length}
    return PreTrainedTokenizerFast(
        tokenizer_object=_backend(dict(vocabulary)),
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        **SPECIAL_TOKENS,
        **limit,
    )


def _backend(vocabulary: dict[str, int]) -> Tokenizer:
    model = WordPieceModel(vocabulary, unk_token=SPECIAL_TOKENS["unk_token"], max_input_chars_per_word=LONGEST_WORD)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = _normalizer()
    tokenizer.pre_tokenizer = _pre_tokenizer()
    start, end = SPECIAL_TOKENS["cls_token"], SPECIAL_TOKENS["sep_token"]
    tokenizer.post_processor = TemplateProcessing(
        single=f"{start} $A {end}",
        pair=f"{start} $A {end} $B:1 {end}:1",
        special_tokens=[(token, vocabulary[token]) for token in (start, end)],
    )
    tokenizer.decoder = Sequence([WordPiece(prefix="##", cleanup=False), Fuse(), Replace(Regex(NEEDLESS_SPACES), "")])
    return tokenizer


def _normalizer() -> Normalizer:
    # BertNormalizer drops private and unassigned characters too, and takes twice as long.
    # Greek ends a word with another sigma, which Lowercase does not know: a cased letter before, none after; marks and
    # apostrophes between do not count, of which a lookbehind can pass over two.
    cased, between = r"[\p{Lu}\p{Ll}\p{Lt}]", r"[\p{Mn}\p{Me}\p{Cf}\p{Lm}\p{Sk}'.:·\x{2019}]"
    final_sigma = Regex(rf"(?<={cased}|{cased}{between}|{cased}{between}{{2}})\x{{3A3}}(?!{between}*{cased})")
    unseen = Regex(r"[\p{Mn}\p{Cc}\p{Cf}\x{FFFD}&&[^\t\n\r]]")
    return NormalizerSequence([ReplaceBefore(final_sigma, "ς"), Lowercase(), NFD(), ReplaceBefore(unseen, "")])


def _pre_tokenizer() -> PreTokenizer:
    alone = Regex(rf"[!-/:-@\[-`{{-~\p{{P}}{IDEOGRAPHS}]")
    return PreTokenizerSequence([WhitespaceSplit(), Split(alone, behavior="isolated")])
