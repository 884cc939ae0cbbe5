"""What a session's resources are paid for by."""

from __future__ import annotations

from dataclasses import dataclass

HOURS_A_MONTH = 730.0  # as Amazon's own calculator counts


@dataclass(frozen=True, slots=True)
class Charge:
    """Something that costs, for one of a role.

    `item`: what, and by which unit of time or size: fargate-vcpu-hour, fargate-gb-hour,
    fargate-spot-vcpu-hour, fargate-spot-gb-hour, fargate-disk-gb-hour, public-ipv4-hour,
    endpoint-hour, secret-month, log-gb, s3-gb-month, ecr-gb-month, dns-zone-month, ec2:TYPE-hour,
    ec2-spot:TYPE-hour, ebs-gb-month. `amount`: units of it, for one of `role` (worker, master,
    broker, tunnel; "" for the session as a whole). What has a unit of time is paid for as long as
    it is there; what has none (log-gb), once. `why`: in the user's words.
    """

    item: str
    amount: float
    role: str
    why: str
