"""What a machine does when it starts: it ends itself in time, and works for its session until then.

A script that cloud-init runs once; what shall work after a stop and a start too, it leaves to
systemd. It holds names of secrets, never a secret: the user data of a machine can be read by
everybody who may describe it, and by every process on it.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from pestfleet.capacity.site import WorkerTask
from pestfleet_worker.errors import ConfigurationError

LIMIT = 16_384  # bytes (EC2 user guide, "Run commands when you launch an EC2 instance")
UID = "10001:10001"
STOP_SECONDS = 110  # for a worker to give its runs back: spot machines have two minutes

_HEAD = """\
#!/bin/bash
# Written by pestfleet. It holds no secret.
umask 022

# First of all: whatever fails below, this machine ends, {hours:g} hours after each start.
cat >/etc/systemd/system/pestfleet-limit.service <<'END'
[Unit]
Description=The end of this machine, by its limit of hours
[Service]
Type=oneshot
ExecStart=/usr/bin/env systemctl --no-block poweroff
END
cat >/etc/systemd/system/pestfleet-limit.timer <<'END'
[Unit]
Description=Limit of hours of this machine
[Timer]
OnBootSec={seconds}
AccuracySec=10s
[Install]
WantedBy=timers.target
END
systemctl daemon-reload
systemctl enable --now pestfleet-limit.timer || shutdown -P +{minutes}
"""

_NO_AGENT = """
# It is no member of an ECS cluster.
systemctl mask --now --no-block ecs.service 2>/dev/null
"""

_SERVICE = """
cat >/usr/local/sbin/pestfleet-work <<'END_OF_WORK'
{script}END_OF_WORK
chmod 0755 /usr/local/sbin/pestfleet-work
cat >/etc/systemd/system/pestfleet-work.service <<'END'
[Unit]
Description={description}
Wants=network-online.target
After=network-online.target docker.service
[Service]
ExecStart=/usr/local/sbin/pestfleet-work
{stop}TimeoutStopSec=120
[Install]
WantedBy=multi-user.target
END
systemctl daemon-reload
systemctl enable --now --no-block pestfleet-work.service
"""

_TOOLS = """\
#!/bin/bash
export AWS_DEFAULT_REGION={region}
say() {{ echo "pestfleet: $*" | tee -a /dev/console; }}
install() {{ command -v "$1" >/dev/null || dnf -y install "$2" || yum -y install "$1"; }}
finish() {{ say "$*: this machine ends"; systemctl --no-block poweroff; exit 0; }}
"""

_WORK = """\
folder=/run/pestfleet
look_up() {{
    token=$(curl -sf -m 5 -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' \\
        http://169.254.169.254/latest/api/token) || return 1
    curl -sf -m 5 -H "X-aws-ec2-metadata-token: $token" \\
        "http://169.254.169.254/latest/meta-data/$1"
}}
prepare() {{
    install aws awscli-2 && install docker docker && systemctl start docker || return 1
    rm -rf $folder && mkdir -p -m 0755 $folder && mkdir -m 0700 $folder/secrets || return 1
    chown {uid} $folder/secrets
{login}    docker pull --quiet {image} || return 1
    {variable}=$(aws secretsmanager get-secret-value --secret-id {secret} \\
        --query SecretString --output text) || return 1
    export {variable}
    docker run --rm --network none --read-only --cap-drop ALL \\
        --security-opt no-new-privileges --user {uid} --env {variable} \\
        --volume $folder/secrets:/secrets {entrypoint}{unpack_image} {unpack_words}
    code=$?
    unset {variable}
    return $code
}}
heed_notice() {{
    until look_up spot/instance-action >/dev/null; do sleep 5; done
    say "Amazon takes this spot machine back"
    touch $folder/notice
    docker stop -t {stop_seconds} pestfleet-worker
}}
heed_health() {{
    sick=0
    while sleep 60; do
        # The image's own check: is there a connection with the broker?
        case $(docker inspect -f '{{{{.State.Health.Status}}}}' pestfleet-worker 2>/dev/null) in
            unhealthy) sick=$((sick + 1)) ;;
            healthy) sick=0 ;;
        esac
        [ $sick -lt 30 ] || finish "the broker has been away for half an hour"
    done
}}

trap 'kill $(jobs -p) 2>/dev/null' EXIT
tries=0
until prepare; do
    tries=$((tries + 1))
    [ $tries -lt 10 ] || finish "the worker cannot be prepared"
    sleep 15
done
machine=$(look_up instance-id)
[ "$(look_up instance-life-cycle)" = spot ] && heed_notice &
heed_health &

gone=0 short=0
while [ ! -e $folder/notice ]; do
    began=$SECONDS
    docker rm --force --volumes pestfleet-worker >/dev/null 2>&1
    docker run --name pestfleet-worker --hostname "$machine" --read-only --cap-drop ALL \\
        --security-opt no-new-privileges --user {uid} --stop-timeout {stop_seconds} \\
        --tmpfs /tmp:mode=1777 --volume /scratch --volume $folder/secrets:/secrets:ro \\
        {options}{image} {words}
    code=$?
    say "the worker ended with code $code"
    # What a worker's exit code asks for: docs/exit-codes.md.
    case $code in
        0) finish "the session is over" ;;
        10) finish "the worker does not fit the session" ;;
        11) gone=$((gone + 1)); [ $gone -lt 2 ] || finish "the master is gone" ;;
        *) gone=0 ;;
    esac
    [ $((SECONDS - began)) -lt 60 ] && short=$((short + 1)) || short=0
    [ $short -lt 10 ] || finish "the worker ends at once, ten times"
    sleep 5
done
"""

_CLUSTER = """
mkdir -p /etc/ecs
cat >>/etc/ecs/ecs.config <<'END'
ECS_CLUSTER={cluster}
ECS_ENABLE_SPOT_INSTANCE_DRAINING=true
ECS_AWSVPC_BLOCK_IMDS=true
ECS_CONTAINER_STOP_TIMEOUT=120s
END
"""

_WATCH = """\
install aws awscli-2
quiet=0
while sleep 300; do
    answer=$(aws ecs describe-services --cluster {cluster} --services {service} --output text \\
        --query "sum(services[?status=='ACTIVE'].desiredCount)" 2>&1)
    case $answer in
        *ClusterNotFoundException*) answer=0 ;;
        *[!0-9.]* | '') continue ;;  # an answer that is none decides nothing
    esac
    [ "${{answer%.*}}" -eq 0 ] && quiet=$((quiet + 1)) || quiet=0
    [ $quiet -lt 3 ] || finish "the session wants no workers any more"
done
"""


def write_plain(*, hours: float) -> str:
    """For a machine that its user works on."""
    return _check(_write_head(hours) + _NO_AGENT)


def write_member(cluster: str, service: str, *, region: str, hours: float) -> str:
    """For a machine that ECS places tasks on; it ends when the service wants none any more."""
    watch = _TOOLS.format(region=region) + _WATCH.format(
        cluster=shlex.quote(cluster), service=shlex.quote(service)
    )
    work = _SERVICE.format(
        script=watch, description="The end of this machine, with its session", stop=""
    )
    return _check(_write_head(hours) + _CLUSTER.format(cluster=cluster) + work)


def write_worker(task: WorkerTask, *, slots: int, region: str, hours: float) -> str:
    """For a machine that is a worker of its session, by its container engine."""
    unpack = task.unpacking
    registry = task.image.partition("/")[0]
    login = (
        "    aws ecr get-login-password | docker login --username AWS --password-stdin "
        f"{registry} || return 1\n"
        if is_amazon_registry(registry)
        else ""
    )
    variables = [
        f"--env {shlex.quote(f'{name}={text}')} " for name, text in task.environment.items()
    ]
    script = _TOOLS.format(region=region) + _WORK.format(
        uid=UID,
        login=login,
        image=shlex.quote(task.image),
        secret=shlex.quote(unpack.secret),
        variable=unpack.variable,
        unpack_image=shlex.quote(unpack.image),
        entrypoint=_set_entrypoint(unpack.entrypoint),
        unpack_words=_quote((*unpack.entrypoint[1:], *unpack.command)),
        stop_seconds=STOP_SECONDS,
        options="".join(variables)
        + _make_log_options(task.logs)
        + _set_entrypoint(task.entrypoint),
        words=_quote((*task.entrypoint[1:], *set_slots(task.command, slots))),
    )
    stop = f"ExecStop=/usr/bin/env docker stop -t {STOP_SECONDS} pestfleet-worker\n"
    work = _SERVICE.format(script=script, description="A worker of pestfleet", stop=stop)
    return _check(_write_head(hours) + _NO_AGENT + work)


def set_slots(command: Sequence[str], slots: int) -> list[str]:
    """A worker's words with that many slots."""
    words = list(command)
    if "--slots" in words:
        place = words.index("--slots")
        del words[place : place + 2]
    return [*words, "--slots", str(slots)]


def is_amazon_registry(registry: str) -> bool:
    """Is that host one of ECR, such as 123456789012.dkr.ecr.eu-central-1.amazonaws.com?"""
    return ".dkr.ecr." in registry and ".amazonaws.com" in registry


def _write_head(hours: float) -> str:
    seconds = max(60, round(hours * 3600))
    return _HEAD.format(hours=hours, seconds=seconds, minutes=-(-seconds // 60))


def _make_log_options(logs: dict[str, str]) -> str:
    """Options of Docker's awslogs: a stream a machine, where ECS would have one a task."""
    if not logs:
        return ""
    kept = {name: logs[name] for name in ("awslogs-region", "awslogs-group") if name in logs}
    options = [f"--log-opt {shlex.quote(f'{name}={text}')} " for name, text in kept.items()]
    prefix = shlex.quote(logs.get("awslogs-stream-prefix", "worker"))
    stream = f'--log-opt awslogs-stream={prefix}/machine/"$machine" '
    return f"--log-driver awslogs {''.join(options)}{stream}"


def _set_entrypoint(words: Sequence[str]) -> str:
    """Docker takes the program there; its other words go behind the image."""
    return f"--entrypoint {shlex.quote(words[0])} " if words else ""


def _quote(words: Sequence[str]) -> str:
    return " ".join(shlex.quote(word) for word in words)


def _check(text: str) -> str:
    if len(text.encode()) > LIMIT:
        raise ConfigurationError(
            f"the machines' user data would have {len(text.encode()):,} bytes, and EC2 takes "
            f"{LIMIT:,}",
            remedy="The worker's environment and words are in it: make them shorter.",
        )
    return text
