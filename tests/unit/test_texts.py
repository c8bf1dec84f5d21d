"""Words on colours: the page is whole and escaped, padding is left out, texts become the model's inputs."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

import graphattr
from graphattr.preprocess import InputItem
from graphattr.render import Passage, coloured, page
from graphattr.texts import passages, role, text_item, tokens_of
from graphattr.vocabulary import load_vocabulary, spelled
from tests.unit.tiny import I, model, node

NASTY = ["<b>", "a&b", '"q"', "</span><script>alert(1)</script>", "\N{SNOWMAN}"]


def passage(words, scores, caption="class 1 · 2.500", heading=""):
    return Passage(spelled(words), scores, caption, heading)


class Reader(HTMLParser):
    """The tags of a page, its tokens with their styles, and whether every tag is closed."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.tokens, self.open, self.words = [], [], [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "!doctype"):
            self.open.append(tag)
        if tag == "span" and "title" in dict(attrs):
            self.tokens.append([dict(attrs), ""])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"{tag} closes what is not open"

    def handle_data(self, data):
        if self.open and self.open[-1] == "span" and self.tokens:
            self.tokens[-1][1] += data
        if "p" in self.open:
            self.words += data


# -- the page -----------------------------------------------------------------------------------------------------
def test_the_page_is_whole_and_escaped():
    html = page([passage(NASTY, [0.5, -1.0, 0.0, 2.0, 0.01])], "<title> & co", "<i>how</i>")
    read = Reader(html)
    assert not read.open
    assert [word for _, word in read.tokens] == NASTY
    assert "script" not in {tag for tag, _ in read.tags}
    assert [a["title"] for a, _ in read.tokens] == ["+0.5", "−1", "0", "+2", "+0.01"]
    assert not re.search(r"(src|href|url|@import|https?:)", html), "nothing from elsewhere"
    assert "<title>&lt;title&gt; &amp; co</title>" in html
    for word in ("against", "for the explained class", "class 1", "2.500", "&lt;i&gt;how"):
        assert word in html


def test_red_is_for_blue_is_against_and_nothing_is_paper():
    read = Reader(page([passage(["a", "b", "c"], [1.0, -1.0, 0.0])], "t"))
    (plus, _), (minus, _), (zero, _) = read.tokens
    def rgb(a): return [int(a["style"].split("#")[1][k:k + 2], 16) for k in (0, 2, 4)]
    assert rgb(plus)[0] > rgb(plus)[2]
    assert rgb(minus)[0] < rgb(minus)[2]
    assert "style" not in zero
    assert "color:#ffffff" in plus["style"], "white on dark"


def test_each_passage_has_its_own_scale_and_headings_are_said_once():
    read = Reader(page([passage(["a"], [5.0], heading="one"), passage(["a"], [0.01], heading="one"),
                        passage(["a"], [1.0], heading="two")], "t"))
    assert len({a["style"] for a, _ in read.tokens}) == 1
    assert sum(tag == "h2" for tag, _ in read.tags) == 2


def test_extreme_passages():
    with np.errstate(all="raise"):
        assert Reader(page([passage([], []), passage(["x"], [0.0])], "t")).tokens[0][1] == "x"


def test_colours_on_the_terminal_and_numbers_without():
    p = passage(["great", "##ly", "bad"], [1.0, 0.001, -0.5])
    plain, shown = coloured(p, False), coloured(p, True)
    assert plain.plain == "great(+1)ly(+0.001) bad(−0.5)"
    assert not plain.spans
    assert shown.plain == "greatly bad"
    assert len(shown.spans) == 2, "weak tokens stay as they are"


# -- words --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("words", "want"), [
    (["[CLS]", "un", "##like", "##ly", "##", "x"], "[CLS] unlikely ## x"),
    (["\u2581Hel", "lo", "\u2581you", "</s>"], "Hello you</s>"),
    (["The", "\u0120cat", "s", "\u010a", "\u0120a"], "The cats↵ a"),
    (["12", "7"], "12 7"), (["\x1b[31m", "a\rb"], "\ufffd[31m a\ufffdb"), ([], "")])
def test_pieces_of_words_are_joined(words, want):
    assert "".join(before + piece for before, piece in spelled(words)) == want


def test_tokenizer_files(tmp_path):
    def made(name, content):
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return tmp_path / name
    bert = {"model": {"type": "WordPiece", "vocab": {"a": 0, "b": 1}}, "added_tokens": [{"id": 5, "content": "<x>"}]}
    assert dict(load_vocabulary(made("t.json", bert)).words) == {0: "a", 1: "b", 5: "<x>"}
    assert load_vocabulary(made("u.json", {"model": {"vocab": [["<unk>", 0.0], ["\u2581a", -1.5]]}})).word(1) == "\u2581a"
    assert load_vocabulary(made("v.json", {"a": 3})).word(3) == "a"
    assert load_vocabulary(made("v.txt", "a\nb\n")).word(1) == "b"
    assert load_vocabulary(made("v.txt", "a\nb\n")).word(9) == "[9]"
    for name, content in (("w.json", "{"), ("w.json", []), ("w.json", {"model": 3}), ("w.json", {"model": {"vocab": [3]}}),
                          ("w.txt", "")):
        with pytest.raises(graphattr.RunError, match="w\\."):
            load_vocabulary(made(name, content))
    with pytest.raises(graphattr.RunError, match="gone"):
        load_vocabulary(tmp_path / "gone.json")


def test_padding_is_left_out():
    ids = np.array([[3, 4, 0, 0], [0, 5, 6, 7]])
    item = InputItem(ids, None, "x")
    feeds = {"input_ids": ids, "attention_mask": np.array([[1, 1, 0, 0], [0, 1, 1, 1]])}
    assert tokens_of(feeds, "input_ids", item, None) == [[(0, "3"), (1, "4")], [(1, "5"), (2, "6"), (3, "7")]]
    assert len(tokens_of({"input_ids": ids}, "input_ids", item, None)[0]) == 4, "without a mask every token is shown"
    named = InputItem(ids, None, "x", {"tokens": np.array([list("abcd"), list("efgh")])})
    assert tokens_of(feeds, "input_ids", named, None)[1] == [(1, "f"), (2, "g"), (3, "h")]
    wrong = InputItem(ids, None, "x", {"tokens": np.array([list("abc")])})
    with pytest.raises(graphattr.RunError, match=r"\(1, 3\)"):
        tokens_of(feeds, "input_ids", wrong, None)


def test_what_an_input_holds():
    names = ["input_ids", "attention_mask", "token_type_ids", "segment_ids", "position_ids", "tokens", "decoder_input_ids"]
    assert [role(n) for n in names] == ["ids", "mask", "types", "types", "positions", "ids", "ids"]


def test_headings_where_there_are_several():
    row = {"sample": 0, "input": "ids", "caption": "c", "words": ["a"], "scores": [1.0], "method": "m"}
    assert passages([row])[0].heading == ""
    assert [p.heading for p in passages([row, {**row, "method": "n"}])] == ["ids · m", "ids · n"]


# -- texts become ids ---------------------------------------------------------------------------------------------
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "##s"]


def types(*names, shape=("N", "T")):
    proto = model([node("Identity", names[0], "y")], {n: (I, list(shape)) for n in names}, {"y": (I, list(shape))})
    return {i.name: i.type for i in proto.graph.input}


@pytest.fixture
def vocabulary(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    return load_vocabulary(tmp_path / "vocab.txt")


def test_texts_as_inputs(vocabulary):
    pytest.importorskip("tokenizers", reason="splitting texts needs the package tokenizers (extra: text)")
    item = text_item(["The cats", "dog"], "t", vocabulary, types("input_ids", "attention_mask", "token_type_ids", "position_ids"))
    assert item.named["input_ids"].tolist() == [[2, 5, 6, 8, 3], [2, 1, 3, 0, 0]]
    assert item.named["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert not item.named["token_type_ids"].any()
    assert item.named["position_ids"].tolist() == [[0, 1, 2, 3, 4]] * 2
    for length in (3, 8):
        assert text_item(["The cats sat"], "t", vocabulary, types("ids", shape=("N", length))).named["ids"].shape == (1, length)


def test_a_tokenizer_file_splits_as_it_says(tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason="splitting texts needs the package tokenizers (extra: text)")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "<pad>": 2, "?": 3}, unk_token="?"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    item = text_item(["b a", "c"], "t", load_vocabulary(tmp_path / "tokenizer.json"), types("ids"))
    assert item.named["ids"].tolist() == [[1, 0], [3, 2]]
    (tmp_path / "flat.json").write_text('{"a": 0}')
    with pytest.raises(graphattr.RunError, match=r"flat\.json"):
        text_item(["a"], "t", load_vocabulary(tmp_path / "flat.json"), types("ids"))


def test_texts_that_do_not_fit(vocabulary, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    for words, given in (("--tokenizer", (None, types("ids"))), ("2", (vocabulary, types("ids", "other_ids"))),
                         ("0", (vocabulary, types("mask"))), ("3 axes", (vocabulary, types("ids", shape=("N", "T", 2)))),
                         (r"graphattr\[text\]", (vocabulary, types("ids")))):
        with pytest.raises(graphattr.RunError, match=words):
            text_item(["a"], "t", *given)
