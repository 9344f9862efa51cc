"""Where drivers import ``Device`` from."""
