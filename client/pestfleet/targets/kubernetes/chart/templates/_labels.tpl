{{- /* Each takes a dict: root, role. */ -}}

{{- /* What tells the pods of a role from those of others, of other releases too. */ -}}
{{- define "pestfleet.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name | trunc 63 }}
pestfleet.role: {{ .role }}
{{- end -}}

{{- /* Of pods. Nothing here changes with the chart's version: that would restart them. */ -}}
{{- define "pestfleet.podLabels" -}}
{{- $own := dict -}}
{{- with get .root.Values .component }}{{ $own = .labels | default dict }}{{ end -}}
{{- include "pestfleet.selector" . }}
pestfleet.session: {{ include "pestfleet.session" .root | quote }}
{{- with merge (dict) $own .root.Values.labels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* Of everything else. */ -}}
{{- define "pestfleet.labels" -}}
{{- include "pestfleet.selector" . }}
app.kubernetes.io/component: {{ .role }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 }}
pestfleet.session: {{ include "pestfleet.session" .root | quote }}
{{- with .root.Values.labels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* Of an object, in its metadata. */ -}}
{{- define "pestfleet.annotations" -}}
{{- with .root.Values.annotations }}
  annotations:
{{ toYaml . | indent 4 }}
{{- end }}
{{- end -}}
