"""Neutrino interactions in a modular liquid-argon detector with 5 mm pixels (arXiv 2509.08461, §2)."""
