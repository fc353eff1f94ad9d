"""The composition root: puts the parts together and runs them.

Nothing is imported here: a worker process is part of this package, too, and needs no gateway.
"""
