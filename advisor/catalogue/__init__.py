"""Devices and configurations of popular checkpoints, as data with sources."""
