{{/* What every pod's spec begins with. */}}
{{- define "archipelago.pod" -}}
serviceAccountName: {{ include "archipelago.name" . }}
automountServiceAccountToken: false # nothing of ours asks Kubernetes for anything
securityContext:
  runAsNonRoot: true
  runAsUser: 1000 # the image's user `ray`, whose group is 100
  runAsGroup: 100
  fsGroup: 100
  fsGroupChangePolicy: OnRootMismatch # a model store may hold millions of files
  seccompProfile: { type: RuntimeDefault }
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{/* `where` is the head or one kind of island. */}}
{{- define "archipelago.where" -}}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "archipelago.container" -}}
image: {{ include "archipelago.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- end }}

{{- define "archipelago.confined" -}}
securityContext:
  allowPrivilegeEscalation: false
  capabilities:
    drop: [ALL]
    {{- if . }}
    add: [IPC_LOCK]
    {{- end }}
{{- end }}

{{/* Environment of every pod that runs Ray. */}}
{{- define "archipelago.env" -}}
- { name: HF_HOME, value: /models }
- { name: ARCHIPELAGO_CACHE, value: /models/archipelago }
- { name: ARCHIPELAGO_STATE_DIR, value: /tmp/archipelago }
{{- if .Values.compileCache.enabled }}
- { name: VLLM_CACHE_ROOT, value: /models/compiled/vllm }
- { name: TRITON_CACHE_DIR, value: /models/compiled/triton }
{{- end }}
# As on a machine of one's own (deployments/local_cluster.py): Ray gives its workers niceness 15, but here they serve.
- { name: RAY_worker_niceness, value: "0" }
- { name: RAY_USAGE_STATS_ENABLED, value: "0" }
- { name: VLLM_NO_USAGE_STATS, value: "1" }
- { name: RAY_SERVE_CONTROL_LOOP_INTERVAL_S, value: "0.5" }
{{- include "archipelago.huggingFace" . }}
{{- end }}

{{- define "archipelago.huggingFace" }}
{{- with .Values.huggingFaceSecret }}
- name: HF_TOKEN
  valueFrom: { secretKeyRef: { name: {{ . }}, key: token } }
{{- end }}
{{- end }}

{{- define "archipelago.modelStore" -}}
- name: models
  {{- with .Values.modelStore }}
  {{- if .existingClaim }}
  persistentVolumeClaim: { claimName: {{ .existingClaim }} }
  {{- else if .create.size }}
  persistentVolumeClaim: { claimName: {{ include "archipelago.name" $ }}-models }
  {{- else if .hostPath }}
  hostPath: { path: {{ .hostPath | quote }}, type: Directory }
  {{- else }}
  emptyDir: {}
  {{- end }}
  {{- end }}
{{- end }}

{{/* What `archipelago serve` and the ingresses read. Of the control keys only the hashes. */}}
{{- define "archipelago.keyVolumes" -}}
- name: control-keys
  secret: { secretName: {{ include "archipelago.controlSecret" . }}, items: [{ key: keys.json, path: keys.json }] }
{{- if .Values.endpointKeys.enabled }}
- name: endpoint-keys
  secret: { secretName: {{ include "archipelago.endpointSecret" . }}, items: [{ key: keys.json, path: keys.json }] }
{{- end }}
{{- with .Values.tlsSecret }}
- name: tls
  secret: { secretName: {{ . }} }
{{- end }}
{{- end }}
{{- define "archipelago.keyMounts" -}}
- { name: control-keys, mountPath: /etc/archipelago/keys/control, readOnly: true }
{{- if .Values.endpointKeys.enabled }}
- { name: endpoint-keys, mountPath: /etc/archipelago/keys/endpoint, readOnly: true }
{{- end }}
{{- if .Values.tlsSecret }}
- { name: tls, mountPath: /etc/archipelago/tls, readOnly: true }
{{- end }}
{{- end }}

{{/* An operator's way to the control API. */}}
{{- define "archipelago.controlEnv" -}}
- { name: ARCHIPELAGO_CONTROL_URL, value: {{ include "archipelago.controlUrl" . | quote }} }
- name: ARCHIPELAGO_CONTROL_TOKEN
  valueFrom: { secretKeyRef: { name: {{ include "archipelago.controlSecret" . }}, key: operate-key } }
{{- end }}
