"""The initiator's side: one request followed to its end, its logs, and how both are shown."""
