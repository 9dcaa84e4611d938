{{/* KubeRay makes the names of services and pods from this one, and allows 53 characters; our suffixes are at most 11. */}}
{{- define "archipelago.name" -}}
{{- .Release.Name | trunc 42 | trimSuffix "-" -}}
{{- end }}

{{- define "archipelago.labels" -}}
app.kubernetes.io/name: archipelago
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* What tells our pods: `part` is head, island, launcher or autoscaler. Without the version, so that it never changes, and
     without app.kubernetes.io/name, which KubeRay gives its pods and has its own services select by. */}}
{{- define "archipelago.selector" -}}
app.kubernetes.io/part-of: archipelago
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .part }}
{{- end }}

{{- define "archipelago.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* The Secrets, generated or given. */}}
{{- define "archipelago.raySecret" -}}
{{ .Values.rayAuth.existingSecret | default (printf "%s-ray" (include "archipelago.name" .)) }}
{{- end }}
{{- define "archipelago.endpointSecret" -}}
{{ .Values.endpointKeys.existingSecret | default (printf "%s-endpoint" (include "archipelago.name" .)) }}
{{- end }}
{{- define "archipelago.controlSecret" -}}
{{ .Values.controlKeys.existingSecret | default (printf "%s-control" (include "archipelago.name" .)) }}
{{- end }}

{{/* The control API, for pods of the release. */}}
{{- define "archipelago.controlUrl" -}}
http://{{ include "archipelago.name" . }}-control.{{ .Release.Namespace }}.svc:{{ .Values.config.control.port }}
{{- end }}

{{/* The port of each model as deployments/config.py counts them, as JSON: endpoint.port and those after it, without
     control.port, one for each place in the list, whether the model there has a port of its own or not. */}}
{{- define "archipelago.ports" -}}
{{- $control := int .Values.config.control.port }}
{{- $ports := list }}
{{- $default := int .Values.config.endpoint.port }}
{{- range .Values.config.models }}
{{- $ports = append $ports (int (.port | default $default)) }}
{{- $default = add1 $default | int }}
{{- if eq $default $control }}{{ $default = add1 $default | int }}{{ end }}
{{- end }}
{{- toJson $ports }}
{{- end }}

{{/* What `archipelago serve` is given. */}}
{{- define "archipelago.config" -}}
{{- $keys := "/etc/archipelago/keys" }}
{{- $endpoint := dict "host" "0.0.0.0" "metrics_host" "0.0.0.0" }}
{{- if .Values.endpointKeys.enabled }}{{ $_ := set $endpoint "api_keys" (printf "%s/endpoint/keys.json" $keys) }}{{ end }}
{{- if .Values.tlsSecret }}
{{- $_ := set $endpoint "tls" (dict "certificate" "/etc/archipelago/tls/tls.crt" "key" "/etc/archipelago/tls/tls.key") }}
{{- end }}
{{- $control := dict "host" "0.0.0.0" "api_keys" (printf "%s/control/keys.json" $keys) }}
{{- $cluster := dict "kind" "ray" "address" "auto" }}
{{- if .Values.simulated.enabled }}
{{- with .Values.simulated }}
{{- $cluster = dict "kind" "simulated" "islands" .islands "gpus_per_island" .gpusPerIsland "gpu_memory_gib" .gpuMemoryGib }}
{{- end }}
{{- end }}
{{- $config := deepCopy .Values.config }}
{{- $_ := set $config "endpoint" (merge $endpoint $config.endpoint) }}
{{- $_ := set $config "control" (merge $control $config.control) }}
{{- toYaml (set $config "cluster" $cluster) }}
{{- end }}

{{/* What `archipelago autoscale` is given. */}}
{{- define "archipelago.autoscaler" -}}
{{- $own := dict "control" (dict "url" (include "archipelago.controlUrl" .)) "directory" "/var/lib/archipelago" }}
{{- $_ := set $own "metrics_host" "0.0.0.0" }}
{{- $_ := set $own "metrics_port" 9095 }}
{{- toYaml (merge $own (deepCopy .Values.autoscaler.settings)) }}
{{- end }}
