"""Adapters of the store port. One conformance suite (holdfast.testing) holds them together."""
