"""Messages, sockets and keys that connect broker, workers and initiators."""
