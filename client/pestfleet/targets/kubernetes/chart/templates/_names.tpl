{{- /* Names of all objects. The longest suffix and a pod's own stay below 63 characters. */ -}}

{{- define "pestfleet.fullname" -}}
{{- $name := .Values.nameOverride | default .Chart.Name -}}
{{- $full := .Values.fullnameOverride -}}
{{- if not $full -}}
{{- $full = contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) -}}
{{- end -}}
{{- if gt (len $full) 28 -}}
{{- /* Two long names that begin alike stay two. */ -}}
{{- printf "%s-%s" (trunc 19 $full | trimSuffix "-") (sha256sum $full | trunc 8) -}}
{{- else -}}
{{- $full -}}
{{- end -}}
{{- end -}}

{{- define "pestfleet.names.broker" -}}{{ include "pestfleet.fullname" . }}-broker{{- end -}}
{{- define "pestfleet.names.master" -}}{{ include "pestfleet.fullname" . }}-master{{- end -}}
{{- define "pestfleet.names.session" -}}{{ include "pestfleet.fullname" . }}-session{{- end -}}
{{- define "pestfleet.names.tunnel" -}}{{ include "pestfleet.fullname" . }}-tunnel{{- end -}}
{{- define "pestfleet.names.tunnel-ssh" -}}{{ include "pestfleet.fullname" . }}-tunnel-ssh{{- end -}}
{{- define "pestfleet.names.workers" -}}{{ include "pestfleet.fullname" . }}-workers{{- end -}}
{{- define "pestfleet.names.credentials" -}}{{ include "pestfleet.fullname" . }}-credentials{{- end -}}
{{- define "pestfleet.names.prepull" -}}{{ include "pestfleet.fullname" . }}-prepull{{- end -}}
{{- define "pestfleet.names.test" -}}{{ include "pestfleet.fullname" . }}-test{{- end -}}

{{- /* It is for all of a cluster, so the namespace is in it. */ -}}
{{- define "pestfleet.names.priority" -}}
{{ .Release.Namespace | trunc 63 }}-{{ include "pestfleet.fullname" . }}
{{- end -}}

{{- /* The Secret with the session's credentials: ours, or one that is there. */ -}}
{{- define "pestfleet.names.secret" -}}
{{ .Values.credentials.existingSecret | default (include "pestfleet.names.credentials" .) }}
{{- end -}}

{{- define "pestfleet.names.claim" -}}
{{ .Values.master.volume.existingClaim | default (include "pestfleet.names.session" .) }}
{{- end -}}

{{- define "pestfleet.session" -}}
{{ .Values.session.id | default (include "pestfleet.fullname" .) }}
{{- end -}}

{{- /*
The name of a Job: what cannot be changed in one (its pods, its failure policy) is in the name, so
that an upgrade or a rollback makes a new Job and removes the old one, where else it would be
refused. Takes a dict: root, name, fixed (YAML).
*/ -}}
{{- define "pestfleet.jobName" -}}
{{ .name }}{{ if .root.Values.jobs.hashedNames }}-{{ sha256sum .fixed | trunc 8 }}{{ end }}
{{- end -}}

{{- /*
Owner of a Job, on upgrades. Helm knows nothing of a Job whose name came with an upgrade that
failed; with its owner it goes when the release is uninstalled.
*/ -}}
{{- define "pestfleet.owner" -}}
{{- if .Release.IsUpgrade }}
{{- with lookup "v1" "ConfigMap" .Release.Namespace (include "pestfleet.names.session" .) }}
  ownerReferences:
    - {apiVersion: v1, kind: ConfigMap, name: {{ .metadata.name }}, uid: {{ .metadata.uid }}}
{{- end }}
{{- end }}
{{- end -}}

{{- /*
Size of a claim: of the one that is there, for a volume cannot become smaller, nor everywhere
larger. Takes a dict: root, name, size.
*/ -}}
{{- define "pestfleet.claimSize" -}}
{{- $there := lookup "v1" "PersistentVolumeClaim" .root.Release.Namespace .name | default dict -}}
{{ dig "spec" "resources" "requests" "storage" .size $there }}
{{- end -}}
