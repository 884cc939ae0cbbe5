"""What whoever starts, lists and ends machines must be allowed to, as IAM names it."""

from __future__ import annotations

from pestfleet.capacity.request import MachineRequest

_ALWAYS = (
    "ec2:CreateLaunchTemplate", "ec2:CreateLaunchTemplateVersion", "ec2:CreateTags",
    "ec2:DeleteLaunchTemplate", "ec2:DeleteSecurityGroup", "ec2:DescribeImages",
    "ec2:DescribeInstances", "ec2:DescribeInstanceTypes", "ec2:DescribeKeyPairs",
    "ec2:DescribeLaunchTemplates", "ec2:DescribeSecurityGroups", "ec2:DescribeSubnets",
    "ec2:RunInstances", "ec2:StartInstances", "ec2:StopInstances", "ec2:TerminateInstances",
    "iam:GetInstanceProfile", "iam:ListRolePolicies",
    "ssm:GetParameters",
)  # fmt: skip
_GROUP = ("ec2:CreateSecurityGroup",)
_SSH = ("ec2:AuthorizeSecurityGroupIngress", "ec2:DeleteKeyPair", "ec2:ImportKeyPair")
_ROLE = (
    "iam:AddRoleToInstanceProfile", "iam:CreateInstanceProfile", "iam:CreateRole",
    "iam:DeleteInstanceProfile", "iam:DeleteRole", "iam:DeleteRolePolicy", "iam:PassRole",
    "iam:PutRolePolicy", "iam:RemoveRoleFromInstanceProfile",
    "iam:TagInstanceProfile", "iam:TagRole",
)  # fmt: skip
_SESSION = ("ecs:DescribeServices", "ecs:DescribeTaskDefinition")
# Of the list: without them prices are not known, or are those of a table.
_PRICES = ("ec2:DescribeSpotPriceHistory", "pricing:GetProducts")


def list_permissions(request: MachineRequest) -> list[str]:
    """Actions of IAM for the whole life of the machines that are asked for."""
    needed = {*_ALWAYS, *_PRICES}
    if request.ssh or request.join == "none":
        needed |= {*_GROUP}
    if request.ssh:
        needed |= {*_SSH}
    if request.join != "none":
        needed |= {*_ROLE, *_SESSION}
    return sorted(needed)
