"""The REST API: one file a resource; every error is an RFC 9457 problem."""
