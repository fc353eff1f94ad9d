"""`holdfast key`: make an API key."""

from __future__ import annotations

import click


@click.command()
@click.argument("name")
@click.option("--tenant", default="", help="Whose runs the key sees (default: its own, by its name).")
@click.option("--scope", "scopes", multiple=True, type=click.Choice(["read", "run"]), help="Default: both.")
def key(name: str, tenant: str, scopes: tuple[str, ...]) -> None:
    """Make an API key.

    Prints the key, which is shown this once, and the line for api_keys_file, which holds only its digest.
    """
    from holdfast.gateway.api_keys import SCOPES, BadKeys, line_of, new_key

    secret = new_key()
    try:
        line = line_of(name, secret, tenant, scopes or SCOPES)
    except BadKeys as error:
        raise click.UsageError(str(error)) from error
    click.echo(f"key   {secret}")
    click.echo(f"line  {line}")
    click.echo(
        "Give the key to its user, and append the line to api_keys_file: a running server reads it within a second."
    )
