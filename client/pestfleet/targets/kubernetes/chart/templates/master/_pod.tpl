{{- /* What cannot be changed in the master's Job. */ -}}
{{- define "pestfleet.master.fixed" -}}
{{- $scope := dict "root" . "role" "master" "component" "master" -}}
{{- /*
Another master (8) is there for a moment where an upgrade puts a new Job in the place of one that
still ends; a Job of a fixed name waits for the end of a pod before it makes the next one.
*/ -}}
{{- $other := .Values.jobs.hashedNames | ternary (list) (list 8) -}}
podFailurePolicy:
  rules:
    # A master that is told to end by its machine leaves the session to the next one.
    - action: Ignore
      onPodConditions: [{type: DisruptionTarget, status: "True"}]
    - action: Ignore
      onExitCodes: {containerName: master, operator: In, values: [12]}
    # Usage, case, configuration, runs, channel, target: the same would come again. And the
    # session was stopped, or its hours are over.
    - action: FailJob
      onExitCodes:
        containerName: master
        operator: In
        values: {{ concat (list 2 3 4 5 6 7) $other (list 130) | toJson }}
template:
  metadata:
    labels:
      {{- include "pestfleet.podLabels" $scope | nindent 6 }}
    {{- with .Values.master.annotations }}
    annotations:
      {{- toYaml . | nindent 6 }}
    {{- end }}
  spec:
    restartPolicy: Never
    {{- if .Values.elastic.most }}
    # It has the right to scale the workers' Job.
    serviceAccountName: {{ include "pestfleet.names.master" . }}
    {{- end }}
    automountServiceAccountToken: {{ gt (int .Values.elastic.most) 0 }}
    enableServiceLinks: false
    terminationGracePeriodSeconds: {{ int .Values.master.terminationGracePeriodSeconds }}
    {{- include "pestfleet.podSecurity" . | nindent 4 }}
    {{- with include "pestfleet.scheduling" $scope | trim }}{{ nindent 4 . }}{{ end }}
    initContainers:
      - name: case
        image: {{ include "pestfleet.image" (dict "root" . "image" .Values.case.image) }}
        imagePullPolicy: {{ .Values.image.pullPolicy }}
        command: [cp, -r, "--preserve=mode,timestamps", /case, /input/]
        {{- include "pestfleet.containerSecurity" . | nindent 8 }}
        resources:
          {{- toYaml .Values.master.resources | nindent 10 }}
        volumeMounts:
          - {name: input, mountPath: /input}
    containers:
      - name: master
        image: {{ include "pestfleet.image" (dict "root" . "image" .Values.master.image) }}
        imagePullPolicy: {{ .Values.image.pullPolicy }}
        args:
          {{- toYaml (include "pestfleet.master.words" . | fromYamlArray) | nindent 10 }}
        {{- include "pestfleet.containerSecurity" . | nindent 8 }}
        env:
          - {name: PESTFLEET_BROKER_FILE, value: /secrets/broker-url}
          # Not in the arguments: another number is no reason for another pod.
          - name: PESTFLEET_WORKERS
            valueFrom: {configMapKeyRef: {name: {{ include "pestfleet.names.session" . }}, key: workers}}
          {{- if not .Values.session.launch }}
          - name: LAUNCH
            valueFrom: {configMapKeyRef: {name: {{ include "pestfleet.names.session" . }}, key: launch}}
          {{- end }}
          {{- with .Values.master.env }}
          {{- toYaml . | nindent 10 }}
          {{- end }}
        ports:
          - {name: relay, containerPort: 4004}
        readinessProbe:
          exec:
            command: [sh, -c, "test -n \"$(find /session -maxdepth 2 -name state.json -newermt '-30 seconds')\""]
          periodSeconds: 5
          timeoutSeconds: 5
        resources:
          {{- toYaml .Values.master.resources | nindent 10 }}
        volumeMounts:
          - {name: secrets, mountPath: /secrets, readOnly: true}
          - {name: input, mountPath: /input, readOnly: true}
          # A folder of the volume: its top may have a lost+found, or another owner.
          - {name: session, mountPath: /session, subPath: sessions}
          - {name: tmp, mountPath: /tmp}
          {{- with .Values.master.volumeMounts }}
          {{- toYaml . | nindent 10 }}
          {{- end }}
    volumes:
      {{- include "pestfleet.secrets" (dict "root" . "part" "master") | nindent 6 }}
      - name: input
        emptyDir: {sizeLimit: {{ .Values.workers.scratch.size }}}
      - name: session
        {{- if .Values.master.volume.enabled }}
        persistentVolumeClaim: {claimName: {{ include "pestfleet.names.claim" . }}}
        {{- else }}
        emptyDir: {sizeLimit: {{ .Values.master.volume.size }}}
        {{- end }}
      - name: tmp
        emptyDir: {sizeLimit: 512Mi}
      {{- with .Values.master.volumes }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
{{- end -}}

{{- /* The words of `pestfleet host`, as a YAML list. */ -}}
{{- define "pestfleet.master.words" -}}
{{- $engine := .Values.engine -}}
{{- $words := list "host" (.Values.case.file | empty | ternary "/input/case" (printf "/input/case/%s" .Values.case.file)) -}}
{{- $words = concat $words (list "--session" (include "pestfleet.session" .) "--launch" (.Values.session.launch | default "$(LAUNCH)")) -}}
{{- $words = append $words "--keep-workers" -}}
{{- with .Values.elastic.most }}
{{- $words = concat $words (list "--workers-job" (include "pestfleet.names.workersJob" $) "--most" (int . | toString) "--workers" (max 1 (int $.Values.workers.count) | toString)) -}}
{{- end }}
{{- $words = concat $words (list "--idle-minutes" (.Values.session.idleMinutes | toString)) -}}
{{- $words = concat $words (list "--max-hours" (.Values.session.hours | toString)) -}}
{{- $words = concat $words (list "--on" "kubernetes" "--engine" $engine.name "--mode" $engine.mode) -}}
{{- $words = concat $words (list "--slots" (int .Values.workers.slots | toString) "--threads" (int $engine.threads | toString)) -}}
{{- $words = concat $words (list "--deliveries" (int $engine.deliveries | toString)) -}}
{{- if $engine.timeLimit }}{{ $words = concat $words (list "--time-limit" ($engine.timeLimit | toString)) }}{{ end -}}
{{- $words = concat $words (list "--relay-port" "4004" "--advertise" (include "pestfleet.names.master" .)) -}}
{{- $words = concat $words ($engine.cache | empty | ternary (list "--no-cache") (list "--cache" $engine.cache)) -}}
{{- range $name, $value := $engine.options -}}
{{- if kindIs "float64" $value }}{{ if eq (floor $value) $value }}{{ $value = int64 $value }}{{ end }}{{ end -}}
{{- $words = concat $words (list "--option" (printf "%s=%v" $name $value)) -}}
{{- end -}}
{{- with $engine.args }}{{ $words = concat $words (list "--engine-args" .) }}{{ end -}}
{{- toYaml $words -}}
{{- end -}}
