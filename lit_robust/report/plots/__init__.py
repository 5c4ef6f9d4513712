"""Plots of the page, one file a kind."""
