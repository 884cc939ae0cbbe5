"""The target `ecs`: a session's master, broker and workers are services of Amazon ECS.

The tags of the resources are the only state: each command finds a session by them, from any
machine with credentials of the account.
"""
