{{- /* Are the credentials made here? */ -}}
{{- define "pestfleet.credentials.wanted" -}}
{{- if not (or .Values.credentials.existingSecret .Values.broker.external.enabled) }}yes{{ end -}}
{{- end -}}

{{- /* What cannot be changed in the Job. */ -}}
{{- define "pestfleet.credentials.fixed" -}}
{{- $scope := dict "root" . "role" "credentials" "component" "credentials" -}}
template:
  metadata:
    labels:
      {{- include "pestfleet.podLabels" $scope | nindent 6 }}
  spec:
    restartPolicy: Never
    # It has the right to read and fill one Secret.
    serviceAccountName: {{ include "pestfleet.names.credentials" . }}
    automountServiceAccountToken: true
    enableServiceLinks: false
    {{- include "pestfleet.podSecurity" . | nindent 4 }}
    {{- with include "pestfleet.scheduling" $scope | trim }}{{ nindent 4 . }}{{ end }}
    containers:
      - name: credentials
        image: {{ include "pestfleet.image" (dict "root" . "image" .Values.master.image) }}
        imagePullPolicy: {{ .Values.image.pullPolicy }}
        args:
          - credentials
          - /secrets/made
          - --session
          - {{ include "pestfleet.session" . | quote }}
          - --broker-host
          - {{ include "pestfleet.names.broker" . }}
          {{- range list "broker" "master" "worker" }}
          - --part
          - {{ . }}
          {{- end }}
          - --into-secret
          - {{ include "pestfleet.names.secret" . }}
        {{- include "pestfleet.containerSecurity" . | nindent 8 }}
        resources:
          {{- toYaml .Values.credentials.resources | nindent 10 }}
        volumeMounts:
          - {name: made, mountPath: /secrets}
          - {name: tmp, mountPath: /tmp}
    volumes:
      - name: made
        emptyDir: {medium: Memory, sizeLimit: 1Mi}
      - name: tmp
        emptyDir: {sizeLimit: 64Mi}
{{- end -}}
