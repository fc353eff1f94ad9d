"""What an isolated tool raises means for the model what it would mean here."""

from pydantic_ai import ModelRetry, ToolFailed

from holdfast.agents.elsewhere import as_raised
from holdfast.tools import ToolRaised


def test_words_to_the_model_keep_their_meaning_and_others_stay_as_they_are() -> None:
    """Ask again is not a failure, and a failure is not an order to ask again."""
    for kind in (ModelRetry, ToolFailed):
        raised = as_raised(ToolRaised(f"{kind.__module__}.{kind.__name__}", "smaller, please", ""))
        assert type(raised) is kind
        assert str(raised) == "smaller, please"
    other = ToolRaised("builtins.ValueError", "no", "")
    assert as_raised(other) is other
    plain = ValueError("no")
    assert as_raised(plain) is plain
