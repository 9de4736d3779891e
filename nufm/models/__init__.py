"""Encoders, decoders and heads: batches or tensors in, features out. No losses, no trainers, no files."""
