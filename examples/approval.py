"""A tool that asks before it runs. Serve it from this directory:

holdfast serve approval:agent --model NAME --model-url URL
"""

from pydantic_ai import Agent

agent = Agent(name="keeper", instructions="Keep the user's files. Delete only what the user names.")


@agent.tool_plain(requires_approval=True)
def delete_file(path: str) -> str:
    """Delete one file. Somebody is asked first."""
    return f"deleted {path} (not really: this is an example)"
