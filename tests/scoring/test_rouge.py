"""ROUGE over the words of any script."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.tokenizers import DefaultTokenizer

from fairseq_updown.scoring.rouge import Rouge, Words, split_sentences

ASCII = "".join(map(chr, range(128)))


@given(st.text(ASCII), st.booleans())
def test_ascii_words_are_those_of_the_library(text: str, stemmer: bool) -> None:
    expected = DefaultTokenizer(stemmer).tokenize(text)
    assert Words(stemmer).tokenize(text) == expected
    assert Words(stemmer).tokenize(f"{text} \u2014") == expected  # which is no word


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Größere Übungen, re-runs", ["größere", "übungen", "re", "run"]),
        ("Привет, мир_2", ["привет", "мир", "2"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("我喜欢2只猫\u3002", ["我", "喜", "欢", "2", "只", "猫"]),
    ],
)
def test_words_of_other_scripts_are_whole(text: str, expected: list[str]) -> None:
    assert Words(stemmer=True).tokenize(text) == expected
    assert set(Rouge()(text, text).values()) == {100}


def test_other_letters_make_another_word() -> None:
    assert Rouge()("gr er", "größer")["rouge1"] == 0


def test_sentences_end_in_other_scripts_too() -> None:
    assert split_sentences("Так. Да! и") == ["Так.", "Да! и"]
    assert split_sentences("猫\u3002犬\uff01鳥") == ["猫\u3002", "犬\uff01", "鳥"]
    assert split_sentences("猫?犬") == ["猫?", "犬"]


@pytest.mark.parametrize(
    "text",
    [
        "น้ำตาลทำ",
        "ｶﾞｷﾞ\uff01犬",
        "猫が\uff21\uff22\uff11",
        "e\u0301te\u0301 \ufb01n",
        "x\u00b2 \u2026",
    ],
)
def test_what_sentencepiece_normalises_is_no_other_word(text: str) -> None:
    written = unicodedata.normalize("NFKC", text)
    assert written != text
    assert set(Rouge()(written, text).values()) <= {100, 0}
    assert Rouge()(written, text)["rougeLsum"] == 100
