import random
import string

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mtlbench.data.tables import IGNORE
from mtlbench.data.text import align, encode, load_tokenizer, train_tokenizer

TEXTS = ["the cat sat on the mat", "The dog, the cat!", "unbelievable unbelievably", "école"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, vocab_size=80, min_frequency=2, lowercase=True)


def test_vocabulary_and_ids_are_the_same_every_time():
    # Hundreds of pairs of one frequency: what the trainer's hash maps would otherwise decide anew at each call.
    draw = random.Random(0)
    words = ["".join(draw.choices(string.ascii_lowercase, k=draw.randint(3, 9))) for _ in range(1500)]
    texts = [" ".join(draw.choices(words, k=8)) for _ in range(400)]
    first, *others = (train_tokenizer(texts, vocab_size=700).get_vocab() for _ in range(4))
    assert len(first) == 700
    assert all(other == first for other in others)


def test_a_trained_tokenizer_speaks_bert(tokenizer):
    ids = tokenizer("the cat")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["[CLS]", "the", "cat", "[SEP]"]
    assert [tokenizer.convert_ids_to_tokens(n) for n in range(5)] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert tokenizer("THE Ecole")["input_ids"] == tokenizer("the école")["input_ids"]
    assert tokenizer.unk_token_id not in tokenizer("unbelievable")["input_ids"]
    # Characters are ordinary entries; were they special tokens, they would be cut out of words and dropped by decode.
    assert tokenizer.decode(tokenizer("a dog , the cat !")["input_ids"], skip_special_tokens=True).startswith("a dog")


def test_too_small_a_vocabulary_is_refused():
    with pytest.raises(ValueError, match="vocab_size=20 is too small"):
        train_tokenizer(TEXTS, vocab_size=20)


def test_a_tokenizer_saved_and_loaded_is_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(iter(()), name_or_path=str(tmp_path))
    assert loaded("the cat sat")["input_ids"] == tokenizer("the cat sat")["input_ids"]
    assert len(loaded) == len(tokenizer)


def rows(table):
    return [table.take(torch.tensor([n]))[0].tolist() for n in range(len(table))]


def test_plain_texts(tokenizer):
    found = encode(["the cat", "", "the"], tokenizer=tokenizer, max_length=16)
    assert rows(found.input_ids) == [tokenizer(t)["input_ids"] for t in ("the cat", "", "the")]
    assert found.attention_mask.take(torch.tensor([0, 1])).tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert found.input_ids.take(torch.tensor([0, 1]))[1, 2:].tolist() == [tokenizer.pad_token_id] * 2
    assert not found.truncated.any()


def test_each_word_begins_at_one_sub_word(tokenizer):
    words = [["unbelievably", "dog,", "the"], [], ["mat"]]
    found = encode(words, tokenizer=tokenizer, max_length=64)
    word = [
        found.word[a:b].tolist() for a, b in zip(found.input_ids.offsets, found.input_ids.offsets[1:], strict=False)
    ]
    assert [[w for w in row if w >= 0] for row in word] == [[0, 1, 2], [], [0]]
    assert len(word[0]) > 5  # words of several sub-words are among them
    assert found.words_kept.tolist() == [3, 0, 1]
    for row, texts in zip(word, words, strict=True):
        for n, text in enumerate(texts):
            first = row.index(n)
            own = tokenizer(text, add_special_tokens=False)["input_ids"]
            whole = rows(found.input_ids)[words.index(texts)]
            assert whole[first : first + len(own)] == own


def test_words_of_nothing_become_the_unknown_token(tokenizer):
    found = encode([["the", " ", "\x00", "", "cat"]], tokenizer=tokenizer, max_length=16)
    the, cat = tokenizer.convert_tokens_to_ids(["the", "cat"])
    assert rows(found.input_ids)[0][1:-1] == [the, *[tokenizer.unk_token_id] * 3, cat]
    assert found.words_kept.tolist() == [5]


def test_labels_stand_on_first_sub_words(tokenizer):
    words = [["unbelievably", "the"], ["cat"], [], ["the", "cat"]]
    found = encode(words, tokenizer=tokenizer, max_length=64)
    target = align(found, labels=[[5, 6], [], [], [7, 8]])  # the second row has no labels
    labels = rows(target)
    assert [len(row) for row in labels] == [len(row) for row in rows(found.input_ids)]
    assert labels[0][:2] == [IGNORE, 5]
    assert [x for x in labels[0] if x != IGNORE] == [5, 6]
    assert set(labels[1]) == set(labels[2]) == {IGNORE}
    assert labels[3] == [IGNORE, 7, 8, IGNORE]
    assert target.take(torch.tensor([3, 0]))[0, 4:].unique().tolist() == [IGNORE]


def test_the_cut_is_counted_in_words(tokenizer):
    words = [["the", "cat", "the"], ["the"], ["unbelievably"]]
    found = encode(words, tokenizer=tokenizer, max_length=4)
    assert [len(row) for row in rows(found.input_ids)] == [4, 3, 4]
    assert found.truncated.tolist() == [True, False, True]
    assert found.words_kept.tolist() == [2, 1, 1]
    assert [x for row in rows(align(found, labels=[[1, 2, 3], [4], [5]])) for x in row if x != IGNORE] == [1, 2, 4, 5]
    assert not encode(words, tokenizer=tokenizer, max_length=None).truncated.any()


def test_a_very_long_text_is_cut(tokenizer):
    found = encode(["the " * 100_000, "x" * 1_000_000], tokenizer=tokenizer, max_length=8)
    assert [len(row) for row in rows(found.input_ids)] == [8, 3]


def test_a_tokenizer_that_does_not_fit_is_refused(tokenizer):
    bare = Tokenizer(models.WordLevel({"the": 0}, unk_token="the"))
    bare.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ValueError, match="no pad token"):
        encode(["the"], tokenizer=PreTrainedTokenizerFast(tokenizer_object=bare, eos_token="the"), max_length=8)
    padded = PreTrainedTokenizerFast(tokenizer_object=bare, pad_token="the")
    with pytest.raises(ValueError, match="makes nothing of the word"):
        encode([["the", " "]], tokenizer=padded, max_length=8)
