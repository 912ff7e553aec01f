from hypothesis import given
from hypothesis import strategies as st

from fedkron.prompts import choice_texts


def test_a_choice_fills_the_first_blank_of_a_question() -> None:
    question = "The trophy is too big for the case because the _ is too _."
    assert choice_texts(question, ["trophy", "case"]) == [
        "The trophy is too big for the case because the trophy is too _.",
        "The trophy is too big for the case because the case is too _.",
    ]


def test_a_choice_follows_a_question_without_blank() -> None:
    assert choice_texts("Who wrote Hamlet?", ["Shakespeare", "Marlowe"]) == [
        "Who wrote Hamlet? Shakespeare",
        "Who wrote Hamlet? Marlowe",
    ]


@given(st.text("ab_ "), st.lists(st.text("ab_\\1", min_size=1), max_size=4, unique=True))
def test_every_choice_has_a_text_of_its_own_that_holds_it_as_it_is(question: str, choices: list[str]) -> None:
    texts = choice_texts(question, choices)
    assert len(set(texts)) == len(texts) == len(choices)
    assert all(choice in text for choice, text in zip(choices, texts, strict=True))
