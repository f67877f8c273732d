"""The claims of the source, each a runnable experiment with a verdict from data."""
