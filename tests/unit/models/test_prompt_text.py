"""Prompts are read, and cut into chunks, as AUTOMATIC1111 does it."""

import pytest

from inpaint.errors import InpaintError
from inpaint.models.prompt_text import PromptSettings, read_prompt, split_lora_tags, tokenize, weighted_parts
from tests.tiny import tiny_tokenizer

ROOM = 75


@pytest.mark.parametrize(
    ("prompt", "pieces"),
    [
        ("plain text, 3:4", [("plain text, 3:4", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("an [unimportant] word", [("an ", 1.0), ("unimportant", 1 / 1.1), (" word", 1.0)]),
        ("(word:1.25)", [("word", 1.25)]),
        ("(word : .5 )", [("word ", 0.5)]),
        ("(word:-1)", [("word", -1.0)]),
        ("((word))", [("word", 1.21)]),
        ("(a (b:1.5) c)", [("a ", 1.1), ("b", 1.65), (" c", 1.1)]),
        ("(one)(two)", [("onetwo", 1.1)]),
        (r"\(literal\] \\ \x", [(r"(literal] \ x", 1.0)]),
        ("(not closed", [("not closed", 1.1)]),
        ("not opened) here:1.2)", [("not opened) here:1.2)", 1.0)]),
        ("[a:1.2)", [("a:1.2)", 1 / 1.1)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
        ("()", []),
        ("", []),
    ],
)
def test_brackets_weigh(prompt, pieces):
    (found,) = weighted_parts(prompt)
    assert [text for text, _ in found] == [text for text, _ in pieces]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in pieces])


@pytest.mark.parametrize(
    ("prompt", "text", "tags"),
    [
        ('ppz, "bag", studio, <lora:ppz-10:1>', 'ppz, "bag", studio', [("ppz-10", 1.0)]),
        ("<lora:a:0.5> a bag<LORA: b >, gold", "a bag, gold", [("a", 0.5), ("b", 1.0)]),
        ("a <lyco:x.y_z:-.25>", "a", [("x.y_z", -0.25)]),
        ("a < lora:b>, <b>, ", "a < lora:b>, <b>, ", []),
    ],
)
def test_lora_tags_leave_the_prompt(prompt, text, tags):
    assert split_lora_tags(prompt) == (text, tags)


@pytest.mark.parametrize("tag", ["<lora:>", "<lora::1>", "<lora:a:b>", "<lora:a:1:2>", "<lora:a:nan>", "<lora:a:inf>"])
def test_lora_tags_that_say_anything_else_are_refused(tag):
    with pytest.raises(InpaintError, match=f"{tag}.*write <lora:NAME:WEIGHT>"):
        split_lora_tags(f"a bag {tag}")


def test_break_parts_also_within_brackets():
    assert weighted_parts("a BREAK (b BREAK c)BREAKING") == [
        [("a", 1.0)],
        [("b", 1.1)],
        [("c", 1.1), ("BREAKING", 1.0)],
    ]
    assert weighted_parts("BREAK") == [[], []]


def chunks_of(prompt: str, *, weighted: bool = True, most: int = 3) -> tuple[list[str], int]:
    """The words of each chunk, and how many tokens were cut."""
    tokenizer = tiny_tokenizer()
    settings = PromptSettings(prompt_weights=weighted, prompt_chunks=most)
    tokens = tokenize([tokenizer], [[read_prompt(prompt, settings)]])
    (ids,) = tokens.ids
    assert ids.shape == (tokens.counts[0], ROOM + 2)
    assert (ids[:, 0] == tokenizer.bos_token_id).all() and (ids[:, -1] == tokenizer.eos_token_id).all()
    return [tokenizer.decode(row, skip_special_tokens=True).strip() for row in ids], tokens.cut[0]


def words(count: int, word: str = "red") -> str:
    return " ".join([word] * count)


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("", [""]),
        (words(ROOM), [words(ROOM)]),
        (words(ROOM + 1), [words(ROOM), "red"]),
        (f"{words(60)}, {words(20, 'wood')}", [f"{words(60)} ,", words(20, "wood")]),
        (f"{words(50)}, {words(30, 'wood')}", [f"{words(50)} , {words(24, 'wood')}", words(6, "wood")]),
        (f"{words(75)}, wood", [words(75), ", wood"]),
        ("red BREAK wood", ["red", "wood"]),
        ("BREAK wood", ["", "wood"]),
        ("red BREAK", ["red"]),
        ("BREAK", [""]),
        ("a BREAK BREAK a", ["a", "", "a"]),
    ],
)
def test_chunks_end_at_commas_and_breaks(prompt, wanted):
    found, cut = chunks_of(prompt)
    assert [one.replace(" ,", ",") for one in found] == [one.replace(" ,", ",") for one in wanted] and cut == 0


def test_literal_text_has_no_breaks_or_weights():
    settings = PromptSettings()
    (tokens,) = [tokenize([tiny_tokenizer()], [[read_prompt("a (red:1.5) BREAK wood", settings)]])]
    assert tokens.weights == [None] and tokens.counts == [1]


def test_what_has_no_place_is_counted():
    assert chunks_of(words(70) + ", " + words(90), most=2)[1] == 161 - ROOM - 71
    assert chunks_of(words(70) + ", " + words(10), most=1) == (chunks_of(words(70) + ", " + words(4))[0], 6)
    assert chunks_of("red BREAK wood BREAK the", most=2) == (["red", "wood"], 1)


def test_weights_stand_at_their_tokens():
    settings = PromptSettings(prompt_weights=True)
    prompts = [read_prompt(text, settings) for text in ("red", "red (wood the:2) red")]
    (weights,) = tokenize([tiny_tokenizer()], [prompts]).weights
    assert weights is not None and weights[0].eq(1).all()
    assert weights[1, :6].tolist() == [1, 1, 2, 2, 1, 1] and weights[1, 6:].eq(1).all()


def test_a_number_of_chunks_that_is_not_served_is_refused():
    with pytest.raises(InpaintError, match="prompt_chunks 5: give 1 to 4"):
        PromptSettings(prompt_chunks=5)
