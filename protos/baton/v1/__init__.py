"""Version 1 of the contract; see the .proto files beside this one."""
