"""What everything stands on: time, identifiers, keys, errors, logs, the database."""
