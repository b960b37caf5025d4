"""Searches: the variants of a training, chosen and run by Ray Tune."""
