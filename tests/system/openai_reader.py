"""OpenAI's own client as the reader of a run that it starts."""

from __future__ import annotations

import openai


def chat_completion(url: str, model: str, prompt: str, session: str) -> tuple[str, str]:
    """Text and the code of its end, as the openai client has them; for a thread."""
    said = ""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        try:
            for chunk in client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": prompt}],
                stream=True,
                extra_headers={"X-Session-Id": session},
            ):
                said += (chunk.choices[0].delta.content or "") if chunk.choices else ""
        except openai.APIError as error:
            return said, str(error.code)
    return said, "no error"
