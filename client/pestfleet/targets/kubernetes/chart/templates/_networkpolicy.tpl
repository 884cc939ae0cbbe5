{{- /* Rules of egress for master and workers, which find others by DNS and reach the broker. */ -}}
{{- define "pestfleet.egress" -}}
- to:
{{ toYaml .Values.networkPolicy.dns | indent 4 }}
  ports:
    - {protocol: UDP, port: 53}
    - {protocol: TCP, port: 53}
{{- if .Values.broker.external.enabled }}
# Wherever it is.
- ports:
    - {protocol: TCP, port: {{ include "pestfleet.brokerPort" . }}}
{{- else }}
- to:
    - podSelector:
        matchLabels:
{{ include "pestfleet.selector" (dict "root" . "role" "broker") | indent 10 }}
  ports:
    - {protocol: TCP, port: 5671}
{{- end }}
{{- end -}}

{{- /* A rule of egress for who speaks to the API server, whose address no chart knows. */ -}}
{{- define "pestfleet.apiServerEgress" -}}
- ports:
{{- range .Values.networkPolicy.apiServerPorts }}
    - {protocol: TCP, port: {{ int . }}}
{{- end }}
{{- end -}}
