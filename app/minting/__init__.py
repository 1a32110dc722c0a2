"""What the service does: decide what a caller may have, and mint it at OpenAI."""
