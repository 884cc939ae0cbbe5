"""Whole machines of EC2: for licences that are bound to machines, agents, images of one's own.

A machine carries its session's tag, which is all that is known of it. What is made for a session's
machines (launch template, key pair, security group, role) goes with the last of them. A session
on Amazon needs none of this: `pestfleet run --on ecs` finds its own machines.
"""
