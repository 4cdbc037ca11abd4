"""Detectors of adversarial images: fitted on clean ones, scored on what a model computes of an image."""
