"""What happened: the append-only log, and the proof that nobody edited it."""
