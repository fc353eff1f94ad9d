"""What a script may say, and what it is told when it says something else."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.rehearsal import DIRECTIVES, ScriptError, parse
from holdfast.rehearsal.answer import Answer, CallArgs, Piece, Text
from holdfast.rehearsal.steps import (
    BadJson,
    Comments,
    Cut,
    FirstToken,
    Say,
    Segment,
    SlowHeaders,
    Stall,
    Status,
    Step,
    StreamError,
    Think,
    Tokens,
    Tool,
    ToolPart,
    Usage,
)


def only(message: str) -> Step:
    """The one step of a script that has one, in the opening or the body."""
    (segment,) = parse(message) or ()
    return [*segment.opening, *segment.body][0]


def pieces(*lines: str) -> list[tuple[float, Piece]]:
    (segment,) = parse("\n".join(lines)) or ()
    return list(Answer(segment.body, 0, "call").pieces())


@pytest.mark.parametrize(
    ("line", "step"),
    [
        ("!say kelp holds", Say("kelp holds", 50)),
        ("!tokens n=3 rate=7", Tokens(3, 7)),
        ("!tokens", Tokens(200, 50)),
        ("!think n=2", Think(2, 50)),
        ('!tool get {"a": 1}', Tool("get", '{"a": 1}')),
        ("!tool get", Tool("get", "{}")),
        ("!tool_raw get {not json", Tool("get", "{not json")),
        ('!tool_part get {"a": 1}', ToolPart("get", '{"a": 1}')),
        ("!first_token delay=0.5", FirstToken(0.5)),
        ("!slow_headers for=2", SlowHeaders(2)),
        ("!stall after=1 for=2", Stall(1, 2, 50)),
        ("!comments after=1 for=2", Comments(1, 2, 0.1, 50)),
        ("!close after=4", Cut(4, "close", 50)),
        ("!truncate after=4", Cut(4, "truncate", 50)),
        ("!bad_json", BadJson(5, 50)),
        ("!error_in_stream after=0", StreamError(0, 50)),
        ("!status code=503 retry_after=0.5 times=2", Status(503, 0.5, 2, line=1)),
        ("!error_in_stream after=0 error=busy", StreamError(0, 50, "busy")),
        ("!status code=401", Status(401, None, None, line=1)),
        ("!close after=4 times=2", Cut(4, "close", 50, times=2, line=1)),
        ("!stall after=4 for=2 times=0", Stall(4, 2, 50, times=0, line=1)),
        ("!status code=400 error=too_long above=9", Status(400, None, None, 1, "too_long", 9)),
        ("!usage prompt=7 completion=8", Usage(7, 8)),
    ],
)
def test_each_directive_means_its_step(line: str, step: Step) -> None:
    """The lines of the protocol are read as the protocol says, with its defaults."""
    assert only(line) == step


def test_every_directive_is_documented_by_the_parser() -> None:
    """A directive that the module's page does not show is one that nobody finds."""
    from holdfast.rehearsal import script

    assert all(f"!{name}" in (script.__doc__ or "") for name in DIRECTIVES)


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ("hi\n!wat n=1", "line 2: unknown directive !wat; known are !say, !tool"),
        ("!Tokens n=1", "unknown directive !Tokens"),
        ("!say,hello", "unknown directive !say,hello"),
        ("!tokens n=many", "n=many is not a whole number from 0 to 1000000"),
        ("!tokens n=1.5", "n=1.5 is not a whole number"),
        ("!tokens n=1000001", "from 0 to 1000000"),
        ("!tokens n=-1", "from 0 to"),
        ("!tokens rate=0", "rate=0 is not a number from 0.001"),
        ("!tokens rate=nan", "rate=nan is not a number"),
        ("!stall for=3601", "for=3601 is not a number from 0 to 3600"),
        ("!first_token delay=inf", "delay=inf is not a number"),
        ("!tokens m=1", "!tokens does not take 'm=1'; it takes n=<number>, rate=<number>"),
        ("!tokens 200", "!tokens does not take '200'"),
        ("!say", "!say needs a text"),
        ("!say rate=5", "!say needs a text"),
        ("!say rate=x hi", "rate=x is not a number"),
        ("!tool", "!tool needs the name of a tool"),
        ("!tool get {bad", "the arguments of get are not JSON"),
        ("!tool get [1]", "must be a JSON object"),
        ("!status error=a/b", "error=a/b is not a word"),
        ("!status errors=ab", "it takes code=<number>, retry_after=<number>, times=<number>, error=<word>"),
        ("!status code=200", "code=200 is not a whole number from 400 to 599"),
        ("!close\n!say more", "line 2: this line can never run"),
        ("!tokens n=1\n!status code=500", "line 2: too late: the headers are out"),
        ("!first_token delay=1\n!slow_headers for=1", "line 2: too late"),
        ("!tokens n=600000\n!tokens n=600000", "at most 1000000 tokens"),
        ("!stall for=3600\n!stall for=3600\n!stall for=3600", "takes at most 7200 s"),
        ("!tokens n=1\n" * 1001, "line 1001: a script has at most 1000 lines"),
    ],
)
def test_wrong_line_is_refused_with_its_number_and_what_is_right(message: str, says: str) -> None:
    """A script that silently does something else would test nothing."""
    with pytest.raises(ScriptError) as caught:
        parse(message)
    assert says in str(caught.value)
    assert len(str(caught.value)) < 500


def test_lines_without_a_directive_are_ignored_beside_one() -> None:
    """A prompt may explain itself around its script."""
    assert parse("please\n  !tokens n=1  \nthank you!") == (Segment((), (Tokens(1, 50),)),)


@pytest.mark.parametrize("message", ["", "hello", "wow! !say is a directive", "!", "!!", "! say"])
def test_message_without_a_directive_has_no_script(message: str) -> None:
    """Only a line that begins with `!name` is a directive."""
    assert parse(message) is None


def test_only_a_line_feed_ends_a_line() -> None:
    """Other characters that some libraries end lines by are text, which a reader has to carry whole."""
    odd = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg"
    texts = [piece.text for _, piece in pieces(f"!say {odd}", "!say h\r") if isinstance(piece, Text)]
    assert "".join(texts) == f"{odd}\nh"


@pytest.mark.parametrize("line", ["!say rate=9 to be", "!say to be rate=9"])
def test_say_takes_its_rate_at_either_end(line: str) -> None:
    """The rate is not spoken."""
    assert only(line) == Say("to be", 9)


@pytest.mark.parametrize("line", ["!first_token delay=1", "!slow_headers for=1", "!status times=1", "!usage"])
def test_script_that_emits_nothing_answers_ten_tokens(line: str) -> None:
    """A delay alone delays something."""
    (segment,) = parse(line) or ()
    assert segment.body[-1] == Tokens(10, 50)


def test_consecutive_tools_are_one_response_and_other_lines_follow_their_results() -> None:
    """Parallel calls are written one below the other."""
    segments = parse("!say one\n!tool a\n!tool b\n!say two\n!tool c\n!status code=500\n!say end")
    assert [segment.calls for segment in segments or ()] == [2, 1, 0]
    assert [len(segment.opening) for segment in segments or ()] == [0, 0, 1]


def test_texts_of_two_lines_do_not_run_together() -> None:
    """A text that another one follows ends its line; the last one is exactly as written."""
    text = "".join(piece.text for _, piece in pieces("!say a b", "!tokens n=1", "!say c") if isinstance(piece, Text))
    assert text == "a b\nt1 c"


@given(st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Zl", "Zp")), min_size=1).map(str.strip))
def test_said_words_join_to_the_text(text: str) -> None:
    """No space and no character of a text is lost between two tokens."""
    if not text or "rate=" in text:
        return
    spoken = [piece.text for _, piece in pieces(f"!say {text}") if isinstance(piece, Text)]
    assert "".join(spoken) == text


def test_numbers_run_through_all_lines_of_an_answer() -> None:
    """Who joins the tokens of an answer sees at once what is missing or doubled."""
    found = [p.text for _, p in pieces("!tokens n=2", "!stall after=2 for=1", "!close after=1") if isinstance(p, Text)]
    assert found == ["t1 ", "t2 ", "t3 ", "t4 ", "t5 "]


def test_schedule_is_absolute() -> None:
    """The k-th token is due k/rate after the first, however many there are; a pause moves all that follow."""
    dues = [due for due, piece in pieces("!tokens n=1000 rate=100", "!first_token delay=5", "!tokens n=1")]
    assert dues[:1000] == pytest.approx([k / 100 for k in range(1000)])
    assert dues[1000] == pytest.approx(9.99 + 5)


@given(st.dictionaries(st.text(max_size=5), st.text(max_size=200), max_size=3))
def test_pieces_of_arguments_join_to_the_arguments(args: dict[str, str]) -> None:
    """Arguments come in several pieces, never in so many that they take long, and lose nothing."""
    import json

    encoded = json.dumps(args)
    found = pieces(f"!tool get {encoded}")
    parts = [piece.text for _, piece in found if isinstance(piece, CallArgs)]
    assert "".join(parts) == encoded
    assert 2 <= len(parts) <= 17
    assert found[-1][0] < 0.5


def test_hostile_message_is_read_in_linear_time() -> None:
    """A message is up to 8 MiB of anything; reading it must not stop the loop."""
    started = time.monotonic()
    parse("!say a" + " " * 2_000_000 + "b")
    parse(" " * 2_000_000 + "!" + " " * 2_000_000)
    parse("!tool a {" + " " * 2_000_000 + "}")
    assert time.monotonic() - started < 2
