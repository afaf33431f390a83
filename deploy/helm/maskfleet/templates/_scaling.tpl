{{/* A model's ScaledObject.  Takes root, of, component, pool and name. */}}
{{- define "maskfleet.scaledObject" }}
{{- $scaling := .root.Values.scaling }}
{{- $min := int .of.scaling.minReplicas }}
{{- if gt $min (int .of.scaling.maxReplicas) }}
{{- fail (printf "models.%s.scaling: minReplicas is above maxReplicas." .pool) }}
{{- end }}
---
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata:
  name: {{ .name }}
  labels: {{- include "maskfleet.labels" . | nindent 4 }}
spec:
  scaleTargetRef: {name: {{ .name }}}
  minReplicaCount: {{ $min }}
  maxReplicaCount: {{ int .of.scaling.maxReplicas }}
  pollingInterval: {{ int $scaling.pollingIntervalS }}
  cooldownPeriod: {{ int $scaling.cooldownS }}
  fallback:
    failureThreshold: {{ int $scaling.fallback.failureThreshold }}
    replicas: {{ kindIs "invalid" .of.scaling.fallbackReplicas | ternary $min (int .of.scaling.fallbackReplicas) }}
    behavior: {{ $scaling.fallback.behavior }}
  advanced:
    horizontalPodAutoscalerConfig:
      behavior:
        scaleUp: {{- include "maskfleet.behavior" (dict "of" $scaling.scaleUp "tolerance" $scaling.tolerance) | nindent 10 }}
        scaleDown: {{- include "maskfleet.behavior" (dict "of" $scaling.scaleDown "tolerance" $scaling.tolerance) | nindent 10 }}
  triggers:
    {{- if eq $scaling.trigger "metrics-api" }}
    # The number of workers that the queue needs, divided by those in a pod: the number of pods.
    - type: metrics-api
      metricType: AverageValue
      metadata:
        url: {{ include "maskfleet.scaleUrl" . | quote }}
        valueLocation: desired_workers
        targetValue: {{ int .of.slotsPerDevice | quote }}
        activationTargetValue: "0"
        authMode: bearer
      authenticationRef: {name: {{ include "maskfleet.fullname" .root }}-scaling}
    {{- else }}
    - type: prometheus
      metricType: AverageValue
      metadata:
        serverAddress: {{ $scaling.prometheus.serverAddress | quote }}
        query: {{ printf "max(maskfleet_desired_workers{model=%q})" (include "maskfleet.modelName" .of.model) | quote }}
        threshold: {{ int .of.slotsPerDevice | quote }}
        activationThreshold: "0"
        # Without data it is an error, which the fallback answers, not 0.
        ignoreNullValues: "false"
        {{- if $scaling.prometheus.existingSecret }}
        authModes: bearer
        {{- end }}
      {{- if $scaling.prometheus.existingSecret }}
      authenticationRef: {name: {{ include "maskfleet.fullname" .root }}-scaling}
      {{- end }}
    {{- end }}
{{- end }}

{{- define "maskfleet.behavior" -}}
stabilizationWindowSeconds: {{ int .of.stabilizationS }}
{{- if not (kindIs "invalid" .tolerance) }}
tolerance: {{ .tolerance | toString | quote }}
{{- end }}
policies: [{type: Pods, value: {{ int .of.pods }}, periodSeconds: {{ int .of.periodS }}}]
{{- end -}}

{{/* A model's name in the API: a hub id unchanged, a folder by its last part. */}}
{{- define "maskfleet.modelName" -}}
{{- if or (hasPrefix "/" .) (hasPrefix "." .) }}{{ . | trimSuffix "/" | base }}{{ else }}{{ . }}{{ end -}}
{{- end -}}

{{- define "maskfleet.scaleUrl" -}}
{{- $service := printf "%s-api.%s.svc" (include "maskfleet.fullname" .root) .root.Release.Namespace -}}
{{- printf "http://%s:%d/v1/fleet/model?name=%s" $service (int .root.Values.api.service.port) (include "maskfleet.modelName" .of.model | urlquery) -}}
{{- end -}}
