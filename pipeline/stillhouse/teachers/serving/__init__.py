"""Teacher servers: how to call, choose, start and stop them."""
