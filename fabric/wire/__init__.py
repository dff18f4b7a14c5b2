"""What travels between broker, workers and initiators: messages and sockets."""
