"""Small models, drawn from a seed and never from a global generator."""

from .transformer import OneLayerTransformer as OneLayerTransformer
