"""From the words of the command line to a model."""

import pytest
from pydantic_ai.models.openai import OpenAIChatModel

from holdfast.config.settings import Settings
from holdfast.models import ModelClient, ModelConfigError


def client(**environ: str) -> ModelClient:
    return ModelClient(Settings(), environ)


async def test_a_url_makes_an_openai_model_there_with_our_key() -> None:
    """HOLDFAST_MODEL_KEY, else OPENAI_API_KEY, else none."""
    for environ, key in (
        ({"HOLDFAST_MODEL_KEY": "a", "OPENAI_API_KEY": "b"}, "a"),
        ({"OPENAI_API_KEY": "b"}, "b"),
        ({}, "none"),
    ):
        ours = client(**environ)
        model = ours.resolve("some-model", "http://127.0.0.1:1/v1/")
        assert isinstance(model, OpenAIChatModel)
        assert model.model_name == "some-model"
        assert str(model.client.base_url) == "http://127.0.0.1:1/v1/"
        assert model.client.api_key == key
        await ours.aclose()


async def test_models_share_one_client() -> None:
    """A client for each would leave idle sockets behind."""
    ours = client()
    one = ours.resolve("a", "http://127.0.0.1:1/v1")
    two = ours.resolve("ollama:b")
    assert isinstance(one, OpenAIChatModel)
    assert isinstance(two, OpenAIChatModel)
    assert one.client._client is two.client._client
    await ours.aclose()


async def test_ollama_is_found_where_the_environment_says() -> None:
    """`ollama:NAME` needs no URL."""
    ours = client(OLLAMA_BASE_URL="http://127.0.0.1:2/v1")
    model = ours.resolve("ollama:llama")
    assert isinstance(model, OpenAIChatModel)
    assert (model.model_name, str(model.client.base_url)) == ("llama", "http://127.0.0.1:2/v1/")
    await ours.aclose()


@pytest.mark.parametrize(
    ("said", "used"),
    [
        ({}, "http://127.0.0.1:11434/v1/"),
        ({"OLLAMA_BASE_URL": "http://gpu:11434"}, "http://gpu:11434/v1/"),
        ({"OLLAMA_BASE_URL": "http://gpu:11434/"}, "http://gpu:11434/v1/"),
        ({"OLLAMA_BASE_URL": "https://gpu/ollama/v1"}, "https://gpu/ollama/v1/"),
    ],
)
async def test_ollamas_address_may_lack_the_path_that_everybody_forgets(said: dict[str, str], used: str) -> None:
    """Its own clients name the host only; the OpenAI-compatible part is under /v1."""
    ours = client(**said)
    model = ours.resolve("ollama:llama")
    assert isinstance(model, OpenAIChatModel)
    assert str(model.client.base_url) == used
    await ours.aclose()


def test_an_address_of_ollama_that_is_none_is_refused() -> None:
    """At start-up, not in the first run."""
    with pytest.raises(ModelConfigError, match="gpu:11434"):
        client(OLLAMA_BASE_URL="gpu:11434/v1").resolve("ollama:llama")


def test_no_name_is_no_model() -> None:
    """Agents then use their own."""
    assert client().resolve("") is None


@pytest.mark.parametrize(
    ("name", "url", "says"),
    [
        ("gpt", "", "names no provider"),
        ("nosuch:model", "", "cannot use model"),
        ("m", "ftp://x/v1", "no http(s) URL"),
        ("m", "127.0.0.1:80", "no http(s) URL"),
    ],
)
def test_each_mistake_says_what_to_write(name: str, url: str, says: str) -> None:
    """A typing mistake must not reach the first prompt."""
    with pytest.raises(ModelConfigError) as raised:
        client().resolve(name, url)
    assert says in str(raised.value)


def test_a_provider_without_its_key_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """At start-up, not in the first run."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ModelConfigError, match="OPENAI_API_KEY"):
        client().resolve("openai:gpt-5")
