"""Rows: read, inspect, tokenise, template, collate."""
