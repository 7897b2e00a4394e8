"""What every process shares: types, errors, configuration, logs, metrics and the gRPC plumbing. Never torch."""
