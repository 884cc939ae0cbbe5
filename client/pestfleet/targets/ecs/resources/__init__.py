"""A session's resources in an account: made from a plan, found, and removed."""

from pestfleet.targets.ecs.resources.buckets import remove_bucket
from pestfleet.targets.ecs.resources.finding import find_all, find_tagged
from pestfleet.targets.ecs.resources.kinds import Found
from pestfleet.targets.ecs.resources.making import apply
from pestfleet.targets.ecs.resources.removal import remove_all

__all__ = ["Found", "apply", "find_all", "find_tagged", "remove_all", "remove_bucket"]
