"""An agent whose module cannot be imported."""

raise RuntimeError("out of luck")
