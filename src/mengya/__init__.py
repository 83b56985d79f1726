"""Mengya (萌芽): small Chinese/bilingual language models from raw text to a served chat model."""

__version__ = "0.1.0"
