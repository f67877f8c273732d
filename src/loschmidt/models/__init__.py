"""Small models, drawn from a seed and never from a global generator."""

from .cnn import CNN as CNN
from .gpt import GPT as GPT
from .transformer import OneLayerTransformer as OneLayerTransformer
