"""The stand-in for OpenAI that answers when there is no API key."""
