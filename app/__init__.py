"""Mints short-lived OpenAI Realtime tokens for an application's own users."""

__version__ = "0.1.0"
