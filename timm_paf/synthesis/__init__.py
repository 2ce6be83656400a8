"""Synthetic images: sample, label, filter, write."""
