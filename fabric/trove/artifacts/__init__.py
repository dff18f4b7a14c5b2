"""The artifact store: manifests and blobs, in a directory or on a server."""
