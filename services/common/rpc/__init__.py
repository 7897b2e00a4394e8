"""gRPC plumbing shared by all services: server factory, status mapping, health, deadlines."""
