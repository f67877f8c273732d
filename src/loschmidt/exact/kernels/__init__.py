"""What runs a step's ops on memory: tracing, the interpreter in C, and its twin on tensors."""
