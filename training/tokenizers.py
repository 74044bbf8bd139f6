"""Two small tokenizers, trained on the sentences that the model will read.

`clip` is byte-level BPE for the pooled embedding, `t5` is Unigram for the text tokens; both fold case. They are saved
so that transformers' CLIPTokenizer and T5Tokenizer load them from their folders. Knows sentences only.
"""

from __future__ import annotations

import io
from typing import Final

import numpy as np
import sentencepiece
from tokenizers import ByteLevelBPETokenizer, Tokenizer, models, trainers
from transformers import CLIPTokenizer, T5Tokenizer

from training.edits import EDITS
from training.phrasings import phrase
from training.shapes import change
from training.unrelated import prose, unrelated

VOCABULARY: Final = 1600
T5_TOKENS: Final = 48
CLIP_TOKENS: Final = 64


def sentences(seed: int, per_edit: int = 400) -> list[str]:
    """The corpus: every edit's phrasings, as many unrelated requests, and some prose for the words in between."""
    rng = np.random.default_rng([seed, 0])
    corpus = [phrase(name, rng) for name in EDITS for _ in range(per_edit)]
    corpus += [unrelated(rng) for _ in range(len(corpus))]
    corpus += [change(rng, 32, 32).sentence for _ in range(2 * per_edit)]
    corpus += list(prose())
    return [sentence for sentence in corpus if sentence]


def t5_tokenizer(corpus: list[str], vocabulary: int = VOCABULARY) -> T5Tokenizer:
    """Unigram pieces with sentencepiece's case-folding normaliser; ids 0, 1, 2 are pad, end and unknown as in T5."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus),
        model_writer=written,
        vocab_size=vocabulary,
        model_type="unigram",
        normalization_rule_name="nmt_nfkc_cf",
        character_coverage=1.0,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
        num_threads=1,
    )
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto.FromString(  # type: ignore[attr-defined]
        written.getvalue()
    )
    return T5Tokenizer(
        vocab=[(piece.piece, piece.score) for piece in model.pieces],
        _spm_precompiled_charsmap=model.normalizer_spec.precompiled_charsmap,
        extra_ids=0,
        model_max_length=T5_TOKENS,
    )


def clip_tokenizer(corpus: list[str], vocabulary: int = VOCABULARY) -> CLIPTokenizer:
    """Byte-level BPE with CLIP's own splitting: words, single digits, runs of punctuation; lower case."""
    blank = CLIPTokenizer()
    tokenizer = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>"))
    tokenizer.normalizer = blank.backend_tokenizer.normalizer
    tokenizer.pre_tokenizer = blank.backend_tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        initial_alphabet=sorted(ByteLevelBPETokenizer().pre_tokenizer.alphabet()),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    import json

    model = json.loads(tokenizer.to_str())["model"]
    return CLIPTokenizer(
        vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]], model_max_length=CLIP_TOKENS
    )
