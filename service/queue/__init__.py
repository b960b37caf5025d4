"""The durable queue: its records (`job`), tables (`tables`) and store (`store`)."""
