"""Workload and Plan to predicted memory and time: the real code on weightless tensors."""
