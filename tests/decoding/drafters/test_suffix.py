"""Suffix decoding: the automaton against brute force, and its drafts by hand and against brute force."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specquant.decoding import Greedy
from specquant.decoding.drafters.suffix import COUNTED_AT_ONCE, SEPARATOR, SuffixAutomaton, SuffixDrafter
from specquant.errors import SpecquantError

# Texts of few tokens, which repeat themselves; some are longer than what is counted at once.
TEXTS = st.lists(st.integers(0, 2), max_size=12) | st.lists(st.integers(0, 1), min_size=32, max_size=48)


def occurrences(text):
    return Counter(tuple(text[i:j]) for i in range(len(text)) for j in range(i + 1, len(text) + 1))


def assert_counts(automaton, text):
    """It has exactly the strings of a text, each with the number of its places."""
    expected = occurrences(text)
    found, waiting = {}, [((), 0)]
    while waiting:
        string, state = waiting.pop()
        for token, following in automaton.following[state].items():
            found[(*string, token)] = automaton.count[following]
            waiting.append(((*string, token), following))
    assert found == expected
    assert len(automaton) == len(text)


def contents(automaton):
    return [list(following.items()) for following in automaton.following], automaton.link, automaton.length


@given(st.lists(TEXTS | st.integers(0, 60), min_size=1, max_size=5))
@settings(max_examples=150)
def test_the_automaton_has_every_string_of_a_text_that_grows_and_shrinks(steps):
    """A number is a length to which it shrinks."""
    automaton, text = SuffixAutomaton(), []
    for step in steps:
        if isinstance(step, int):
            automaton.truncate(step)
            text = text[:step]
        else:
            automaton.extend(step)
            text += step
        assert_counts(automaton, text)
        # Nothing of what was taken back is left.
        fresh = SuffixAutomaton()
        for token in text:
            fresh.extend([token])
        assert contents(automaton) == contents(fresh)
        assert automaton.count[1:] == fresh.count[1:]


@given(TEXTS)
def test_the_link_of_the_text_is_its_longest_suffix_that_stood_before(text):
    automaton, known = SuffixAutomaton(text), occurrences(text)
    lengths = [length for length in range(1, len(text)) if known[tuple(text[-length:])] > 1]
    suffix = automaton.link[automaton.state]
    assert (automaton.length[suffix] if suffix > 0 else 0) == max(lengths, default=0)


def test_a_text_of_one_token_takes_no_quadratic_time():
    """Twenty thousand of them would have 200 million suffixes to count one after another: minutes."""
    automaton = SuffixAutomaton([7] * 20_000)
    assert automaton.count[1:4] == [20_000, 19_999, 19_998]
    automaton.truncate(3)
    assert automaton.count[1:] == [3, 2, 1]


def drafted(tokens, limit=100, **options):
    """Tokens and parents behind the root."""
    drafter = SuffixDrafter(100, 100, **options)
    drafter.start(tokens, None, Greedy())
    tree = drafter.propose(limit)
    assert tree.tokens[0] == tokens[-1]
    assert tree.q is None
    return tree.tokens[1:].tolist(), tree.parents[1:].tolist()


@pytest.mark.parametrize(
    ("tokens", "options", "expected"),
    [
        ([1, 2, 3, 4, 5, 1, 2, 3], {"draft_tokens": 3}, [4, 5, 1]),
        ([1, 2, 3, 4, 5, 1, 2, 3], {"draft_tokens": 12}, [4, 5, 1, 2, 3, 4, 5, 1, 2, 3, 4, 5]),  # at the end: again
        ([9, 3, 7, 9, 3, 7, 2, 3, 8, 2, 3], {"draft_tokens": 1}, [8]),  # the longer match, not the more frequent one
        ([2, 8, 2, 8, 2, 9, 2], {"draft_tokens": 1}, [8]),  # the more frequent one
        ([2, 8, 2, 9, 2], {"draft_tokens": 1}, [9]),  # of equals the one that came up last
        ([4, 4], {"draft_tokens": 4}, [4, 4, 4, 4]),
        ([1, 2, 3, 4, 5, 1, 2, 3], {"limit": 1}, [4]),
        ([1, 2, 3, 4, 5, 1, 2, 3], {"limit": 0}, []),
        ([1, 2, 3, 4, 5, 1, 2, 3], {"shortest_match": 3, "draft_tokens": 2}, [4, 5]),
        ([1, 2, 3, 4, 5, 1, 2, 3], {"shortest_match": 4}, []),
        ([1, 2, 3, 4], {}, []),
        ([1], {}, []),
    ],
)
def test_sequences_by_hand(tokens, options, expected):
    tokens, parents = drafted(tokens, **options)
    assert tokens == expected
    assert parents == list(range(len(expected)))


def test_a_tree_by_hand():
    """2 was followed by 8 (twice of three times) and 9, 2 8 by 5 and 6, and 2 9 by 7: all but 8 are equally likely."""
    text = [2, 8, 5, 2, 9, 7, 2, 8, 6, 2]
    assert drafted(text, draft_tokens=5, branches=2) == ([8, 9, 6, 5, 7], [0, 0, 1, 1, 2])
    assert drafted(text, draft_tokens=2, branches=2) == ([8, 9], [0, 0])
    assert drafted(text, draft_tokens=5, branches=2, limit=1) == ([8, 9], [0, 0])
    assert drafted(text, draft_tokens=3, branches=1) == ([8, 6, 2], [0, 1, 2])


def followers(string, text):
    """How often each token followed a string, in the order in which they first did."""
    n = len(string)
    return Counter(text[i + n] for i in range(len(text) - n) if text[i : i + n] == string and text[i + n] >= 0)


def by_brute_force(text, draft_tokens):
    """The sequence that `SuffixDrafter` describes, by searching the text for every string."""
    string, draft = list(text), []
    while len(draft) < draft_tokens:
        while string and not followers(string, text):
            del string[0]
        if not string:
            break
        known = followers(string, text)
        draft.append(max(reversed(known), key=known.__getitem__))
        string.append(draft[-1])
    return draft


@given(st.lists(TEXTS, max_size=3), TEXTS.filter(len), st.integers(1, 6))
def test_sequences_are_those_of_brute_force(answers, prompt, draft_tokens):
    drafter, known = SuffixDrafter(9, 100, draft_tokens=draft_tokens, earlier_tokens=1000), []
    for answer in answers:
        drafter.start([5], None, Greedy())
        drafter.commit(1, answer, None)
        known += [5, *answer, SEPARATOR]
    drafter.start(prompt, None, Greedy())
    assert drafter.propose(100).tokens[1:].tolist() == by_brute_force([*known, *prompt], draft_tokens)


def test_what_was_taken_back_is_not_drafted():
    drafter = SuffixDrafter(100, 100, draft_tokens=2)
    drafter.start([1, 2, 3], None, Greedy())
    drafter.commit(3, [4, 1], None)
    assert drafter.propose(9).tokens.tolist() == [1, 2, 3]
    drafter.commit(2, [5, 1], None)
    assert drafter.propose(9).tokens.tolist() == [1, 2, 5]
    drafter.start([6, 7], None, Greedy())
    assert drafter.propose(9).tokens.tolist() == [7]


def draft_after_answers(*answers, prompt=(9, 2), **options):
    drafter = SuffixDrafter(100, 100, draft_tokens=2, **options)
    for answer in answers:
        drafter.start([50, 51, answer[0]], None, Greedy())
        drafter.commit(3, list(answer[1:]), None)
    drafter.start(list(prompt), None, Greedy())
    return drafter.propose(9).tokens[1:].tolist()


def test_earlier_answers_are_looked_at_if_asked_and_their_prompts_never():
    answers = (1, 2, 3, 4), (1, 2, 5, 6), (1, 2, 3, 7)
    assert draft_after_answers(*answers) == []
    assert draft_after_answers(*answers, earlier_tokens=100) == [3, 7]
    assert draft_after_answers(*answers, prompt=(50,), earlier_tokens=100) == []
    assert draft_after_answers(*answers, prompt=(4,), earlier_tokens=100) == []  # behind an answer is no other one
    # The last answers that fit, each with its end.
    assert draft_after_answers(*answers[:2], earlier_tokens=9) == [5, 6]
    assert draft_after_answers(*answers[:2], earlier_tokens=9, prompt=(9, 3)) == []
    assert draft_after_answers(*answers[:2], earlier_tokens=10, prompt=(9, 3)) == [4]
    assert draft_after_answers(*answers[:2], earlier_tokens=4) == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"draft_tokens": 0}, "the number of tokens that suffix decoding drafts is 0; it must be at least 1"),
        ({"branches": 0}, "the number of branches of suffix decoding is 0; it must be at least 1"),
        ({"shortest_match": -1}, "the shortest match of suffix decoding is -1; it must be at least 1"),
        (
            {"earlier_tokens": 0},
            "the number of tokens of earlier answers that suffix decoding looks at is 0; it must be at least 1",
        ),
    ],
)
def test_bad_settings_are_one_sentence(options, sentence):
    with pytest.raises(SpecquantError, match=f"^{sentence}$"):
        SuffixDrafter(100, 100, **options)


def test_long_texts_are_counted_at_once():
    assert COUNTED_AT_ONCE <= 48  # as `TEXTS` has
