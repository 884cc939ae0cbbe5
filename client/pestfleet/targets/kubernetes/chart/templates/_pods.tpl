{{- /* Pieces of pods, which pass the pod security standard "restricted". */ -}}

{{- /* Takes a dict: root, image (repository, tag, digest), foreign (not in the registry of ours). */ -}}
{{- define "pestfleet.image" -}}
{{- $name := .image.repository -}}
{{- if and .root.Values.image.registry (not .foreign) }}{{ $name = printf "%s/%s" (trimSuffix "/" .root.Values.image.registry) $name }}{{ end -}}
{{- $tag := .image.tag -}}
{{- if not (or $tag .image.digest) }}{{ $tag = .root.Chart.AppVersion | replace "+" "-" }}{{ end -}}
{{ $name }}{{ with $tag }}:{{ . }}{{ end }}{{ with .image.digest }}@{{ . }}{{ end }}
{{- end -}}

{{- define "pestfleet.podSecurity" -}}
securityContext:
  runAsNonRoot: true
  runAsUser: {{ int64 .Values.security.user }}
  runAsGroup: {{ int64 .Values.security.group }}
  fsGroup: {{ int64 .Values.security.group }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "pestfleet.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end -}}

{{- /*
Where pods may run and from where their images come. Takes a dict: root, role, component (the name
of its values).
*/ -}}
{{- define "pestfleet.scheduling" -}}
{{- $values := get .root.Values .component -}}
{{- $spot := include "pestfleet.spot" ($values.spot | default "") | fromYaml -}}
{{- $tolerations := concat ($spot.tolerations | default list) ($values.tolerations | default list) -}}
{{- $priority := $values.priorityClassName | default "" -}}
{{- if and (eq .component "workers") (not $priority) .root.Values.priorityClass.create -}}
{{- $priority = include "pestfleet.names.priority" .root -}}
{{- end -}}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- with merge (dict) ($values.nodeSelector | default dict) ($spot.nodeSelector | default dict) }}
nodeSelector:
{{ toYaml . | indent 2 }}
{{- end }}
{{- with $tolerations }}
tolerations:
{{ toYaml . | indent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity:
{{ toYaml . | indent 2 }}
{{- end }}
{{- with $values.topologySpreadConstraints }}
topologySpreadConstraints:
{{- $selector := dict "labelSelector" (dict "matchLabels" (include "pestfleet.selector" $ | fromYaml)) }}
{{- range . }}
{{ list (merge (dict) . $selector) | toYaml | indent 2 }}
{{- end }}
{{- end }}
{{- with $priority }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{- /* How providers of Kubernetes mark machines that may be taken away. */ -}}
{{- define "pestfleet.spot" -}}
{{- if eq . "gke" }}
nodeSelector: {cloud.google.com/gke-spot: "true"}
tolerations: [{key: cloud.google.com/gke-spot, operator: Equal, value: "true", effect: NoSchedule}]
{{- else if eq . "eks" }}
nodeSelector: {eks.amazonaws.com/capacityType: SPOT}
{{- else if eq . "aks" }}
nodeSelector: {kubernetes.azure.com/scalesetpriority: spot}
tolerations: [{key: kubernetes.azure.com/scalesetpriority, operator: Equal, value: spot, effect: NoSchedule}]
{{- else if eq . "karpenter" }}
nodeSelector: {karpenter.sh/capacity-type: spot}
{{- else }}
{}
{{- end }}
{{- end -}}

{{- /*
A part's own files of the session's credentials, and nothing else of them, as the volume `secrets`.
Takes a dict: root, part (broker, master, worker).
*/ -}}
{{- define "pestfleet.secrets" -}}
{{- $external := .root.Values.broker.external -}}
- name: secrets
  secret:
    defaultMode: 0440
{{- if $external.enabled }}
    secretName: {{ required "broker.external.existingSecret is the name of a Secret with the broker's URL; it is needed where broker.external.enabled is true" $external.existingSecret }}
    items:
      - {key: {{ eq .part "master" | ternary $external.masterKey $external.workerKey | quote }}, path: broker-url}
{{- with $external.caKey }}
      - {key: {{ quote . }}, path: ca.pem}
{{- end }}
{{- else }}
    secretName: {{ include "pestfleet.names.secret" .root }}
    items:
{{- range eq .part "broker" | ternary (list "rabbitmq.conf" "definitions.json" "enabled_plugins" "ca.pem" "cert.pem" "key.pem") (list "broker-url" "ca.pem") }}
      - {key: {{ $.part }}.{{ . }}, path: {{ . }}}
{{- end }}
{{- end }}
{{- end -}}

{{- define "pestfleet.brokerPort" -}}
{{ .Values.broker.external.enabled | ternary .Values.broker.external.port 5671 | int }}
{{- end -}}

{{- /* Deadline of Jobs: the master ends the session by its hours itself, so a while after that. */ -}}
{{- define "pestfleet.seconds" -}}{{ mulf .Values.session.hours 3600 | int | add 600 }}{{- end -}}
