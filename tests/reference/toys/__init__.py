"""Toy claims: the machinery is tested on them, in fractions of a second."""
