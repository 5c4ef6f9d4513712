"""Checkpoints of other laboratories: read without running anything, and named as torchvision and timm name them."""
