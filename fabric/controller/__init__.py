"""The broker's parts: journal, log spools, store client, resolver pool, replies, telemetry."""
