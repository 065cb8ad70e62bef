{{- define "onerec.name" -}}
{{- $name := default .Release.Name .Values.nameOverride -}}
{{- if contains "onerec" $name }}{{ $name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-onerec" $name | trunc 50 | trimSuffix "-" }}{{ end -}}
{{- end }}

{{- define "onerec.image" -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end }}

{{- define "onerec.account" -}}
{{ default (include "onerec.name" .) .Values.serviceAccount.name }}
{{- end }}

{{- define "onerec.selector" -}}
app.kubernetes.io/name: onerec
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .service }}
{{- end }}

{{- define "onerec.labels" -}}
{{ include "onerec.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: onerec
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end }}

{{- /* The secrets that a service's pod has, as a JSON object of volume to secret: no pod has another's. */ -}}
{{- define "onerec.secrets" -}}
{{- $service := .service -}}
{{- $services := list "ingest" "sessionize" "filter" "snapshot" "train" "reward" "serve" "console" -}}
{{- $of := dict
  "kafka" (dict "secret" .root.Values.secrets.kafka "services" (concat $services (list "topics")))
  "http" (dict "secret" .root.Values.secrets.httpTokens "services" $services)
  "serve" (dict "secret" .root.Values.secrets.serveTokens "services" (list "serve" "console"))
  "console" (dict "secret" .root.Values.secrets.consoleTokens "services" (list "console"))
  "sign" (dict "secret" .root.Values.secrets.signKey "services" (list "train" "reward" "console"))
  "trust" (dict "secret" .root.Values.secrets.trustKeys "services" (list "train" "reward" "serve" "console")) -}}
{{- $out := dict -}}
{{- range $name, $s := $of }}{{ if and $s.secret (has $service $s.services) }}{{ $_ := set $out $name $s.secret }}{{ end }}{{ end -}}
{{ toJson $out }}
{{- end }}

{{- /* The pod of a process: .root, .service, .args, .resources, and .ports, .settings, .probes where there are any. */ -}}
{{- define "onerec.pod" -}}
serviceAccountName: {{ include "onerec.account" .root }}
automountServiceAccountToken: false
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  seccompProfile: {type: RuntimeDefault}
terminationGracePeriodSeconds: {{ .root.Values.terminationGracePeriodSeconds }}
{{- with .root.Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .root.Values.nodeSelector }}
nodeSelector: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.tolerations }}
tolerations: {{ toYaml . | nindent 2 }}
{{- end }}
{{- if and .root.Values.topologySpread.enabled .probes }}
topologySpreadConstraints:
  {{- range $key := list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: {{ $.root.Values.topologySpread.whenUnsatisfiable }}
    labelSelector: {matchLabels: {{ include "onerec.selector" $ | fromYaml | toJson }}}
  {{- end }}
{{- end }}
containers:
  - name: onerec
    image: {{ include "onerec.image" .root | quote }}
    imagePullPolicy: {{ .root.Values.image.pullPolicy }}
    args: {{ toJson .args }}
    env:
      - name: POD_NAME
        valueFrom: {fieldRef: {fieldPath: metadata.name}}
      - {name: ONEREC_CONFIG, value: /etc/onerec/settings/settings.yaml}
      - {name: ONEREC_LOG_FORMAT, value: json}
      {{- if .probes }}
      - {name: ONEREC_HTTP, value: ":9464"}
      {{- if .root.Values.secrets.httpTokens }}
      - {name: ONEREC_HTTP_TOKENS, value: /etc/onerec/http/tokens}
      {{- end }}
      {{- end }}
      {{- if has .service (list "ingest" "sessionize" "filter" "snapshot" "train" "reward") }}
      - {name: ONEREC_INSTANCE, value: $(POD_NAME)}
      {{- end }}
      {{- if and .root.Values.secrets.signKey (has .service (list "train" "reward" "console")) }}
      - {name: ONEREC_CHECKPOINT_SIGN_KEY, value: /etc/onerec/sign/sign.pem}
      {{- end }}
      - name: GOMEMLIMIT
        valueFrom: {resourceFieldRef: {resource: limits.memory}}
    {{- with .root.Values.secrets.environment }}
    envFrom: [{secretRef: {name: {{ . }}}}]
    {{- end }}
    {{- if .probes }}
    ports: {{ toJson (concat (list (dict "name" "admin" "containerPort" 9464)) (default (list) .ports)) }}
    startupProbe: {httpGet: {path: /healthz, port: admin}, periodSeconds: 2, failureThreshold: 60}
    livenessProbe: {httpGet: {path: /healthz, port: admin}, periodSeconds: 10, failureThreshold: 6}
    readinessProbe: {httpGet: {path: /readyz, port: admin}, periodSeconds: 5}
    {{- end }}
    resources: {{ toJson .resources }}
    securityContext:
      allowPrivilegeEscalation: false
      readOnlyRootFilesystem: true
      capabilities: {drop: [ALL]}
    volumeMounts:
      - {name: settings, mountPath: /etc/onerec/settings, readOnly: true}
      - {name: tmp, mountPath: /tmp}
      - {name: data, mountPath: /data}
      {{- range $name, $secret := include "onerec.secrets" . | fromJson }}
      - {name: {{ $name }}, mountPath: /etc/onerec/{{ $name }}, readOnly: true}
      {{- end }}
volumes:
  - {name: settings, configMap: {name: {{ include "onerec.name" .root }}}}
  - {name: tmp, emptyDir: {}}
  - {name: data, emptyDir: {}}
  {{- range $name, $secret := include "onerec.secrets" . | fromJson }}
  - {name: {{ $name }}, secret: {secretName: {{ $secret }}, defaultMode: 0440}}
  {{- end }}
{{- end }}
