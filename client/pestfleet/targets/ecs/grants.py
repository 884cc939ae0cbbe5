"""The rights that each kind of resources needs, as statements of a policy of IAM.

Resources are as narrow as IAM allows: names begin with pestfleet; what has an id for a name is
held by its tags. Actions, their resources and their conditions are those of the service
authorization reference.
"""

from __future__ import annotations

from dataclasses import dataclass

# What a request needs beside its own action: tags, roles that are handed on, what Amazon does in
# the name of who asks.
IMPLIED = frozenset(
    {
        "autoscaling:CreateOrUpdateTags",
        "ec2:CreateTags",
        "ec2:DescribeRegions",
        "ec2:RunInstances",
        "ecr:TagResource",
        "ecs:TagResource",
        "iam:CreateServiceLinkedRole",
        "iam:PassRole",
        "iam:TagInstanceProfile",
        "iam:TagRole",
        "logs:TagResource",
        "route53:ChangeResourceRecordSets",
        "route53:CreateHostedZone",
        "route53:DeleteHostedZone",
        "route53:GetHostedZone",
        "route53:ListHostedZonesByName",
        "scheduler:DeleteSchedule",
        "scheduler:TagResource",
        "secretsmanager:TagResource",
        "servicediscovery:TagResource",
        "ssm:GetParameters",
    }
)

HOME = "home"  # in the place of a kind: of sessions whose master is at home


@dataclass(frozen=True, slots=True)
class Grant:
    """A statement for `kind`; "" is for all plans.

    `resources`: SERVICE:REST, which stands for an ARN of the account and region. `condition`:
    labelled (requests that set our tags), ours (what has them), and others of `permissions`.
    """

    kind: str
    sid: str
    actions: tuple[str, ...]
    resources: tuple[str, ...]
    condition: str


def _grant(kind: str, sid: str, actions: str, resources: str = "*", condition: str = "") -> Grant:
    return Grant(kind, sid, tuple(actions.split()), tuple(resources.split()), condition)


# To make, find and remove.
GRANTS: tuple[Grant, ...] = (
    _grant(
        "",
        "Look",
        "autoscaling:DescribeAutoScalingGroups ec2:DescribeInstances ec2:DescribeLaunchTemplates "
        "ec2:DescribeRouteTables ec2:DescribeSecurityGroups ec2:DescribeSubnets "
        "ec2:DescribeVpcEndpoints ec2:DescribeVpcs ecs:ListTaskDefinitions iam:ListRoles "
        "logs:DescribeLogGroups scheduler:ListScheduleGroups servicediscovery:ListNamespaces "
        "servicediscovery:ListOperations servicediscovery:ListServices "
        "servicediscovery:ListTagsForResource sts:GetCallerIdentity tag:GetResources",
    ),
    _grant(
        "",
        "LookAtOurs",
        "ecr:DescribeRepositories ecr:ListTagsForResource ecs:DescribeCapacityProviders "
        "ecs:DescribeClusters ecs:DescribeServices iam:GetInstanceProfile iam:GetRole "
        "logs:ListTagsForResource scheduler:GetScheduleGroup scheduler:ListTagsForResource "
        "secretsmanager:DescribeSecret",
        "ecr:repository/pestfleet/* ecs:capacity-provider/pestfleet-* ecs:cluster/{cluster} "
        "ecs:service/{cluster}/pestfleet-* iam:instance-profile/pestfleet/* iam:role/pestfleet/* "
        # IAM does not know the path of what is not there.
        "iam:instance-profile/pestfleet-* iam:role/pestfleet-* "
        "logs:log-group:/pestfleet/* scheduler:schedule-group/pestfleet-* "
        "secretsmanager:secret:pestfleet/*",
    ),
    _grant(
        "schedule-group",
        "Lease",
        "scheduler:CreateScheduleGroup scheduler:DeleteScheduleGroup scheduler:TagResource",
        "scheduler:schedule-group/pestfleet-*",
    ),
    _grant(
        "schedule",
        "Schedules",
        "scheduler:CreateSchedule scheduler:DeleteSchedule scheduler:UpdateSchedule",
        "scheduler:schedule/pestfleet-*/*",
    ),
    _grant(
        "role",
        "Roles",
        "iam:CreateRole iam:DeleteRole iam:DeleteRolePolicy iam:PutRolePolicy iam:TagRole",
        "iam:role/pestfleet/*",
    ),
    _grant(
        "role",
        "PassRoles",
        "iam:PassRole",
        "iam:role/pestfleet/*",
        "passed",
    ),
    _grant(
        "cluster",
        "ServiceRoles",
        "iam:CreateServiceLinkedRole",
        "iam:role/aws-service-role/*",
        "linked",
    ),
    _grant(
        "log-group",
        "Logs",
        "logs:CreateLogGroup logs:DeleteLogGroup logs:PutRetentionPolicy logs:TagResource",
        "logs:log-group:/pestfleet/*",
    ),
    _grant(
        "repository",
        "Images",
        "ecr:CreateRepository ecr:DeleteRepository ecr:TagResource",
        "ecr:repository/pestfleet/*",
    ),
    _grant(
        "bucket",
        "Bucket",
        "s3:CreateBucket s3:DeleteBucket s3:GetBucketTagging s3:ListBucket s3:PutBucketPolicy "
        "s3:PutBucketPublicAccessBlock s3:PutBucketTagging s3:PutLifecycleConfiguration",
        "s3::{bucket}",
    ),
    _grant(
        "secret",
        "Secrets",
        "secretsmanager:CreateSecret secretsmanager:DeleteSecret secretsmanager:PutSecretValue "
        "secretsmanager:TagResource",
        "secretsmanager:secret:pestfleet/*",
    ),
    _grant(
        "security-group",
        "MakeGroups",
        "ec2:CreateSecurityGroup",
        "ec2:security-group/*",
        "labelled",
    ),
    _grant(
        "security-group",
        "InVpc",
        "ec2:CreateSecurityGroup",
        "ec2:vpc/*",
    ),
    _grant(
        "security-group",
        "Groups",
        "ec2:AuthorizeSecurityGroupEgress ec2:AuthorizeSecurityGroupIngress "
        "ec2:DeleteSecurityGroup ec2:RevokeSecurityGroupEgress ec2:RevokeSecurityGroupIngress",
        "ec2:security-group/*",
        "ours",
    ),
    _grant(
        "security-group",
        "Tags",
        "ec2:CreateTags",
        "ec2:*/*",
        "made",
    ),
    _grant(
        "vpc",
        "MakeNetwork",
        "ec2:CreateRouteTable ec2:CreateSubnet ec2:CreateVpc ec2:CreateVpcEndpoint",
        "ec2:route-table/* ec2:subnet/* ec2:vpc/* ec2:vpc-endpoint/*",
        "labelled",
    ),
    _grant(
        "vpc",
        "Network",
        "ec2:AssociateRouteTable ec2:CreateRouteTable ec2:CreateSubnet ec2:CreateVpcEndpoint "
        "ec2:DeleteRouteTable ec2:DeleteSubnet ec2:DeleteVpc ec2:DeleteVpcEndpoints "
        "ec2:DisassociateRouteTable ec2:ModifyVpcAttribute",
        "ec2:route-table/* ec2:security-group/* ec2:subnet/* ec2:vpc/* ec2:vpc-endpoint/*",
        "ours",
    ),
    _grant(
        "vpc",
        "Zones",
        "ec2:DescribeAvailabilityZones",
    ),
    _grant(
        "dns-namespace",
        "MakeNames",
        "ec2:DescribeRegions route53:ChangeResourceRecordSets route53:CreateHostedZone "
        "route53:DeleteHostedZone route53:GetHostedZone route53:ListHostedZonesByName "
        "servicediscovery:CreatePrivateDnsNamespace servicediscovery:GetOperation "
        "servicediscovery:TagResource",
    ),
    _grant(
        "dns-namespace",
        "Names",
        "servicediscovery:CreateService servicediscovery:DeleteNamespace "
        "servicediscovery:DeleteService servicediscovery:DeregisterInstance "
        "servicediscovery:ListInstances",
        "servicediscovery:namespace/* servicediscovery:service/*",
    ),
    _grant(
        "cluster",
        "Cluster",
        "ecs:CreateCluster ecs:DeleteCluster",
        "ecs:cluster/{cluster}",
    ),
    _grant(
        "task-definition",
        "TaskDefinitions",
        "ecs:DeleteTaskDefinitions ecs:RegisterTaskDefinition ecs:TagResource",
        "ecs:capacity-provider/pestfleet-* ecs:cluster/{cluster} "
        "ecs:service/{cluster}/pestfleet-* ecs:task-definition/pestfleet-*:* ecs:task/{cluster}/*",
    ),
    _grant(
        "task-definition",
        "OldTaskDefinitions",
        "ecs:DeregisterTaskDefinition",
    ),
    _grant(
        "service",
        "Services",
        "ecs:CreateService ecs:DeleteService ecs:StopTask ecs:UpdateService",
        "ecs:service/{cluster}/pestfleet-* ecs:task/{cluster}/*",
    ),
    _grant(
        "service",
        "Tasks",
        "ecs:ListTasks",
        "*",
        "cluster",
    ),
    _grant(
        "instance-profile",
        "Profiles",
        "iam:AddRoleToInstanceProfile iam:CreateInstanceProfile iam:DeleteInstanceProfile "
        "iam:RemoveRoleFromInstanceProfile iam:TagInstanceProfile",
        "iam:instance-profile/pestfleet/* iam:role/pestfleet/*",
    ),
    _grant(
        "launch-template",
        "MakeTemplate",
        "ec2:CreateLaunchTemplate",
        "ec2:launch-template/*",
        "labelled",
    ),
    _grant(
        "launch-template",
        "Machines",
        "ec2:DeleteLaunchTemplate ec2:TerminateInstances",
        "ec2:instance/* ec2:launch-template/*",
        "ours",
    ),
    _grant(
        "launch-template",
        "MachineTypes",
        "ec2:DescribeInstanceTypes ssm:GetParameters",
    ),
    _grant(
        "launch-template",
        "RunMachines",
        "ec2:RunInstances",
        "*",
        "template",
    ),
    _grant(
        "auto-scaling-group",
        "Scaling",
        "autoscaling:CreateAutoScalingGroup autoscaling:CreateOrUpdateTags "
        "autoscaling:DeleteAutoScalingGroup",
        "autoscaling:autoScalingGroup:*:autoScalingGroupName/pestfleet-*",
    ),
    _grant(
        "capacity-provider",
        "Capacity",
        "ecs:CreateCapacityProvider ecs:DeleteCapacityProvider ecs:DeregisterContainerInstance "
        "ecs:ListContainerInstances ecs:PutClusterCapacityProviders",
        "ecs:capacity-provider/pestfleet-* ecs:cluster/{cluster}",
    ),
)

# What a session's user does beside that.
USE: tuple[Grant, ...] = (
    _grant("", "LookAtTasks", "ecs:DescribeTasks", "ecs:task/{cluster}/*"),
    _grant(
        "repository",
        "Registry",
        "ecr:GetAuthorizationToken",
    ),
    _grant(
        "repository",
        "PushImages",
        "ecr:BatchCheckLayerAvailability ecr:BatchGetImage ecr:CompleteLayerUpload "
        "ecr:GetDownloadUrlForLayer ecr:InitiateLayerUpload ecr:PutImage ecr:UploadLayerPart",
        "ecr:repository/pestfleet/*",
    ),
    _grant(
        "",
        "Files",
        "s3:AbortMultipartUpload s3:DeleteObject s3:GetObject s3:PutObject",
        "s3::{bucket}/*",
    ),
    _grant(
        "",
        "ListFiles",
        "s3:ListBucket s3:ListBucketMultipartUploads",
        "s3::{bucket}",
    ),
    _grant(
        "",
        "ReadLogs",
        "logs:GetLogEvents",
        "logs:log-group:/pestfleet/*",
    ),
    _grant(
        "",
        "ReadLease",
        "scheduler:GetSchedule",
        "scheduler:schedule/pestfleet-*/*",
    ),
    _grant(
        "",
        "Prices",
        "pricing:GetProducts servicequotas:GetServiceQuota",
    ),
    _grant(
        "auto-scaling-group",
        "SpotPrices",
        "ec2:DescribeSpotPriceHistory",
    ),
    _grant(
        HOME,
        "Addresses",
        "ec2:DescribeNetworkInterfaces",
    ),
)

# Kinds whose rights are those of another.
SAME = {
    "security-group-ingress": "security-group",
    "security-group-egress": "security-group",
    "subnet": "vpc",
    "route-table": "vpc",
    "vpc-endpoint": "vpc",
    "dns-service": "dns-namespace",
}
