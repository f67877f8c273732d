"""A claim whose test is predicted."""
