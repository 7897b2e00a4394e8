"""Generated code of the Baton protos; the contract itself is in the .proto files."""
