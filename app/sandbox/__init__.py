"""A stand-in for OpenAI's Realtime API, so that everything can be tried without a key.

Same shapes, same checks, same error codes; the answers are canned. Nothing is stored on disk, and
everything held in memory has a bound.
"""
