"""Spec to domain XML and back. Pure: takes text and values, returns text and values."""
