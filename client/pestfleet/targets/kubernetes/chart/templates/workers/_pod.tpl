{{- /* What cannot be changed in the workers' Job. */ -}}
{{- define "pestfleet.workers.fixed" -}}
{{- $scope := dict "root" . "role" "worker" "component" "workers" -}}
podFailurePolicy:
  rules:
    # Machines that are taken away are nobody's fault, and a worker that was sent away has given
    # its runs back. One that has not heard of the master for long is no failure of its own: many
    # end so together, where the broker is away for a while.
    - action: Ignore
      onPodConditions: [{type: DisruptionTarget, status: "True"}]
    - action: Ignore
      onExitCodes: {containerName: worker, operator: In, values: [11, 12]}
    # Refused: the next one would be, too.
    - action: FailJob
      onExitCodes: {containerName: worker, operator: In, values: [10]}
template:
  metadata:
    labels:
      {{- include "pestfleet.podLabels" $scope | nindent 6 }}
    {{- with .Values.workers.annotations }}
    annotations:
      {{- toYaml . | nindent 6 }}
    {{- end }}
  spec:
    restartPolicy: Never
    automountServiceAccountToken: false
    enableServiceLinks: false
    terminationGracePeriodSeconds: {{ int .Values.workers.terminationGracePeriodSeconds }}
    {{- include "pestfleet.podSecurity" . | nindent 4 }}
    {{- with include "pestfleet.scheduling" $scope | trim }}{{ nindent 4 . }}{{ end }}
    containers:
      - name: worker
        image: {{ include "pestfleet.image" (dict "root" . "image" .Values.case.image) }}
        imagePullPolicy: {{ .Values.image.pullPolicy }}
        args: [--session, {{ include "pestfleet.session" . | quote }}, --slots, {{ int .Values.workers.slots | quote }}, --health-port, "4005"]
        {{- include "pestfleet.containerSecurity" . | nindent 8 }}
        env:
          - {name: PESTFLEET_BROKER_FILE, value: /secrets/broker-url}
          {{- with .Values.workers.env }}
          {{- toYaml . | nindent 10 }}
          {{- end }}
        # Does the broker hear it? No liveness: where the broker is away for a while, workers that
        # are in the middle of a run must not be killed for it.
        # Nor is a program started for it, which a hundred workers would feel.
        readinessProbe:
          tcpSocket: {port: health}
          periodSeconds: 5
          timeoutSeconds: 5
          failureThreshold: 1
        ports:
          - {name: health, containerPort: 4005}
        resources:
          {{- toYaml .Values.workers.resources | nindent 10 }}
        volumeMounts:
          - {name: secrets, mountPath: /secrets, readOnly: true}
          - {name: scratch, mountPath: /scratch}
          - {name: tmp, mountPath: /tmp}
          {{- with .Values.workers.volumeMounts }}
          {{- toYaml . | nindent 10 }}
          {{- end }}
    volumes:
      {{- include "pestfleet.secrets" (dict "root" . "part" "worker") | nindent 6 }}
      - name: scratch
        emptyDir: {sizeLimit: {{ .Values.workers.scratch.size }}}
      - name: tmp
        emptyDir: {sizeLimit: {{ .Values.workers.tmp.size }}}
      {{- with .Values.workers.volumes }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
{{- end -}}

{{- define "pestfleet.names.workersJob" -}}
{{- include "pestfleet.jobName" (dict "root" . "name" (include "pestfleet.names.workers" .) "fixed" (include "pestfleet.workers.fixed" .)) -}}
{{- end -}}

{{- /*
How many workers: those that there are, where someone has scaled the fleet since and `workers.count`
is what it was; else `workers.count`.
*/ -}}
{{- define "pestfleet.workers.parallelism" -}}
{{- $wanted := int .Values.workers.count -}}
{{- $own := include "pestfleet.selector" (dict "root" . "role" "worker") | fromYaml -}}
{{- $live := list -}}
{{- if .Release.IsUpgrade -}}
{{- range (lookup "batch/v1" "Job" .Release.Namespace "").items | default list -}}
{{- $job := . -}}
{{- $ours := not .metadata.deletionTimestamp -}}
{{- range $label, $value := $own -}}
{{- if ne $value (dig "metadata" "labels" $label "" $job) }}{{ $ours = false }}{{ end -}}
{{- end -}}
{{- if and $ours (eq (dig "metadata" "annotations" "pestfleet.workers" "" $job) ($wanted | toString)) -}}
{{- $live = append $live (int .spec.parallelism) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $number := $wanted -}}
{{- if $live }}{{ $number = first $live }}{{ range $live }}{{ $number = max $number . }}{{ end }}{{ end -}}
{{- $number -}}
{{- end -}}
