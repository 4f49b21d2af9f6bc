"""Bundled real data and the demonstration of the main job."""
