"""How the service is reached: translates HTTP, decides nothing."""
