{{- define "maskfleet.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 30 | trimSuffix "-" -}}
{{- end -}}

{{- define "maskfleet.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 34 | trimSuffix "-" -}}
{{- else if contains (include "maskfleet.name" .) .Release.Name -}}
{{- .Release.Name | trunc 34 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "maskfleet.name" .) | trunc 34 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* The labels by which a program's pods are selected.  Takes root, component and, for workers, pool. */}}
{{- define "maskfleet.selector" -}}
app.kubernetes.io/name: {{ include "maskfleet.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- with .pool }}
maskfleet/model: {{ . | quote }}
{{- end }}
{{- end -}}

{{- define "maskfleet.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "maskfleet.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{- end -}}

{{- define "maskfleet.image" -}}
{{- $image := index .root.Values.image .image -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $image.repository (default .root.Chart.AppVersion $image.tag) -}}
{{- end -}}
{{- end -}}

{{/* A setting's value as text.  Helm reads every number as a float, which would print 604800 as 6.048e+05. */}}
{{- define "maskfleet.text" -}}
{{- if kindIs "float64" . -}}
{{- if eq . (floor .) }}{{ printf "%d" (int64 .) }}{{ else }}{{ . }}{{ end -}}
{{- else if kindIs "slice" . -}}
{{- $parts := list -}}
{{- range . }}{{ $parts = append $parts (include "maskfleet.text" .) }}{{ end -}}
{{- join "," $parts -}}
{{- else -}}
{{- . -}}
{{- end -}}
{{- end -}}

{{- define "maskfleet.env.settings" -}}
{{- range $name, $value := . }}
{{- if not (kindIs "invalid" $value) }}
- name: MASKFLEET_{{ upper $name }}
  value: {{ include "maskfleet.text" $value | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The URL at which clients reach the API; empty if unknown. */}}
{{- define "maskfleet.publicUrl" -}}
{{- if .Values.publicUrl -}}
{{- .Values.publicUrl -}}
{{- else if .Values.ingress.enabled -}}
{{- printf "%s://%s" (ternary "https" "http" (ne .Values.ingress.tlsSecret "")) .Values.ingress.host -}}
{{- end -}}
{{- end -}}

{{/* The names under which other pods reach the API. */}}
{{- define "maskfleet.serviceNames" -}}
{{- $name := printf "%s-api" (include "maskfleet.fullname" .) -}}
{{- $inNamespace := printf "%s.%s" $name .Release.Namespace -}}
{{- list $name $inNamespace (printf "%s.svc" $inNamespace) (printf "%s.svc.cluster.local" $inNamespace) | join "," -}}
{{- end -}}

{{- define "maskfleet.trustedHosts" -}}
{{- $hosts := concat (splitList "," (include "maskfleet.serviceNames" .)) (list "localhost" "127.0.0.0/8" "::1") -}}
{{- with include "maskfleet.publicUrl" . -}}
{{- $hosts = append $hosts (regexReplaceAll ":[0-9]+$" (urlParse .).host "" | trimPrefix "[" | trimSuffix "]") -}}
{{- end -}}
{{- if .Values.ingress.enabled -}}
{{- $hosts = append $hosts .Values.ingress.host -}}
{{- end -}}
{{- concat $hosts .Values.api.trustedHosts | uniq | join "," -}}
{{- end -}}

{{/* A model's entry with what it inherits from workers, as YAML. */}}
{{- define "maskfleet.pool" -}}
{{- include "maskfleet.over" (dict "below" .root.Values.workers "above" (index .root.Values.models .pool)) -}}
{{- end -}}

{{/* "above" laid over "below": maps are merged, all else is replaced, also by false, 0 and "", which sprig's merge ignores. */}}
{{- define "maskfleet.over" -}}
{{- $result := deepCopy .below -}}
{{- range $key, $value := .above -}}
{{- $old := get $result $key -}}
{{- if and (kindIs "map" $value) (kindIs "map" $old) -}}
{{- $_ := set $result $key (include "maskfleet.over" (dict "below" $old "above" $value) | fromJson) -}}
{{- else -}}
{{- $_ := set $result $key $value -}}
{{- end -}}
{{- end -}}
{{- $result | toJson -}}
{{- end -}}

{{- define "maskfleet.defaultModel" -}}
{{- if .Values.defaultModel -}}
{{- if not (hasKey .Values.models .Values.defaultModel) -}}
{{- fail (printf "defaultModel: there is no %q under models." .Values.defaultModel) -}}
{{- end -}}
{{- .Values.defaultModel -}}
{{- else if eq (len .Values.models) 1 -}}
{{- first (keys .Values.models) -}}
{{- else -}}
{{- fail "defaultModel: there are several models; set it to the one of them that jobs get which name none." -}}
{{- end -}}
{{- end -}}

{{/* What every program is told: Redis, S3, and the settings that they share.  Takes root and program. */}}
{{- define "maskfleet.env.shared" -}}
{{- $v := .root.Values -}}
{{- $user := index $v.redis.users .program -}}
- name: REDIS_PASSWORD
  valueFrom:
    secretKeyRef: {name: {{ $v.redis.existingSecret | quote }}, key: {{ index $v.redis.keys .program | quote }}}
- name: MASKFLEET_REDIS_URL
  {{- if $v.redis.sentinels }}
  value: {{ printf "sentinel://%s:$(REDIS_PASSWORD)@%s/%s/%d" $user (join "," $v.redis.sentinels) $v.redis.primary (int $v.redis.database) | quote }}
  {{- else }}
  value: {{ printf "%s://%s:$(REDIS_PASSWORD)@%s:%d/%d" (ternary "rediss" "redis" $v.redis.tls) $user $v.redis.host (int $v.redis.port) (int $v.redis.database) | quote }}
  {{- end }}
{{- if and $v.redis.sentinels $v.redis.keys.sentinel }}
- name: MASKFLEET_REDIS_SENTINEL_PASSWORD
  valueFrom:
    secretKeyRef: {name: {{ $v.redis.existingSecret | quote }}, key: {{ $v.redis.keys.sentinel | quote }}}
{{- end }}
{{- if $v.redis.caSecret.name }}
- name: MASKFLEET_REDIS_CA
  value: /etc/maskfleet/redis-ca/ca.crt
{{- end }}
{{- with $v.s3.endpoint }}
- name: MASKFLEET_S3_ENDPOINT
  value: {{ . | quote }}
{{- end }}
{{- with $v.s3.publicEndpoint }}
- name: MASKFLEET_S3_PUBLIC_ENDPOINT
  value: {{ . | quote }}
{{- end }}
- name: MASKFLEET_S3_REGION
  value: {{ $v.s3.region | quote }}
- name: MASKFLEET_BUCKET
  value: {{ $v.s3.bucket | quote }}
{{- if $v.s3.existingSecret }}
- name: MASKFLEET_S3_ACCESS_KEY
  valueFrom:
    secretKeyRef: {name: {{ $v.s3.existingSecret | quote }}, key: {{ $v.s3.keys.accessKey | quote }}}
- name: MASKFLEET_S3_SECRET_KEY
  valueFrom:
    secretKeyRef: {name: {{ $v.s3.existingSecret | quote }}, key: {{ $v.s3.keys.secretKey | quote }}}
{{- end }}
{{- if $v.s3.caSecret.name }}
- name: AWS_CA_BUNDLE
  value: /etc/maskfleet/s3-ca/ca.crt
{{- end }}
{{- with include "maskfleet.publicUrl" .root }}
- name: MASKFLEET_PUBLIC_URL
  value: {{ . | quote }}
{{- end }}
{{- if ne .program "worker" }}
- name: MASKFLEET_MODEL
  value: {{ (index $v.models (include "maskfleet.defaultModel" .root)).model | quote }}
{{- end }}
{{- include "maskfleet.env.settings" $v.settings }}
# The root file system is read-only.
- name: HOME
  value: /tmp
- name: XDG_CACHE_HOME
  value: /tmp/.cache
{{- end -}}

{{/* A secret that is read if its key is set.  Takes root, setting and key. */}}
{{- define "maskfleet.env.secret" -}}
{{- if .key }}
- name: MASKFLEET_{{ upper .setting }}
  valueFrom:
    secretKeyRef: {name: {{ .root.Values.secrets.existingSecret | quote }}, key: {{ .key | quote }}}
{{- end }}
{{- end -}}

{{/* Both take root and of, the program's values. */}}
{{- define "maskfleet.volumes" -}}
- name: tmp
  emptyDir: {sizeLimit: 4Gi}
{{- with .root.Values.redis.caSecret }}
{{- if .name }}
- name: redis-ca
  secret: {secretName: {{ .name | quote }}, items: [{key: {{ .key | quote }}, path: ca.crt}]}
{{- end }}
{{- end }}
{{- with .root.Values.s3.caSecret }}
{{- if .name }}
- name: s3-ca
  secret: {secretName: {{ .name | quote }}, items: [{key: {{ .key | quote }}, path: ca.crt}]}
{{- end }}
{{- end }}
{{- with .of.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "maskfleet.mounts" -}}
- {name: tmp, mountPath: /tmp}
{{- if .root.Values.redis.caSecret.name }}
- {name: redis-ca, mountPath: /etc/maskfleet/redis-ca, readOnly: true}
{{- end }}
{{- if .root.Values.s3.caSecret.name }}
- {name: s3-ca, mountPath: /etc/maskfleet/s3-ca, readOnly: true}
{{- end }}
{{- with .of.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* What all pods have in common, beside their containers and volumes.  Takes root, of, component and pool. */}}
{{- define "maskfleet.pod" -}}
serviceAccountName: {{ include "maskfleet.fullname" .root }}-{{ .component }}
# Nothing here talks to Kubernetes.
automountServiceAccountToken: false
# A Service named maskfleet would otherwise set variables that begin with MASKFLEET_.
enableServiceLinks: false
# Its first process reaps what the programs' own children leave behind.
shareProcessNamespace: true
securityContext:
  runAsNonRoot: true
  {{- range $name := list "runAsUser" "runAsGroup" "fsGroup" }}
  {{- with index $.root.Values.securityContext $name }}
  {{ $name }}: {{ int64 . }}
  {{- end }}
  {{- end }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- with .of.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with .of.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .of.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .of.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .of.topologySpread }}
topologySpreadConstraints:
  {{- range . }}
  - topologyKey: {{ .topologyKey | quote }}
    maxSkew: {{ int (default 1 .maxSkew) }}
    whenUnsatisfiable: {{ default "ScheduleAnyway" .whenUnsatisfiable }}
    labelSelector:
      matchLabels: {{- include "maskfleet.selector" $ | nindent 8 }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* Labels and annotations of the pods.  Takes root, of, component, pool and, for pods with metrics, their port as scraped. */}}
{{- define "maskfleet.podMetadata" -}}
labels:
  {{- include "maskfleet.labels" . | nindent 2 }}
  {{- with .of.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- $annotations := deepCopy .of.podAnnotations }}
{{- if and .scraped .root.Values.metrics.scrapeAnnotations }}
{{- $annotations = merge $annotations (dict "prometheus.io/scrape" "true" "prometheus.io/port" (toString .scraped) "prometheus.io/path" "/metrics") }}
{{- end }}
{{- with $annotations }}
annotations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "maskfleet.container" -}}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end -}}
