"""Shared machines stall: how long an example takes is no property of the code."""

from hypothesis import settings

settings.register_profile("house", deadline=None, max_examples=60)
settings.load_profile("house")
